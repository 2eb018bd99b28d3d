"""Runs that are killed, damaged, moved and doubled: nothing is lost, and nothing untrue is said."""

import csv
import json
import os
import pickle
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path, PureWindowsPath

import pytest
import torch
from conftest import small
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_cam_lib import fast, runs
from cifar_cam_lib import main as module
from cifar_cam_lib.drawn import draw_pictures
from cifar_cam_lib.main import cli, evaluate, resume, run
from cifar_cam_lib.runs import (
    RunStopped,
    checksum,
    is_finished,
    load_state,
    only_writer,
    read_record,
    save_state,
    states_of,
    write_json,
)
from cifar_cam_lib.settings import command_line
from cifar_cam_lib.training import load_model, save_weights

COMMAND = [sys.executable, "-m", "cifar_cam_lib"]


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def logged_steps(folder):
    events = EventAccumulator(str(folder / "tb")).Reload()
    epochs = [event.step for event in events.Scalars("loss/train")]
    return epochs, [event.step for event in events.Scalars("step/objective")]


def is_as_if_nothing_happened(folder, small_run):
    """Whether a resumed run has the weights, the rows and the log of one without interruption."""
    assert weights(folder) == weights(small_run.folder)
    assert is_finished(folder) and states_of(folder) == []
    rows = [list(csv.DictReader((f / "history.csv").open())) for f in (folder, small_run.folder)]
    without = [[row | {"seconds": ""} for row in table] for table in rows]
    assert without[0] == without[1] and len(without[0]) == 2
    assert logged_steps(folder) == ([1, 2], list(range(1, 25)))
    return True


class Killed(BaseException):
    """As if the process ended here: nothing of ours catches it."""


def killed_at(name, time_of_call, monkeypatch):
    """Let a function of the library end the process at its n-th call, before it does anything."""
    where = module if hasattr(module, name) else runs
    calls, right = [], getattr(where, name)

    def ends(*words, **options):
        calls.append(1)
        if len(calls) == time_of_call:
            raise Killed
        return right(*words, **options)

    monkeypatch.setattr(where, name, ends)


MOMENTS = [
    ("make_loaders", 1),  # nothing but the record is there
    ("begin", 1),
    ("save_state", 1),  # before state 0
    ("new_log", 1),
    ("show_augmented", 1),
    ("fit", 1),
    ("save_weights", 2),  # the first is that of the start
    ("log_epoch", 1),
    ("describe_epoch", 1),  # between the log and the terminal
    ("save_weights", 3),
    ("log_epoch", 2),
    ("describe_epoch", 2),
    ("plot_history", 1),
    ("evaluate_model", 1),
    ("write_json", 2),  # the metrics; the first is the record
]


@pytest.mark.parametrize("name, call", MOMENTS, ids=[f"{n} {c}" for n, c in MOMENTS])
def test_a_run_that_ends_at_any_moment_is_resumed(
    name, call, small_run, tmp_path, monkeypatch, no_figures, capsys
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_at(name, call, patch)
        with pytest.raises(Killed):
            run(small(out=folder))
    assert not is_finished(folder)
    assert cli(["evaluate", "--run", str(folder)]) == 3
    assert cli(["explain", "none.png", "--run", str(folder)]) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("is not finished: continue with" in line for line in said)
    assert cli(["resume", "--run", str(folder)]) == 0
    assert is_as_if_nothing_happened(folder, small_run)


def test_an_epoch_that_takes_long_is_not_lost(small_run, tmp_path, monkeypatch, no_figures):
    """A state after each step: kill after the fifth of twelve, then in the second epoch, too."""
    monkeypatch.setattr(runs, "MINUTES", 0)
    folder = tmp_path / "run"
    for done in (5, 17, None):
        with monkeypatch.context() as patch:
            begun = len(states_of(folder)) if folder.exists() else 0

            def save(folder, state, right=runs.save_state, done=done):
                right(folder, state)
                if len(state["history_steps"]) + len(state["steps"]) == done:
                    raise Killed

            patch.setattr(runs, "save_state", save)
            if done:
                with pytest.raises(Killed):
                    run(small(out=folder)) if not begun else resume(folder)
                state = load_state(folder)
                assert len(state["history_steps"]) + len(state["steps"]) == done
                assert len(states_of(folder)) == 2, "the last two are kept"
            else:
                resume(folder)
    assert is_as_if_nothing_happened(folder, small_run)
    assert [row["steps"] for row in read_record(folder)["resumed"]] == [5, 17]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed in its second epoch; copy it before you change it."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "save_figure", lambda figure, *rest: module.plt.close(figure))
        killed_at("save_weights", 3, patch)
        with pytest.raises(Killed):
            run(small(out=folder))
    assert len(states_of(folder)) == 2
    return folder


@pytest.fixture
def broken(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 7, 1000, 20_000, 100_000, -1, -30])
def test_one_changed_bit_is_noticed_and_the_state_before_is_used(
    place, broken, small_run, no_figures, capsys
):
    flip(states_of(broken)[-1], place)
    assert cli(["resume", "--run", str(broken)]) == 0
    assert "is damaged: the state before it is used" in capsys.readouterr().err
    assert is_as_if_nothing_happened(broken, small_run)


