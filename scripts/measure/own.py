"""Measures what chapter 10 tells of: fine-tuning with few pictures, and the maps of a small ViT.

    .venv/bin/python -m scripts.measure.own --out results/own.json   (an hour or two)
    .venv/bin/python -m scripts.measure.own --out /some/file.json --quick   (tries it in minutes)

All pictures are drawn ones. The network that is fine-tuned is the one of width 16 that was trained
on CIFAR-10 and comes with the library; it has never seen a drawn picture, but knows the names of
the classes. Learning rates are chosen on training pictures held back, never on the test pictures.
What is in the file already is not measured again, so a command that broke off can be given again;
with --part, two can work on one file.
"""

import argparse
import copy
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import VisionTransformer

from cifar_cam_lib import training, trust
from cifar_cam_lib.data import LabelledImages, as_batch, load_images, make_loader, split_validation
from cifar_cam_lib.drawn import SIDE, draw_pairs, draw_pictures
from cifar_cam_lib.fast import BatchedImages
from cifar_cam_lib.gradcam import from_tokens, gradcam, gradcam_map, hirescam_map
from cifar_cam_lib.model import channels_last, count_parameters, resnet18
from cifar_cam_lib.own import replace_head
from cifar_cam_lib.training import load_shipped_model
from scripts.measure.bench_gradcam import machine, measured_before, save
from scripts.measure.measure_trust import summary, untrained

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
ARMS = {"scratch": 2, "fine-tuned": 2, "frozen": 4}  # where in RATES the search begins
SWEEP_SEED = 100  # of the trainings that choose a rate; the others count from 0
HELD_BACK = 500  # training pictures that choose the rates
RECIPE = "BatchedImages with padding 4 and flip, AdamW with weight decay 0.05, one-cycle"
VIT = dict(image_size=SIDE, patch_size=4, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128)
BLOCK = "encoder.layers.encoder_layer_"
VIT_PARTS = {"head": ("heads", "encoder.ln")}
VIT_PARTS |= {f"block {number + 1}": (f"{BLOCK}{number}.",) for number in (3, 2, 1, 0)}
VIT_PARTS |= {"patches": ("conv_proj", "class_token", "encoder.pos_embedding")}


class Plan(NamedTuple):
    """How much is measured."""

    sizes: dict[int, int]  # pictures a class: how many seeds
    epochs: int = 30  # of a training with few pictures
    vit_epochs: int = 25
    vit_sweep_epochs: int = 3  # of the trainings that choose the ViT's rate
    pairs: int = 900  # pictures with two objects
    single: int = 1000  # pictures with one
    few: int = 200  # of these, for erasing and for the cascade
    seeds: int = 5  # of random weights


FULL = Plan({20: 5, 5: 5, 100: 3})
QUICK = Plan({2: 2}, 2, 1, 1, 90, 50, 20, 2)


