"""The main job: its files, its repeatability, its commands, and one clear line for every fault."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_cam_lib import main as module
from cifar_cam_lib.data import CIFAR10
from cifar_cam_lib.main import PRESETS, Config, RunStopped, cli, evaluate, run
from cifar_cam_lib.model import resnet18
from cifar_cam_lib.training import SHIPPED_SHA256, load_model, save_weights

FIGURES = {"augmented", "curves", "network", "confusion_matrix", "mistakes", "gradcam_1", "gradcam_2", "gradcam_3", "gradcam_4"}


@pytest.fixture
def no_figures(monkeypatch):
    "Half of the time of a small run goes into its figures."
    monkeypatch.setattr(module, "save_figure", lambda figure, *rest: module.plt.close(figure))


def sha256(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_leaves_its_files(small_run):
    folder = small_run.folder
    assert {path.stem for path in (folder / "figures").glob("*.png")} == FIGURES
    metrics, config = (json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "config"))
    assert metrics["data"] == "drawn" and metrics["parameters"] == sum(p.numel() for p in small_run.model.parameters())
    assert 0 <= metrics["test"]["accuracy"] <= 1 and {"train", "validation", "test", "seconds"} <= metrics.keys()
    assert config["settings"]["width"] == 4 and config["versions"]["torch"] == torch.__version__ and config["threads"] >= 1
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"] and float(rows[1]["train_loss"]) == small_run.history.epochs[1]["train_loss"]
    assert not (folder / "checkpoint.pt").exists() and not list(folder.glob("*.part"))
    assert str(folder.parent) not in (folder / "config.json").read_text()


def test_tensorboard_holds_scalars_graph_and_figures(small_run):
    events = EventAccumulator(str(small_run.folder / "tb")).Reload()
    tags = events.Tags()
    assert {"loss/train", "loss/validation", "accuracy/train", "accuracy/validation", "step/learning_rate", "step/objective"} <= set(tags["scalars"])
    assert {"augmented", "mistakes", "gradcam_1"} <= set(tags["images"]) and tags["graph"]
    assert len(events.Scalars("step/objective")) == len(small_run.history.steps) == 24


def test_the_same_seed_gives_the_same_weights_whatever_the_workers(small_run, tmp_path, no_figures):
    again = run(replace(SMALL, workers=2, out=tmp_path / "again"))
    other = run(replace(SMALL, seed=1, out=tmp_path / "other"))
    assert sha256(again.folder) == sha256(small_run.folder) != sha256(other.folder)


def test_the_batched_pipeline_with_muon_repeats_and_is_evaluated_again(tmp_path, no_figures):
    config = replace(SMALL, pipeline="batched", alternate_flip=True, optimizer="muon", learning_rate=0.02, cutout_size=8, rotate_degrees=5)
    one, two = run(replace(config, out=tmp_path / "one")), run(replace(config, out=tmp_path / "two"))
    assert sha256(one.folder) == sha256(two.folder) and torch.equal(one.test.logits, two.test.logits)
    assert torch.equal(evaluate(one.folder).logits, one.test.logits)
    assert "--pipeline batched" in json.loads((one.folder / "config.json").read_text())["command"]


def test_settings_that_do_not_go_together(capsys):
    for words in (["--pipeline", "batched", "--workers", "2"], ["--alternate-flip"], ["--alternate-flip", "--no-flip", "--pipeline", "batched"]):
        assert cli(["train", *words]) == 2 and ("workers" if "--workers" in words else "alternate-flip") in capsys.readouterr().err


def test_a_run_can_start_from_the_network_that_ships(tmp_path, monkeypatch, no_figures):
    monkeypatch.setitem(module.SHIPPED_PRESET, "drawn", "tiny")
    monkeypatch.setitem(PRESETS, "tiny", SMALL)
    config = replace(SMALL, start="shipped", width=32, epochs=1, learning_rate=1e-9, optimizer="sgd", out=tmp_path / "grown")
    result = run(config)
    assert result.model.stem[0].out_channels == 32 and result.test.accuracy > 0.9, "it knows what the small one knew"
    assert json.loads((config.out / "config.json").read_text())["started_from"] == SHIPPED_SHA256["drawn"]
    for change, words in ({"seed": 1}, "seen images of the validation split"), ({"width": 24}, "multiple of 16"):
        with pytest.raises(ValueError, match=words):
            run(replace(config, **change))


def test_the_precision_follows_the_chip(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    auto = Config(precision="auto")
    for abilities, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"avx512_bf16": False}, torch.float32), ({}, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=abilities: found, raising=False)
        assert module.choose_precision(auto, cpu) is expected
    for capability, expected in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert module.choose_precision(auto, cuda) is expected
    assert module.choose_precision(Config(), cuda) is torch.float32 and module.choose_precision(Config(precision="bfloat16"), cpu) is torch.bfloat16


def test_evaluate_repeats_the_numbers_from_the_weights(small_run, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):  # nothing else of the run
        (tmp_path / name).write_bytes((small_run.folder / name).read_bytes())
    assert cli(["evaluate", "--run", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "evaluation.json").read_text())["test"]
    assert numbers == {"accuracy": small_run.test.accuracy, "loss": small_run.test.loss}
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == FIGURES - {"augmented", "curves", "network"}
    assert torch.equal(evaluate(tmp_path).logits, small_run.test.logits)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(small_run, tmp_path, monkeypatch, no_figures):
    folder, epoch_line = tmp_path / "broken", module.describe_epoch

    def full_disk(row):
        if row["epoch"] == 2:
            raise OSError("no space left on device")
        return epoch_line(row)

    with monkeypatch.context() as patch:
        patch.setattr(module, "describe_epoch", full_disk)
        with pytest.raises(RunStopped, match="no space left.*resume --run"):
            run(replace(SMALL, out=folder))
    assert (folder / "checkpoint.pt").exists() and not (folder / "metrics.json").exists()
    assert cli(["resume", "--run", str(folder)]) == 0
    assert sha256(folder) == sha256(small_run.folder)
    assert len((folder / "history.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["log_epoch", "save_checkpoint"])
def test_an_interruption_at_the_end_of_an_epoch_leaves_no_gap(name, small_run, tmp_path, no_figures, monkeypatch):
    folder, right = tmp_path / "broken", getattr(module, name)

    def broken(*words, **options):
        if (folder / "history.csv").read_text().count("\n") == 3:  # in the second epoch
            raise OSError("no space left on device")
        return right(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, broken)
        with pytest.raises(RunStopped, match="resume --run"):
            run(replace(SMALL, out=folder))
    assert cli(["resume", "--run", str(folder)]) == 0 and sha256(folder) == sha256(small_run.folder)
    assert [row["epoch"] for row in csv.DictReader((folder / "history.csv").open())] == ["1", "2"]
    steps = [event.step for event in EventAccumulator(str(folder / "tb")).Reload().Scalars("step/objective")]
    assert len(steps) == len(set(steps)) == (12 if name == "log_epoch" else 24)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(tmp_path, capsys):
    small = ["--train-size", "300", "--validation-size", "60", "--width", "4", "--epochs", "1", "--image-sizes", "16", "--batch-size", "20"]
    folder = tmp_path / "run"
    assert cli(["train", *small, "--optimizer", "sgd", "--learning-rate", "1000", "--weight-decay", "10", "--out", str(folder)]) == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the loss is" in last and str(folder) in last and "resume" not in last
    assert all(parameter.isfinite().all() for parameter in load_model(folder / "model.safetensors").parameters())


def test_original_preset_is_the_published_recipe():
    config = PRESETS["original"]
    assert (config.width, config.epochs, config.batch_size, config.optimizer, config.learning_rate, config.momentum) == (64, 40, 128, "sgd", 0.025, 0.8)
    assert (config.schedule, config.l1_factor, config.l1_reduction, config.weight_decay) == ("plateau", 0.0005, "mean", 0)
    assert (config.rotate_degrees, config.padding, config.cutout_size, config.flip) == (5, 4, 16, False)
    assert config.watch_test and config.validation_size == 0 and config.data == "cifar10"


def test_watching_the_test_images_as_the_published_run_did(tmp_path, no_figures):
    result = run(replace(SMALL, watch_test=True, validation_size=0, schedule="plateau", optimizer="sgd", l1_factor=0.0005,
                         rotate_degrees=5, cutout_size=16, epochs=1, out=tmp_path / "run"))
    assert {"test_loss", "test_accuracy"} <= result.history.epochs[0].keys() and "validation_loss" not in result.history.epochs[0]


def test_the_plateau_follows_the_validation_loss_also_where_the_test_images_are_watched(tmp_path, no_figures, monkeypatch):
    losses = []
    monkeypatch.setattr(torch.optim.lr_scheduler.ReduceLROnPlateau, "step", lambda self, loss: losses.append(loss))
    (row,) = run(replace(SMALL, watch_test=True, schedule="plateau", epochs=1, out=tmp_path / "run")).history.epochs
    assert losses == [row["validation_loss"]] != [row["test_loss"]]


# Faults: the words of the command line, the exit code, and what the last line must say.
FAULTS = [
    ("train --epochs 0", 2, "epochs is 0"),
    ("train --epochs -3", 2, "epochs is -3"),
    ("train --epochs many", 2, "--epochs"),
    ("train --batch-size 0", 2, "batch-size is 0"),
    ("train --width -1", 2, "width is -1"),
    ("train --learning-rate 0", 2, "learning-rate is 0"),
    ("train --learning-rate nan", 2, "learning-rate is nan"),
    ("train --train-size 6000", 2, "there are only 5000 training images"),
    ("train --validation-size 5000", 2, "validation size is 5000"),
    ("train --image-sizes 4", 2, "image-sizes"),
    ("train --preset fancy", 2, "unknown preset 'fancy': known are demo, laptop, grown, original, modern"),
    ("train --optimizer adam", 2, "sgd"),
    ("train --data imagenet", 2, "cifar10"),
    ("train --colour red", 2, "--colour"),
    ("fly", 2, "fly"),
    ("train --data cifar10 --data-root {empty} --no-download", 3, "data_batch_1 is missing"),
    ("train --data cifar10 --data-root {damaged} --no-download", 3, "data_batch_1 in the data folder"),
    ("train --out {full}", 3, "is not empty"),
    ("train --out {full}/file.txt", 3, "is a file"),
    ("train --out {full}/file.txt/below", 3, "cannot write to the output folder"),
    ("evaluate --run {empty}", 3, "is not the folder of a run"),
    ("evaluate --run {broken_config}", 3, "config.json is damaged"),
    ("resume --run {wrong_type}", 3, "config.json is damaged"),
    ("evaluate --run {other_width}", 3, "weights of width 4, but config.json says 8"),
    ("evaluate --run {unfinished}", 3, "is not finished: go on with cifar-cam resume"),
    ("evaluate --run {three_classes}", 3, "weights for 3 classes, but must for 10"),
    ("explain {small}/figures/mistakes.png --run {three_classes}", 3, "weights for 3 classes"),
    ("evaluate --run {no_weights}", 3, "no weights at"),
    ("evaluate --run {truncated}", 3, "truncated"),
    ("resume --run {no_weights}", 3, "has no checkpoint.pt"),
    ("explain {empty}/none.png", 3, "there is no picture"),
    ("explain {full}/file.txt", 3, "is not a picture"),
    ("explain {full}/nothing.png", 3, "is not a picture"),
    ("explain {full}/half.png", 3, "is not a picture that can be read, or is truncated"),
    ("explain", 2, ""),
    ("explain {full}/good.png --layers layer9 --run {small}", 2, "unknown layer 'layer9': did you mean layer"),
    ("explain {full}/good.png --layers head --run {small}", 2, "has no feature map"),
    ("explain {full}/good.png --target unicorn", 2, "unknown class 'unicorn': known are airplane"),
    ("explain {full}/good.png --out {full}/map.xyz", 2, "must end in"),
    ("explain {full}/good.png --run {truncated}", 3, "truncated"),
    ("explain {full}/good.png --run {small} --out {empty}/none/map.png", 3, "none"),
]


@pytest.fixture(scope="module")
def places(small_run, tmp_path_factory):
    "Folders with one fault each."
    root = tmp_path_factory.mktemp("faults")
    names = ("empty", "full", "damaged", "broken_config", "other_width", "no_weights", "truncated", "wrong_type", "three_classes", "unfinished")
    folders = {name: root / name for name in names}
    for folder in folders.values():
        folder.mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    (folders["full"] / "file.txt").write_text("text")
    (folders["full"] / "nothing.png").write_bytes(b"")
    picture.save(folders["full"] / "good.png")
    (folders["full"] / "half.png").write_bytes((folders["full"] / "good.png").read_bytes()[:2000])
    batches = folders["damaged"] / CIFAR10.base_folder
    batches.mkdir()
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        (batches / name).write_bytes(b"altered")
    config, weights = (small_run.folder / name for name in ("config.json", "model.safetensors"))
    for name in ("other_width", "no_weights", "truncated", "three_classes", "unfinished"):
        (folders[name] / "config.json").write_text(config.read_text().replace('"width": 4', '"width": 8' if name == "other_width" else '"width": 4'))
    (folders["wrong_type"] / "config.json").write_text(config.read_text().replace('"epochs": 2', '"epochs": "2"'))
    (folders["broken_config"] / "config.json").write_text("{")
    (folders["other_width"] / "model.safetensors").write_bytes(weights.read_bytes())
    save_weights(resnet18(num_classes=3, width=4), folders["three_classes"] / "model.safetensors")
    (folders["unfinished"] / "checkpoint.pt").write_bytes(b"")
    (folders["truncated"] / "model.safetensors").write_bytes(weights.read_bytes()[:5000])
    return {name: str(folder) for name, folder in folders.items()} | {"small": str(small_run.folder)}


@pytest.mark.parametrize("words, code, message", FAULTS, ids=[words for words, _, _ in FAULTS])
def test_a_fault_gets_one_clear_line(words, code, message, places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli(words.format(**places).split()) == code
    errors = capsys.readouterr().err
    assert message in errors.splitlines()[-1] and errors.splitlines()[-1].startswith("cifar-cam: ") and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == [], "something was written"


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch, small_run, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli(["train", "--device", "cuda", "--out", str(tmp_path / "run")]) == 2
    assert "torch finds no GPU" in capsys.readouterr().err and not (tmp_path / "run").exists()
    # A run from a machine with a GPU is evaluated here all the same.
    folder = shutil.copytree(small_run.folder, tmp_path / "from a GPU")
    text = (folder / "config.json").read_text()
    for pipeline in ("per-image", "batched"):
        (folder / "config.json").write_text(text.replace('"device": "cpu"', '"device": "cuda"').replace('"per-image"', f'"{pipeline}"'))
        settings = json.loads((folder / "config.json").read_text())["settings"]
        assert (settings["device"], settings["pipeline"]) == ("cuda", pipeline) and evaluate(folder).accuracy == small_run.test.accuracy


@pytest.mark.parametrize("mode, size", [("L", (40, 40)), ("RGBA", (50, 30)), ("P", (33, 64)), ("RGB", (1, 1)), ("RGB", (6000, 4000)), ("I;16", (20, 20))])
def test_pictures_of_every_kind_are_explained(mode, size, small_run, tmp_path):
    Image.new(mode, size, 100 if mode != "RGBA" else (200, 10, 10, 128)).save(tmp_path / "picture.png")
    out = tmp_path / "map.png"
    assert cli(["explain", str(tmp_path / "picture.png"), "--run", str(small_run.folder), "--target", "cat", "--out", str(out)]) == 0
    assert Image.open(out).width > 100


def test_explain_uses_the_shipped_network_and_takes_several_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (50, 60), (90, 120, 200)).save(name)
    assert cli(["explain", "a.png", "b.jpg", "--layers", "layer4"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["a.png", "b.jpg", "Grad-CAM"]
    assert Path("gradcam.png").exists()


def test_weights_of_another_network_are_refused(tmp_path):
    save_weights(torch.nn.Linear(2, 2), tmp_path / "linear.safetensors")
    with pytest.raises(OSError, match="another network"):
        load_model(tmp_path / "linear.safetensors")
    save_weights(resnet18(num_classes=3, width=2), tmp_path / "three.safetensors")
    assert load_model(tmp_path / "three.safetensors").head.out_features == 3


@pytest.mark.parametrize("change", [{"epochs": 2.0}, {"train_size": 1e3}, {"flip": "no"}, {"image_sizes": (16.5,)}, {"learning_rate": "0.1"}, {"seed": True}])
def test_a_setting_of_the_wrong_type_is_refused_before_anything_is_written(change, tmp_path):
    (name,) = change
    with pytest.raises(ValueError, match=name.replace("_", "-")):
        run(replace(SMALL, out=tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_sixteen_bits_of_a_picture_are_not_cut_off(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert abs(module.read_picture(tmp_path / "ramp.png").mean() - 127.5) < 2
    Image.fromarray(np.float32(ramp) / 65535).save(tmp_path / "ramp.tiff")
    with pytest.raises(OSError, match="not a picture that can be read"):
        module.read_picture(tmp_path / "ramp.tiff")


def test_the_picture_of_the_user_is_not_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("a$^$.png")
    before = Path("a$^$.png").read_bytes()
    assert cli(["explain", "a$^$.png", "--out", str(tmp_path / "a$^$.png")]) == 2 and Path("a$^$.png").read_bytes() == before
    assert cli(["explain", "a$^$.png"]) == 0 and Path("gradcam.png").exists()


def test_a_fault_is_one_line_also_where_frames_cannot_be_printed():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    words = [sys.executable, "-m", "cifar_cam_lib.main", "train", "--epochs", "many"]
    last = subprocess.run(words, capture_output=True, text=True, env=environment).stderr.splitlines()[-1]
    assert last.startswith("cifar-cam: ") and "--epochs" in last and "---" not in last


def test_a_full_disk_leaves_no_piece_behind(tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for save in (lambda path: save_weights(resnet18(width=2), path), lambda path: module.write_json(path, {})):
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_runs_that_start_together_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(module.new_run_folder, [None] * 40))
    assert len(set(folders)) == 40 and all(folder.is_dir() for folder in folders)


def test_help_explains_every_setting():
    words = [sys.executable, "-m", "cifar_cam_lib.main", "train", "--preset", "original", "--help"]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    text = " ".join(result.stdout.replace("│", " ").split())
    for name in Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in text
    assert "passes over the training images (default: 40)" in text, "the preset decides the defaults"


def test_module_and_command_exit_with_the_same_code():
    result = subprocess.run([sys.executable, "-m", "cifar_cam_lib.main", "train", "--epochs", "0"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.splitlines()[-1] == "cifar-cam: epochs is 0, but must be from 1 to 100000"


def test_ctrl_c_is_no_fault(monkeypatch, capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", interrupt)
    assert cli(["train"]) == 130 and "resume" in capsys.readouterr().err


def test_numbered_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/007").mkdir(parents=True)
    assert module.new_run_folder(None) == Path("runs/008")


def test_two_short_epochs_on_real_images(cifar10_root, tmp_path, no_figures):
    result = run(replace(SMALL, data="cifar10", data_root=cifar10_root, out=tmp_path / "run"))
    assert len(result.test.logits) == 10_000 and json.loads((tmp_path / "run" / "metrics.json").read_text())["data"] == "cifar10"
