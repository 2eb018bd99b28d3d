"""Measures how good the test of one map is, `check_maps` of chapter 7.

    .venv/bin/python -m scripts.measure.check_maps --out results/checks.json    (two hours)
    .venv/bin/python -m scripts.measure.check_maps --out /some/file.json --pictures 25

All on test pictures, of which nothing was chosen: those of CIFAR-10 (left out if it's absent),
drawn ones, and drawn pairs, two objects in a picture. Each picture is asked for the class that the
network predicts and, where that is wrong, for the true one, too; a pair is asked for both objects.

`passes`: the share of maps with p <= 0.05, with its 95 % interval (Wilson): of Grad-CAM's, of other
    methods' (occlusion has no layer), of wrong maps, of a blob in the centre, and of Grad-CAM's by
    an earlier form of the test, `prototype`.
`true maps against others`: each beside the true map of the same question, by McNemar's exact test.
`on the object`: how often the highest pixel lies on the object that was asked for, in maps that
    pass and in those that don't; the pixels of the objects are known in drawn pictures.
`error rate`: maps rolled to a random place, of which 3/64 pass by construction, and round blobs at
    a random place that the border doesn't cut, for which that's only nearly so.

Two processes work beside each other, 25 pictures at a time. Those that are done are kept in a
folder beside the file, so that a measurement that was stopped goes on where it was.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
from scipy.stats import binomtest
from torch import nn

from cifar_cam_lib.data import as_batch, load_images
from cifar_cam_lib.drawn import draw_pairs, draw_pictures
from cifar_cam_lib.gradcam import (
    gradcam,
    gradcam_map,
    gradcam_plus_plus_map,
    hirescam_map,
    log_probability,
)
from cifar_cam_lib.model import channels_last
from cifar_cam_lib.runs import write_json
from cifar_cam_lib.training import load_shipped_model
from cifar_cam_lib.trust import (
    LEVEL,
    baseline_maps,
    blurred,
    check_maps,
    draw_places,
    keep_and_hide,
    place_gains,
    pointing_game,
    randomise,
    roll_around,
)
from scripts.measure.bench_gradcam import machine, run_apart

LAYERS = ("layer1", "layer2", "layer3", "layer4")
BLOCK = 25  # pictures that one process works on
SOURCES = ("cifar10", "drawn", "pairs")
# Seeds of what is drawn at random, besides the number of the block
UNTRAINED, PLACES, CHANNELS, RATE = 100, 200, 300, 400


def questions_of(
    source: str,  # one of SOURCES
    start: int,  # first picture
    model: nn.Module,  # the network that ships for them
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Images [Q, 3, 32, 32], classes [Q] to ask them for, and the pixels of those, if known."""
    masks = None
    if source == "pairs":
        images, labels, masks = draw_pairs(start + BLOCK, "test", seed=1)
        images = as_batch(images[start:]).repeat_interleave(2, dim=0)
        return (
            images,
            torch.tensor(labels[start:]).flatten(),
            torch.tensor(masks[start:]).flatten(0, 1),
        )
    if source == "drawn":
        images, labels, masks = draw_pictures(start + BLOCK, "test", seed=1)
        images, masks = images[start:], torch.tensor(masks[start:])
        labels = torch.tensor(labels[start:])
    else:
        _, test = load_images("cifar10", download=False)
        some = test.subset(slice(start, start + BLOCK))
        images, labels = some.images, torch.tensor(some.labels)
    images = as_batch(images)
    with torch.no_grad():
        predicted = model(images).argmax(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    asked = torch.cat([predicted, labels[wrong]])
    twice = torch.cat([torch.arange(len(images)), wrong])
    if masks is not None:
        masks = masks[twice].clone()
        masks[wrong] = False  # there is no object of a class that was predicted wrongly
    return images[twice], asked, masks


def places_in_parts() -> list[torch.Tensor]:
    """The 64 places in four parts of 16, each beginning with the map's own place."""
    places = draw_places(torch.zeros(3, 32, 32))
    others = places[1:][torch.randperm(63, generator=torch.Generator().manual_seed(0))]
    return [torch.cat([places[:1], part]) for part in others.split(16)]


def map_gains(
    model: nn.Module,  # the network
    image: torch.Tensor,  # float [3, 32, 32]
    map_: torch.Tensor,  # float [32, 32]
    label: int,  # the class that was asked for
    places: torch.Tensor,  # int64 [P, 2]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the class gains at each place, [P], and its rounding, as `check_maps` has it."""
    with torch.no_grad():
        masks = roll_around(map_, places)
        gains, rounding = place_gains(model, image, masks, [log_probability(label)])
    return gains[:, 0], rounding


def prototype_gains(model, image, map_, label, places) -> tuple[torch.Tensor, float]:
    """The same by an earlier form: the strongest 10, 20 and 40 % blurred or kept, averaged."""
    order, soft = map_.flatten().argsort(descending=True, stable=True).argsort(), blurred(image)
    gains = torch.zeros(len(places))
    for share_kept in (0.1, 0.2, 0.4):
        mask = (order < share_kept * order.numel()).float().reshape(32, 32)
        sides = keep_and_hide(image, roll_around(mask, places), soft)
        with torch.no_grad():
            kept, hidden = (model(side).log_softmax(1)[:, label] for side in sides)
        gains += kept - hidden
    return gains, 0.0


def passes(
    gains_of: Callable,  # `map_gains` or `prototype_gains`
    model: nn.Module,  # the network
    image: torch.Tensor,  # float [3, 32, 32]
    map_: torch.Tensor,  # float [32, 32]
    label: int,  # the class that was asked for
) -> bool:
    """Whether p <= 0.05, as `check_maps` has it; stops at the third copy that does as well."""
    if map_.min() == map_.max():
        return False
    as_good = 0
    for places in places_in_parts():
        gains, rounding = gains_of(model, image, map_, label, places)
        as_good += int((gains[1:] >= gains[0] - rounding).sum())
        if as_good + 1 > 64 * LEVEL:
            return False
    return True


def occlusion(
    model: nn.Module,  # the network
    images: torch.Tensor,  # float [N, 3, H, W], H and W a multiple of 4
    classes: torch.Tensor,  # int64 [N]
) -> torch.Tensor:
    """How much the class's log-probability falls where an 8x8 square is grey, [N, H, W] in 0..1."""
    high, wide = images.shape[2:]
    falls = torch.zeros(len(images), high, wide)
    with torch.no_grad():
        before = model(images).log_softmax(1).gather(1, classes[:, None])[:, 0]
        for top in range(0, high - 7, 4):
            for left in range(0, wide - 7, 4):
                hidden = images.clone()
                hidden[..., top : top + 8, left : left + 8] = 0
                after = model(hidden).log_softmax(1).gather(1, classes[:, None])[:, 0]
                falls[:, top : top + 8, left : left + 8] += (before - after).relu()[:, None, None]
    return falls / falls.amax(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def shuffled_channels(
    activations: torch.Tensor,  # float [N, C, h, w]
    gradients: torch.Tensor,  # likewise
    seed: int,  # fixes the order
) -> torch.Tensor:
    """Grad-CAM with the weights of the channels in another order: a planted fault."""
    order = torch.randperm(gradients.shape[1], generator=torch.Generator().manual_seed(seed))
    return gradcam_map(activations, gradients[:, order])


def candidates(
    model: nn.Module,  # the network
    images: torch.Tensor,  # float [Q, 3, H, W]
    classes: torch.Tensor,  # int64 [Q]
    true: dict[str, torch.Tensor],  # Grad-CAM's maps by layer, [Q, H, W]
    seed: int,  # of the block
    pairs: bool,  # whether these are pictures of two objects
) -> dict[str, dict[str, torch.Tensor]]:
    """The other maps by name and layer, [Q, H, W] each."""
    explain = partial(gradcam, model, images)
    if pairs:  # their objects stand left and right
        return {"mirrored": {layer: true[layer].flip(-1) for layer in LAYERS}}
    with torch.no_grad():
        logits = model(images).scatter(1, classes[:, None], -torch.inf)
    untrained = randomise(
        model, tuple(name for name, _ in model.named_children()), UNTRAINED + seed
    )
    last, shuffle = true["layer4"], partial(shuffled_channels, seed=CHANNELS + seed)
    centre = baseline_maps(len(images), images.shape[3])["centre"]
    return {
        "HiResCAM": explain(classes, LAYERS[:3], hirescam_map),  # at layer4 it's Grad-CAM
        "Grad-CAM++": explain(classes, LAYERS, gradcam_plus_plus_map),
        "occlusion": {"none": occlusion(model, images, classes)},
        "untrained network": gradcam(untrained, images, classes, LAYERS),
        "runner-up's": explain(logits.argmax(1), LAYERS),
        "another picture's": {layer: true[layer].roll(1, 0) for layer in LAYERS},
        "blob in the centre": {"none": centre.contiguous()},
        "upside down": {"layer4": last.flip(1)},
        "shuffled channels": explain(classes, ("layer4",), shuffle),
    }


def is_high(
    gains: torch.Tensor,  # [64], at all places
    number: int,  # of the place in question
    rounding: torch.Tensor,  # [1], see `place_gains`
) -> bool:
    """Whether the place's p is at most 0.05."""
    return bool((gains >= gains[number] - rounding).sum() <= 64 * LEVEL)


def moved(
    model: nn.Module,  # the network
    images: torch.Tensor,  # float [Q, 3, 32, 32]
    classes: torch.Tensor,  # int64 [Q]
    true: dict[str, torch.Tensor],  # Grad-CAM's maps by layer, [Q, 32, 32]
    seed: int,  # of the block
) -> dict[str, dict[str, list[bool]]]:
    """What passes, by name and layer, of the true maps at their own place and at three others.

    Those are among the 64 places, so the same gains are ranked anew.
    """
    places = draw_places(torch.zeros(3, 32, 32))
    draw = torch.Generator().manual_seed(PLACES + seed)
    anywhere = torch.randint(0, 64, (len(images),), generator=draw).tolist()
    found = {name: {} for name in ("true", "wrong place", "moved by 8", "moved by half")}
    for layer in LAYERS:
        rows = []
        for n, (image, label) in enumerate(zip(images, classes.tolist())):
            gains, rounding = map_gains(model, image, true[layer][n], label, places)
            numbers = (
                0,
                anywhere[n],
                places.tolist().index([8, 8]),
                places.tolist().index([16, 16]),
            )
            rows.append([is_high(gains, number, rounding) for number in numbers])
        for name, column in zip(found, zip(*rows)):
            found[name][layer] = list(column)
    return found


def measure_block(
    source: str,  # one of SOURCES
    start: int,  # first picture
) -> dict:
    """What passes, by name and layer, and whether the true map's peak is on the object."""
    torch.set_num_threads(1)
    model = channels_last(load_shipped_model("cifar10" if source == "cifar10" else "drawn"))
    images, classes, masks = questions_of(source, start, model)
    true = gradcam(model, images, classes, LAYERS)
    maps = candidates(model, images, classes, true, start, source == "pairs")
    found, labels = moved(model, images, classes, true, start), classes.tolist()
    for name, by_layer in maps.items():
        found[name] = {
            layer: [passes(map_gains, model, *row) for row in zip(images, layer_maps, labels)]
            for layer, layer_maps in by_layer.items()
        }
    if source != "pairs":
        found["prototype"] = {
            layer: [
                passes(prototype_gains, model, *row) for row in zip(images, true[layer], labels)
            ]
            for layer in LAYERS
        }
    row = {"passed": found}
    if masks is not None:
        known = masks.flatten(1).any(1)
        row["on object"] = {
            layer: [
                float(point) if there else None
                for point, there in zip(pointing_game(true[layer], masks), known)
            ]
            for layer in LAYERS
        }
    return row


def measure_rate(
    start: int,  # first picture
) -> dict:
    """What passes of layer4's maps at a random place, and of whole blobs at random places."""
    torch.set_num_threads(1)
    model = channels_last(load_shipped_model("drawn"))
    pictures, labels, _ = draw_pictures(start + BLOCK, "test", seed=2)
    images, classes = as_batch(pictures[start:]), torch.tensor(labels[start:])
    draw = torch.Generator().manual_seed(RATE + start)
    shifts = torch.randint(0, 32, (BLOCK, 2), generator=draw).tolist()
    last = gradcam(model, images, classes, ("layer4",))["layer4"]
    rolled = torch.stack([map_.roll(shift, (0, 1)) for map_, shift in zip(last, shifts)])
    y, x = torch.randint(6, 26, (2, BLOCK, 1, 1), generator=draw)
    places = torch.arange(32)
    blobs = torch.exp(-((places[:, None] - y) ** 2 + (places - x) ** 2) / 8.0)
    blobs = torch.where(blobs > 0.01, blobs, 0.0)
    checks = check_maps(model, images, {"rolled": rolled, "whole blob": blobs}, classes)
    return {
        "passed": {
            f"{name}, p <= {places}/64": {"none": (check.p <= places / 64).tolist()}
            for name, check in checks.items()
            for places in (3, 6)
        }
    }


def share(
    passed: list[bool],  # one for each map
) -> dict:
    """How many pass, with the 95 % interval of Wilson."""
    interval = binomtest(sum(passed), len(passed)).proportion_ci(method="wilson")
    ends = [round(float(end), 4) for end in interval]
    return {"share": round(sum(passed) / len(passed), 4), "interval": ends, "maps": len(passed)}


def compare(
    true: list[bool],  # whether the true map of a question passed
    other: list[bool],  # whether another map of the same question did
) -> dict:
    """McNemar's exact test: of the questions that tell them apart, is half for either?"""
    only_true = sum(a and not b for a, b in zip(true, other, strict=True))
    only_other = sum(b and not a for a, b in zip(true, other, strict=True))
    apart = only_true + only_other
    p = binomtest(only_true, apart).pvalue if apart else 1.0
    return {"only the true one": only_true, "only the other": only_other, "p": float(f"{p:.2g}")}


def tables_of(
    blocks: list[dict],  # rows of one source
) -> dict:
    """Everything about one source."""
    passed = {
        name: {layer: sum((block["passed"][name][layer] for block in blocks), []) for layer in row}
        for name, row in blocks[0]["passed"].items()
    }
    tables = {
        "passes": {
            name: {layer: share(values) for layer, values in by_layer.items()}
            for name, by_layer in passed.items()
        }
    }
    if "true" in passed:
        tables["true maps against others"] = {
            name: {layer: compare(passed["true"][layer], values) for layer, values in rest.items()}
            for name, rest in passed.items()
            if name != "true" and "none" not in rest
        }
    if "on object" in blocks[0]:
        tables["on the object"] = {}
        for layer in LAYERS:
            points = sum((block["on object"][layer] for block in blocks), [])
            told = list(zip(points, passed["true"][layer], strict=True))
            known = {
                kind: [p > 0.5 for p, t in told if p is not None and t is kind]
                for kind in (True, False)
            }
            tables["on the object"][layer] = {
                "passes": share(known[True]),
                "does not pass": share(known[False]),
            }
    return tables


def main():
    """Measure what is missing, and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--pictures", type=int, default=500, help="of each source")
    parser.add_argument("--one", nargs=2, help="measure this source and block, and print it")
    options = parser.parse_args()
    if options.one:
        source, start = options.one[0], int(options.one[1])
        row = measure_rate(start) if source == "rate" else measure_block(source, start)
        print(json.dumps(row))
        return
    if not options.out:
        parser.error("--out is missing")
    try:
        load_images("cifar10", download=False)
        sources = ["rate", *SOURCES]
    except FileNotFoundError:
        sources = ["rate", *SOURCES[1:]]
    parts = options.out.with_suffix(".parts")
    parts.mkdir(parents=True, exist_ok=True)
    counts = {source: options.pictures * (2 if source == "rate" else 1) for source in sources}
    jobs = sorted(
        (start, source) for source in sources for start in range(0, counts[source], BLOCK)
    )

    def one(job):
        start, source = job
        file = parts / f"{source}-{start:04}.json"
        if not file.exists():
            write_json(file, run_apart("scripts.measure.check_maps", ["--one", source, str(start)]))
            print(file.stem, flush=True)
        return source, json.loads(file.read_text())

    os.environ["OMP_NUM_THREADS"] = "1"
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(one, jobs))
    names = ("torch", "cifar_cam_lib")
    record = {
        "command": f"python -m scripts.measure.check_maps --out results/{options.out.name}",
        "what": f"shipped networks of width 16, {options.pictures} test pictures of each source",
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }
    by_source = {s: tables_of([row for source, row in rows if source == s]) for s in sources}
    record["error rate"] = by_source.pop("rate")["passes"]
    write_json(options.out, record | by_source)
    if options.pictures >= 500:
        shutil.rmtree(parts)


if __name__ == "__main__":
    main()
