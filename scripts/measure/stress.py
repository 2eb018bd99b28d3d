"""Tries to break the library: kills runs, damages states, serves bad downloads, opens bad files.

    .venv/bin/python -m scripts.measure.stress --out results/stress.json    (at most 45 minutes)
    .venv/bin/python -m scripts.measure.stress --out /some/file.json --only kills

`kills`: real runs that SIGKILL ends after a random time, 22 of them before the end of their first
    epoch. Each must continue, or begin again in the same folder if it had not written anything, and
    end with the weights of a run that nothing interrupted.
`flips`: one random bit of a run's last state is changed. It must be noticed, the state before it
    used, and the weights at the end be the same.
`downloads`: the thirty kinds of answer, the kills and the archives of tests/test_downloads.py.
`files`: mutants of pictures, weights and records, by `stress_files`. Each must end with exit code
    0, 2 or 3 and at most one line on stderr; some are opened by a real process, whose CPU time and
    memory are measured against those of a sound small picture.
`limits`: the dearest pictures that we know of each kind, at its limit of megapixels and above it,
    opened by a real process.

`make test` does a part of each.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["IN_TEST"] = "1"  # nothing is downloaded but from this machine

from cifar_cam_lib.main import cli, run
from cifar_cam_lib.runs import is_finished, states_of, write_json
from cifar_cam_lib.settings import Config, command_line
from scripts.measure.bench_gradcam import machine
from scripts.measure.stress_files import measure_limits, open_mutants
from scripts.project import ROOT

RUN = {
    "device": "cpu",
    "train_size": 300,
    "validation_size": 60,
    "width": 4,
    "epochs": 3,
    "image_sizes": (16,),
    "batch_size": 10,
}


def quietly(
    words: list[str],  # of the command line
) -> tuple[int, str]:
    """The exit code of a command in this process, and what it says on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = cli(words)
    return code, said.getvalue()


def weights(
    folder: Path,  # of a run
) -> bytes:
    """The bytes of its weights."""
    return (folder / "model.safetensors").read_bytes()


def killed_run(
    folder: Path,  # to be made
    sign: str,  # file whose coming starts the clock; none for the start of the process
    delay: float,  # seconds from then to the kill
) -> bool:
    """Start a run in a process of its own and kill it; whether it was still going on."""
    words = [*command_line(Config(**RUN)).split()[1:], "--out", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CIFAR_CAM_MINUTES": "0.005"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "cifar_cam_lib", *words]
    started = subprocess.Popen(command, env=environment, **quiet)
    while sign and not (folder / sign).exists() and started.poll() is None:
        time.sleep(0.001)
    time.sleep(delay)
    alive = started.poll() is None
    started.send_signal(signal.SIGKILL)
    started.wait()
    return alive


def reference_run(
    place: Path,  # folder for the runs
) -> Path:
    """The folder of a run that nothing interrupted."""
    folder = place / "reference"
    if not folder.exists():
        run(Config(**RUN, out=folder))
    return folder


def count_kills(
    count: int,  # how many
    place: Path,  # folder for the runs
    seed: int = 0,  # fixes the moments
) -> dict:
    """Kill runs, and continue them."""
    draw, reference = random.Random(seed), reference_run(place)
    with (reference / "history.csv").open() as file:
        epoch = max(float(row["seconds"]) for row in csv.DictReader(file))
    early = round(count * 22 / 50)
    result = {"kills": 0, "before the first epoch": 0, "resumed, the same weights": 0}
    result |= {"of those before the first epoch": 0, "failed": []}
    for number in range(count):
        folder = place / f"run-{number}"
        first = number < early
        sign, longest = ("config.json", 1.2 * epoch) if first else ("history.csv", 6 * epoch)
        if not killed_run(folder, sign if number % 11 else "", draw.random() * longest):
            continue
        began = not (folder / "history.csv").exists()
        result["kills"] += 1
        result["before the first epoch"] += began
        words = ["resume", "--run", str(folder)]
        if not (folder / "config.json").exists():
            words = [*command_line(Config(**RUN)).split()[1:], "--out", str(folder)]
        elif is_finished(folder):
            words = ["evaluate", "--run", str(folder)]
        code, said = quietly(words)
        same = code == 0 and weights(folder) == weights(reference)
        result["resumed, the same weights"] += same
        result["of those before the first epoch"] += same and began
        if not same:
            result["failed"].append(said or f"{words[0]}: other weights, or code {code}")
        shutil.rmtree(folder)
    return result


def count_flips(
    count: int,  # how many
    place: Path,  # folder for the runs
    seed: int = 0,  # fixes the bits
) -> dict:
    """Change a bit of the last state, and continue."""
    draw, original = random.Random(seed), place / "to flip"
    reference = reference_run(place)
    while not original.exists() or len(states_of(original)) < 2 or is_finished(original):
        shutil.rmtree(original, ignore_errors=True)
        killed_run(original, "history.csv", 0)
    result = {"flips": count, "unnoticed": 0, "the same weights": 0}
    for number in range(count):
        folder = shutil.copytree(original, place / f"flip-{number}")
        path = states_of(folder)[-1]
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        _, said = quietly(["resume", "--run", str(folder)])
        result["unnoticed"] += "is damaged: the state before it is used" not in said
        result["the same weights"] += weights(folder) == weights(reference)
        shutil.rmtree(folder)
    return result


def count_downloads() -> dict:
    """Run the tests of downloads; what they say at their end."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    words = [*command, str(ROOT / "tests" / "test_downloads.py")]
    result = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    return {"tests": result.stdout.strip().splitlines()[-1], "failed": result.returncode != 0}


def main() -> int:
    """Try it all, write down what came of it, and return 1 if something broke."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parts = ("kills", "flips", "downloads", "files", "limits")
    parser.add_argument("--only", choices=parts, nargs="+", default=parts)
    options = parser.parse_args()
    record = json.loads(options.out.read_text()) if options.out.exists() else {}  # other parts stay
    record |= {
        "command": f"python -m scripts.measure.stress --out results/{options.out.name}",
        "machine": machine(),
    }
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tries = {
            "kills": lambda: count_kills(50, place),
            "flips": lambda: count_flips(60, place),
            "downloads": count_downloads,
            "files": lambda: open_mutants(2000, 50, reference_run(place)),
            "limits": measure_limits,
        }
        for name in options.only:
            begun = time.monotonic()
            record[name] = tries[name]() | {"minutes": round((time.monotonic() - begun) / 60, 1)}
            print(name, record[name], flush=True)
            write_json(options.out, record)
    flips = record.get("flips", {})
    wrong = flips.get("unnoticed") or flips.get("the same weights") != flips.get("flips")
    return bool(wrong or any(record[name].get("failed") for name in options.only))


if __name__ == "__main__":
    sys.exit(main())
