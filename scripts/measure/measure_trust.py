"""Measures what chapter 7 shows small: how far the maps of the shipped networks can be believed.

    .venv/bin/python -m scripts.measure.measure_trust --out results/trust.json
    .venv/bin/python -m scripts.measure.measure_trust --part erasing --out results/trust.json
    .venv/bin/python -m scripts.measure.measure_trust --out /some/file.json --share 0.1

The first takes about an hour on two CPU cores, half of it for the film of a training; the second
measures one part of the file again, the third tries it all with a tenth of the pictures. Everything
is drawn from fixed seeds. CIFAR-10 is looked for as the library does; if it's absent, its rows are
missing from the file, and `data` says so. Each mean stands beside its standard error: over
pictures, or, for random weights and for networks trained here, over seeds.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")  # the bars of the library; this script has its own

import torch
from tqdm import tqdm

from cifar_cam_lib.course import OUR_CAT
from cifar_cam_lib.data import LabelledImages, as_batch, load_images
from cifar_cam_lib.drawn import SIDE, draw_pairs, draw_pictures
from cifar_cam_lib.gradcam import (
    gradcam,
    gradcam_map,
    gradcam_plus_plus_map,
    hirescam_map,
    log_probability,
)
from cifar_cam_lib.main import load_splits, make_loaders, make_training
from cifar_cam_lib.model import ResNet, resnet18
from cifar_cam_lib.runs import write_json
from cifar_cam_lib.settings import Config, command_line
from cifar_cam_lib.training import fit, load_shipped_model, make_loss
from cifar_cam_lib.trust import (
    baseline_maps,
    cascade,
    energy_in_mask,
    perturbation_curve,
    pointing_game,
    target_preference,
    train_small,
)

LAYERS = ("layer1", "layer2", "layer3", "layer4")
SCORES = {"logit": int, "log_probability": log_probability}  # from a class to a target
INSIDE = {"energy_inside": energy_in_mask, "points_inside": pointing_game}  # as the file says
SEEDS = range(5)  # of random weights
HANS_SEEDS = range(3)  # of networks trained here
FILM_PRESETS = {"cifar10": "laptop", "drawn": "demo"}  # the recipes of the networks that ship
FILM_EPOCHS = (0, 1, 3, 10)  # whose maps are kept, and the last one's
FILM_CLASSES = (2, 6, 7, 8)  # bird, frog, horse, ship: the first test image of each, after our cat
QUESTIONS = {  # what is asked of gradcam, and by which method; Grad-CAM++ is made for the logit
    "gradcam, logit": ("logit", gradcam_map),
    "gradcam, log_probability": ("log_probability", gradcam_map),
    "hirescam, logit": ("logit", hirescam_map),
    "hirescam, log_probability": ("log_probability", hirescam_map),
    "gradcam_plus_plus, logit": ("logit", gradcam_plus_plus_map),
}


def targets_of(
    labels: torch.Tensor,  # int64 [N] or [N, K]
    score: str,  # a key of SCORES
) -> list:
    """What gradcam is to explain, for each label."""
    if labels.ndim > 1:
        return [targets_of(row, score) for row in labels]
    return [SCORES[score](label) for label in labels.tolist()]


def answer(
    network: ResNet,  # to explain
    images: torch.Tensor,  # float [N, 3, H, W], normalised
    labels: torch.Tensor,  # int64 [N] or [N, K]
    question: str,  # a key of QUESTIONS
):
    """The maps."""
    score, method = QUESTIONS[question]
    return gradcam(network, images, targets_of(labels, score), method=method)


def summary(
    values,  # numbers, one for each picture or seed; NaN is left out and counted
) -> dict:
    """Mean, standard error and count."""
    values = torch.as_tensor(values, dtype=torch.float64)
    kept = values[~values.isnan()]
    left_out = {"undefined": len(values) - len(kept)} if len(kept) < len(values) else {}
    return {
        "mean": round(kept.mean().item(), 5),
        "standard_error": round((kept.std() / len(kept) ** 0.5).item(), 5),
        "count": len(kept),
    } | left_out


def untrained(
    seed: int,  # fixes the weights
) -> ResNet:
    """The shipped networks' architecture with fresh weights."""
    torch.manual_seed(seed)
    return resnet18(width=16).eval()


