"""Compares two checkouts: do the same settings train the same weights, to the last bit?

    .venv/bin/python -m scripts.measure.same_weights ../other-checkout

Trains three small runs in each of them, with one thread and with two, and compares the sha256 of
the weights. CIFAR-10 has to be there. The last bits belong to a machine, so both sides are trained
anew, in turn. Takes nine minutes on two cores.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.project import ROOT

RUNS = {
    "demo": "--train-size 1000 --epochs 2",
    "laptop": "--train-size 4000 --validation-size 1000 --epochs 2",
    "published": "--width 8 --train-size 2000 --epochs 2",
}
OLD_NAMES = {"published": "original"}  # presets were once called otherwise


def weights(
    checkout: Path,  # folder of a checkout
    preset: str,  # a key of RUNS, as this checkout calls it
    words: str,  # the other settings
    threads: int,  # of PyTorch
) -> str:
    """The sha256 of the weights that a run of the checkout leaves."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["train", "--preset", preset, *words.split(), "--out", f"{folder}/run"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(checkout)}
        subprocess.run(
            [sys.executable, "-m", "cifar_cam_lib.main", *command],
            cwd=folder,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return hashlib.sha256(Path(folder, "run", "model.safetensors").read_bytes()).hexdigest()


def main() -> int:
    """Returns 1 if a run differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--presets", nargs="+", choices=RUNS, default=list(RUNS))
    options = parser.parse_args()
    other, different = options.other.resolve(), 0
    old = "grown" in (other / "cifar_cam_lib" / "main.py").read_text()
    for preset in options.presets:
        name = OLD_NAMES.get(preset, preset) if old else preset
        for threads in (1, 2):
            ours = weights(ROOT, preset, RUNS[preset], threads)
            theirs = weights(other, name, RUNS[preset], threads)
            same = ours == theirs
            different += not same
            words = f"{preset:10} {threads} threads   {ours[:12]} {theirs[:12]}"
            print(f"{words}   {'same' if same else 'DIFFERENT'}", flush=True)
    return min(different, 1)


if __name__ == "__main__":
    sys.exit(main())
