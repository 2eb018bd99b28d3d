"""Measures how fast batches are made and a network is trained, beside what others use.

    .venv/bin/python -m scripts.measure.bench_training --out results/bench
    .venv/bin/python -m scripts.measure.bench_training --part loader --out results/bench

The first takes about 25 minutes on two cores, the second measures one part of the file again. The
file is training.json, in a folder named after the processor, since each has its own numbers. Every
case runs in a process of its own, on random images. The rounds go through all cases in turn, so
that a busy minute falls on all of them; the median over the rounds counts.

`loader`: images a second of one core, by CPU time, 4,000 images in batches of 128, without a
    network. PyTorch and OpenCV get one thread each: on images this small, OpenCV's second thread
    doubles the work and gains nothing.
`step`: images a second of training a ResNet-18 of width 16 at 32 pixels, by wall time, all cores,
    batches of 64, loader included if the case has one. The peers are written after the classifier
    tutorial of PyTorch and after kuangliu/pytorch-cifar, with our network and torchvision's crop
    and flip in the main process.
`full`: images a second at the published size (width 64, 32 pixels, batches of 128), by wall time,
    in the precision that the processor is fast at. `convolutions` is the bound: the network's
    convolutions alone, forward and backward, without norms, activations, sums or optimizer.
`scale`: seconds and peak memory of whole trainings of width 16 at 16 pixels, with more images, or
    with more epochs.
`demo`: seconds of `cifar-cam train --preset demo`, from start to exit.
"""

import argparse
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.measure.bench_gradcam import (
    machine,
    machine_file,
    measured_before,
    peak_mb,
    run_apart,
    save,
)

CASES = {
    "loader": {
        "ours all": "batched: rotate, crop, flip, cutout",
        "albumentations all": "Albumentations, one by one: rotate, crop, flip, cutout",
        "torchvision all": "torchvision on PIL images, one by one: rotate, crop, flip, erase",
        "ours crop+flip": "batched: crop, flip",
        "albumentations crop+flip": "Albumentations, one by one: crop, flip",
        "torchvision crop+flip": "torchvision on PIL images, one by one: crop, flip",
    },
    "step": {
        "bare": "forward and backward pass only, the same batch again and again, float32",
        "ours": "our train_epoch, batched pipeline, float32",
        "ours auto": "our train_epoch, batched pipeline, precision auto",
        "ours per-image": "our train_epoch, Albumentations, float32",
        "ours muon": "our train_epoch, batched pipeline, float32, Muon",
        "tutorial": "a plain loop like PyTorch's tutorial",
        "kuangliu": "a loop like kuangliu's, which counts as it goes",
    },
    "full": {
        "convolutions": "the convolutions alone, forward and backward, precision auto",
        "bare": "forward and backward pass only, precision auto",
        "bare in place": "the same, ReLU and sum in place",
        "bare compiled": "the same, by torch.compile, which needs a compiler for C++",
        "bare 256": "the same, batches of 256",
        "ours sgd": "our train_epoch, batched pipeline, precision auto, SGD",
        "ours muon": "our train_epoch, batched pipeline, precision auto, Muon",
        "watching float32": "looking at images without training, float32",
        "watching": "looking at images without training, precision auto",
    },
    "scale": {
        f"{images} images, {epochs} epochs": f"{images} images, {epochs} epochs"
        for images, epochs in ((1000, 1), (2000, 1), (4000, 1), (1000, 2), (1000, 4))
    },
    "demo": {"demo": "the whole demo"},
}
if not shutil.which("g++"):
    del CASES["full"]["bare compiled"]
