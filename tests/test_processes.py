"""Two processes train one network: the same steps as one, the same answers, and one may die."""

import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cifar_cam_lib import processes, runs, settings
from cifar_cam_lib.data import EpochSampler
from cifar_cam_lib.main import cli, evaluate, run
from cifar_cam_lib.runs import (
    LOST,
    RunStopped,
    is_finished,
    read_json,
    report_error,
    resume_command,
    states_of,
)
from cifar_cam_lib.settings import Config, parse
from cifar_cam_lib.training import load_model

# Plain SGD, twenty steps, of which the last of each epoch has nine images: five and four
SETTINGS = {
    "data": "drawn",
    "train_size": 130,
    "validation_size": 31,
    "width": 8,
    "epochs": 2,
    "batch_size": 10,
    "optimizer": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "learning_rate": 0.0005,
    "label_smoothing": 0.1,
    "l1_factor": 0.0005,
    "seed": 1,
    "device": "cpu",
}
PROGRAM = """
import json, os, signal, sys
import torch
from cifar_cam_lib import main, training
from cifar_cam_lib.settings import Config

settings, deadly = json.loads(sys.argv[1]), int(sys.argv[2])
right, calls = training.Step.of_all, []

def of_all(step):
    calls.append(1)
    if len(calls) == deadly and os.environ["RANK"] == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return right(step)

training.Step.of_all = of_all
for name in ("show_augmented", "draw_network", "plot_history", "plot_confusion_matrix"):
    setattr(main, name, lambda *words: main.plt.figure())  # pictures nobody looks at
main.show_mistakes = lambda *words: main.plt.figure()
main.explain_mistakes = lambda *words: ({}, [])
try:
    result = main.run(Config(**settings))
except main.runs.RunStopped as error:
    sys.exit(main.runs.report_error(error))
main.evaluate(settings["out"])
again = main.evaluate("one")
if result:
    steps = [tuple(step) for step in result.history.steps]
    rows = result.history.epochs
    torch.save({"steps": steps, "rows": rows, "logits": again.logits}, "two.pt")
assert (result is None) == (again is None) == (os.environ["RANK"] == "1")
"""
ALONE = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}


def together(folder, *words):
    """What two processes that torchrun starts say, and its exit code."""
    environment = {name: value for name, value in os.environ.items() if name not in ALONE}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *words],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def said_by_us(finished):
    return [line for line in finished.stderr.splitlines() if line.startswith("cifar-cam: ")]