def test_two_damaged_states_end_in_one_line_that_leads_somewhere(broken, capsys):
    for path in states_of(broken):
        path.write_bytes(path.read_bytes()[:-100])
    assert cli(["resume", "--run", str(broken)]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "every state in" in last and "train again" in last and "resume --run" not in last
    assert cli(["resume", "--run", str(broken)]) == 3  # not anew, over what is left
    (line,) = capsys.readouterr().err.splitlines()
    assert line == last
    for path in broken.glob("checkpoint-*"):
        path.unlink()
    assert cli(["resume", "--run", str(broken)]) == 3


def test_a_run_of_an_older_version_is_neither_finished_nor_begun_anew(broken, capsys):
    """Its record didn't tell, and a single checkpoint.pt was there until the end."""
    record = read_record(broken)
    write_json(broken / "config.json", {k: v for k, v in record.items() if k != "finished"})
    assert is_finished(broken)
    for path in states_of(broken):
        path.rename(broken / "checkpoint.pt")
    before = weights(broken)
    for words in (["evaluate"], ["explain", "none.png"], ["resume"]):
        assert cli([*words, "--run", str(broken)]) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and "is not finished" in said[0] and "is not finished" in said[1]
    assert "is of an older version: train again elsewhere" in said[2]
    assert weights(broken) == before


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(
    broken, small_run, tmp_path, monkeypatch, capsys
):
    finished = shutil.copytree(small_run.folder, tmp_path / "finished")
    for folder in (broken, finished):
        (folder / ".lock").unlink()
        (folder / ".lock").mkdir()  # what can't be written, for root, too
    for name in ("evaluate_model", "fit"):
        monkeypatch.setattr(module, name, lambda *words: 1 / 0)
    for words in (["resume", "--run", str(broken)], ["evaluate", "--run", str(finished)]):
        assert cli(words) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert f"cannot write to the output folder {words[-1]} (" in line


def test_a_run_that_was_finished_meanwhile_is_left_alone(broken, small_run, monkeypatch):
    """Another process is done while this one loads its images; and the same from Python."""
    right = module.load_splits

    def slow(config):
        if not is_finished(broken):
            shutil.copytree(small_run.folder, broken, dirs_exist_ok=True)
        return right(config)

    with monkeypatch.context() as patch:
        patch.setattr(module, "load_splits", slow)
        with pytest.raises(OSError, match="is finished: look at it with cifar-cam evaluate"):
            resume(broken)
    with pytest.raises(OSError, match="is finished: look at it with cifar-cam evaluate"):
        run(small(), broken)
    assert weights(broken) == weights(small_run.folder)


def test_a_run_is_continued_with_its_own_settings_from_python_too(broken):
    before = weights(broken)
    with pytest.raises(OSError, match="config.json says epochs is 2, expected .* with: 4"):
        run(small(epochs=4), broken)
    assert weights(broken) == before


@pytest.mark.parametrize("lost", ["model.safetensors", "history.csv"])
def test_a_run_that_only_lacks_its_end_writes_all_of_it(lost, small_run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        killed_at("evaluate_model", 1, patch)
        with pytest.raises(Killed):
            run(small(out=folder))
    (folder / lost).unlink()
    resume(folder)
    assert is_as_if_nothing_happened(folder, small_run)


def test_a_run_is_finished_after_its_log_is_closed(small_run, tmp_path, monkeypatch, no_figures):
    """Else a log that can't be written stays cut, and nothing can be resumed."""
    from torch.utils.tensorboard import SummaryWriter

    folder, close = tmp_path / "run", SummaryWriter.close

    def full(self):
        close(self)
        raise OSError(27, "File too large")

    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "close", full)
        with pytest.raises(RunStopped, match="File too large.*continue with: cifar-cam resume"):
            run(small(out=folder))
    assert not is_finished(folder)
    resume(folder)
    assert is_as_if_nothing_happened(folder, small_run)


EDITS = [
    {"chosen": None},
    {"chosen": "x"},
    {"chosen": []},
    {"chosen": {"device": "x"}},
    {"chosen": {"device": []}},
    {"resumed": None},
    {"resumed": ["x"]},
    {"resumed": {"a": 1}},
    {"resumed": [{"chosen": {"precision": 16}}]},
    {"finished": "no"},
    {"finished": None},
    {"images": None},
    {"images": {}},
]
IMAGES = [
    {"class_names": []},
    {"class_names": ["a\nb", "c"]},
    {"image_size": 32.0},
    {"image_size": True},
    {"mean": ["0.5", "0.5", "0.5"]},
    {"mean": [True, 0, 0]},
    {"std": [0, 1, 1]},
    {"sha256": {"train": None}},
]


@pytest.mark.parametrize("command", ["resume", "evaluate", "explain none.png"])
def test_an_edited_record_is_one_line(command, broken, small_run, tmp_path, capsys):
    folder = broken if command == "resume" else shutil.copytree(small_run.folder, tmp_path / "done")
    record = read_record(folder)
    edits = [*EDITS, *({"images": record["images"] | edit} for edit in IMAGES)]
    for edit in edits:
        if command != "resume" and not edit.keys() & {"finished", "images"}:
            continue  # what only a run that continues reads
        write_json(folder / "config.json", record | edit)
        assert cli([*command.split(), "--run", str(folder)]) == 3, edit
        (line,) = capsys.readouterr().err.splitlines()
        assert "config.json is damaged (" in line, edit


def test_what_was_chosen_changes_no_other_setting(broken, small_run, no_figures):
    record = read_record(broken)
    chosen = record["chosen"] | {"epochs": 1, "learning_rate": 0.5}
    write_json(broken / "config.json", record | {"chosen": chosen})
    resume(broken)
    assert is_as_if_nothing_happened(broken, small_run)


def test_other_files_are_no_states(broken, small_run, no_figures):
    newest = states_of(broken)[-1]
    shutil.copy(newest, broken / newest.name.replace("00000", "backup"))
    (broken / "checkpoint-x.pt").mkdir()
    resume(broken)
    assert weights(broken) == weights(small_run.folder) and is_finished(broken)


@pytest.mark.parametrize("name", ["-run1", "a\nb", "it's mine"])
def test_names_of_folders_in_hints(name, tmp_path, monkeypatch, no_figures, capsys):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        killed_at("fit", 1, patch)
        with pytest.raises(Killed):
            run(small(out=Path(name)))
    command = runs.resume_command(Path(name))
    assert cli(shlex.split(command)[1:]) == 0
    assert cli(["resume", f"--run={name}"]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_hints_on_windows_have_the_quotes_that_its_terminals_know(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    folder = PureWindowsPath(r"C:\Users\Ann Lee\runs\001")
    command = runs.resume_command(folder, data_root=PureWindowsPath(r"D:\data"))
    quoted = r'"C:\Users\Ann Lee\runs\001"'
    assert command == rf"cifar-cam resume --run {quoted} --data-root D:\data"
    assert runs.as_typed(["a", "R&D", "it's"]) == 'a "R&D" "it\'s"'
    metrics = {"data": "drawn", "parameters": 1, "seconds": 2}
    last = runs.describe_metrics(metrics, folder).splitlines()[-1]
    assert last.endswith(r'tensorboard --logdir "C:\Users\Ann Lee\runs\001\tb"')


def test_a_folder_that_tensorboard_cannot_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"folder x\\xfcy \(TensorBoard wants a name in UTF-8\)"):
        run(small(out=Path(os.fsdecode(b"x\xfcy"))))
    assert list(tmp_path.iterdir()) == []


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("bomb",))


def test_no_state_runs_code(broken, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for content in (pickle.dumps(Bomb()), b"no zip"):
        (broken / f"checkpoint-999999-{checksum(content)}.pt").write_bytes(content)
        assert cli(["resume", "--run", str(broken)]) == 3
        assert "is not a state of a training" in capsys.readouterr().err
        states_of(broken)[-1].unlink()
    save_state(broken, {"state": Bomb()})
    assert cli(["resume", "--run", str(broken)]) == 3 and not Path("bomb").exists()


CHANGES = {
    "learning_rate": 0.1,
    "weight_decay": 0.5,
    "batch_size": 30,
    "schedule": "constant",
    "optimizer": "sgd",
    "epochs": 3,
    "seed": 7,
    "label_smoothing": 0.3,
}


@pytest.mark.parametrize("name", CHANGES)
def test_settings_that_were_changed_since_are_refused_and_named(name, broken, capsys):
    record = read_record(broken)
    record["settings"][name] = CHANGES[name]
    write_json(broken / "config.json", record)
    assert cli(["resume", "--run", str(broken)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert f"config.json says {name} is {CHANGES[name]}, expected" in line


def test_a_folder_has_one_writer(broken, small_run, tmp_path, capsys):
    finished = shutil.copytree(small_run.folder, tmp_path / "finished")
    with only_writer(broken), only_writer(finished):
        for words in (["resume", "--run", str(broken)], ["evaluate", "--run", str(finished)]):
            assert cli(words) == 3
            (line,) = capsys.readouterr().err.splitlines()
            assert "another process is writing to" in line
    assert not (finished / "evaluation.json").exists()


@pytest.mark.parametrize("names", [["figures", "tb", ".lock"], ["history.csv", "tb"]])
def test_a_run_travels(names, stopped, tmp_path, small_run, no_figures):
    """Zipped or cloned: empty folders are lost, and what isn't needed may be."""
    there = shutil.copytree(stopped, tmp_path / "another machine")
    for name in names:
        shutil.rmtree(there / name, ignore_errors=True)
        (there / name).unlink(missing_ok=True)
    resume(there)
    assert is_as_if_nothing_happened(there, small_run)


def test_figures_find_their_folder(small_run, tmp_path):
    there = shutil.copytree(small_run.folder, tmp_path / "there")
    shutil.rmtree(there / "figures")
    evaluate(there)
    assert (there / "figures" / "mistakes.png").exists()


def test_what_auto_chose_is_kept(tmp_path, monkeypatch, no_figures, capsys):
    """A run that began with 16 bits goes on so, unless its owner says otherwise."""
    config, folder = small(precision="auto", epochs=1, out=tmp_path / "run"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(fast, "cpu_abilities", lambda: {"avx512_bf16": True})
        killed_at("fit", 1, patch)
        with pytest.raises(Killed):
            run(config)
    assert read_record(folder)["chosen"] == {"device": "cpu", "precision": "bfloat16"}
    monkeypatch.setattr(fast, "cpu_abilities", lambda: {"architecture": "x86_64"})
    for precision, kept, said in (
        (None, "bfloat16", True),
        ("float32", "float32", False),
        (None, "float32", False),
    ):
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(
                module, "fit", lambda training, *rest, seen=seen: seen.append(training) or 1 / 0
            )
            with pytest.raises(RunStopped):
                resume(folder, precision=precision)
        assert seen[0].precision is getattr(torch, kept)
        assert read_record(folder)["resumed"][-1]["chosen"]["precision"] == kept
        message = f"only imitates bfloat16, many times slower; for float32 press Ctrl-C, then: {runs.resume_command(folder)} --precision float32"  # noqa: E501
        assert (message in capsys.readouterr().err) is said


def test_the_end_of_a_run_says_how_to_go_on(tmp_path, monkeypatch, no_figures, capsys):
    folder = tmp_path / "my run"
    with monkeypatch.context() as patch:
        patch.setattr(module, "plot_history", lambda history: 1 / 0)
        with pytest.raises(RunStopped) as caught:
            run(small(out=folder, data_root=tmp_path))
    assert "continue with" not in str(caught.value), "dividing by zero would happen again"
    for number, name, code in (
        (None, "Ctrl-C", 130),
        (signal.SIGTERM, "SIGTERM", 143),
        (signal.SIGHUP, "SIGHUP", 129),
    ):

        def interrupt(*words, number=number):
            raise KeyboardInterrupt(*([number] if number else []))

        with monkeypatch.context() as patch:
            patch.setattr(module, "plot_history", interrupt)
            words = ["resume", "--run", str(folder), "--data-root", str(tmp_path)]
            capsys.readouterr()
            assert cli(words) == code
        (line,) = capsys.readouterr().err.splitlines()
        command = f"cifar-cam resume --run '{folder}' --data-root {tmp_path}"
        assert line == f"cifar-cam: stopped by {name}; continue with: {command}"
    assert cli(words) == 0


def test_the_log_is_quiet_about_a_full_disk(tmp_path, no_figures, capsys, monkeypatch):
    """TensorBoard's thread would print a page."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(self, data):
        raise OSError(28, "No space left on device")

    before = threading.excepthook
    monkeypatch.setattr(RecordWriter, "write", full)
    words = command_line(small(out=None)).split()[1:]
    assert cli([*words, "--out", str(tmp_path / "run")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in line and "continue with: cifar-cam resume" in line
    assert threading.excepthook is before


def test_saved_first_printed_afterwards(small_run, tmp_path, monkeypatch, no_figures):
    """A terminal that is lost ends a run in Python, and costs nothing."""
    folder = tmp_path / "run"

    def lost(row):
        raise OSError(32, "Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr(module, "describe_epoch", lost)
        for epoch in (1, 2):
            with pytest.raises(RunStopped, match="Broken pipe"):
                run(small(out=folder)) if epoch == 1 else resume(folder)
            assert len(load_state(folder)["epochs"]) == epoch
    resume(folder)
    assert is_as_if_nothing_happened(folder, small_run)


def test_weights_that_are_no_numbers_are_refused(small_run, tmp_path, capsys):
    folder = shutil.copytree(small_run.folder, tmp_path / "run")
    for wrong in (float("nan"), float("inf")):
        model = load_model(small_run.folder / "model.safetensors")
        with torch.no_grad():
            model.layer2[0].conv1.weight[0, 0, 0, 0] = wrong
        save_weights(model, folder / "model.safetensors")
        assert cli(["evaluate", "--run", str(folder)]) == 3
        assert "numbers that aren't finite" in capsys.readouterr().err


# Real processes


def listening():
    """Have the signals of a new process as in a terminal, whatever started the tests."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def process(words, folder, **changes):
    environment = os.environ | {"MPLBACKEND": "agg", "TQDM_DISABLE": "1"} | changes
    return subprocess.Popen(
        [*COMMAND, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listening,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A folder of twelve pictures, because drawing thousands takes most of a short run's time."""
    folder = tmp_path_factory.mktemp("few")
    images, labels, _ = draw_pictures(60, "test")
    for number, (image, label) in enumerate(zip(images, labels)):
        if label < 2:
            (folder / str(label)).mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / str(label) / f"{number}.png")
    return folder


def tiny(few, out, **changes):
    """The words of a run of ten steps an epoch."""
    settings = {"start": "random", "width": 4, "batch-size": 1, "epochs": 2, "device": "cpu"}
    words = [[f"--{name}", str(value)] for name, value in (settings | changes).items()]
    return ["train", "--data-folder", str(few), "--out", str(out), *sum(words, [])]


AGAIN = """
import gc, resource, sys, threading
from pathlib import Path
from cifar_cam_lib import main
main.runs.save_figure = lambda figure, *rest: main.plt.close(figure)
def again(*numbers):
    for number in numbers:
        assert main.cli([*sys.argv[1:], "--out", f"run{number}"]) == 0
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
again(1, 2, 3)
threads, before = threading.active_count(), again(4)
after = again(5, 6, 7, 8, 9, 10)
print((after - before) // 6, threading.active_count() - threads, len(main.plt.get_fignums()))
"""


def test_runs_in_one_process_leave_nothing_in_memory(few, tmp_path):
    """Nor a thread or a figure; a megabyte a run is noise. Alone, or other tests would count."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("the size of a process is read from /proc")
    words = [word for word in tiny(few, "run", epochs=1) if word not in ("--out", "run")]
    result = subprocess.run(
        [sys.executable, "-c", AGAIN, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    grown, threads, figures = map(int, result.stdout.splitlines()[-1].split())
    assert grown < 2_000_000 and threads == figures == 0, grown


def wait_for(started, condition):
    """Wait until something is so, or the process has ended."""
    while not condition() and started.poll() is None:
        time.sleep(0.005)
    assert condition(), started.communicate()


def test_five_kills_of_real_processes(few, tmp_path):
    """With a state after every step; killed and resumed four times, then to its end."""
    folder, reference = tmp_path / "run", tmp_path / "reference"
    resumes = ["resume", "--run", str(folder), "--data-folder", str(few)]
    for number in range(5):
        words = tiny(few, folder) if not number else resumes
        known = {path.name for path in states_of(folder)} if number else set()
        started = process(words, tmp_path, CIFAR_CAM_MINUTES="0.00001")
        wait_for(started, lambda known=known: {p.name for p in states_of(folder)} - known)
        started.kill()
        started.wait()
        assert not is_finished(folder)
    assert cli(resumes) == cli(tiny(few, reference)) == 0
    assert weights(folder) == weights(reference) and is_finished(folder)
    assert logged_steps(folder) == logged_steps(reference)
    assert len(read_record(folder)["resumed"]) == 5


@pytest.mark.parametrize("number, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_in_the_middle_and_a_second_one(number, code, few, tmp_path):
    folder = tmp_path / "run"
    words = [*tiny(few, folder, epochs=500), "--pipeline", "per-image", "--workers", "2"]
    started = process(words, tmp_path)
    wait_for(started, lambda: len(states_of(folder)) == 2)
    for _ in range(3):  # impatience; a terminal tells all processes of the group
        os.killpg(started.pid, getattr(signal, number))
        time.sleep(0.01)
    _, error = started.communicate()
    (line,) = error.splitlines()
    assert started.returncode == code
    assert line.endswith(f"; continue with: cifar-cam resume --run {folder} --data-folder {few}")
    assert not is_finished(folder) and load_state(folder)["epochs"]


EARLY = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == {name!r}:
            os.kill(os.getpid(), signal.{number})
sys.meta_path.insert(0, Finder())
sys.argv = ["cifar-cam", "train", "--out", "run"]
from cifar_cam_lib.__main__ import start
start()
"""


@pytest.mark.parametrize("name", ["cifar_cam_lib.settings", "torch"])
@pytest.mark.parametrize("number, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_before_anything_is_loaded(name, number, code, tmp_path):
    source = EARLY.format(name=name, number=number)
    result = subprocess.run(
        [sys.executable, "-c", source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=listening,
    )
    assert result.returncode == code and len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_was_switched_off_stays_off(few, tmp_path):
    """As `nohup` does, so that a run goes on if its terminal is closed."""
    started = subprocess.Popen(
        [*COMMAND, *tiny(few, tmp_path / "run")],
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(started, lambda: states_of(tmp_path / "run"))
    started.send_signal(signal.SIGHUP)
    assert started.wait() == 0 and is_finished(tmp_path / "run")


@pytest.mark.parametrize("kind", ["closed pipe", "full", "closed", "no stderr"])
def test_a_lost_output_stops_nothing(kind, few, tmp_path):
    folder = tmp_path / "run"
    command, quiet = [*COMMAND, *tiny(few, folder)], {"stderr": subprocess.PIPE, "text": True}
    if kind == "closed pipe":
        reading, writing = os.pipe()
        os.close(reading)
        result = subprocess.run(command, stdout=writing, **quiet)
        os.close(writing)
    elif kind == "full":
        if not os.path.exists("/dev/full"):
            pytest.skip("there is no /dev/full here")
        with open("/dev/full", "w") as full:
            result = subprocess.run(command, stdout=full, **quiet)
    else:
        closed = ">&-" if kind == "closed" else "2>&-"
        result = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *command], **quiet)
    assert result.returncode == 0, result.stderr
    assert len(result.stderr.splitlines()) == (kind in ("closed pipe", "full"))
    assert is_finished(folder) and (folder / "metrics.json").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "utf-8"])
def test_any_name_in_any_encoding(encoding, tmp_path):
    Image.new("RGB", (40, 40), (90, 120, 200)).save(tmp_path / "a.png")
    strange = os.fsdecode(b"K\xfc he \xf0\x9f\x90\x84\n\x1b[31m.png")  # no UTF-8, a line, a colour
    (tmp_path / "a.png").rename(tmp_path / strange)
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for words, code in ((["explain", strange], 0), (["explain", strange + "none"], 3)):
        result = subprocess.run(
            [*COMMAND, *words], cwd=tmp_path, env=environment, capture_output=True
        )
        assert result.returncode == code, result.stderr
        assert b"\x1b" not in result.stdout + result.stderr
        assert len(result.stderr.splitlines()) == (code != 0)
        assert len(result.stdout.splitlines()) == (2 if code == 0 else 0)


def test_a_record_is_json_for_everybody(small_run):
    assert json.loads((small_run.folder / "config.json").read_text())["finished"] is True