# part, case, what it is divided by, of which number, the limit, whether it is an upper one
TARGETS = [
    ("loader", "ours all", "albumentations all", "images_per_second", 8, "at least"),
    ("loader", "ours crop+flip", "torchvision crop+flip", "images_per_second", 4, "at least"),
    ("step", "ours", "bare", "images_per_second", 0.85, "at least"),
    ("step", "ours", "tutorial", "images_per_second", 1, "at least"),
    ("step", "ours", "kuangliu", "images_per_second", 1, "at least"),
    ("full", "ours sgd", "convolutions", "images_per_second", 0.75, "at least"),
    ("full", "ours muon", "ours sgd", "images_per_second", 0.9, "at least"),
    ("scale", "4000 images, 1 epochs", "2000 images, 1 epochs", "seconds", 2.2, "at most"),
    ("scale", "1000 images, 4 epochs", "1000 images, 2 epochs", "seconds", 2.2, "at most"),
    ("scale", "1000 images, 4 epochs", "1000 images, 1 epochs", "peak_mb", 1.1, "at most"),
]


def our_loader(
    count: int,  # images
    batch_size: int,  # images in a batch
    batched: bool,  # the pipeline
    everything: bool,  # rotation and cutout too
):
    """A training loader over random images."""
    import numpy as np

    from cifar_cam_lib.data import LabelledImages, TransformedImages, make_loader, train_transform
    from cifar_cam_lib.fast import BatchedImages

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labelled = LabelledImages(images, generator.integers(0, 10, count))
    changes = {
        "rotate_degrees": 5 * everything,
        "padding": 4,
        "flip": True,
        "cutout_size": 16 * everything,
    }
    if batched:
        dataset = BatchedImages(labelled, 0, **changes)
    else:
        dataset = TransformedImages(labelled, train_transform(**changes, side=32), 0)
    return make_loader(dataset, batch_size, shuffle=True, workers=0)


def torchvision_loader(
    count: int,  # images
    batch_size: int,  # images in a batch
    everything: bool,  # rotation and erase too
):
    """What many CIFAR-10 repositories use, over random images."""
    import numpy as np
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms

    from cifar_cam_lib.data import CIFAR10_MEAN, CIFAR10_STD

    steps = [transforms.RandomRotation(5)] if everything else []
    steps += [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(CIFAR10_MEAN, CIFAR10_STD),
    ]
    steps += [transforms.RandomErasing(p=1, scale=(0.06, 0.25))] if everything else []
    transform, generator = transforms.Compose(steps), np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, count)

    class Images:
        def __len__(self):
            return count

        def __getitem__(self, index):
            return transform(Image.fromarray(images[index])), int(labels[index])

    return DataLoader(Images(), batch_size, shuffle=True)