def program(folder, out, deadly=0, victim=1):
    """Train the run `out`, where the victim dies at its step `deadly`; look again at `one`."""
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    words = json.dumps(SETTINGS | {"out": out}), str(deadly), str(victim)
    return together(folder, "program.py", *words)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process, in its folder `one`."""
    return run(Config(**SETTINGS, out=tmp_path_factory.mktemp("processes") / "one"))


@pytest.fixture(scope="module")
def two(one):
    """The same by two, and what they see when they look again at the run of one."""
    folder = one.folder.parent
    finished = program(folder, "two")
    assert finished.returncode == 0, finished.stderr
    return torch.load(folder / "two.pt", weights_only=True)


def far(steps, others):
    """The largest difference of an objective and of a mean loss."""
    assert len(steps) == len(others) == 20
    return max(
        max(abs(a[0] - b[0]), abs(a[2] / a[4] - b[2] / b[4]))
        for a, b in zip(steps, others, strict=True)
    )


def test_two_processes_take_the_same_steps_as_one(one, two):
    assert far(one.history.steps, two["steps"]) < 1e-5
    assert [step[3:] for step in two["steps"]] == [tuple(s)[3:] for s in one.history.steps]
    assert [step[4] for step in two["steps"]] == 2 * (9 * [10] + [9])
    ours = load_model(one.folder.parent / "two" / "model.safetensors").state_dict()
    for name, weight in one.model.state_dict().items():
        assert torch.allclose(weight, ours[name], atol=1e-5), name


def test_two_processes_see_each_validation_and_test_image_once(one, two):
    for row, ours in zip(one.history.epochs, two["rows"], strict=True):
        assert row["validation_accuracy"] == ours["validation_accuracy"]
        assert row["validation_loss"] == pytest.approx(ours["validation_loss"], abs=1e-5)
    again = evaluate(one.folder)
    assert torch.equal(again.logits.argmax(1), two["logits"].argmax(1))
    assert torch.allclose(again.logits, two["logits"], atol=1e-5)


def test_the_first_process_alone_writes_and_says_how_many_there_were(one, two):
    folders = (one.folder, one.folder.parent / "two")
    names = ("config.json", "metrics.json", "history.csv", "model.safetensors")
    assert all((folder / name).is_file() for folder in folders for name in names)
    assert [read_json(f / "config.json")["processes"] for f in folders] == [1, 2]
    assert len(list((folders[1] / "tb").iterdir())) == 1


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_and_the_run_is_resumed(
    one, victim, tmp_path, no_figures
):
    """By one process, if the second died; by two, if the first did."""
    folder = one.folder.parent / f"killed-{victim}"
    finished = program(one.folder.parent, folder.name, 14, victim)
    assert finished.returncode == 1
    (line,) = said_by_us(finished)
    name = folder.name if victim else "FOLDER"  # which the first alone knows
    assert LOST in line
    assert f"torchrun --nproc-per-node 2 -m -- cifar_cam_lib resume --run {name}" in line
    assert not is_finished(folder) and len(states_of(folder)) == 2
    if victim:
        assert cli(["resume", "--run", str(folder)]) == 0
    else:  # as the line says
        words = shlex.split(line.partition("continue the run with: ")[2].replace(name, str(folder)))
        finished = together(tmp_path, *words[words.index("-m") :])
        assert finished.returncode == 0, finished.stderr
    ours = load_model(folder / "model.safetensors").state_dict()
    for name, weight in one.model.state_dict().items():
        assert torch.allclose(weight, ours[name], atol=1e-5), name
    assert [again["steps"] for again in read_json(folder / "config.json")["resumed"]] == [10]


def test_a_wrong_word_is_said_once(tmp_path):
    finished = together(tmp_path, "-m", "cifar_cam_lib", "train", "--epochs", "0")
    assert finished.returncode == 1
    assert finished.stderr.count("greater than or equal to 1") == 1


def test_a_setting_that_two_cannot_share_is_said_once_before_anything_is_written(tmp_path):
    words = ["train", "--batch-size", "33", "--train-size", "200", "--validation-size", "9"]
    finished = together(tmp_path, "-m", "cifar_cam_lib", *words, "--device", "cpu")
    assert finished.returncode == 1 and list(tmp_path.iterdir()) == []
    assert said_by_us(finished) == [
        "cifar-cam: batch-size is 33, expected a multiple of 2 processes"
    ]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("done", [0, 30, 60])
def test_the_shares_of_all_processes_are_the_batches_of_one(count, done):
    """For any number, also when an epoch is continued."""
    sampler = EpochSampler(67, seed=3)
    sampler.set_epoch(2)
    sampler.start = done
    whole = [index for _, index in sampler]
    shares = []
    for first in range(count):
        sampler.shard = slice(first, None, count)
        share = [index for _, index in sampler]
        shares.append(
            [set(share[at : at + 30 // count]) for at in range(0, len(share), 30 // count)]
        )
    joined = [set().union(*batches) for batches in zip(*shares, strict=True)]
    assert joined == [set(whole[at : at + 30]) for at in range(0, len(whole), 30)]
    assert len({frozenset(share[0]) for share in shares}) == count


@pytest.mark.parametrize("images, wrong", [(90, False), (91, True), (92, False), (94, False)])
def test_nobody_is_left_without_an_image(images, wrong, monkeypatch):
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    if wrong:
        with pytest.raises(ValueError, match="the last batch of an epoch has 1 image for 2 proc"):
            processes.share_of_batch(10, images)
    else:
        assert processes.share_of_batch(10, images) == 5


def test_each_process_needs_a_gpu_of_its_own(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ValueError, match="process 1 has no GPU of its own, because there are 1"),
        processes.process_group(torch.device("cuda")),
    ):
        pass


@pytest.fixture
def follower(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    for module in (runs, settings):
        monkeypatch.setattr(module, "PATIENCE", 0)


def test_another_process_than_the_first_speaks_only_if_it_has_to(follower, capsys):
    with pytest.raises(SystemExit):
        parse(["train", "--epochs", "0"])
    assert report_error(KeyboardInterrupt(15)) == 143
    assert capsys.readouterr() == ("", "")
    assert report_error(RunStopped("out of memory")) == 4
    assert capsys.readouterr().err == "cifar-cam: process 1: out of memory\n"


def test_what_has_one_answer_wants_one_process(follower, capsys):
    assert cli(["explain", "cat.png"]) == cli(["data", "--no-download"]) == 2
    assert capsys.readouterr().err.count("need one process: call them without torchrun") == 2


def test_the_hint_names_the_starter(follower, tmp_path):
    assert resume_command(tmp_path).startswith(
        "torchrun --nproc-per-node 2 -m -- cifar_cam_lib resume"
    )


def test_a_loss_that_is_not_shared_is_passed_on(monkeypatch):
    """With one process nothing is changed, so its numbers can't be."""
    assert processes.share_loss(nn.functional.cross_entropy) is nn.functional.cross_entropy
    assert processes.merge(rows := torch.ones(3), None) is rows


def test_a_loss_that_is_not_finite_stops_every_process_in_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    store = torch.distributed.HashStore()
    monkeypatch.setattr(processes, "rendezvous", lambda address: iter([(store, 0, 1)]))
    with (
        pytest.raises(RunStopped, match=r"^the loss is nan at step 3 of the epoch$"),
        processes.process_group(torch.device("cpu")),
    ):
        raise FloatingPointError("the loss is nan at step 3 of the epoch")
    assert processes.world_size() == 1


def test_a_loader_that_would_show_everybody_everything_is_refused():
    theirs = DataLoader(TensorDataset(torch.zeros(12, 3)), 4, shuffle=True)
    with pytest.raises(ValueError, match="only a loader from make_loader"):
        processes.share_images(theirs)


@pytest.mark.parametrize("words", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": ""}, {"RANK": "1"}])
def test_what_else_sets_a_variable_of_that_name_changes_nothing(words, monkeypatch):
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    assert not runs.started_with_others() and not runs.is_follower()
    with processes.process_group(torch.device("cpu")):
        assert processes.world_size() == 1


def test_only_the_first_process_looks_for_a_state(follower, one):
    assert runs.load_state(one.folder) is None


def test_a_finished_run_is_evaluated_whatever_its_batches_were(monkeypatch, one):
    """Two can't share batches of 33, but nothing is trained any more."""
    monkeypatch.setattr(processes, "share_of_batch", lambda *numbers: 1 / 0)
    assert evaluate(one.folder).accuracy == one.test.accuracy
