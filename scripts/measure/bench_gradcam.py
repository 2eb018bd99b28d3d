"""Measures what Grad-CAM costs beside other libraries, on this machine, and writes it down.

    .venv/bin/python -m scripts.measure.bench_gradcam --out results/bench          (17 minutes)
    .venv/bin/python -m scripts.measure.bench_gradcam --rounds 1 --width 16             (quick)

Maps of 4 layers with a ResNet-18 of random weights, in float32. The other libraries get all images
at once, as their examples do; captum and grad-cam give one layer a call, so they are called four
times. captum, torchcam and grad-cam are told the classes to explain, which spares captum a forward
pass.

Every case runs in a process of its own: a warm-up on two images, then the work (on 20 images five
times, and the median counts). The rounds go through all cases in turn, so that a busy minute falls
on all of them; the median over the rounds counts. Time is the CPU time of all threads together, so
that waiting doesn't count; memory is how far the process's peak rises during the work.
"""

import argparse
import importlib.metadata
import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from scripts.project import ROOT

LAYERS = ("layer1", "layer2", "layer3", "layer4")
SIZES = (20, 256)  # images
CASES = {
    "forward": "bare forward pass, no_grad, batches of 64",
    "ours": "ours, 1 target",
    "ours whole": "ours, 1 target, all images in one batch",
    "ours two": "ours, 2 targets",
    "torchcam": "torchcam, 1 target",
    "torchcam two": "torchcam, 2 targets",
    "captum": "captum, 1 target",
    "grad-cam": "grad-cam, 1 target",
}
# case, what it is divided by, of time or memory, the limit, whether it is an upper one
TARGETS = [
    ("ours", "forward", "cpu_seconds", 2.3, "at most"),
    ("ours two", "ours", "cpu_seconds", 1.7, "at most"),
    ("captum", "ours", "cpu_seconds", 2.5, "at least"),
    ("grad-cam", "ours", "cpu_seconds", 5, "at least"),
    ("torchcam", "ours", "cpu_seconds", 1, "at least"),
    ("ours", "torchcam", "peak_extra_mb", 0.65, "at most"),
    ("ours whole", "torchcam", "peak_extra_mb", 0.65, "at most"),
]


def work(
    case: str,  # a key of CASES
    model,  # the network
    images,  # float [N, 3, 32, 32]
    targets,  # int64 [N, 2]; with one target the first column counts
):
    """Do the work of a case once."""
    import torch

    first, layers = targets[:, 0].tolist(), [getattr(model, layer) for layer in LAYERS]
    if case == "forward":
        with torch.no_grad():
            return [model(batch) for batch in images.split(64)]
    if case.startswith("ours"):
        from cifar_cam_lib.gradcam import gradcam

        batch_size = len(images) if case == "ours whole" else 64
        chosen = targets if case == "ours two" else first
        return gradcam(model, images, chosen, batch_size=batch_size)
    if case.startswith("torchcam"):
        from torchcam.methods import GradCAM

        with GradCAM(model, list(LAYERS)) as cam:
            scores = model(images)
            columns = targets.T.tolist() if case == "torchcam two" else [first]
            return [
                cam(column, scores, retain_graph=column is not columns[-1]) for column in columns
            ]
    if case == "captum":
        from captum.attr import LayerGradCam

        return [
            LayerGradCam(model, layer).attribute(images, target=first, relu_attributions=True)
            for layer in layers
        ]
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    maps = []
    for layer in layers:
        with GradCAM(model, [layer]) as cam:
            maps.append(cam(images, [ClassifierOutputTarget(target) for target in first]))
    return maps


