"""Makes a finished run the one whose weights and numbers ship with the library.

    .venv/bin/python scripts/ship_weights.py RUN...

For each run: its weights go to cifar_cam_lib/weights/ as float16, their sha256 into nbs/03_training.ipynb, and its
record (settings, numbers, history, TensorBoard events) to results/, and, of a run on CIFAR-10, the figures of README.md
to nbs/figures/. The float16 weights are evaluated once more on the
test images, in float32, and the numbers stand in the record beside those of the run. Afterwards: `make export`.
"""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from cifar_cam_lib.main import evaluate
from cifar_cam_lib.model import draw_network, resnet18
from cifar_cam_lib.training import load_model, save_weights

ROOT = Path(__file__).resolve().parent.parent
README_FIGURES = ("curves", "mistakes", "confusion_matrix", "gradcam_1", "gradcam_2")


def write_sha256(
    source,  # "cifar10" or "drawn"
    digest,  # of the file of weights
):
    "Put the digest into the cell of the training chapter that compares it."
    notebook = ROOT / "nbs" / "03_training.ipynb"
    text, count = re.subn(rf'(\\"{source}\\": \\")\w+(\\")', rf"\g<1>{digest}\g<2>", notebook.read_text(encoding="utf-8"))
    assert count == 1, f"{notebook.name} holds {count} digests for {source}"
    notebook.write_text(text, encoding="utf-8")


def ship(
    run,  # folder of a finished run
):
    "Ship the weights of one run."
    source = json.loads((run / "metrics.json").read_text())["data"]
    weights, record = ROOT / "cifar_cam_lib" / "weights" / f"{source}.safetensors", ROOT / "results" / f"{source}-width16"
    weights.parent.mkdir(exist_ok=True)
    save_weights(load_model(run / "model.safetensors"), weights, torch.float16)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    write_sha256(source, digest)
    shutil.rmtree(record, ignore_errors=True)
    shutil.copytree(run, record, ignore=shutil.ignore_patterns("model.safetensors", "figures", "evaluation.json"))
    if source == "cifar10":
        for name in README_FIGURES:
            shutil.copy(run / "figures" / f"{name}.png", ROOT / "nbs" / "figures")
        draw_network(resnet18()).savefig(ROOT / "nbs" / "figures" / "network.png", dpi=110)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(weights, Path(folder) / "model.safetensors")
        shutil.copy(run / "config.json", folder)
        test = evaluate(Path(folder))
    shipped = {"file": weights.name, "sha256": digest, "bytes": weights.stat().st_size, "dtype": "float16, evaluated in float32",
               "test": {"accuracy": test.accuracy, "loss": test.loss}}
    (record / "shipped.json").write_text(json.dumps(shipped, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for name in sys.argv[1:]:
        ship(Path(name))
