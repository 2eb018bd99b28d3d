"""Runs the three levels in full, one after the other, and saves what they show.

    .venv/bin/python -m scripts.measure.levels --out results/levels.json   (three hours)
    .venv/bin/python -m scripts.measure.levels --out FILE --only seeds   (one of its parts)

`1_all_in_one`, `2_with_the_library`, `3_one_call`: the notebook with its settings as they are, on
    CIFAR-10; its outputs are saved in it, and accuracies, fingerprints and seconds in the file.
`seeds`: level 3's command with two more seeds, in runs/levels-seed1 and -seed2; a run that was
    interrupted continues.
`first_losses`: the losses of a training of 8 steps on drawn pictures, at SMALL settings. Do they
    differ from today's, then the saved outputs no longer belong to today's code. (After 40 steps
    processors with other instructions differ by 0.4 %, after 8 in the seventh digit.)

The three levels are run each time. Their last bits belong to one machine, so run them on one.
"""

import argparse
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient

from cifar_cam_lib.runs import read_json
from scripts.measure.bench_gradcam import machine, save
from scripts.project import ROOT
from scripts.publish import build_levels, run_notebooks

SEEDS = (1, 2)  # besides that of the settings
END = "The numbers"  # the heading under which a level says what came out
# Two epochs of 4 steps: 220 images, less 60 for validation, in batches of 40.
SMALL = """
train_size, validation_size = 220, 60
padding, flip = 4, True
width, epochs, batch_size, image_sizes = 16, 2, 40, (16, 32)
learning_rate, weight_decay = 0.0015, 0.01
seed, device = 3, "cpu"
quick = True
"""
# Of real CIFAR-10, too, the first 1,000 images of each split will do: all test images, three times,
# take a minute.
FEWER = """
from torchvision.datasets import CIFAR10
read_all = CIFAR10.__init__

def read_some(dataset, *words, **options):
    read_all(dataset, *words, **options)
    dataset.data, dataset.targets = dataset.data[:1000], dataset.targets[:1000]

CIFAR10.__init__ = read_some
"""
# What the notebook found out, in full, not as the fingerprints that it prints.
SAVE = """
import os
weights = model.state_dict().items()
columns = "train_loss", "validation_loss", "validation_accuracy"
np.savez(
    os.environ["LEVEL_RESULT"],
    steps=epochs * (train_size - validation_size) // batch_size,
    test_accuracy=test_accuracy,
    history=[[row[column] for column in columns] for row in history],
    predictions=test_logits.numpy(),
    **{f"weights {name}": weight.numpy() for name, weight in weights},
    **{f"maps {side} {name}": map_.numpy() for side in maps for name, map_ in maps[side].items()},
)
"""


def small_notebook(
    path: Path,  # a level
    change: tuple[str, str],  # a text that occurs once in its code, and what takes its place
):
    """The level down to its numbers, with small settings, one change, and what saves its arrays.

    Raises ValueError if the text to change isn't there exactly once.
    """
    notebook = nbformat.read(path, as_version=4)
    headings = [cell.source.partition("\n")[0] for cell in notebook.cells]
    end = headings.index(f"## {END}") + 2  # the heading's cell and the one with the numbers
    notebook.cells = [*notebook.cells[:end], nbformat.v4.new_code_cell(SAVE)]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (settings,) = [cell for cell in code if cell.source.startswith("quick = ")]
    settings.source = SMALL + FEWER
    old, new = change
    if old:
        if sum(cell.source.count(old) for cell in code) != 1:
            raise ValueError(f"the text to change is not in {path.name}, or more than once: {old}")
        for cell in code:
            cell.source = cell.source.replace(old, new)
    return notebook


def change_file(
    path: Path,  # a module of a copy of the library
    old: str,  # a text that occurs once
    new: str,  # what takes its place
):
    """Change one text. Raises ValueError if it isn't there exactly once."""
    text = path.read_text()
    if text.count(old) != 1:
        raise ValueError(f"the text to change is not in {path.name}, or more than once: {old}")
    path.write_text(text.replace(old, new))