def measure(
    case: str,  # a key of CASES
    count: int,  # images
    width: int,  # channels of the first stage
) -> dict:
    """CPU seconds and MB of a case, in this process, which has done nothing else."""
    import torch

    from cifar_cam_lib.model import resnet18

    torch.manual_seed(0)
    model, images = resnet18(10, width).eval(), torch.randn(count, 3, 32, 32)
    targets = torch.randint(0, 10, (count, 2))
    work(case, model, images[:2], targets[:2])
    memory, seconds = peak_mb(), []
    for _ in range(max(1, 100 // count)):
        start = time.process_time()
        work(case, model, images, targets)
        seconds.append(time.process_time() - start)
    return {"cpu_seconds": statistics.median(seconds), "peak_extra_mb": peak_mb() - memory}


def measure_apart(
    case: str,  # a key of CASES
    count: int,  # images
    width: int,  # channels of the first stage
) -> dict:
    """The same in a fresh process."""
    options = ["--case", case, "--images", str(count), "--width", str(width)]
    return run_apart("scripts.measure.bench_gradcam", options)


def run_apart(
    module: str,  # a script as `python -m` knows it
    options: list[str],  # its words
) -> dict:
    """What a fresh process prints as its last line, read as JSON."""
    command = [sys.executable, "-m", module, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def medians(
    measured: dict,  # for each size and case, one measurement a round
) -> dict:
    """The median of each number, by size and case."""
    return {
        size: {
            case: {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
            for case, rows in cases.items()
        }
        for size, cases in measured.items()
    }


def compare(
    numbers: dict,  # from `medians`
) -> list[dict]:
    """Each target with its ratio at each size, and whether it is met.

    Memory counts for the larger size only.
    """
    rows = []
    for case, reference, name, limit, side in TARGETS:
        sizes = list(numbers)[-1:] if name == "peak_extra_mb" else numbers
        ratios = {
            size: round(numbers[size][case][name] / numbers[size][reference][name], 2)
            for size in sizes
        }
        met = all(
            ratio <= limit if side == "at most" else ratio >= limit for ratio in ratios.values()
        )
        rows.append(
            {
                "ratio": f"{case} / {reference}",
                "of": name,
                "target": f"{side} {limit}",
                "measured": ratios,
                "met": met,
            }
        )
    return rows


def peak_mb() -> float:
    """The most memory that this process has held, in MB; macOS counts in bytes, Linux in KB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def machine() -> dict:
    """What the numbers depend on, without names or paths."""
    import torch

    from cifar_cam_lib.fast import choose_device, describe_chip

    cpu, device = describe_chip(torch.device("cpu")), choose_device("auto")
    gpu = {} if device.type == "cpu" else {"gpu": describe_chip(device)}
    threads, python = torch.get_num_threads(), platform.python_version()
    return {"cpu": cpu, **gpu, "threads": threads, "python": python}


def machine_file(
    folder: Path | None,  # folder of the records of all machines
    name: str,  # file name
) -> Path | None:
    """Where this machine's record is: in a sub-folder named after the processor."""
    words = re.findall(r"\w+", machine()["cpu"].lower())
    return folder / "-".join(words) / name if folder else None


def measured_before(
    out: Path | None,  # JSON file that may be there
    now: dict,  # the record that is begun, with its "machine" and "versions"
) -> dict:
    """What the file holds, {} if there is none.

    Exits if it is of another machine or of other versions.
    """
    known = json.loads(out.read_text()) if out and out.exists() else {}
    if known and any(known[name] != now[name] for name in ("machine", "versions")):
        advice = "name a new file, and measure everything"
        sys.exit(f"{out} is of another machine or of other versions: {advice}")
    return known


def save(
    out: Path | None,  # JSON file to write
    result: dict,  # what to write
):
    """Write the measurements, if a file was named."""
    if out:
        # not above, because a case is measured in a process that holds nothing else
        from cifar_cam_lib.runs import write_json

        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result)


def record(
    rounds: int,  # how often every case is measured
    width: int,  # channels of the first stage
) -> dict:
    """Measure all cases, and return what goes into the file."""
    measured = {str(size): {case: [] for case in CASES} for size in SIZES}
    for number in range(rounds):
        for size, cases in measured.items():
            for case, rows in cases.items():
                rows.append(measure_apart(case, int(size), width))
                where = f"round {number + 1} of {rounds}, {size} images, {case}"
                print(f"{where}: {rows[-1]['cpu_seconds']:.2f} s", flush=True)
    numbers = medians(measured)
    packages = ("torch", "captum", "torchcam", "grad-cam", "cifar_cam_lib")
    what = f"Grad-CAM maps of 4 layers, ResNet-18 of width {width}, float32, images of 32x32"
    command = f"python -m scripts.measure.bench_gradcam --rounds {rounds} --width {width}"
    return {
        "command": command,
        "what": f"{what}; medians of {rounds} rounds",
        "machine": machine(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "cases": CASES,
        "numbers": numbers,
        "targets": compare(numbers),
    }


def show(
    result: dict,  # from `record`
):
    """Print the numbers and the targets as two tables."""
    for size, cases in result["numbers"].items():
        forward = cases["forward"]["cpu_seconds"]
        print(f"\n{size} images{'CPU seconds':>43}{'/ forward':>11}{'/ ours':>8}{'extra MB':>10}")
        for case, row in cases.items():
            seconds = row["cpu_seconds"]
            ours = seconds / cases["ours"]["cpu_seconds"]
            line = f"  {CASES[case]:42}{seconds:>10.2f}{seconds / forward:>11.2f}{ours:>8.2f}"
            print(f"{line}{row['peak_extra_mb']:>10.0f}")
    print()
    for row in result["targets"]:
        measured = ", ".join(f"{ratio} ({size} images)" for size, ratio in row["measured"].items())
        met = "met   " if row["met"] else "MISSED"
        print(f"{met}  {row['ratio']} of {row['of']}: {row['target']}, measured {measured}")


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder of the records of all machines")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often every case is measured (3)"
    )
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (64)")
    parser.add_argument(
        "--case", choices=list(CASES), help="measure only this case, in this process, and print it"
    )
    parser.add_argument("--images", type=int, default=SIZES[0], help="images, with --case")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.images, options.width)))
        return 0
    result = record(options.rounds, options.width)
    show(result)
    save(machine_file(options.out, "gradcam.json"), result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
