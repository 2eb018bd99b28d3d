"""Makes finished runs the ones whose numbers, and perhaps weights, ship with the library.

    .venv/bin/python -m scripts.publish.ship_weights RUN...

The record of a run (settings, numbers, history, model card) goes to results/SOURCE-PRESET, that of
another seed than 0 to results/SOURCE-PRESET-seedN, and with another number of epochs than its
preset's, that is part of the name. The weights ship if the run has seed 0 and its preset is in
`SHIPPED_PRESET`: those of width 16 go to cifar_cam_lib/weights/, larger ones stay with the record,
and the sha256 goes into nbs/03_training.ipynb. They are stored as float16 and evaluated once more
on the test images in float32 on a CPU, and those numbers are in the record beside those of the run.
The figures of README.md come from the widest network on CIFAR-10 that ships.
Afterwards: `make export`.
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
import yaml

from cifar_cam_lib.drawn import SIDE
from cifar_cam_lib.main import evaluate
from cifar_cam_lib.model import draw_network, resnet18
from cifar_cam_lib.settings import PATHS, SHIPPED_PRESET, Config, read_config
from cifar_cam_lib.training import load_model, save_weights
from scripts.project import ROOT

README_FIGURES = ("curves", "mistakes", "confusion_matrix", "gradcam_1", "gradcam_2")


def read_json(path: Path) -> dict:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_sha256(
    source: str,  # "cifar10" or "drawn"
    width: int,  # of the network
    digest: str,  # of the file of weights
):
    """Put the digest into the cell of the training chapter that compares it."""
    notebook = ROOT / "nbs" / "03_training.ipynb"
    text = notebook.read_text(encoding="utf-8")
    pattern = rf'(\(\\"{source}\\", {width}\): \\")\w+(\\")'
    text, count = re.subn(pattern, rf"\g<1>{digest}\g<2>", text)
    assert count == 1, f"{notebook.name} holds {count} digests for {source} of width {width}"
    notebook.write_text(text, encoding="utf-8")


def card_data(
    name: str,  # of the record
    source: str,  # "cifar10" or "drawn"
    test: dict,  # "accuracy" and "loss" on the test images
) -> dict:
    """What the Hugging Face hub reads from the head of a model card."""
    dataset = {
        "cifar10": {"name": "CIFAR-10", "type": "uoft-cs/cifar10", "split": "test"},
        "drawn": {"name": "drawn pictures", "type": "cifar_cam_lib/drawn", "split": "test"},
    }[source]
    measured = [
        {"type": "accuracy", "value": test["accuracy"]},
        {"type": "loss", "value": test["loss"], "name": "cross-entropy"},
    ]
    task = {"type": "image-classification"}
    return {
        "license": "mit",
        "library_name": "cifar_cam_lib",
        "pipeline_tag": "image-classification",
        "tags": ["resnet", "grad-cam", "cifar-10"],
        "metrics": ["accuracy"],
        **({"datasets": [dataset["type"]]} if source == "cifar10" else {}),
        "model-index": [
            {"name": name, "results": [{"task": task, "dataset": dataset, "metrics": measured}]}
        ],
    }


def write_card(
    record: Path,  # folder under results/
    shipped: dict,  # the content of its shipped.json
):
    """Describe the weights for people, and for the hub."""
    config, metrics = (read_json(record / f"{name}.json") for name in ("config", "metrics"))
    source, minutes = metrics["data"], metrics["seconds"] / 60
    width, parameters = config["settings"]["width"], f"{metrics['parameters']:,} parameters"
    images = {
        "cifar10": "CIFAR-10 (Krizhevsky 2009)",
        "drawn": "pictures that the library draws; not CIFAR-10",
    }[source]
    rows = {
        "network": f"ResNet-18 with layer norm, width {width}, {parameters}",
        "input": "RGB images of 32x32 pixels, normalised with the mean and deviation of CIFAR-10",
        "output": "ten logits",
        "training data": images,
        "command": f"`{config['command']}`",
        "commit": shipped["commit"],
        "epochs": f"{metrics['epochs']}, the last one counts",
        "training time": f"{minutes:.0f} minutes, {config['threads']} threads, {config['device']}",
        "test accuracy": f"**{shipped['test']['accuracy']:.2%}** of the test images, a second look "
        f"after rounding, {shipped['dtype']} on a CPU",
        "file": f"{shipped['file']}, {shipped['bytes']:,} bytes",
        "sha256": f"`{shipped['sha256']}`",
        "license": "MIT",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    head = yaml.safe_dump(card_data(record.name, source, shipped["test"]), sort_keys=False)
    call = f'model = load_shipped_model("{source}", width={width})'
    example = f"from cifar_cam_lib.training import load_shipped_model\n\n{call}"
    (record / "MODEL_CARD.md").write_text(
        f"---\n{head}---\n\n# {record.name}\n\n"
        "<!-- Written by scripts/publish/ship_weights.py. -->\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f"```python\n{example}\n```\n\n"
        "For teaching: it knows ten classes and small pictures, and calls everything else one of "
        "the ten.\n"
    )


def copy_record(
    run: Path,  # folder of a finished run
    record: Path,  # folder under results/, which it replaces
    left_out: tuple[str, ...],  # files and folders that stay behind
):
    """Copy what belongs to a record; a folder that can't be written is copied as one that can."""
    shutil.rmtree(record, ignore_errors=True)
    others = shutil.ignore_patterns("evaluation.json", "figures", *left_out)
    shutil.copytree(run, record, ignore=others, copy_function=shutil.copyfile)
    for folder in (record, *(path for path in record.rglob("*") if path.is_dir())):
        folder.chmod(0o755)


def ship(
    run: Path,  # folder of a finished run
):
    """Ship the record of one run, and its weights if they are among those that ship."""
    config, source = read_config(run), read_json(run / "metrics.json")["data"]
    preset, machine = dict(Config(preset=config.preset)), {"seed", "download", "device", "workers"}
    longer = config.epochs != preset["epochs"]
    name = f"{source}-{config.preset}" + (f"-{config.epochs}epochs" if longer else "")
    record = ROOT / "results" / (name + (f"-seed{config.seed}" if config.seed else ""))
    if run.resolve() == record.resolve():
        sys.exit(f"{run} is the record itself: name the folder of the run")
    changed = {name for name, value in config if value != preset[name]}
    if changed := changed - machine - PATHS - {"epochs"}:
        sys.exit(f"{run} differs from the preset {config.preset} in {', '.join(sorted(changed))}")
    if config.seed or longer or SHIPPED_PRESET.get((source, config.width)) != config.preset:
        copy_record(run, record, ("model.safetensors", "tb"))
        return
    model = load_model(run / "model.safetensors")
    weights = record / "model.safetensors"
    if config.width == 16:
        weights = ROOT / "cifar_cam_lib" / "weights" / f"{source}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        save_weights(model, Path(folder) / "model.safetensors", torch.float16)
        shutil.copy(run / "config.json", folder)
        test = evaluate(Path(folder))  # before anything is replaced
        copy_record(run, record, ("model.safetensors",))
        shutil.copyfile(Path(folder) / "model.safetensors", weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    write_sha256(source, config.width, digest)
    if source == "cifar10" and config.width == resnet18().stem[0].out_channels:
        for name in README_FIGURES:
            shutil.copyfile(
                run / "figures" / f"{name}.png", ROOT / "nbs" / "figures" / f"{name}.png"
            )
        draw_network(resnet18(), SIDE).savefig(ROOT / "nbs" / "figures" / "network.png", dpi=144)
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
    for name in sys.argv[1:]:
        ship(Path(name))


if __name__ == "__main__":
    main()