def over_seeds(
    measure: Callable,  # from a network to {layer: value of each picture}
    bar,  # progress
) -> dict:
    """By layer the summary over networks of random weights, each with its mean over pictures."""
    means = []
    for seed in SEEDS:
        found = measure(untrained(seed))
        means.append({layer: values.double().mean().item() for layer, values in found.items()})
        bar.update()
    return {
        layer: summary([by_layer[layer] for by_layer in means])
        | {"seeds": [round(by_layer[layer], 5) for by_layer in means]}
        for layer in LAYERS
    }


def measure_pairs(
    count: int,  # pictures
    bar,  # progress
) -> dict:
    """Two objects: share of questions whose map has more energy on the object asked for."""
    pictures, labels, masks = draw_pairs(count, "test")
    images, labels, masks = as_batch(pictures), torch.tensor(labels), torch.tensor(masks)
    per_pixel = masks / masks.sum(dim=(-2, -1), keepdim=True)

    def preferences(network, question):
        maps = answer(network, images, labels, question)
        empty = {layer: round(maps.empty[layer].double().mean().item(), 5) for layer in LAYERS}
        return {
            layer: [
                target_preference(maps[layer], kind, kind.flip(1)).mean(1)
                for kind in (masks, per_pixel)
            ]
            for layer in LAYERS
        }, empty

    rows = {}
    for question in QUESTIONS:
        by_layer, empty = preferences(load_shipped_model("drawn"), question)
        rows["trained, " + question] = {
            layer: summary(total) | {"per_pixel": summary(pixel)["mean"], "empty": empty[layer]}
            for layer, (total, pixel) in by_layer.items()
        }
        bar.update()
    for question in ("gradcam, logit", "gradcam, log_probability"):

        def totals(network, question=question):
            by_layer, _ = preferences(network, question)
            return {layer: total for layer, (total, _) in by_layer.items()}

        rows["random, " + question] = over_seeds(totals, bar)
    baselines = {
        name: target_preference(maps[:, None], masks, masks.flip(1)).mean().item()
        for name, maps in baseline_maps(count, SIDE).items()
    }
    return {
        "source": "draw_pairs, split test, seed 0",
        "count": count,
        "questions": 2 * count,
        "maps": rows,
        "baselines": baselines,
    }


def measure_single(
    count: int,  # pictures
    bar,  # progress
) -> dict:
    """One object: energy inside its mask, and pointing game, for its own class."""
    pictures, labels, masks = draw_pictures(count, "test")
    images, labels, masks = as_batch(pictures), torch.tensor(labels), torch.tensor(masks)
    found = {name: {"maps": {}, "baselines": {}} for name in INSIDE}
    for question in QUESTIONS:
        maps = answer(load_shipped_model("drawn"), images, labels, question)
        for name, score in INSIDE.items():
            found[name]["maps"]["trained, " + question] = {
                layer: summary(score(maps[layer], masks)) for layer in LAYERS
            }
        bar.update()
    for name, score in INSIDE.items():

        def scores(network, score=score):
            maps = gradcam(network, images, labels)
            return {layer: score(map_, masks) for layer, map_ in maps.items()}

        found[name]["maps"]["random, gradcam, logit"] = over_seeds(scores, bar)
        found[name]["baselines"] = {
            kind: summary(score(map_, masks)) for kind, map_ in baseline_maps(count, SIDE).items()
        }
    return {"source": "draw_pictures, split test, seed 0", "count": count} | found


def measure_cascade(
    count: int,  # pictures
    bar,  # progress
) -> dict:
    """Rank correlation with the trained map while parts get random weights."""
    pictures, labels, _ = draw_pictures(count, "test")
    images, labels, found = as_batch(pictures), torch.tensor(labels), {}
    for score in SCORES:
        by_stage = {}
        for seed in SEEDS:
            model, targets = load_shipped_model("drawn"), targets_of(labels, score)
            for stage, _, correlations in cascade(model, images, targets, seed):
                for layer in LAYERS:
                    by_stage.setdefault(stage, {}).setdefault(layer, []).append(correlations[layer])
            bar.update()
        # Pictures share the weights of a seed, so the error is taken over seeds.
        found[score] = {
            stage: {
                layer: summary([part.nanmean().item() for part in parts])
                | {"undefined": int(torch.cat(parts).isnan().sum())}
                for layer, parts in by_layer.items()
            }
            for stage, by_layer in by_stage.items()
        }
    return {
        "source": "draw_pictures, split test, seed 0",
        "count": count,
        "seeds": len(SEEDS),
    } | found