def measure_loader(
    case: str,  # a key of CASES["loader"]
) -> dict:
    """Images a second of CPU time on one thread, after one pass to warm up."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    who, what = case.split()
    if who == "torchvision":
        loader = torchvision_loader(4000, 128, what == "all")
    else:
        loader = our_loader(4000, 128, who == "ours", what == "all")
    for _ in range(2):
        start = time.process_time()
        count = sum(len(labels) for _, labels in loader)
        seconds = time.process_time() - start
    return {"images_per_second": count / seconds}


def tutorial_epoch(model, loader, optimizer):
    """The loop of a first tutorial: the loss is read at every step."""
    import torch.nn.functional as F

    running_loss = 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()


def counting_epoch(model, loader, optimizer):
    """The loop of a training script: loss and accuracy are counted at every step."""
    import torch.nn.functional as F

    model.train()
    train_loss = correct = total = 0
    for images, labels in loader:
        optimizer.zero_grad()
        outputs = model(images)
        loss = F.cross_entropy(outputs, labels)
        loss.backward()
        optimizer.step()
        train_loss += loss.item()
        total += labels.size(0)
        correct += outputs.max(1)[1].eq(labels).sum().item()


def measure_step(
    case: str,  # a key of CASES["step"]
) -> dict:
    """Images a second of wall time, after a few steps to warm up."""
    import torch
    import torch.nn.functional as F

    from cifar_cam_lib.fast import Muon, choose_precision
    from cifar_cam_lib.model import channels_last, resnet18
    from cifar_cam_lib.training import Training, make_optimizer, train_epoch

    others = {"tutorial": tutorial_epoch, "kuangliu": counting_epoch}

    def loader(count):
        if case in others:
            return torchvision_loader(count, 64, False)
        return our_loader(count, 64, case != "ours per-image", False)

    model = resnet18(10, 16) if case in others else channels_last(resnet18(10, 16))
    if case == "ours muon":
        optimizer = Muon(model, 0.01, 0.9, 0)
    else:
        optimizer = make_optimizer(model, "sgd", 0.01, 0.9, 0)
    name = "auto" if case == "ours auto" else "float32"
    precision = choose_precision(name, torch.device("cpu"))
    images, labels = next(iter(loader(64)))

    def epoch(count):
        if case == "bare":
            for _ in range(count // 64):
                model.zero_grad()
                F.cross_entropy(model(images), labels).backward()
        elif case.startswith("ours"):
            train_epoch(Training(model, optimizer, precision=precision), loader(count))
        else:
            others[case](model, loader(count), optimizer)

    epoch(192)
    start = time.perf_counter()
    epoch(2560)
    return {
        "images_per_second": 2560 / (time.perf_counter() - start),
        "precision": str(precision).removeprefix("torch."),
    }


def convolution_step(
    model,  # the network
    images,  # float [N, 3, H, W]
    precision,  # of the forward pass
):
    """A function that runs each convolution of the network on its own input, forward and back."""
    import torch

    work, hooks = [], []

    def keep(convolution, inputs, output):
        work.append((convolution, inputs[0].detach(), torch.randn_like(output)))

    automatic = torch.autocast("cpu", precision, enabled=precision is not torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(module.register_forward_hook(keep))
    with automatic, torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    first = work[0][0]

    def step():
        for convolution, inputs, gradient in work:
            wanted = [convolution.weight]
            if convolution is not first:  # images get no gradient
                wanted.append(inputs.requires_grad_())
            with automatic:
                output = convolution(inputs)
            torch.autograd.grad(output, wanted, gradient)

    return step


def in_place(block, features):
    """A residual block that overwrites what nobody reads again."""
    import torch.nn.functional as F

    branch = F.relu(block.norm1(block.conv1(features)), inplace=True)
    total = block.norm2(block.conv2(branch)).add_(block.shortcut(features))
    return F.relu(total, inplace=True)


def measure_full(
    case: str,  # a key of CASES["full"]
) -> dict:
    """Images a second of wall time, at the published size, after a step to warm up."""
    import torch
    import torch.nn.functional as F

    from cifar_cam_lib.fast import Muon, choose_precision
    from cifar_cam_lib.model import BasicBlock, channels_last, resnet18
    from cifar_cam_lib.training import Training, make_optimizer, predict, train_epoch

    if case == "bare in place":
        BasicBlock.forward = in_place
    model, size = channels_last(resnet18()), 256 if case == "bare 256" else 128
    network = torch.compile(model) if case == "bare compiled" else model
    name = "float32" if case == "watching float32" else "auto"
    precision = choose_precision(name, torch.device("cpu"))
    images, labels = next(iter(our_loader(size, size, True, False)))
    images = images.contiguous(memory_format=torch.channels_last)
    if case == "convolutions":
        alone = convolution_step(model, images, precision)
    elif case == "ours muon":
        optimizer = Muon(model, 0.01, 0.9, 0)
    else:
        optimizer = make_optimizer(model, "sgd", 0.01, 0.9, 0)

    def steps(count):
        if case == "convolutions":
            for _ in range(count):
                alone()
        elif case.startswith("bare"):
            for _ in range(count):
                model.zero_grad()
                with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
                    logits = network(images)
                F.cross_entropy(logits.float(), labels).backward()
        elif case.startswith("watching"):
            predict(model, our_loader(count * size, size, True, False), precision)
        else:
            training = Training(model, optimizer, precision=precision)
            train_epoch(training, our_loader(count * size, size, True, False))

    steps(1)
    start = time.perf_counter()
    steps(4)
    return {
        "images_per_second": 4 * size / (time.perf_counter() - start),
        "precision": str(precision).removeprefix("torch."),
    }


def measure_scale(
    case: str,  # a key of CASES["scale"]
) -> dict:
    """Seconds of a training's epochs, without set-up and evaluation, and its peak memory in MB."""
    from cifar_cam_lib.main import run
    from cifar_cam_lib.settings import Config

    images, epochs = (int(words.split()[0]) for words in case.split(", "))
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            train_size=images,
            validation_size=0,
            image_sizes=(16,),
            pipeline="batched",
            epochs=epochs,
            out=f"{folder}/run",
        )
        rows = run(config).history.epochs
    return {"seconds": sum(row["seconds"] for row in rows), "peak_mb": peak_mb()}


