"""Makes finished runs the ones whose weights and numbers ship with the library.

    .venv/bin/python -m scripts.publish.ship_weights RUN...

The record of a run (settings, numbers, history, TensorBoard events, model card) goes to
results/SOURCE-widthN. Weights of width 16 go to cifar_cam_lib/weights/, and their sha256 into
nbs/03_training.ipynb; larger ones stay with the record, as `cifar-cam evaluate` wants them. All
weights are stored as float16, evaluated once more on the test images in float32 on a CPU, and those
numbers are in the record beside those of the run. The figures of README.md come from the widest run
on CIFAR-10 that is named. Afterwards: `make export`.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from cifar_cam_lib.drawn import SIDE
from cifar_cam_lib.main import evaluate
from cifar_cam_lib.model import draw_network, resnet18
from cifar_cam_lib.training import load_model, save_weights
from scripts.project import ROOT

README_FIGURES = ("curves", "mistakes", "confusion_matrix", "gradcam_1", "gradcam_2")


def read_json(path: Path) -> dict:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_sha256(
    source: str,  # "cifar10" or "drawn"
    digest: str,  # of the file of weights
):
    """Put the digest into the cell of the training chapter that compares it."""
    notebook = ROOT / "nbs" / "03_training.ipynb"
    text = notebook.read_text(encoding="utf-8")
    pattern = rf'(\\"{source}\\": \\")\w+(\\")'
    text, count = re.subn(pattern, rf"\g<1>{digest}\g<2>", text)
    assert count == 1, f"{notebook.name} holds {count} digests for {source}"
    notebook.write_text(text, encoding="utf-8")


def write_card(
    record: Path,  # folder under results/
    shipped: dict,  # the content of its shipped.json
):
    """Describe the weights for people."""
    config, metrics = (read_json(record / f"{name}.json") for name in ("config", "metrics"))
    machine = f"{config['threads']} threads, {config['device']}"
    width, parameters = config["settings"]["width"], f"{metrics['parameters']:,} parameters"
    minutes, accuracy = metrics["seconds"] / 60, shipped["test"]["accuracy"]
    data = {
        "cifar10": "CIFAR-10 (Krizhevsky 2009)",
        "drawn": "pictures that the library draws; not CIFAR-10",
    }[metrics["data"]]
    rows = {
        "network": f"ResNet-18 with layer norm, width {width}, {parameters}",
        "input": "RGB images of 32x32 pixels, normalised with the mean and deviation of CIFAR-10",
        "output": "ten logits",
        "training data": data,
        "command": f"`{config['command']}`",
        "commit": shipped["commit"],
        "epochs": f"{metrics['epochs']}, the last one counts",
        "training time": f"{minutes:.0f} minutes, {machine}",
        "test accuracy": f"**{accuracy:.2%}** of the test images, a second look after rounding, "
        f"{shipped['dtype']} on a CPU",
        "file": f"{shipped['file']}, {shipped['bytes']:,} bytes",
        "sha256": f"`{shipped['sha256']}`",
        "license": "MIT",
    }
    if "started_from" in config:
        rows["first weights"] = (
            "those of the network of width 16 that ships, widened (`cifar_cam_lib.fast.widen`); "
            f"sha256 `{config['started_from']}`"
        )
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    (record / "MODEL_CARD.md").write_text(
        f"# {record.name}\n\n<!-- Written by scripts/publish/ship_weights.py. -->\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        "For teaching: it knows ten classes and small pictures, and calls everything else one of "
        "the ten.\n"
    )


def ship(
    run: Path,  # folder of a finished run
    with_figures: bool,  # README.md shows its figures
):
    """Ship the record and the weights of one run."""
    source = read_json(run / "metrics.json")["data"]
    model = load_model(run / "model.safetensors")
    width = model.stem[0].out_channels
    record = ROOT / "results" / f"{source}-width{width}"
    if run.resolve() == record.resolve():
        sys.exit(f"{run} is the record itself: name the folder of the run")
    if width == 16:
        weights = ROOT / "cifar_cam_lib" / "weights" / f"{source}.safetensors"
    else:
        weights = record / "model.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        save_weights(model, Path(folder) / "model.safetensors", torch.float16)
        shutil.copy(run / "config.json", folder)
        test = evaluate(Path(folder))  # before anything is replaced
        shutil.rmtree(record, ignore_errors=True)
        others = shutil.ignore_patterns("model.safetensors", "figures", "evaluation.json")
        shutil.copytree(run, record, ignore=others)
        shutil.copy(Path(folder) / "model.safetensors", weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if width == 16:
        write_sha256(source, digest)
    if with_figures:
        for name in README_FIGURES:
            shutil.copy(run / "figures" / f"{name}.png", ROOT / "nbs" / "figures")
        draw_network(resnet18(), SIDE).savefig(ROOT / "nbs" / "figures" / "network.png", dpi=110)
    asked = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    shipped = {
        "file": weights.name,
        "sha256": digest,
        "bytes": weights.stat().st_size,
        "dtype": "float16, evaluated in float32",
        "commit": commit,
        "test": {"accuracy": test.accuracy, "loss": test.loss},
    }
    mistakes = json.dumps([mistake.index for mistake in test.mistakes])  # on one line
    (record / "shipped.json").write_text(
        json.dumps(shipped, indent=2).removesuffix("\n}") + f',\n  "mistakes": {mistakes}\n}}\n'
    )
    write_card(record, shipped)


def main():
    """Ship the runs that the command line names."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    runs = [Path(name) for name in sys.argv[1:]]
    metrics = {run: read_json(run / "metrics.json") for run in runs}
    counts = {run: row["parameters"] for run, row in metrics.items() if row["data"] == "cifar10"}
    for run in runs:
        ship(run, with_figures=bool(counts) and run == max(counts, key=counts.get))


if __name__ == "__main__":
    main()
