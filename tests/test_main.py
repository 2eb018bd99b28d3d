"""The main job: its files, its repeatability, its commands, one clear message for every error."""

import csv
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import small
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_cam_lib import main as module
from cifar_cam_lib import settings
from cifar_cam_lib.data import draw_once, import_torchvision, read_picture
from cifar_cam_lib.fast import choose_precision
from cifar_cam_lib.main import cli, evaluate, explain, load_splits, resume, run
from cifar_cam_lib.model import resnet18
from cifar_cam_lib.runs import atomic_write, new_run_folder, save_state, states_of, write_json
from cifar_cam_lib.settings import PRESETS, Config
from cifar_cam_lib.training import (
    SHIPPED_SHA256,
    load_model,
    save_weights,
)

FIGURES = {
    "augmented",
    "curves",
    "network",
    "confusion_matrix",
    "mistakes",
    "gradcam_1",
    "gradcam_2",
    "gradcam_3",
    "gradcam_4",
}
COMMAND = [sys.executable, "-m", "cifar_cam_lib"]


def sha256(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def read_json(path):
    return json.loads(path.read_text())


def said(captured):
    """What was printed as an error, on one line, without the frame of a box."""
    return " ".join(captured.err.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


def test_a_run_leaves_its_files(small_run):
    folder = small_run.folder
    assert {path.stem for path in (folder / "figures").glob("*.png")} == FIGURES
    metrics, config = (read_json(folder / f"{name}.json") for name in ("metrics", "config"))
    assert metrics["data"] == "drawn"
    assert metrics["parameters"] == sum(weight.numel() for weight in small_run.model.parameters())
    assert 0 <= metrics["test"]["accuracy"] <= 1
    assert {"train", "validation", "test", "seconds"} <= metrics.keys()
    assert config["settings"]["width"] == 4 and config["threads"] >= 1
    assert config["versions"]["torch"] == torch.__version__
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["train_loss"]) == small_run.history.epochs[1]["train_loss"]
    assert config["finished"] and not states_of(folder) and not list(folder.glob("*.part"))
    assert str(folder.parent) not in (folder / "config.json").read_text()


def test_tensorboard_holds_scalars_and_figures(small_run):
    events = EventAccumulator(str(small_run.folder / "tb")).Reload()
    tags = events.Tags()
    assert {
        "loss/train",
        "loss/validation",
        "accuracy/train",
        "accuracy/validation",
        "step/learning_rate",
        "step/objective",
    } <= set(tags["scalars"])
    assert {"augmented", "network", "mistakes", "gradcam_1"} <= set(tags["images"])
    assert len(events.Scalars("step/objective")) == len(small_run.history.steps) == 24


def test_the_same_seed_gives_the_same_weights_whatever_the_workers(small_run, tmp_path, no_figures):
    again = run(small(workers=2, out=tmp_path / "again"))
    other = run(small(seed=1, out=tmp_path / "other"))
    assert sha256(again.folder) == sha256(small_run.folder) != sha256(other.folder)


def test_the_batched_pipeline_with_muon_repeats_and_is_evaluated_again(tmp_path, no_figures):
    changes = {
        "pipeline": "batched",
        "alternate_flip": True,
        "optimizer": "muon",
        "learning_rate": 0.02,
        "cutout_size": 8,
        "rotate_degrees": 5,
    }
    one, two = (run(small(**changes, out=tmp_path / name)) for name in ("one", "two"))
    assert sha256(one.folder) == sha256(two.folder)
    assert torch.equal(one.test.logits, two.test.logits)
    assert torch.equal(evaluate(one.folder).logits, one.test.logits)
    assert "--pipeline batched" in read_json(one.folder / "config.json")["command"]


@pytest.mark.parametrize(
    "words, message",
    [
        ("--pipeline batched --workers 2", "workers is 2, expected 0 with the batched pipeline"),
        ("--alternate-flip", "alternate-flip needs flip, and the batched pipeline"),
        ("--alternate-flip --no-flip --pipeline batched", "alternate-flip needs flip"),
        ("--cutout-size 1", "cutout-size is 1, expected 0, for none, or 2 to 32"),
        ("--start shipped --seed 1", "train-size, validation-size and seed are (0, 500, 1)"),
        ("--start shipped --width 24", "width is 24, expected 16 with start shipped"),
    ],
)
def test_settings_that_do_not_go_together(words, message, capsys):
    assert cli(["train", *words.split()]) == 2
    assert message in said(capsys.readouterr())


def test_a_run_can_start_from_the_network_that_ships(tmp_path, monkeypatch, no_figures):
    same = {"train_size": 300, "validation_size": 60}
    monkeypatch.setitem(PRESETS, "demo", PRESETS["demo"] | same)
    changes = {"start": "shipped", "epochs": 1, "learning_rate": 1e-9}
    result = run(small(**changes, width=16, optimizer="sgd", out=tmp_path / "begun"))
    assert result.test.accuracy > 0.9, "it knows what the shipped one knew"
    record = read_json(tmp_path / "begun" / "config.json")
    assert record["started_from"] == SHIPPED_SHA256["drawn", 16]


@pytest.mark.parametrize("width", [16, 64])
def test_a_run_begins_with_the_shipped_network_of_its_width(width):
    config = Config(data="cifar10", start="shipped", width=width, validation_size=1000)
    assert module.initial_model(config, 10).stem[0].out_channels == width
    images = {"train": draw_once(20, "train")}
    record = module.describe_run(config, images)
    assert record["started_from"] == SHIPPED_SHA256["cifar10", width]


def test_a_network_that_cannot_be_had_stops_a_run_before_its_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("cifar_cam_lib.training.__file__", str(tmp_path / "x" / "training.py"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(module, "load_splits", lambda config: {"train": draw_once(20, "train")})
    config = Config(data="cifar10", start="shipped", width=64, validation_size=1000)
    with pytest.raises(FileNotFoundError, match="a test does not download"):
        run(Config(**dict(config) | {"out": tmp_path / "run"}))
    assert not (tmp_path / "run").exists()


def test_the_last_look_is_in_float32(tmp_path, no_figures):
    result = run(small(precision="bfloat16", epochs=1, out=tmp_path / "run"))
    assert torch.equal(evaluate(result.folder).logits, result.test.logits)


def test_the_precision_follows_the_chip(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for abilities, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda found=abilities: found, raising=False
        )
        assert choose_precision("auto", cpu) is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as before PyTorch 2.10
    assert choose_precision("auto", cpu) is torch.float32
    for capability, expected in (
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((9, 0), torch.bfloat16),
    ):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device, found=capability: found
        )
        assert choose_precision("auto", cuda) is expected
    assert choose_precision("float32", cuda) is torch.float32
    assert choose_precision("bfloat16", cpu) is torch.bfloat16


def test_evaluate_repeats_the_numbers_from_the_weights(small_run, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):  # nothing else of the run
        (tmp_path / name).write_bytes((small_run.folder / name).read_bytes())
    assert cli(["evaluate", "--run", str(tmp_path)]) == 0
    numbers = read_json(tmp_path / "evaluation.json")["test"]
    assert numbers == {"accuracy": small_run.test.accuracy, "loss": small_run.test.loss}
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == FIGURES - {"augmented", "curves", "network"}
    assert torch.equal(evaluate(tmp_path).logits, small_run.test.logits)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_weights(tmp_path, capsys):
    folder = tmp_path / "run"
    words = settings.command_line(small(epochs=1, optimizer="sgd", weight_decay=10)).split()[1:]
    assert cli([*words, "--learning-rate", "1000", "--out", str(folder)]) == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert "the loss is" in last and str(folder) in last and "resume" not in last
    weights = load_model(folder / "model.safetensors").parameters()
    assert all(weight.isfinite().all() for weight in weights)


def test_the_published_preset_is_the_published_recipe():
    config = Config(preset="published")
    assert (config.width, config.epochs, config.batch_size) == (64, 40, 128)
    rates = config.learning_rate, config.momentum, config.weight_decay
    assert (config.optimizer, *rates) == ("sgd", 0.025, 0.8, 0)
    assert (config.schedule, config.l1_factor, config.l1_reduction) == ("plateau", 0.0005, "mean")
    augmentation = config.rotate_degrees, config.padding, config.cutout_size, config.flip
    assert augmentation == (5, 4, 16, False)
    assert config.watch_test and config.validation_size == 0 and config.data == "cifar10"


def test_watching_the_test_images_as_the_published_run_did(tmp_path, no_figures):
    changes = {
        "watch_test": True,
        "validation_size": 0,
        "schedule": "plateau",
        "optimizer": "sgd",
        "l1_factor": 0.0005,
        "rotate_degrees": 5,
        "cutout_size": 16,
        "epochs": 1,
    }
    (row,) = run(small(**changes, out=tmp_path / "run")).history.epochs
    assert {"test_loss", "test_accuracy"} <= row.keys() and "validation_loss" not in row


def test_the_plateau_follows_the_validation_loss_also_if_the_test_images_are_watched(
    tmp_path, no_figures, monkeypatch
):
    losses, plateau = [], torch.optim.lr_scheduler.ReduceLROnPlateau
    monkeypatch.setattr(plateau, "step", lambda self, loss: losses.append(loss))
    config = small(watch_test=True, schedule="plateau", epochs=1, out=tmp_path / "run")
    (row,) = run(config).history.epochs
    assert losses == [row["validation_loss"]] != [row["test_loss"]]


# Errors: the words of the command line, the exit code, and what the message must say.
ERRORS = [
    ("train --epochs 0", 2, "epochs Input should be greater than or equal to 1"),
    ("train --epochs -3", 2, "epochs Input should be greater than or equal to 1"),
    ("train --epochs many", 2, "--epochs: invalid literal for int() with base 10: 'many'"),
    ("train --epochs 2.0", 2, "--epochs: invalid literal"),
    ("train --train-size 1e3", 2, "--train-size: invalid literal"),
    ("train --seed True", 2, "--seed: invalid literal"),
    ("train --batch-size 0", 2, "batch_size Input should be greater than or equal to 1"),
    ("train --width -1", 2, "width Input should be greater than or equal to 1"),
    ("train --learning-rate 0", 2, "learning_rate Input should be greater than or equal to"),
    ("train --learning-rate nan", 2, "learning_rate Input should be"),
    ("train --train-size 6000", 2, "train-size is 6000, expected at most 5000"),
    ("train --validation-size 5000", 2, "validation size is 5000, expected 0 to 4999"),
    ("train --image-sizes 4", 2, "image_sizes.0 Input should be greater than or equal to 8"),
    ("train --image-sizes 16.5", 2, "--image-sizes: Could not find valid parse"),
    ("train --image-sizes 64", 2, "image-sizes has 64, expected at most 32"),
    ("train --preset own", 2, "name it with --data-folder"),
    ("train --data-folder {none}", 3, "there is no folder"),
    ("train --data-folder {full}", 2, "has 0 sub-folders, expected a sub-folder"),
    ("train --preset fancy", 2, "invalid choice 'fancy' for argument '--preset'"),
    ("train --preset", 2, "Missing value for argument '--preset'"),
    ("train --preset original", 2, "'published', 'modern', 'own'"),
    ("train --optimizer adam", 2, "Expected one of ('sgd', 'adamw', 'muon')"),
    ("train --data imagenet", 2, "Expected one of ('drawn', 'cifar10', 'own')"),
    ("train --colour red", 2, "Unrecognized options: --colour"),
    ("fly", 2, "Available subcommands: train, data, resume, evaluate, explain"),
    ("resume", 2, "--run"),
    (
        "train --data cifar10 --data-root {empty} --no-download",
        3,
        "data_batch_1 in the data folder",
    ),
    ("train --data cifar10 --data-root {none} --no-download", 3, "use --data drawn"),
    (
        "train --data cifar10 --data-root {damaged} --no-download",
        3,
        "data_batch_1 in the data folder",
    ),
    ("train --out {full}", 3, "is not empty: choose another one"),
    ("train --out {full}/file.txt", 3, "is a file"),
    ("train --out {full}/file.txt/below", 3, "cannot write to the output folder"),
    ("evaluate --run {none}", 3, "is not the folder of a run: it has no config.json"),
    ("evaluate --run {broken_config}", 3, "config.json is damaged"),
    ("evaluate --run {no_settings}", 3, "is damaged (its settings are no table)"),
    ("resume --run {wrong_type}", 3, "config.json is damaged (epochs: Input should be"),
    ("resume --run {unknown_setting}", 3, "is damaged (epoch: Extra inputs are not permitted)"),
    ("evaluate --run {other_width}", 3, "has width 4, expected 8, as in config.json"),
    ("evaluate --run {unfinished}", 3, "is not finished: continue with cifar-cam resume"),
    (
        "explain {full}/good.png --run {unfinished}",
        3,
        "is not finished: continue with cifar-cam resume",
    ),
    ("evaluate --run {three_classes}", 3, "has 3 classes, expected 10"),
    ("explain {small}/figures/mistakes.png --run {three_classes}", 3, "has 3 classes, expected 10"),
    ("evaluate --run {no_weights}", 3, "no weights at"),
    ("evaluate --run {truncated}", 3, "truncated"),
    ("resume --run {no_weights}", 3, "is finished: look at it with cifar-cam evaluate"),
    ("explain {none}/none.png", 3, "there is no picture"),
    ("explain {full}/file.txt", 3, "is not a picture"),
    ("explain {full}/nothing.png", 3, "is not a picture"),
    ("explain {full}/half.png", 3, "is not a picture that can be read, or is truncated"),
    ("explain", 2, "name at least one picture"),
    (
        "explain {full}/good.png --layers layer9 --run {small}",
        2,
        "unknown layer 'layer9': did you mean layer",
    ),
    ("explain {full}/good.png --layers head --run {small}", 2, "has no feature map"),
    ("explain {full}/good.png --target unicorn", 2, "unknown class 'unicorn': known are airplane"),
    ("explain {full}/good.png --out {full}/map.xyz", 2, "expected a name that ends in .png"),
    ("explain {full}/good.png --run {truncated}", 3, "truncated"),
    (
        "explain {full}/good.png --run {small} --out {full}/good.png/map.png",
        3,
        "there can't be a folder",
    ),
]


@pytest.fixture(scope="module")
def places(small_run, tmp_path_factory):
    """Folders with one error each."""
    root = tmp_path_factory.mktemp("errors")
    names = (
        "empty",
        "full",
        "damaged",
        "broken_config",
        "no_settings",
        "other_width",
        "no_weights",
        "truncated",
        "wrong_type",
        "unknown_setting",
        "three_classes",
        "unfinished",
    )
    folders = {name: root / name for name in names}
    for folder in folders.values():
        folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    (folders["full"] / "file.txt").write_text("text")
    (folders["full"] / "nothing.png").write_bytes(b"")
    Image.fromarray(pixels).save(folders["full"] / "good.png")
    (folders["full"] / "half.png").write_bytes((folders["full"] / "good.png").read_bytes()[:2000])
    cifar10 = import_torchvision().datasets.CIFAR10
    (folders["empty"] / cifar10.base_folder).mkdir()
    batches = folders["damaged"] / cifar10.base_folder
    batches.mkdir()
    for name, _ in [*cifar10.train_list, *cifar10.test_list]:
        (batches / name).write_bytes(b"altered")
    weights = small_run.folder / "model.safetensors"
    config = (small_run.folder / "config.json").read_text()
    for name in ("no_weights", "truncated", "three_classes", "unfinished"):
        (folders[name] / "config.json").write_text(config)
    for name, right, wrong in (
        ("other_width", '"width": 4', '"width": 8'),
        ("wrong_type", '"epochs": 2', '"epochs": "two"'),
        ("unknown_setting", '"epochs": 2', '"epoch": 2'),
    ):
        (folders[name] / "config.json").write_text(config.replace(right, wrong))
    (folders["broken_config"] / "config.json").write_text("{")
    (folders["no_settings"] / "config.json").write_text('{"settings": null}')
    shutil.copy(weights, folders["other_width"])
    save_weights(resnet18(num_classes=3, width=4), folders["three_classes"] / "model.safetensors")
    unfinished = config.replace('"finished": true', '"finished": false')
    (folders["unfinished"] / "config.json").write_text(unfinished)
    (folders["truncated"] / "model.safetensors").write_bytes(weights.read_bytes()[:5000])
    folders |= {"none": root / "none", "small": small_run.folder}
    return {name: str(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("words, code, message", ERRORS, ids=[words for words, _, _ in ERRORS])
def test_an_error_gets_one_clear_message(
    words, code, message, places, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli(words.format(**places).split()) == code
    captured = capsys.readouterr()
    assert message in said(captured) and "Traceback" not in captured.err
    if code > 2:
        assert captured.err.startswith("cifar-cam: ")
        assert len(captured.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [], "something was written"


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch, small_run, capsys):
    for kind in ("cuda", "mps"):
        monkeypatch.setattr(f"torch.{'backends.' * (kind == 'mps')}{kind}.is_available", bool)
        assert cli(["train", "--device", kind, "--out", str(tmp_path / "run")]) == 2
        message = f"device is {kind}, but torch finds no such GPU here: use auto or cpu"
        assert message in capsys.readouterr().err and not (tmp_path / "run").exists()
    # A run from a machine with a GPU is evaluated here all the same.
    folder = shutil.copytree(small_run.folder, tmp_path / "from a GPU")
    text = (folder / "config.json").read_text().replace('"device": "cpu"', '"device": "cuda"')
    for pipeline in ("per-image", "batched"):
        (folder / "config.json").write_text(text.replace('"per-image"', f'"{pipeline}"'))
        recorded = read_json(folder / "config.json")["settings"]
        assert (recorded["device"], recorded["pipeline"]) == ("cuda", pipeline)
        assert evaluate(folder).accuracy == small_run.test.accuracy


@pytest.mark.parametrize(
    "mode, size",
    [
        ("L", (40, 40)),
        ("RGBA", (50, 30)),
        ("P", (33, 64)),
        ("RGB", (1, 1)),
        ("RGB", (6000, 4000)),
        ("I;16", (20, 20)),
    ],
)
def test_pictures_of_every_kind_are_explained(mode, size, small_run, tmp_path):
    picture, out = tmp_path / "picture.png", tmp_path / "map.png"
    Image.new(mode, size, 100 if mode != "RGBA" else (200, 10, 10, 128)).save(picture)
    words = ["--run", str(small_run.folder), "--target", "cat", "--out", str(out)]
    assert cli(["explain", str(picture), *words]) == 0
    assert Image.open(out).width > 100


def test_explain_uses_the_shipped_network_and_takes_several_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (50, 60), (90, 120, 200)).save(name)
    assert cli(["explain", "a.png", "b.jpg", "--layers", "layer4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["a.png", "b.jpg", "Grad-CAM"]
    assert Path("gradcam.png").exists()
    before = Path("gradcam.png").read_bytes()
    assert cli(["explain", "a.png", "b.jpg", "--layers", "layer4", "--width", "64"]) == 0
    assert Path("gradcam.png").read_bytes() != before, "another network draws other maps"
    assert cli(["explain", "a.png", "--width", "64", "--run", "x"]) == 2
    assert "give only one of them" in capsys.readouterr().err


def test_what_one_types_first_in_a_notebook_works(small_run, tmp_path, monkeypatch, no_figures):
    """Texts for paths, one picture without a list, numbers of NumPy."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run.folder, "runs/001")
    assert evaluate("runs/001").accuracy == small_run.test.accuracy
    Image.new("RGB", (50, 60), (90, 120, 200)).save("photo.jpg")
    for pictures in ("photo.jpg", ["photo.jpg"], Path("photo.jpg"), ("photo.jpg",)):
        assert explain(pictures, run_folder="runs/001", out="maps.png") == [Path("maps.png")]
        Path("maps.png").unlink()
    assert explain("photo.jpg", layers=("layer4",)) == [Path("gradcam.png")]
    numbers = {"learning_rate": np.float64(0.003), "width": np.int64(4), "epochs": np.int64(2)}
    result = run(small(**numbers, out="runs/x"))
    assert result.folder == Path("runs/x") and sha256(result.folder) == sha256(small_run.folder)
    assert read_json(Path("runs/x/config.json"))["settings"]["learning_rate"] == 0.003
    with pytest.raises(OSError, match="runs/x is finished: look at it with cifar-cam evaluate"):
        resume("runs/x")


def test_weights_of_another_network_are_refused(tmp_path):
    save_weights(torch.nn.Linear(2, 2), tmp_path / "linear.safetensors")
    with pytest.raises(OSError, match="another network"):
        load_model(tmp_path / "linear.safetensors")
    save_weights(resnet18(num_classes=3, width=2), tmp_path / "three.safetensors")
    assert load_model(tmp_path / "three.safetensors").head.out_features == 3


def test_sixteen_bits_of_a_picture_are_not_cut_off(tmp_path):
    ramp = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert abs(read_picture(tmp_path / "ramp.png", 32).mean() - 127.5) < 2
    Image.fromarray(np.float32(ramp) / 65535).save(tmp_path / "ramp.tiff")
    with pytest.raises(OSError, match="not a picture that can be read"):
        read_picture(tmp_path / "ramp.tiff", 32)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OSError, match="large.png is too large"):
        read_picture(tmp_path / "large.png", 32)


def test_the_picture_of_the_user_is_not_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("a$^$.png")
    before = Path("a$^$.png").read_bytes()
    assert cli(["explain", "a$^$.png", "--out", str(tmp_path / "a$^$.png")]) == 2
    assert Path("a$^$.png").read_bytes() == before
    assert cli(["explain", "a$^$.png"]) == 0 and Path("gradcam.png").exists()


@pytest.mark.parametrize("words", ["--epochs many", "--epochs 0"])
def test_an_error_is_printed_also_if_frames_cannot_be(words):
    plain = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    command, environment = [*COMMAND, "train", *words.split()], os.environ | plain
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "epochs" in result.stderr and "For full helptext" in result.stderr


def test_a_full_disk_leaves_no_piece_behind(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for save in (
        lambda: save_weights(resnet18(width=2), tmp_path / "file"),
        lambda: write_json(tmp_path / "file", {}),
        lambda: save_state(tmp_path, {}),
        lambda: atomic_write(tmp_path / "file", b"bytes"),
    ):
        with pytest.raises(OSError, match="No space left"):
            save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_runs_that_cannot_be_a_folder(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").touch() if kind == "file" else Path("runs").symlink_to("nowhere")
    with pytest.raises(OSError, match=r"cannot write to the output folder runs \(File exists\)"):
        new_run_folder(None)


def test_runs_that_start_together_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(new_run_folder, [None] * 40))
    assert len(set(folders)) == 40 and all(folder.is_dir() for folder in folders)


def test_help_explains_every_setting():
    words = [*COMMAND, "train", "--preset", "published", "--help"]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    text = " ".join(result.stdout.replace("│", " ").split())
    for name in Config.model_fields:
        assert f"--{name.replace('_', '-')}" in text
    assert "passes over the training images (default: 40)" in text, (
        "the preset decides the defaults"
    )


@pytest.mark.parametrize("name", ["cifar_cam_lib", "cifar_cam_lib.main"])
def test_module_and_command_exit_with_the_same_code(name):
    command = [sys.executable, "-m", name, "train", "--epochs", "0"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert "Input should be greater than or equal to 1" in result.stderr


def test_the_version_is_told():
    result = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"cifar_cam_lib {importlib.metadata.version('cifar_cam_lib')}\n"
    assert cli(["--version"]) == 0


def test_numbered_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/007").mkdir(parents=True)
    assert new_run_folder(None) == Path("runs/008")


def test_two_short_epochs_on_real_images(cifar10_root, tmp_path, no_figures):
    result = run(small(data="cifar10", data_root=cifar10_root, out=tmp_path / "run"))
    assert len(result.test.logits) == 10_000
    assert read_json(tmp_path / "run" / "metrics.json")["data"] == "cifar10"


@pytest.mark.parametrize("missing", ["torchvision", "cifar_cam_lib"])
def test_a_version_that_cannot_be_found_stops_no_run(missing, tmp_path, monkeypatch, no_figures):
    """Packages of conda, or a clone that isn't installed: the record says so."""
    real = importlib.metadata.version

    def version(name):
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(cv2, "__version__", "9.9")  # whichever package it came with
    run(small(epochs=1, out=tmp_path / "run"))
    versions = read_json(tmp_path / "run" / "config.json")["versions"]
    assert versions["opencv"] == "9.9"
    assert versions["torch"] == torch.__version__  # whose package may not name its build
    if missing == "cifar_cam_lib":  # it knows its own
        assert versions[missing] == module.runs.__version__
        assert cli(["--version"]) == 0
    else:
        assert versions[missing] == "not installed"


def test_without_a_home_drawn_runs_work_and_others_say_what_to_do(
    homeless, tmp_path, no_figures, capsys
):
    assert len(run(small(epochs=1, out=tmp_path / "run")).history.epochs) == 1
    capsys.readouterr()
    assert cli(["train", "--data", "cifar10", "--out", str(tmp_path / "other")]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cifar-cam: there is no home folder to keep CIFAR-10 in")
    assert "CIFAR_CAM_DATA" in line and not (tmp_path / "other").exists()


BROKEN = {  # package, what its import raises, the command, its last line
    "help without torch": ("torch", "ImportError()", "--help", None),
    "no torch": ("torch", "ImportError('libtorch.so: not found')", "explain a.png", "libtorch.so"),
    "no libGL": ("cv2", "ImportError('libGL.so.1: not found')", "explain a.png", "(libGL.so.1"),
    "pictures without torchvision": ("torchvision", "ImportError()", "explain a.png", None),
    "another torchvision": (
        "torchvision",
        "RuntimeError('operator torchvision::nms does not exist')",
        "explain a.png --model resnet18",
        "torchvision doesn't match the installed torch: install both from the same source",
    ),
}


@pytest.mark.parametrize("package, raised, words, said", BROKEN.values(), ids=BROKEN)
def test_half_an_installation_is_one_line(package, raised, words, said, tmp_path):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise {raised}")
    Image.new("RGB", (40, 40), (90, 120, 200)).save(tmp_path / "a.png")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*COMMAND, *words.split()], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == (3 if said else 0), done.stderr
    assert len(done.stderr.splitlines()) == bool(said)
    assert (said or "") in done.stderr and (not said or done.stderr.startswith("cifar-cam: "))


def test_more_images_than_there_are(tmp_path):
    with pytest.raises(ValueError, match="train-size is 6000, expected at most 5000"):
        load_splits(Config(train_size=6000))


def test_the_command_data_tells_what_is_there(cifar10_root, tmp_path, capsys):
    assert cli(["data", "--data-root", str(cifar10_root)]) == 0
    said = capsys.readouterr().out
    assert "50,000 training and 10,000 test images" in said and str(cifar10_root) in said
    assert cli(["data", "--data-root", str(tmp_path)]) == 3  # IN_TEST is set
    assert cli(["data", "--data-root", str(tmp_path), "--mirror", "x"]) == 2
    assert f"CIFAR-10 is not in the data folder {tmp_path}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


CELLS = [
    "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()",
    "from cifar_cam_lib.main import cli; cli(['evaluate', '--run', 'none'])",
    "cli(['explain', '{picture}', '--out', '{out}'])",
    "plt.plot([1, 2]); plt.show()",
]


def test_a_command_in_a_notebook_leaves_its_figures_on(tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.delenv("MPLBACKEND", raising=False)  # whatever the tests draw with
    Image.new("RGB", (50, 60), (90, 120, 200)).save(tmp_path / "photo.png")
    names = {"picture": tmp_path / "photo.png", "out": tmp_path / "map.png"}
    cells = [nbformat.v4.new_code_cell(source.format(**names)) for source in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    kinds = [[output.output_type for output in cell.outputs] for cell in notebook.cells]
    assert "display_data" in kinds[0] and "display_data" in kinds[3]
    assert "display_data" not in kinds[2], "the figure went to a file alone"