def measure_demo(
    case: str,  # "demo"
) -> dict:
    """Seconds from start to exit, with a new interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-m", "cifar_cam_lib", "train", "--out", f"{folder}/run"]
        subprocess.run(command, check=True, capture_output=True)
        return {"seconds": time.perf_counter() - start}


MEASURE = {
    "loader": measure_loader,
    "step": measure_step,
    "full": measure_full,
    "scale": measure_scale,
    "demo": measure_demo,
}


def measure_apart(
    part: str,  # a key of CASES
    case: str,  # a key of CASES[part]
) -> dict:
    """The numbers of a case, from a fresh process."""
    return run_apart("scripts.measure.bench_training", ["--part", part, "--case", case])


def median(
    rows: list[dict],  # the numbers of one case, one dictionary a round
) -> dict:
    """The median of each number; words stay as they are."""
    words = {name: value for name, value in rows[0].items() if isinstance(value, str)}
    return {
        name: words.get(name) or round(statistics.median(row[name] for row in rows), 2)
        for name in rows[0]
    }


def compare(
    numbers: dict,  # {part: {case: numbers}}
) -> list[dict]:
    """Each target of the measured parts with its ratio, and whether it is met."""
    rows = []
    for part, case, reference, name, limit, side in TARGETS:
        if part in numbers:
            ratio = round(numbers[part][case][name] / numbers[part][reference][name], 2)
            rows.append(
                {
                    "part": part,
                    "ratio": f"{case} / {reference}",
                    "of": name,
                    "target": f"{side} {limit}",
                    "measured": ratio,
                    "met": ratio <= limit if side == "at most" else ratio >= limit,
                }
            )
    return rows


def record(
    parts: list[str],  # keys of CASES
    rounds: int,  # how often every case is measured
    out: Path | None,  # JSON file whose other parts stay
) -> dict:
    """Measure, and return what goes into the file."""
    packages = (
        "torch",
        "torchvision",
        "albumentations",
        "opencv-python",
        "pillow",
        "numpy",
        "cifar_cam_lib",
    )
    about = {
        "command": "python -m scripts.measure.bench_training",
        "machine": machine(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
    known = measured_before(out, about)
    measured = {part: {case: [] for case in CASES[part]} for part in parts}
    for number in range(rounds):
        for part, cases in measured.items():
            for case, rows in cases.items():
                rows.append(measure_apart(part, case))
                print(f"round {number + 1} of {rounds}, {part}, {case}: {rows[-1]}", flush=True)
    numbers = {
        part: {case: median(rows) for case, rows in cases.items()}
        for part, cases in measured.items()
    }
    new = {
        "rounds": dict.fromkeys(parts, rounds),
        "cases": {part: CASES[part] for part in parts},
        "numbers": numbers,
    }
    return about | {name: known.get(name, {}) | rows for name, rows in new.items()}


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=list(CASES), help="measure only this part")
    parser.add_argument(
        "--case", help="measure only this case of the part, in this process, and print it"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often every case is measured (3)"
    )
    parser.add_argument("--out", type=Path, help="folder of the records of all machines")
    options = parser.parse_args()
    out = machine_file(options.out, "training.json")
    if options.case:
        print(json.dumps(MEASURE[options.part](options.case)))
        return 0
    parts, known = ([options.part], out) if options.part else (list(CASES), None)
    result = record(parts, options.rounds, known)
    result["targets"] = compare(result["numbers"])
    for row in result["targets"]:
        met = "met   " if row["met"] else "MISSED"
        ratio = f"{row['part']}: {row['ratio']} of {row['of']}"
        print(f"{met}  {ratio}: {row['target']}, measured {row['measured']}")
    save(out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
