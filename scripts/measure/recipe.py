"""Measures what each part of the recipe is worth, by validation accuracy, for chapter 9.

    .venv/bin/python -m scripts.measure.recipe --out results/recipe.json   (an hour and a half)

A short training of width 16 stands for a long one. Everything is measured at one budget: the same
images, sizes and epochs. The test images are not looked at.

`rates`: the learning rates of three optimizers, one seed each. If the best is the first or the last
    one tried, the next one beyond is tried as well. Then the best gets two more seeds.
`norms`: batch norm and group norm in place of the layer norm, three seeds each.
`parts`: the recipe without one of its parts at a time, three seeds each.
`published`: all of the published recipe in place of ours, but for the budget, three seeds.

Two trainings run beside each other, or as many as `--beside` says (about ten on a GPU), with a
thread each. Those that are already in the file are not repeated, so that a measurement that was
stopped goes on where it was.
"""

import argparse
import importlib.metadata
import json
import os
import shlex
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

from cifar_cam_lib.settings import Config, command_line, parse
from scripts.measure.bench_gradcam import machine, measured_before, run_apart, save

SEEDS = (0, 1, 2)
BUDGET = {"validation_size": 5_000, "epochs": 4, "image_sizes": (16, 16, 16, 24)}
RECIPE = {"preset": "laptop"} | BUDGET
ADAMW = {"optimizer": "adamw", "weight_decay": 0.05}
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
# optimizer: its settings, and the rates to begin with
RATES = {
    "SGD": (SGD, (0.03, 0.1, 0.3, 1.0)),
    "AdamW": (ADAMW, (0.001, 0.003, 0.01, 0.03)),
    "Muon": ({}, (0.005, 0.01, 0.02, 0.04)),
}
NORMS = {"layer norm": 1, "group norm, groups of 4 channels": 4, "batch norm": 0}
PARTS = {
    "flip": {"flip": False, "alternate_flip": False},
    "alternating flip": {"alternate_flip": False},
    "crop": {"padding": 0},
    "label smoothing": {"label_smoothing": 0.0},
    "weight decay": {"weight_decay": 0.0},
    "one-cycle": {"schedule": "constant"},
}
PUBLISHED = {
    name: getattr(Config(preset="published"), name)
    for name in (
        "rotate_degrees",
        "flip",
        "alternate_flip",
        "cutout_size",
        "batch_size",
        "optimizer",
        "learning_rate",
        "momentum",
        "weight_decay",
        "schedule",
        "label_smoothing",
        "l1_factor",
    )
}


def make_norm(
    group: int,  # channels that are normalised together; 1 for all, 0 for batch norm
    channels: int,  # of the feature map
):
    """The norm of a feature map, with a scale and a bias for each channel in any case."""
    from torch import nn

    if group == 0:
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1 if group == 1 else channels // group, channels)


def measure_one(
    config: Config,  # the settings
    norm: str,  # a key of NORMS
) -> dict:
    """Train without a look at the test images; returns the row of the record."""
    from cifar_cam_lib.main import epochs_of, load_splits, make_loaders, make_training
    from cifar_cam_lib.model import count_parameters

    start = time.perf_counter()
    with mock.patch("cifar_cam_lib.model.layer_norm", lambda c: make_norm(NORMS[norm], c)):
        images = load_splits(config)
        loaders = make_loaders(config, images)
        training = make_training(config, len(images["train"].class_names), len(loaders["train"]))
    try:
        list(epochs_of(config, training, loaders, loaders["train"]))
    except FloatingPointError as error:
        return {"diverged": str(error)}
    accuracies = [row["validation_accuracy"] for row in training.history.epochs]
    return {
        "parameters": count_parameters(training.model),
        "seconds": round(time.perf_counter() - start),
        "validation_accuracy": [round(accuracy, 4) for accuracy in accuracies],
    }


def last_accuracy(
    row: dict,  # from `measure_one`
) -> float:
    """Validation accuracy of the last epoch, 0..1; 0 if the training diverged."""
    return row.get("validation_accuracy", [0.0])[-1]


