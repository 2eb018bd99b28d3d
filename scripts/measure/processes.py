"""Measures one training by one and by two processes on this machine's cores, for chapter 8.

    .venv/bin/python -m scripts.measure.processes --out results/processes.json    (six minutes)

Steps of training, a batch of 128 images in all, augmented a batch at a time: one process with one
thread, one with two, and two with one thread each, whose gradients are averaged. Three rounds, each
case once a round, in the precision that the chip is fast at; the median is what counts. Then how
long the processes need for the sum of as many numbers as the network has weights.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import torch.distributed as dist
import torch.nn.functional as F

from cifar_cam_lib.data import load_images, make_loader
from cifar_cam_lib.fast import BatchedImages, choose_precision
from cifar_cam_lib.model import channels_last, count_parameters, resnet18
from cifar_cam_lib.processes import (
    distribute,
    process_group,
    rank,
    share_images,
    share_loss,
    share_of_batch,
    world_size,
)
from cifar_cam_lib.runs import write_json
from cifar_cam_lib.training import Training, make_optimizer, train_epoch
from scripts.measure.bench_gradcam import machine
from scripts.project import ROOT

BATCH = 128
STEPS = {16: 20, 64: 6}  # by width
CASES = {  # processes, threads of each
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, one thread each": (2, 1),
}


def measure_one(
    width: int,  # of the network
) -> dict:
    """Images a second of one training, and seconds for the sum of its gradients' size."""
    cpu = torch.device("cpu")
    with process_group(cpu):
        torch.manual_seed(0)
        images, _ = load_images("drawn", drawn_count=STEPS[width] * BATCH)
        dataset = BatchedImages(images, seed=0, padding=4, flip=True)
        loader = make_loader(dataset, share_of_batch(BATCH, len(dataset)), True, 0)
        share_images(loader)
        model = channels_last(resnet18(10, width))
        optimizer = make_optimizer(model, "sgd", 0.01, momentum=0.9, weight_decay=0.0)
        precision = choose_precision("auto", cpu)
        training = Training(distribute(model), optimizer, precision=precision)
        loss = share_loss(F.cross_entropy)
        seconds = []
        for _ in range(2):  # the first is to warm up
            start = time.perf_counter()
            train_epoch(training, loader, loss)
            seconds.append(time.perf_counter() - start)
        row = {"images_per_second": round(len(dataset) / seconds[1], 1)}
        if world_size() > 1:
            gradients = torch.ones(count_parameters(model))
            times = []
            for _ in range(6):
                dist.barrier()
                start = time.perf_counter()
                dist.all_reduce(gradients)
                times.append(time.perf_counter() - start)
            row["sum_seconds"] = round(statistics.median(times[1:]), 4)
        return row if rank() == 0 else {}


def start(
    width: int,  # of the network
    count: int,  # processes
    threads: int,  # of each
) -> dict:
    """What such a training measures of itself, in fresh processes."""
    command = [sys.executable, "-m"]
    if count > 1:
        command += ["torch.distributed.run", "--nproc-per-node", str(count), "-m"]
    command += ["scripts.measure.processes", "--one", str(width)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main():
    """Measure all cases, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=3, help="of all cases")
    parser.add_argument("--one", type=int, help="measure a network of this width, and print it")
    options = parser.parse_args()
    if options.one:
        if row := measure_one(options.one):
            print(json.dumps(row))
        return
    if not options.out:
        parser.error("--out is missing")
    rows = {f"width {width}": {case: [] for case in CASES} for width in STEPS}
    for number in range(options.rounds):
        for width in STEPS:
            for case, (count, threads) in CASES.items():
                rows[f"width {width}"][case].append(start(width, count, threads))
                print(f"round {number + 1}, width {width}, {case}:", end=" ")
                print(rows[f"width {width}"][case][-1], flush=True)
    table = {
        width: {
            case: {name: statistics.median(row[name] for row in runs) for name in runs[0]}
            for case, runs in cases.items()
        }
        for width, cases in rows.items()
    }
    precision = str(choose_precision("auto", torch.device("cpu"))).removeprefix("torch.")
    write_json(
        options.out,
        {
            "command": f"python -m scripts.measure.processes --out results/{options.out.name}",
            "what": f"steps of {BATCH} drawn pictures, {precision}, medians of rounds",
            "machine": machine(),
            "versions": {n: importlib.metadata.version(n) for n in ("torch", "cifar_cam_lib")},
            "rounds": options.rounds,
            "numbers": table,
        },
    )


if __name__ == "__main__":
    main()
