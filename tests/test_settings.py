"""The settings: what they accept and refuse, what loading them costs, and records of long ago."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cifar_cam_lib.settings import (
    PRESETS,
    Config,
    Evaluate,
    Explain,
    Resume,
    command_line,
    parse,
    read_settings,
)
from scripts.project import ROOT


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"out": "x"}, Path("x")),
        ({"data_root": "x"}, Path("x")),
        ({"learning_rate": np.float64(0.1)}, 0.1),
        ({"learning_rate": 1}, 1.0),
        ({"epochs": np.int64(3)}, 3),
        ({"epochs": 3.0}, 3),
        ({"seed": np.uint8(3)}, 3),
        ({"flip": np.bool_(False)}, False),
        ({"image_sizes": [16, np.int64(24)]}, (16, 24)),
    ],
)
def test_a_value_becomes_what_the_setting_is(change, expected):
    (name,) = change
    config = Config(**change)
    value = getattr(config, name)
    assert value == expected and type(value) in (type(expected), type(Path("x")))
    json.dumps(config.model_dump(mode="json"))
    command_line(config)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"epochs": 0}, "epochs\n.*greater than or equal to 1"),
        ({"epochs": 2.5}, "epochs\n.*fractional part"),
        ({"epochs": "many"}, "epochs\n.*valid integer"),
        ({"seed": None}, "seed\n.*valid integer"),
        ({"flip": "perhaps"}, "flip\n.*valid boolean"),
        ({"image_sizes": (16.5,)}, r"image_sizes.0\n.*fractional part"),
        ({"image_sizes": (64,)}, "image-sizes has 64, expected at most 32, the size of the images"),
        ({"image_size": 64}, "image-size is 64, expected 32 with drawn data"),
        ({"image_size": 7, "data": "own"}, "image_size\n.*greater than or equal to 8"),
        ({"data": "own", "image_size": 16, "cutout_size": 24}, "expected 0, for none, or 2 to 16"),
        (
            {"data_folder": "x", "data": "cifar10"},
            "data is cifar10, expected own with a data-folder",
        ),
        ({"freeze": True}, "freeze needs start shipped"),
        ({"data": "own", "start": "shipped", "width": 8}, "width is 8, expected 16 or 64"),
        ({"image_sizes": 16}, "image_sizes\n.*valid tuple"),
        ({"learning_rate": float("nan")}, "learning_rate\n"),
        ({"learning_rate": "fast"}, "learning_rate\n.*valid number"),
        ({"optimizer": "adam"}, "optimizer\n.*'sgd', 'adamw' or 'muon'"),
        ({"preset": "original"}, "preset\n.*'modern' or 'own'"),
        ({"colour": "red"}, "colour\n.*not permitted"),
        ({"cutout_size": 1}, "cutout-size is 1, expected 0, for none, or 2 to 32"),
        ({"pipeline": "batched", "workers": 2}, "workers is 2, expected 0 with the batched"),
        ({"alternate_flip": True}, "alternate-flip needs flip, and the batched pipeline"),
        ({"start": "shipped", "width": 24}, "width is 24, expected 16 with start shipped"),
        (
            {"start": "shipped", "data": "cifar10", "width": 32},
            "width is 32, expected 16 or 64 with start shipped",
        ),
        ({"start": "shipped", "seed": 1}, r"\(0, 500, 1\), expected \(0, 500, 0\)"),
    ],
)
def test_a_wrong_setting_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Config(**change)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_it_changes(preset):
    config, plain = dict(Config(preset=preset)), dict(Config())
    others = {name for name in config if config[name] != plain[name]} - {"preset"}
    assert others <= PRESETS[preset].keys()
    assert all(config[name] == value for name, value in PRESETS[preset].items())
    assert Config(preset=preset, epochs=7).epochs == 7, "what is given wins"
    assert Config(**config | {"padding": 7}).padding == 7, "also in a copy"
    assert Config(**config) == Config(preset=preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_line_gives_the_settings_back(preset):
    changes = {
        "width": 64,
        "download": False,
        "padding": 2,
        "image_sizes": (16, 24),
        "momentum": 0.5,
    }
    for config in (Config(preset=preset), Config(preset=preset, **changes, out="here")):
        words = command_line(config).split()
        assert words[:2] == ["cifar-cam", "train"] and "here" not in words
        assert parse(words[1:]) == Config(**dict(config) | {"out": None})


def test_what_the_other_commands_ask_for():
    assert parse(["resume", "--run", "runs/001"]) == Resume(Path("runs/001"))
    assert parse(["evaluate", "--run", "a b", "--data-root", "/x"]) == Evaluate(
        Path("a b"), Path("/x")
    )
    own = parse(["resume", "--run", "runs/001", "--data-folder", "mine"])
    assert own == Resume(Path("runs/001"), None, Path("mine"))
    words = ["explain", "a.png", "b.jpg", "--layers", "layer1", "layer4", "--target", "cat"]
    expected = Explain((Path("a.png"), Path("b.jpg")), None, ("layer1", "layer4"), "cat")
    assert parse(words) == expected
    words = ["explain", "*.png", "--model", "resnet50", "--save", "maps"]
    expected = Explain((Path("*.png"),), model="resnet50", save=Path("maps"))
    assert parse(words) == expected


def test_a_folder_of_pictures_brings_its_own_preset():
    """As the only word of the command line, and in Python; another preset may be named."""
    for config in (Config(data_folder="mine"), parse(["train", "--data-folder", "mine"])):
        assert (config.preset, config.data, config.start) == ("own", "own", "shipped")
        assert config.data_folder == Path("mine") and config.validation_size == 0
    words = ["train", "--data-folder=mine", "--preset", "laptop"]
    assert parse(words).validation_size == 0, (
        "a folder may be smaller than what CIFAR-10 holds back"
    )
    config = parse([*words, "--validation-size", "9"])
    assert (config.preset, config.data, config.optimizer) == ("laptop", "own", "muon")
    assert (config.validation_size, config.epochs) == (9, 14)
    assert "mine" not in command_line(config), "no record tells the folders of a computer"


OLD_RUNS = sorted(
    path.parent
    for folder in (ROOT / "results", ROOT.parent / "shared" / "runs")
    for path in folder.glob("*/config.json")
)


def test_there_are_old_records():
    assert len([folder for folder in OLD_RUNS if folder.parent == ROOT / "results"]) >= 3


@pytest.mark.parametrize("folder", OLD_RUNS, ids=lambda folder: folder.name)
def test_a_record_of_long_ago_stays_readable(folder):
    record = json.loads((folder / "config.json").read_text())
    config = read_settings(record["settings"])
    for name, value in record["settings"].items():
        ours = json.loads(config.model_dump_json())[name]
        assert ours == value or name == "preset" and (value, ours) in RENAMED
    assert parse(command_line(config).split()[1:]) == config
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    if (folder / "metrics.json").exists():  # one was stopped before its evaluation
        metrics = json.loads((folder / "metrics.json").read_text())
        assert len(rows) == metrics["epochs"] == config.epochs
        assert float(rows[-1]["train_loss"]) == metrics["train"]["loss"]


RENAMED = {("original", "published"), ("grown", "modern"), ("widened", "modern")}


@pytest.mark.parametrize("old, new", sorted(RENAMED))
def test_an_old_name_of_a_preset_is_read(old, new):
    recorded = json.loads(Config(preset=new).model_dump_json())
    assert read_settings(recorded | {"preset": old}) == Config(preset=new)
    assert read_settings(recorded | {"preset": old}, device="cpu").device == "cpu"


@pytest.mark.parametrize("width", [32, 64])
def test_a_run_that_was_widened_is_read(width):
    """`start` shipped took any multiple of 16 then; the weights are in the run's folder."""
    recorded = Config(preset="laptop").model_dump(mode="json")
    recorded |= {"preset": "grown", "start": "shipped", "width": width, "epochs": 3}
    found = read_settings(recorded)
    assert (found.width, found.epochs, found.optimizer) == (width, 3, "muon")