class Measurements:
    """The runs of a file, and what is missing measured and saved."""

    def __init__(
        self,
        out: Path,  # JSON file to write, or to continue with
        beside: int,  # trainings that run at the same time
    ):
        packages = ("torch", "cifar_cam_lib")
        self.out, self.beside, self.lock = out, beside, threading.Lock()
        self.record = {
            "command": "python -m scripts.measure.recipe",
            "what": "width 16, 45,000 training and 5,000 validation images of CIFAR-10, four "
            "epochs at 16, 16, 16 and 24 pixels; validation accuracy by epoch",
            "machine": machine(),
            "versions": {name: importlib.metadata.version(name) for name in packages},
        }
        self.runs = measured_before(out, self.record).get("runs", {})

    def measure(
        self,
        jobs: list[tuple],  # (changes of the recipe, norm), as in `PARTS` and `NORMS`
    ) -> list[dict]:
        """The rows of all jobs, in their order."""

        commands = [(command_line(Config(**RECIPE | changes)), norm) for changes, norm in jobs]
        names = [c if norm == "layer norm" else f"{c}, with {norm}" for c, norm in commands]

        def one(name, command, norm):
            row = run_apart("scripts.measure.recipe", ["--one", command, "--norm", norm])
            print(f"{last_accuracy(row):.2%}  {name}", flush=True)
            with self.lock:
                self.runs[name] = row
                self.save({})

        missing = {
            name: job for name, job in zip(names, commands, strict=True) if name not in self.runs
        }
        with ThreadPoolExecutor(self.beside) as pool:
            list(pool.map(lambda name: one(name, *missing[name]), missing))
        return [self.runs[name] for name in names]

    def save(
        self,
        tables: dict,  # what the runs say, by table
    ):
        """Write the file."""
        save(self.out, self.record | tables | {"runs": dict(sorted(self.runs.items()))})

    def seeds(
        self,
        changes: dict,  # of the recipe
        norm: str = "layer norm",  # a key of NORMS
    ) -> dict:
        """Mean and standard deviation of the last epoch's validation accuracy over the seeds."""
        rows = self.measure([(changes | {"seed": seed}, norm) for seed in SEEDS])
        accuracies = [last_accuracy(row) for row in rows]
        return {
            "accuracies": accuracies,
            "mean": round(statistics.mean(accuracies), 4),
            "spread": round(statistics.stdev(accuracies), 4),
        }

    def sweep(
        self,
        changes: dict,  # settings of the optimizer
        rates: tuple,  # learning rates to begin with, rising
    ) -> dict:
        """Accuracy by learning rate, the best one, and its three seeds."""
        found, rates = {}, list(rates)
        while True:
            missing = [rate for rate in rates if rate not in found]
            rows = self.measure(
                [(changes | {"learning_rate": rate}, "layer norm") for rate in missing]
            )
            found |= dict(zip(missing, map(last_accuracy, rows), strict=True))
            best = max(rates, key=found.get)
            if best == rates[0]:
                rates.insert(0, float(f"{rates[0] ** 2 / rates[1]:.1g}"))
            elif best == rates[-1]:
                rates.append(float(f"{rates[-1] ** 2 / rates[-2]:.1g}"))
            else:
                seeds = self.seeds(changes | {"learning_rate": best})
                by_rate = {str(rate): found[rate] for rate in rates}
                return {"by_rate": by_rate, "best": best} | seeds


def known_jobs() -> list[tuple]:
    """The (changes, norm) that don't depend on a result, so that many can run at the same time."""
    jobs = [({"seed": seed}, norm) for norm in NORMS for seed in SEEDS]
    jobs += [
        (changes | {"seed": seed}, "layer norm")
        for changes in (*PARTS.values(), PUBLISHED)
        for seed in SEEDS
    ]
    jobs += [
        (changes | {"learning_rate": rate}, "layer norm")
        for changes, rates in RATES.values()
        for rate in rates
    ]
    return jobs


def main():
    """Measure what is missing, saving after each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write, or to continue with")
    parser.add_argument("--beside", type=int, default=2, help="trainings at the same time")
    parser.add_argument("--one", help="measure this command in this process, and print it")
    parser.add_argument("--norm", choices=list(NORMS), default="layer norm", help="with --one")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_one(parse(shlex.split(options.one)[1:]), options.norm)))
        return
    if not options.out:
        parser.error("--out is missing")
    os.environ["OMP_NUM_THREADS"] = "1"
    measurements = Measurements(options.out, options.beside)
    measurements.measure(known_jobs())
    recipe = measurements.seeds({})
    published = measurements.seeds(PUBLISHED)
    tables = {"recipe": recipe, "published": published, "parts": {}, "rates": {}, "norms": {}}
    for name, changes in PARTS.items():
        without = measurements.seeds(changes)
        gain = round(recipe["mean"] - without["mean"], 4)
        tables["parts"][name] = {"without": without, "gain": gain}
    for name, (changes, rates) in RATES.items():
        tables["rates"][name] = measurements.sweep(changes, rates)
    for name in NORMS:
        tables["norms"][name] = measurements.seeds({}, name)
    measurements.save(tables)


if __name__ == "__main__":
    main()
