"""Measures what each part of the recipe is worth, one change at a time, by validation accuracy.

    .venv/bin/python -m scripts.measure.ablation --out results/ablation.json   (about 25 minutes)

A short training stands for a long one: width 16, 12,500 training images, 16 pixels throughout, six
epochs. Every change is made to the settings of the preset `laptop`; three seeds of the unchanged
ones show how far chance alone moves the number. The test images are not looked at. Runs that are
already in the file are not repeated.
"""

import argparse
import importlib.metadata
import shlex
import tempfile
import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from cifar_cam_lib.main import load_splits, make_loaders, train_model
from cifar_cam_lib.model import count_parameters
from cifar_cam_lib.settings import Config, command_line, parse
from scripts.measure.bench_gradcam import machine, measured_before, save

SHORT = {"train_size": 17_500, "validation_size": 5_000, "epochs": 6, "image_sizes": (16,)}
ADAMW = {"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.05}
SGD = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
PUBLISHED = {
    name: getattr(Config(preset="published"), name)
    for name in (
        "rotate_degrees",
        "flip",
        "cutout_size",
        "batch_size",
        "optimizer",
        "learning_rate",
        "momentum",
        "weight_decay",
        "schedule",
        "l1_factor",
    )
}
WHAT = (
    "width 16, 12,500 training and 5,000 validation images of CIFAR-10, six epochs at 16 pixels; "
    "validation accuracy by epoch"
)
# what is changed, and to what
CHANGES = {
    "nothing": {},
    "AdamW for Muon": ADAMW,
    "SGD for Muon": SGD,
    "nothing, seed 1": {"seed": 1},
    "nothing, seed 2": {"seed": 2},
    "the recipe of the original": PUBLISHED | {"alternate_flip": False, "label_smoothing": 0.0},
    "no flip": {"flip": False, "alternate_flip": False},
    "no label smoothing": {"label_smoothing": 0.0},
    "constant rate for one-cycle": {"schedule": "constant"},
}


def measure(
    config: Config,  # the settings
) -> dict:
    """Train without a look at the test images; returns the row of the record."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        loaders = make_loaders(config, load_splits(config))
        training = train_model(config, loaders, Path(folder), writer)
    accuracies = [row["validation_accuracy"] for row in training.history.epochs]
    return {
        "command": command_line(config),
        "parameters": count_parameters(training.model),
        "seconds": round(time.perf_counter() - start),
        "validation_accuracy": [round(accuracy, 4) for accuracy in accuracies],
    }


def main():
    """Measure what is missing, saving after each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file to write, or to continue with"
    )
    out = parser.parse_args().out
    record = {
        "what": WHAT,
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "cifar_cam_lib")},
        "runs": {},
    }
    record["runs"] = measured_before(out, record).get("runs", {})
    for name, change in CHANGES.items():
        config = Config(**{"preset": "laptop"} | SHORT | change)
        known = record["runs"].get(name)
        if known and parse(shlex.split(known["command"])[1:]) == config:
            continue
        record["runs"][name] = measure(config)
        print(f"{name}: {record['runs'][name]['validation_accuracy'][-1]:.2%}", flush=True)
        save(out, record)


if __name__ == "__main__":
    main()