class Subject(NamedTuple):
    """A kind of network whose maps are scored."""

    trained: Callable  # gives the trained network in evaluation mode
    fresh: Callable  # from a seed to the same network with random weights
    layers: tuple[str, ...]  # to explain
    layout: Callable | None  # see `gradcam`
    parts: dict[str, tuple[str, ...]]  # what the cascade draws again: beginnings of names
    method: Callable = gradcam_map  # see `gradcam`

    def explain(self, network: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> dict:
        """The maps of a network of this kind by layer."""
        return gradcam(network, images, targets, self.layers, self.method, self.layout)


def once(
    out: Path,  # the file, which is there
    section: str,  # of the file
    name: str,  # in the section
    measure: Callable,  # gives a dictionary
) -> dict:
    """What the file says under this name, or else measured now and written at once."""
    known = json.loads(out.read_text())[section]
    if name in known:
        return known[name]
    start = time.perf_counter()
    row = measure() | {"seconds": round(time.perf_counter() - start)}
    record = json.loads(out.read_text())  # again, because another part may have added to it
    record[section][name] = row
    save(out, record)
    print(f"{name}: {row}"[:160], flush=True)
    return row


def accuracy_of(
    model: nn.Module,  # any classifier
    pictures: LabelledImages,  # to be right about
) -> dict:
    """The accuracy, 0..1."""
    loader = make_loader(BatchedImages(pictures, 0), 250, shuffle=False, workers=0)
    _, accuracy = training.loss_and_accuracy(*training.predict(model, loader))
    return {"accuracy": round(accuracy, 4)}


def train(
    model: nn.Module,  # changed in place
    pictures: LabelledImages,  # to train on
    rate: float,  # highest learning rate
    epochs: int,  # passes
    seed: int,  # fixes order and augmentation
    batch_size: int = 32,  # pictures in a batch
):
    """Train by the recipe; the cross-entropy is printed now and then."""
    dataset = BatchedImages(pictures, seed, padding=4, flip=True)
    loader = make_loader(dataset, batch_size, shuffle=True, workers=0)
    optimizer = training.make_optimizer(model, "adamw", rate, momentum=0.0, weight_decay=0.05)
    schedule = training.make_schedule(optimizer, "one-cycle", epochs * len(loader))
    state = training.Training(channels_last(model), optimizer, schedule)
    for row in training.fit(state, loader, {}, epochs):
        if row["epoch"] % 10 == 0:
            print(f"  epoch {row['epoch']}: loss {row['train_loss']:.3f}", flush=True)


def choose_rate(
    measure: Callable,  # from a rate to a row with its "accuracy" on validation pictures
    first: int,  # where in RATES to begin
) -> tuple[float, dict]:
    """The best rate, with worse ones on both sides, and the accuracy of all that were tried."""
    low, high = first, first + 3
    while True:
        found = {rate: measure(rate)["accuracy"] for rate in RATES[low:high]}
        best = max(found, key=found.get)
        if best == RATES[low] and low > 0:
            low -= 1
        elif best == RATES[high - 1] and high < len(RATES):
            high += 1
        else:
            return best, {str(rate): accuracy for rate, accuracy in found.items()}


def few_pictures(
    arm: str,  # a key of ARMS
    pool: LabelledImages,  # what the training pictures are taken from
    per_class: int,  # training pictures of each class
    seed: int,  # fixes pictures, fresh weights, order and augmentation
    rate: float,  # highest learning rate
    epochs: int,  # passes
) -> nn.Module:
    """The network of width 16, trained with few pictures."""
    torch.manual_seed(seed)
    if arm == "scratch":
        network = resnet18(width=16)
    else:
        network = replace_head(load_shipped_model("cifar10"), 10, freeze=arm == "frozen")
    train(network, split_validation(pool, 10 * per_class, seed)[1], rate, epochs, seed)
    return network


def measure_arm(
    out: Path,  # the file
    plan: Plan,  # how much
    arm: str,  # a key of ARMS
    per_class: int,  # training pictures of each class
    rate: float | None,  # highest learning rate; None to choose one
) -> dict:
    """Choose a rate on pictures held back, then train with several seeds and test."""
    pictures, test = load_images("drawn")
    pool, held_back = split_validation(pictures, HELD_BACK, seed=0)
    name, tried = f"{arm}, {per_class} a class", {}

    def run(rate, seed, judged_by):
        network = few_pictures(arm, pool, per_class, seed, rate, plan.epochs)
        return accuracy_of(network, judged_by)

    def validate(rate):
        what = f"{name}, rate {rate}, validation"
        return once(out, "runs", what, lambda: run(rate, SWEEP_SEED, held_back))

    if rate is None:
        rate, tried = choose_rate(validate, ARMS[arm])
    rows = [
        once(out, "runs", f"{name}, seed {seed}", lambda seed=seed: run(rate, seed, test))
        for seed in range(plan.sizes[per_class])
    ]
    accuracies = [row["accuracy"] for row in rows]
    return {
        "learning_rate": rate,
        "validation_accuracy": tried,
        "test_accuracy": accuracies,
        "summary": summary(accuracies),
        "seconds": [row["seconds"] for row in rows],
    }


def measure_fine_tuning(
    out: Path,  # the file
    plan: Plan,  # how much
):
    """From scratch, fine-tuned, and with only the head trained, for each number of pictures."""
    test = load_images("drawn")[1]

    def untouched():
        return accuracy_of(load_shipped_model("cifar10"), test)

    found = {
        "network": "ResNet-18 of width 16; fine-tuned from the one that ships for CIFAR-10",
        "recipe": f"{RECIPE}, batches of 32, {plan.epochs} epochs; the rate is the highest one",
        "pictures": f"drawn; rates chosen on {HELD_BACK} training pictures held back, for 100 "
        f"pictures a class those of 20; accuracy on {len(test)} test pictures; each seed has its "
        "own training pictures, order and fresh weights",
        "shipped_as_it_is": once(out, "runs", "shipped as it is", untouched)["accuracy"],
        "sizes": {},
    }
    for per_class in plan.sizes:
        arms = found["sizes"][str(per_class)] = {}
        for arm in ARMS:
            rate = None  # with 100 pictures a class, choosing would take hours
            if per_class == 100:
                rate = found["sizes"]["20"][arm]["learning_rate"]
            arms[arm] = measure_arm(out, plan, arm, per_class, rate)
            save(out, json.loads(out.read_text()) | {"fine_tuning": found})


def fresh_vit(
    seed: int,  # fixes the weights
) -> VisionTransformer:
    """A small vision transformer; torchvision's head is zero, which leaves every map empty."""
    torch.manual_seed(seed)
    vit = VisionTransformer(**VIT, num_classes=10)
    vit.heads.head.reset_parameters()
    return vit.eval()


def trained_vit(
    weights: Path,  # file of its weights; if it isn't there, the ViT is trained and the file made
    rate: float,  # highest learning rate
    epochs: int,  # passes over all drawn training pictures
) -> VisionTransformer:
    """The ViT after its training, in evaluation mode."""
    vit = fresh_vit(0)
    if weights.is_file():
        vit.load_state_dict(load_file(weights))
        return vit
    train(vit, load_images("drawn")[0], rate, epochs, seed=0, batch_size=64)
    weights.parent.mkdir(exist_ok=True)
    training.save_weights(vit, weights)
    return vit.eval()


def choose_vit(
    out: Path,  # the file
    plan: Plan,  # how much
) -> tuple[Callable, dict]:
    """Choose the ViT's rate; a function that gives the trained network, and what the file says."""
    kept, held_back = split_validation(load_images("drawn")[0], HELD_BACK, seed=0)

    def validate(rate):
        def run():
            vit = fresh_vit(SWEEP_SEED)
            train(vit, kept, rate, plan.vit_sweep_epochs, SWEEP_SEED, batch_size=64)
            return accuracy_of(vit, held_back)

        return once(out, "runs", f"vit, rate {rate}, validation", run)

    rate, tried = choose_rate(validate, 2)
    weights = Path("runs") / f"{out.stem}-vit-{rate}-{plan.vit_epochs}.safetensors"
    return lambda: trained_vit(weights, rate, plan.vit_epochs), {
        "network": f"torchvision's VisionTransformer, {VIT}",
        "parameters": count_parameters(fresh_vit(0)),
        "recipe": f"{RECIPE}, batches of 64, {plan.vit_epochs} epochs of all drawn training "
        f"pictures, one seed; rates compared after {plan.vit_sweep_epochs} epochs",
        "learning_rate": rate,
        "validation_accuracy": tried,
    }


def score_maps(
    maps: torch.Tensor,  # [N, H, W], or [N, 2, H, W] of pairs
    masks: torch.Tensor,  # bool, of the same shape
) -> dict[str, torch.Tensor]:
    """Chapter 7's scores of each picture, [N]."""
    if masks.ndim == 4:
        return {"preference": trust.target_preference(maps, masks, masks.flip(1)).mean(1)}
    return {
        "energy_inside": trust.energy_in_mask(maps, masks),
        "points_inside": trust.pointing_game(maps, masks),
    }


def measure_masks(
    subject: Subject,  # the network
    draw: Callable,  # `draw_pairs` or `draw_pictures`
    count: int,  # pictures
    seeds: int,  # of random weights
) -> dict:
    """Scores by test and layer, for the true classes; if weights are random, over seeds."""
    pictures, labels, masks = draw(count, "test")
    images, labels, masks = as_batch(pictures), torch.tensor(labels), torch.tensor(masks)

    def scores(network):
        maps = subject.explain(network, images, labels)
        return {
            (test, layer): values
            for layer in subject.layers
            for test, values in score_maps(maps[layer], masks).items()
        }

    random, found = [scores(subject.fresh(seed)) for seed in range(seeds)], {}
    for (test, layer), values in scores(subject.trained()).items():
        means = [by_key[test, layer].double().mean().item() for by_key in random]
        row = {"trained": summary(values), "random": summary(means)}
        found.setdefault(test, {})[layer] = row
    for kind, maps in trust.baseline_maps(count, SIDE).items():
        for test, values in score_maps(maps if masks.ndim == 3 else maps[:, None], masks).items():
            found[test].setdefault("baselines", {})[kind] = summary(values)
    return found


def measure_erasing(
    subject: Subject,  # the network
    count: int,  # pictures
) -> dict:
    """Areas under the curves of insertion and deletion, for the class that it predicts."""
    network, images = subject.trained(), as_batch(draw_pictures(count, "test")[0])
    with torch.no_grad():
        targets = network(images).argmax(1)
    maps = subject.explain(network, images, targets)
    found = {"insertion": {}, "deletion": {}}
    for name, map_ in (maps | trust.baseline_maps(count, SIDE)).items():
        for mode, rows in found.items():
            curve = trust.perturbation_curve(network, images, map_, targets, mode)
            rows[name] = summary(torch.trapezoid(curve, dx=1 / 16, dim=1))
    return found


def measure_cascade(
    subject: Subject,  # the network
    count: int,  # pictures
    seeds: int,  # of fresh weights
) -> dict:
    """Rank correlation with the trained map as parts are drawn again, head first; over seeds."""
    pictures, labels, _ = draw_pictures(count, "test")
    images, labels = as_batch(pictures), torch.tensor(labels)

    network, found = subject.trained(), {part: {} for part in subject.parts}
    trained = subject.explain(network, images, labels)
    for seed in range(seeds):
        fresh, changed = subject.fresh(seed).state_dict(), copy.deepcopy(network)
        for part, starts in subject.parts.items():
            drawn = {name: values for name, values in fresh.items() if name.startswith(starts)}
            changed.load_state_dict(changed.state_dict() | drawn)
            for layer, maps in subject.explain(changed, images, labels).items():
                correlations = trust.rank_correlation(trained[layer], maps)
                found[part].setdefault(layer, []).append(correlations)
    return {
        part: {
            layer: summary([correlations.nanmean().item() for correlations in rows])
            | {"undefined": int(torch.cat(rows).isnan().sum())}
            for layer, rows in by_layer.items()
        }
        for part, by_layer in found.items()
    }


def measure_vit(
    out: Path,  # the file
    plan: Plan,  # how much
):
    """Train the ViT and score its maps, and those of the ResNet, on the same pictures."""
    vit, found = choose_vit(out, plan)
    resnet, stages = (lambda: load_shipped_model("drawn")), {part: (part,) for part in trust.PARTS}
    norms = tuple(f"{BLOCK}{number}.ln_1" for number in (1, 2, 3))
    subjects = {
        "vit": Subject(vit, fresh_vit, norms, from_tokens, VIT_PARTS),
        "resnet": Subject(resnet, untrained, ("layer2", "layer3", "layer4"), None, stages),
    }
    test = load_images("drawn")[1]
    for name, subject in subjects.items():
        seen = once(out, "runs", f"{name}, test", lambda s=subject: accuracy_of(s.trained(), test))
        found[name] = {"layers": subject.layers, "test_accuracy": seen["accuracy"]}
        for method, asked in (
            ("gradcam", subject),
            ("hirescam", subject._replace(method=hirescam_map)),
        ):
            measures = {
                "pairs": lambda s=asked: measure_masks(s, draw_pairs, plan.pairs, plan.seeds),
                "single": lambda s=asked: measure_masks(s, draw_pictures, plan.single, plan.seeds),
                "erasing": lambda s=asked: measure_erasing(s, plan.few),
                "cascade": lambda s=asked: measure_cascade(s, plan.few, plan.seeds),
            }
            for part, measure in measures.items():
                once(out, "maps", f"{name}, {method}, {part}", measure)
    save(out, json.loads(out.read_text()) | {"vit": found})


MEASURES = {"fine_tuning": measure_fine_tuning, "vit": measure_vit}  # by section of the file


def main():
    """Measure what is missing, saving after each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write, or to continue")
    parser.add_argument("--quick", action="store_true", help="try it all with very little")
    parser.add_argument("--part", choices=MEASURES, help="measure only this part")
    options = parser.parse_args()
    plan, out = QUICK if options.quick else FULL, options.out
    packages = ("torch", "torchvision", "cifar_cam_lib")
    record = {
        "command": "python -m scripts.measure.own --out results/own.json"
        + (" --quick" if options.quick else ""),
        "data": "drawn pictures, as load_images, draw_pictures and draw_pairs draw them: seed 0",
        "plan": plan._asdict() | {"sizes": {str(size): n for size, n in plan.sizes.items()}},
        "machine": machine(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    known = measured_before(out, record)
    if known and known["command"] != record["command"]:
        parser.error(f"{out} was measured with and without --quick: name a new file")
    save(out, record | {"runs": {}, "maps": {}} | known | record)
    for part in [options.part] if options.part else MEASURES:
        MEASURES[part](out, plan)
    record = json.loads(out.read_text())
    rows = [*record["runs"].values(), *record["maps"].values()]
    save(out, record | {"count": len(rows), "seconds": sum(row["seconds"] for row in rows)})


if __name__ == "__main__":
    main()