def measure_erasing(
    count: int,  # pictures of each source
    bar,  # progress
) -> dict:
    """Areas under the insertion and deletion curves, for the predicted class."""
    sources = {"drawn": draw_pictures(count, "test")[0]}
    if cifar10 := cifar10_test_images():
        sources["cifar10"] = cifar10.images[:count]
    found = {}
    for source, pictures in sources.items():
        network, images = load_shipped_model(source), as_batch(pictures)
        with torch.no_grad():
            targets = network(images).argmax(1)
        maps = baseline_maps(count, SIDE)
        for question in ("gradcam, logit", "gradcam, log_probability", "hirescam, logit"):
            maps |= {
                f"{question}, {layer}": map_
                for layer, map_ in answer(network, images, targets, question).items()
            }
        found[source] = {"insertion": {}, "deletion": {}}
        for name, map_ in maps.items():
            for mode, by_map in found[source].items():
                curve = perturbation_curve(network, images, map_, targets, mode)
                by_map[name] = summary(torch.trapezoid(curve, dx=1 / 16, dim=1))
            bar.update()
    return {
        "source": "the first pictures of the test split",
        "count": count,
        "steps": 16,
        "sources": found,
    }


def measure_clever_hans(
    count: int,  # training pictures
    bar,  # progress
) -> dict:
    """The same small network trained on backgrounds that tell the class, and on others.

    The first one is called clever, the second honest.
    """
    tests = {clue: draw_pictures(count // 5, "test", clue=clue) for clue in (None, 0, 5)}
    images = {clue: as_batch(pictures) for clue, (pictures, _, _) in tests.items()}
    labels, masks = (torch.tensor(part) for part in tests[None][1:])
    networks = {}
    for name, clue in (("clever", 0), ("honest", None)):
        pictures, train_labels, _ = draw_pictures(count, "train", clue=clue)
        accuracy, energy = {other: [] for other in tests}, {layer: [] for layer in LAYERS}
        for seed in HANS_SEEDS:
            network = train_small(pictures, train_labels, seed)
            for other, batch in images.items():
                with torch.no_grad():
                    accuracy[other].append(
                        (network(batch).argmax(1) == labels).double().mean().item()
                    )
            for layer, maps in gradcam(network, images[0], labels).items():
                energy[layer].append(energy_in_mask(maps, masks).mean().item())
            bar.update()
        networks[name] = {
            "accuracy": {str(other): summary(values) for other, values in accuracy.items()},
            "energy_inside": {layer: summary(values) for layer, values in energy.items()},
        }
    return {
        "source": f"draw_pictures, {count} of split train with clue 0 or None; "
        f"{count // 5} of split test with clue None, 0 and 5; energy with clue 0",
        "count": count // 5,
        "train_count": count,
        "seeds": len(HANS_SEEDS),
        "width": 8,
        "epochs": 8,
        "area": round(masks.double().mean().item(), 5),
        "networks": networks,
    }


def film_frame(
    network: ResNet,  # as it is now
    images: torch.Tensor,  # float [5, 3, H, W], normalised
    labels: torch.Tensor,  # int64 [5], the true classes
) -> dict:
    """The probabilities, and the maps of layer4 for the true and the predicted class, unscaled."""
    training = network.training
    with torch.no_grad():
        probabilities = network.eval()(images).softmax(1)
    network.train(training)
    targets = torch.stack([labels, probabilities.argmax(1)], dim=1)
    maps = gradcam(network, images, targets, ("layer4",)).raw["layer4"]

    def rounded(numbers):
        return [float(f"{number:.3g}") for number in numbers.flatten().tolist()]

    return {
        "probabilities": [rounded(row) for row in probabilities],
        "true": [rounded(one) for one in maps[:, 0]],
        "predicted": [rounded(one) for one in maps[:, 1]],
    }


def film_one(
    source: str,  # a key of FILM_PRESETS
    bar,  # progress
) -> dict:
    """Train as the network that ships was, and look at five test pictures after each epoch."""
    config = Config(preset=FILM_PRESETS[source])
    splits = load_splits(config)
    loaders = make_loaders(config, splits)
    training = make_training(config, 10, len(loaders["train"]))
    test = splits["test"]
    first = [int((test.labels == label).argmax()) for label in FILM_CLASSES]
    chosen = test.subset([OUR_CAT[source], *first])
    images, labels = as_batch(chosen.images), torch.tensor(chosen.labels)
    loss = make_loss(training.model, config.label_smoothing, config.l1_factor, config.l1_reduction)
    frames = [{"epoch": 0} | film_frame(training.model, images, labels)]
    for row in fit(
        training, loaders["train"], {"validation": loaders["validation"]}, config.epochs, loss
    ):
        frame = film_frame(training.model, images, labels)
        if row["epoch"] not in (*FILM_EPOCHS, config.epochs):
            frame = {"probabilities": frame["probabilities"]}
        accuracy = {"validation_accuracy": round(row["validation_accuracy"], 4)}
        frames.append({"epoch": row["epoch"]} | accuracy | frame)
        bar.update(1 / config.epochs)
    return {
        "command": command_line(config),
        "images": [OUR_CAT[source], *first],
        "labels": labels.tolist(),
        "map": "layer4, Grad-CAM of the logit before scaling, 8 x 8 row by row",
        "frames": frames,
    }


def measure_film(
    count: int,  # not used: there are five pictures
    bar,  # progress
) -> dict:
    """Where a network looks while it learns, by source."""
    sources = ["drawn"] + (["cifar10"] if cifar10_test_images() else [])
    return {"seed": 0} | {source: film_one(source, bar) for source in sources}


def cifar10_test_images() -> LabelledImages | None:
    """CIFAR-10 if it's on this machine. Raises OSError if it's damaged."""
    try:
        return load_images("cifar10", download=False)[1]
    except FileNotFoundError:
        return None


# of the file: how it is measured, with how many pictures, in how many steps of progress
PARTS = {
    "pairs": (measure_pairs, 900, 5),
    "single": (measure_single, 1000, 10),
    "cascade": (measure_cascade, 200, 15),
    "erasing": (measure_erasing, 200, 30),
    "clever_hans": (measure_clever_hans, 3000, 6),
    "film": (measure_film, 5, 2),
}


def main():
    """Measure everything, or one part, and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the pictures, to try the script quickly"
    )
    parser.add_argument(
        "--part", choices=PARTS, help="measure only this part again, in a file that is there"
    )
    options = parser.parse_args()
    if not 0.1 <= options.share <= 1:
        parser.error(f"--share is {options.share}, expected 0.1 to 1")
    if options.part and not options.out.is_file():
        parser.error(f"--part measures a part of a file again, but {options.out} is not there")
    start, share = time.perf_counter(), options.share
    measured, parts = {}, {options.part: PARTS[options.part]} if options.part else PARTS
    with tqdm(
        total=sum(steps for _, _, steps in parts.values()), desc="measuring", disable=None
    ) as bar:
        for part, (measure, count, _) in parts.items():
            measured[part] = measure(round(count * share), bar)
    command = "python -m scripts.measure.measure_trust --out results/trust.json"
    command += f" --share {share}" if share < 1 else ""
    seconds = round(time.perf_counter() - start)
    if options.part:
        measured[options.part] |= {
            "command": f"{command} --part {options.part}",
            "seconds": seconds,
            "threads": torch.get_num_threads(),
        }
        record = json.loads(options.out.read_text(encoding="utf-8"))
    else:
        record = {
            "command": command,
            "data": "drawn pictures"
            + (", CIFAR-10 test images" if cifar10_test_images() else "; CIFAR-10 was absent"),
            "weights": "those that ship with the library",
            "seed": 0,
            "seconds": seconds,
            "python": platform.python_version(),
            "versions": {
                package: importlib.metadata.version(package)
                for package in ("cifar_cam_lib", "torch", "opencv-python", "numpy")
            },
            "device": f"cpu ({platform.machine()})",
            "threads": torch.get_num_threads(),
        }
    write_json(options.out, record | measured)


if __name__ == "__main__":
    main()