def copy_library(
    folder: Path,  # where to
) -> Path:
    """A copy of the library that draws at most 1,000 pictures, because drawing takes time."""
    library = folder / "cifar_cam_lib"
    shutil.copytree(ROOT / "cifar_cam_lib", library, ignore=shutil.ignore_patterns("__pycache__"))
    all_pictures = "clue) for index in range(count)"
    some = all_pictures.replace("count", "min(count, 1000)")
    change_file(library / "drawn.py", all_pictures, some)
    return library


def run_small(
    level: str,  # such as "1_all_in_one"
    folder: Path,  # an empty folder
    data_root="nowhere",  # folder that contains cifar-10-batches-py; else drawn pictures are used
    change=(None, "", ""),  # file of the library, None for the notebook; a text; its replacement
) -> dict:
    """Execute a level in a kernel of its own with SMALL settings; returns its arrays by name.

    Raises ValueError if the text to change isn't there exactly once.
    """
    file, old, new = change
    library = copy_library(folder)
    path = build_levels.FOLDER / f"{level}.ipynb"
    notebook = small_notebook(path, ("", "") if file else (old, new))
    if file:
        change_file(library / file, old, new)
    # Coverage would count the copy.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")}
    environment = kept | {
        "PYTHONPATH": str(folder),
        "CIFAR_CAM_DATA": str(data_root),
        "LEVEL_RESULT": str(folder / "result.npz"),
        "OMP_NUM_THREADS": "1",
        "IN_TEST": "1",
    }
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    return dict(np.load(folder / "result.npz"))


def first_losses() -> list:
    """Training and validation loss of the two epochs of a small run on drawn pictures."""
    with tempfile.TemporaryDirectory() as folder:
        history = run_small(build_levels.NOTEBOOKS[0], Path(folder))["history"]
    return [[float(f"{loss:.7g}") for loss in row[:2]] for row in history]


def run_level(
    level: str,  # such as "1_all_in_one"
) -> dict:
    """Run a level in full and save its outputs; returns seconds, settings and numbers."""
    path, start = build_levels.FOLDER / f"{level}.ipynb", time.perf_counter()
    os.environ.pop("IN_TEST", None)
    run_notebooks.prepare()
    if faults := run_notebooks.run(path, watch=True):
        sys.exit(f"{path.name}: {faults[0]}")
    seconds = round(time.perf_counter() - start)
    numbers = dict(build_levels.printed_numbers(path))
    settings = build_levels.settings(path)
    return {"seconds": seconds, "machine": machine(), "settings": settings, "numbers": numbers}


def run_seed(
    command: str,  # what level 3 printed
    seed: int,
) -> dict:
    """Train level 3's network with another seed, or continue to; returns what came out."""
    folder = ROOT / "runs" / f"levels-seed{seed}"
    words = [*shlex.split(command)[1:], "--seed", str(seed), "--out", str(folder)]
    if folder.exists():
        words = ["resume", "--run", str(folder)]
    if not (folder / "metrics.json").exists():
        subprocess.run([sys.executable, "-m", "cifar_cam_lib", *words], check=True, cwd=ROOT)
    metrics, config = read_json(folder / "metrics.json"), read_json(folder / "config.json")
    accuracies = {split: metrics[split]["accuracy"] for split in ("validation", "test")}
    told = {"command": config["command"], "machine": machine(), "seconds": metrics["seconds"]}
    return told | accuracies


def measure(
    part: str,  # a level, "seeds" or "first_losses"
    result: dict,  # the record; what the part finds is added
    out: Path,  # its file
):
    """Do one part, and write it down."""
    if part == "first_losses":
        result[part] = first_losses()
    elif part == "seeds":
        text = (build_levels.FOLDER / f"{build_levels.NOTEBOOKS[2]}.ipynb").read_text()
        command = re.search(r"cifar-cam train [\w. -]+", text)[0]
        for seed in SEEDS:
            result.setdefault(part, {})[str(seed)] = run_seed(command, seed)
            save(out, result)
    else:
        result.setdefault("levels", {})[part] = run_level(part)
    save(out, result)


def main():
    """Measure, and write after each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("first_losses", *build_levels.NOTEBOOKS, "seeds")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--only", choices=parts, help="measure only this part")
    options = parser.parse_args()
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    result |= {
        "command": "python -m scripts.measure.levels --out results/levels.json",
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "cifar_cam_lib")},
    }
    for part in [options.only] if options.only else parts:
        measure(part, result, options.out)


if __name__ == "__main__":
    main()
