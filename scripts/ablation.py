"""Measures what each part of the recipe is worth, one change at a time, by validation accuracy.

    .venv/bin/python scripts/ablation.py --out results/ablation.json     about 25 minutes on two cores

A short training stands for a long one: width 16, 12,500 training images, 16 pixels throughout, six epochs. Every change
is made to the settings of the preset `laptop`; three seeds of the unchanged ones show how far chance alone moves the
number. The test images are not looked at. Runs that are already in the file are not repeated.
"""

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bench_gradcam import machine
from torch.utils.tensorboard import SummaryWriter

from cifar_cam_lib.main import PRESETS, check_config, command_line, make_loaders, open_images, train_model, write_json
from cifar_cam_lib.model import count_parameters

SHORT = {"train_size": 17_500, "validation_size": 5_000, "epochs": 6, "image_sizes": (16,)}
ADAMW = {"optimizer": "adamw", "learning_rate": 0.003, "weight_decay": 0.05}
SGD = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
ORIGINAL = {name: getattr(PRESETS["original"], name) for name in
            ("rotate_degrees", "flip", "cutout_size", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "schedule", "l1_factor")}
# what is changed, and to what
CHANGES = {
    "nothing": {},
    "AdamW for Muon": ADAMW,
    "SGD for Muon": SGD,
    "nothing, seed 1": {"seed": 1},
    "nothing, seed 2": {"seed": 2},
    "the recipe of the original": ORIGINAL | {"alternate_flip": False, "label_smoothing": 0.0},
    "no flip": {"flip": False, "alternate_flip": False},
    "no label smoothing": {"label_smoothing": 0.0},
    "constant rate for one-cycle": {"schedule": "constant"},
}


def measure(
    config,  # the settings
):
    "Train without a look at the test images: the row of the record."
    check_config(config)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        model, history = train_model(config, make_loaders(config, open_images(config)), Path(folder), writer)
    return {"command": command_line(config), "parameters": count_parameters(model), "seconds": round(time.perf_counter() - start),
            "validation_accuracy": [round(row["validation_accuracy"], 4) for row in history.epochs]}


def main():
    "Measure what is missing, saving after each run."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write, or to go on with")
    out = parser.parse_args().out
    record = {"what": "width 16, 12,500 training and 5,000 validation images of CIFAR-10, six epochs at 16 pixels; validation accuracy by epoch",
              "machine": machine(), "versions": {name: importlib.metadata.version(name) for name in ("torch", "cifar_cam_lib")}, "runs": {}}
    if out.exists():
        known = json.loads(out.read_text())
        if any(known[name] != record[name] for name in ("machine", "versions")):
            sys.exit(f"{out} is of another machine or of other versions: name a new file, and measure all runs")
        record["runs"] = known["runs"]
    for name, change in CHANGES.items():
        config = replace(PRESETS["laptop"], **SHORT | change)
        if record["runs"].get(name, {}).get("command") == command_line(config):
            continue
        record["runs"][name] = measure(config)
        print(f"{name}: {record['runs'][name]['validation_accuracy'][-1]:.2%}", flush=True)
        write_json(out, record)


if __name__ == "__main__":
    main()