def test_a_record_from_before_there_was_a_precision_stays_in_float32():
    recorded = Config(preset="published").model_dump(mode="json")
    del recorded["precision"]
    assert read_settings(recorded | {"preset": "original"}).precision == "float32"
    assert Config(preset="published").precision == "auto"


HEAVY = {"torch", "torchvision", "albumentations", "matplotlib", "cv2", "tensorboard"}
UNUSED = {"albumentations", "torch.utils.tensorboard", "torchvision", "tensorboard"}


def loaded_after(code, tmp_path):
    """The names of all modules that a program has loaded at its end."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "words", [None, ["train", "--preset", "laptop"], ["--help"], ["--version"], ["fly"]]
)
def test_the_words_of_the_command_line_load_no_torch(words, tmp_path):
    code = "import cifar_cam_lib.settings as settings, contextlib"
    if words:
        code += f"\nwith contextlib.suppress(SystemExit): settings.parse({words})"
    assert loaded_after(code, tmp_path) & HEAVY == set()


def test_the_command_answers_without_torch(tmp_path):
    code = (
        "import sys, contextlib; sys.argv = ['cifar-cam', '--help']\n"
        "import cifar_cam_lib.__main__ as command\n"
        "with contextlib.suppress(SystemExit): command.start()"
    )
    assert loaded_after(code, tmp_path) & HEAVY == set()


def test_explaining_loads_only_what_it_uses(tmp_path):
    code = (
        "import numpy as np; from PIL import Image; from cifar_cam_lib.main import explain\n"
        "Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save('a.png'); explain('a.png')"
    )
    assert loaded_after(code, tmp_path) & UNUSED == set()
    assert (tmp_path / "gradcam.png").exists()
