"""The scores of chapter 7 against values by hand, its pictures and numbers against promises."""

import json
import re
import warnings

import nbformat
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from cifar_cam_lib.data import as_batch
from cifar_cam_lib.drawn import (
    clue_colour,
    draw_pair,
    draw_pairs,
    draw_picture,
    draw_pictures,
    random_stream,
)
from cifar_cam_lib.gradcam import gradcam, log_probability
from cifar_cam_lib.model import resnet18
from cifar_cam_lib.training import load_shipped_model
from cifar_cam_lib.trust import (
    PARTS,
    baseline_maps,
    cascade,
    energy_in_mask,
    perturbation_curve,
    pointing_game,
    randomise,
    rank_correlation,
    ranks,
    target_preference,
    train_small,
)
from scripts.project import ROOT

LAYERS = ("layer1", "layer2", "layer3", "layer4")
MAP = torch.tensor([[0.0, 1, 2, 0], [0, 3, 6, 0], [4, 0, 0, 0], [0, 0, 0, 4]])  # its sum is 20
LEFT = torch.zeros(4, 4, dtype=torch.bool)
LEFT[:, :2] = True
CORNER = torch.zeros(4, 4, dtype=torch.bool)
CORNER[3, 3] = True


@pytest.fixture(scope="module")
def pairs():
    return draw_pairs(180, "test")


@pytest.fixture(scope="module")
def trained():
    return load_shipped_model("drawn")


def test_scores_by_hand():
    assert energy_in_mask(MAP, LEFT) == 8 / 20 and energy_in_mask(MAP, ~LEFT) == 12 / 20
    assert energy_in_mask(MAP, CORNER) == 4 / 20
    assert pointing_game(MAP, LEFT) == 0 and pointing_game(MAP, ~LEFT) == 1
    assert target_preference(MAP, LEFT, CORNER) == 1
    assert target_preference(MAP, CORNER, LEFT) == 0
    assert target_preference(MAP, CORNER, CORNER) == 0.5


def test_scores_do_not_depend_on_the_scale_of_a_map():
    for scale in (1e-20, 1e6):
        assert energy_in_mask(MAP * scale, LEFT).item() == pytest.approx(0.4, rel=1e-6)
        assert pointing_game(MAP * scale, ~LEFT) == 1
        assert target_preference(MAP * scale, LEFT, CORNER) == 1


def test_several_highest_pixels_share_the_point():
    assert pointing_game((MAP == 4).float(), CORNER) == 0.5


def test_an_empty_map_scores_as_a_guess():
    empty = torch.zeros(4, 4)
    assert target_preference(empty, LEFT, CORNER) == 0.5
    assert energy_in_mask(empty, LEFT) == pointing_game(empty, LEFT) == 0.5
    assert energy_in_mask(empty, CORNER) == pointing_game(empty, CORNER) == 1 / 16


def test_maps_that_ignore_the_question_score_exactly_one_half(pairs):
    masks, generator = torch.tensor(pairs[2]), torch.Generator().manual_seed(3)
    maps = torch.rand(180, 1, 32, 32, generator=generator) ** 4
    for map_ in (maps, *(baseline[:, None] for baseline in baseline_maps(180, 32).values())):
        scores = target_preference(map_, masks, masks.flip(1))
        assert (scores.sum(1) == 1).all() and scores.mean() == 0.5


def test_baselines():
    baselines = baseline_maps(2000, side=16, seed=1)
    assert all(maps.shape == (2000, 16, 16) and maps.min() >= 0 for maps in baselines.values())
    middle = torch.nn.functional.pad(torch.ones(2, 2), (7, 7, 7, 7)).bool()
    assert pointing_game(baselines["centre"][0], middle) == 1
    # Stationary noise: no place of it is brighter on average.
    random = baselines["random"]
    assert random.mean(0).sub(0.5).abs().max() < 0.01
    assert not torch.equal(random, baseline_maps(2000, 16, seed=2)["random"])


def test_rank_correlation_is_spearmans():
    assert ranks(torch.tensor([[3.0, 1, 3, 3], [1, 2, 3, 4]])).tolist() == [
        [3, 1, 3, 3],
        [1, 2, 3, 4],
    ]
    first, second = torch.tensor([[[1.0, 2], [3, 4]]]), torch.tensor([[[10.0, 30], [20, 40]]])
    assert rank_correlation(first, second).item() == pytest.approx(
        1 - 6 * 2 / (4 * 15)
    )  # two ranks differ by 1
    assert rank_correlation(first, torch.ones(1, 2, 2)).isnan()


def test_rank_correlation_is_that_of_scipy():
    stats, generator = pytest.importorskip("scipy.stats"), torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(5, 8, 8, generator=generator).relu() for _ in range(2)
    )  # half of the values are zero, so ties
    theirs = [stats.spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, second)]
    assert rank_correlation(first, second).tolist() == pytest.approx(theirs, abs=1e-12)


def test_randomise_changes_the_named_parts_of_a_copy():
    torch.manual_seed(0)
    model = resnet18(width=4).eval()
    before, state = (
        {name: value.clone() for name, value in model.state_dict().items()},
        torch.get_rng_state(),
    )
    changed = randomise(model, ("head", "layer4"), seed=1).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in changed.items():
        if name.startswith(("head", "layer4")):
            assert (
                not torch.equal(value, before[name]) or "norm" in name or ".shortcut.1" in name
            )  # fresh norms are ones and zeros
        else:
            assert torch.equal(value, before[name]), name
    again, other = (randomise(model, ("head",), seed).head.weight for seed in (1, 2))
    assert torch.equal(changed["head.weight"], again) and not torch.equal(again, other)
    assert set(PARTS) == {name for name, _ in model.named_children()}


def test_randomise_resets_norms_too():
    model = resnet18(width=4)
    torch.nn.init.constant_(model.layer4[0].norm1.weight, 5.0)
    assert (randomise(model, ("layer4",), seed=0).layer4[0].norm1.weight == 1).all()
    with pytest.raises(ValueError, match="no part 'tail': known are stem, layer1"):
        randomise(model, ("tail",), seed=0)


class Symmetric(nn.Module):
    """A parametrisation that can't be turned round."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


def symmetric(linear):
    parametrize.register_parametrization(linear, "weight", Symmetric())
    return linear


def marked(module):
    """The module with no parameter as its construction leaves it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.linspace(0.1, 1, parameter.numel()).reshape(parameter.shape))
    return module


DRAWN = {
    "attention": (lambda: nn.MultiheadAttention(8, 2), "in_proj_weight"),
    "attention of three sizes": (
        lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
        "k_proj_weight",
    ),
    "attention's additions": (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), "bias_k"),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), "weight"),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 4)), "weight"),
    "no way back": (lambda: symmetric(nn.Linear(4, 4)), "weight"),
    "recurrent": (lambda: nn.GRU(3, 4), "weight_hh_l0"),
    "embedding": (lambda: nn.Embedding(3, 4), "weight"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_randomise_draws_every_kind_of_parameter_anew(name):
    build, weight = DRAWN[name]
    model = nn.Sequential(marked(build()), nn.Linear(2, 2)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    changed = randomise(model, ("0",), seed=1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    ours, theirs = getattr(changed[0], weight).detach(), getattr(model[0], weight).detach()
    assert not torch.isclose(ours, theirs, rtol=1e-3).any()
    torch.manual_seed(2)
    fresh = getattr(build(), weight).detach()
    assert ours.std() == pytest.approx(fresh.std().item(), rel=0.6)
    assert torch.equal(changed[1].weight, model[1].weight)
    again, other = (getattr(randomise(model, ("0",), seed)[0], weight) for seed in (1, 2))
    assert torch.equal(ours, again) and not torch.equal(ours, other)
    if name == "spectral norm":
        assert torch.linalg.matrix_norm(ours, 2) == pytest.approx(1, abs=0.05)


class Bare(nn.Module):
    """A parameter of its own, and nobody who says how to draw it."""

    def __init__(self, value):
        super().__init__()
        self.token = nn.Parameter(value)


def old_style(norm):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in networks of others
        return norm(nn.Conv2d(3, 4, 3))


STUCK = {
    "0.token": lambda: Bare(torch.arange(3.0)),
    "0.0.token": lambda: nn.Sequential(Bare(torch.tensor(2.0)), nn.Linear(2, 2)),
    "0.weight_g": lambda: old_style(nn.utils.weight_norm),
    "0.weight_orig": lambda: old_style(nn.utils.spectral_norm),
}


@pytest.mark.parametrize("name", STUCK)
def test_a_parameter_that_nobody_can_draw_is_named(name):
    model = nn.Sequential(STUCK[name](), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=f"parameter '{name}' can't be drawn anew"):
        randomise(model, ("0",), seed=0)
    assert not torch.equal(randomise(model, ("1",), 0)[1].weight, model[1].weight)


def test_a_vision_transformer_is_randomised_or_refused():
    models = pytest.importorskip("torchvision").models
    model = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    block = randomise(model, ("encoder.layers",), seed=0).encoder.layers[0]
    for name, value in block.named_parameters():
        before = model.encoder.layers[0].get_parameter(name)
        assert not torch.equal(value, before) or len(value.unique()) == 1, name
    with pytest.raises(ValueError, match="'encoder.pos_embedding' can't be drawn anew"):
        randomise(model, ("encoder",), seed=0)


def test_cascade_takes_functions_and_wrapped_models(trained):
    images, labels = as_batch(draw_pictures(2, "test")[0]), [0, 1]
    questions = [log_probability(label) for label in labels]
    stages = list(cascade(nn.DataParallel(trained), images, questions, seed=0))
    shuffled = randomise(trained, ("head",), 0)
    assert torch.equal(stages[0][1]["layer3"], gradcam(trained, images, questions)["layer3"])
    assert torch.equal(stages[1][1]["layer3"], gradcam(shuffled, images, questions)["layer3"])
    assert not torch.equal(stages[0][1]["layer3"], gradcam(trained, images, labels)["layer3"])


class OnApple(torch.Tensor):
    """As on Apple's GPU, which has no float64: it must come to the CPU first."""

    def double(self):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_scores_of_maps_on_apples_gpu():
    maps, masks = MAP.as_subclass(OnApple), LEFT.as_subclass(OnApple)
    assert energy_in_mask(maps, masks) == 8 / 20
    assert target_preference(maps, masks, ~masks) == 0
    assert pointing_game(maps, ~masks) == 1
    assert rank_correlation(maps[None], maps[None]).item() == pytest.approx(1)


def test_cascade_starts_at_one_and_keeps_what_it_has_drawn(trained):
    images = as_batch(draw_pictures(4, "test")[0])
    stages = list(cascade(trained, images, [0, 1, 2, 3], seed=0))
    assert [name for name, _, _ in stages] == ["trained", *PARTS]
    assert all(
        torch.allclose(correlation, torch.ones(4).double()) for correlation in stages[0][2].values()
    )
    expected = gradcam(randomise(trained, ("head", "layer4"), 0), images, [0, 1, 2, 3])
    assert torch.equal(stages[2][1]["layer3"], expected["layer3"])


@pytest.mark.parametrize("steps", [1, 5, 16])
def test_perturbation_curves_start_and_end_where_they_must(trained, steps):
    images, targets = as_batch(draw_pictures(6, "test")[0]), torch.arange(6)
    maps = baseline_maps(6, 32)["random"]
    with torch.no_grad():
        whole = trained(images).softmax(1).gather(1, targets[:, None])[:, 0]
        grey = trained(torch.zeros(6, 3, 32, 32)).softmax(1).gather(1, targets[:, None])[:, 0]
    insertion, deletion = (
        perturbation_curve(trained, images, maps, targets, mode, steps)
        for mode in ("insertion", "deletion")
    )
    assert insertion.shape == deletion.shape == (6, steps + 1)
    for full, empty in ((insertion[:, -1], insertion[:, 0]), (deletion[:, 0], deletion[:, -1])):
        assert torch.allclose(full, whole, atol=1e-5) and torch.allclose(empty, grey, atol=1e-5)


def test_perturbation_curve_by_hand():
    def two_logits(images):  # the first grows with the sum of all pixels, the second stays 0
        total = images.sum(dim=(1, 2, 3))
        return torch.stack([total, torch.zeros_like(total)], dim=1)

    images = torch.tensor([[[[4.0, 2], [1, 0]]]])
    sums = {"deletion": [7, 3, 1, 0, 0], "insertion": [0, 4, 6, 7, 7]}  # the largest pixel first
    for mode, values in sums.items():
        curve = perturbation_curve(
            two_logits, images, images[:, 0], torch.tensor([0]), mode, steps=4
        )
        assert torch.allclose(curve[0], torch.tensor(values).float().sigmoid())
    with pytest.raises(ValueError, match="unknown mode 'both'"):
        perturbation_curve(two_logits, images, images[:, 0], torch.tensor([0]), "both")


def test_equal_pixels_go_in_an_order_of_their_own():
    ones, seen = torch.ones(2, 4, 4), []

    def spy(images):
        seen.append(images[:, 0])
        return torch.zeros(2, 2)

    perturbation_curve(
        spy, torch.ones(2, 1, 4, 4), ones, torch.zeros(2, dtype=torch.int64), "insertion", steps=16
    )
    assert [int(images[0].sum()) for images in seen] == list(range(17))  # one pixel at a time
    assert all(torch.equal(images[0], images[1]) for images in seen)  # the same for every image
    first = [int(images[0].flatten().argmax()) for images in seen[1:2]]
    assert not torch.equal(seen[8][0].flatten(), (torch.arange(16) < 8).float()), (
        f"line by line, from {first}"
    )


def test_pairs_keep_their_promises(pairs):
    images, labels, masks = pairs
    assert (
        images.shape == (180, 32, 32, 3)
        and images.dtype == np.uint8
        and masks.dtype == bool
        and labels.dtype == np.int64
    )
    assert not masks.all(axis=1).any()  # no pixel belongs to both
    assert masks.sum(axis=(2, 3)).min() >= 30  # both can be seen
    counts = np.zeros((10, 10), int)
    np.add.at(counts, tuple(labels.T), 1)
    assert (counts == 2 * (1 - np.eye(10, dtype=int))).all()
    assert (
        abs(masks[:, 0].mean() / masks[:, 1].mean() - 1) < 0.15
    )  # neither place of the pair is the larger one


def test_pairs_are_fixed_by_seed_split_and_index(pairs):
    image, labels, masks = draw_pair(0, "test", 73)
    assert (
        (image == pairs[0][73]).all()
        and labels == pairs[1][73].tolist()
        and (masks == pairs[2][73]).all()
    )
    assert all(
        (draw_pair(*other)[0] != image).any()
        for other in [(1, "test", 73), (0, "train", 73), (0, "test", 163)]
    )


def test_no_two_pictures_share_a_stream():
    streams = [
        random_stream(seed, split, index, *kind)
        for seed in range(3)
        for split in ("train", "test")
        for index in range(12)
        for kind in ((), (1,))
    ]
    assert len({stream.integers(2**63) for stream in streams}) == len(streams)


def test_a_clue_changes_the_background_only():
    plain, given_away, other_way = (draw_picture(0, "test", 8, clue) for clue in (None, 0, 5))
    assert all(
        (picture[2] == plain[2]).all() and picture[1] == 8 for picture in (given_away, other_way)
    )
    for picture, label in ((given_away, 8), (other_way, 3)):
        mean = picture[0][~plain[2]].mean(axis=0)
        assert (
            np.linalg.norm(
                np.stack([clue_colour(number) for number in range(10)]) - mean, axis=1
            ).argmin()
            == label
        )
    inside = plain[2]
    assert (given_away[0] == other_way[0])[
        inside
    ].mean() > 0.7  # but for its edges, the object is the same


def test_the_shipped_network_answers_the_question(trained, pairs):
    images, labels, masks = (
        as_batch(pairs[0][:90]),
        torch.tensor(pairs[1][:90]),
        torch.tensor(pairs[2][:90]),
    )
    questions = [[log_probability(label) for label in row] for row in labels.tolist()]
    score = {
        name: target_preference(
            gradcam(network, images, questions, ("layer4",))["layer4"],
            masks,
            masks.flip(1),
        ).mean()
        for name, network in (("trained", trained), ("random", randomise(trained, PARTS, seed=0)))
    }
    assert score["trained"] > 0.95 and 0.3 < score["random"] < 0.6


def test_train_small_repeats_itself():
    pictures, labels, _ = draw_pictures(40, "train", clue=0)
    first, second = (train_small(pictures, labels, seed=1, width=4, epochs=1) for _ in range(2))
    assert not first.training and all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters())
    )


@pytest.fixture(scope="module")
def record():
    return json.loads((ROOT / "results" / "trust.json").read_text())


def test_the_record_says_where_its_numbers_come_from(record):
    old, new = "python scripts/measure_trust.py", "python -m scripts.measure.measure_trust"
    assert record["command"] in (f"{script} --out results/trust.json" for script in (old, new))
    assert {"seed", "data", "versions", "device", "threads", "seconds"} <= set(record)
    assert record["versions"]["torch"]
    assert record["pairs"]["questions"] == 2 * record["pairs"]["count"] >= 1000
    assert record["single"]["count"] >= 1000 and record["erasing"]["count"] >= 200
    assert len(record["pairs"]["maps"]["random, gradcam, logit"]["layer4"]["seeds"]) >= 5
    text = json.dumps(record)
    assert not re.search(r"/(home|root|tmp|Users)/|NaN|Infinity", text)

    def summaries(part):
        if isinstance(part, dict):
            yield from (
                [part]
                if "mean" in part
                else [found for value in part.values() for found in summaries(value)]
            )

    assert all({"standard_error", "count"} <= set(summary) for summary in summaries(record))


def test_the_record_supports_what_the_chapter_asserts(record):
    maps = record["pairs"]["maps"]
    assert maps["trained, gradcam, log_probability"]["layer4"]["mean"] > 0.95
    assert 0.85 < maps["trained, gradcam, logit"]["layer4"]["mean"] < 0.95
    assert all(
        0.3 < maps[name][layer]["mean"] < 0.6
        for name in maps
        if name.startswith("random")
        for layer in LAYERS
    )
    assert all(value == 0.5 for value in record["pairs"]["baselines"].values())
    energy = record["single"]["energy_inside"]
    assert (
        energy["baselines"]["centre"]["mean"]
        > energy["maps"]["trained, gradcam, logit"]["layer4"]["mean"]
        > 1.5 * energy["baselines"]["uniform"]["mean"]
    )
    hans = record["clever_hans"]["networks"]
    assert (
        hans["clever"]["accuracy"]["0"]["mean"] > 0.9
        and hans["clever"]["accuracy"]["5"]["mean"] < 0.1
    )
    assert all(
        hans["clever"]["energy_inside"][layer]["mean"]
        < 0.6 * hans["honest"]["energy_inside"][layer]["mean"]
        for layer in LAYERS
    )


def test_the_chapter_shows_the_numbers_of_the_record(record):
    cells = nbformat.read(ROOT / "nbs" / "07_trust.ipynb", as_version=4).cells
    shown = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    for name, by_layer in record["pairs"]["maps"].items():
        row = f"{name:34}"
        for value in by_layer.values():
            row += f"{value['mean']:9.3f} ±{value['standard_error']:.3f}"
        assert row in shown
    words = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
    headline = record["pairs"]["maps"]["trained, gradcam, log_probability"]["layer4"]["mean"]
    assert f"{headline:.3f}" in words


def test_a_map_with_nan_gets_no_score():
    spoilt, empty = MAP.clone(), torch.zeros(4, 4)
    spoilt[1, 1] = torch.nan
    for score in (
        energy_in_mask(spoilt, LEFT),
        target_preference(spoilt, LEFT, ~LEFT),
        pointing_game(spoilt, LEFT),
        rank_correlation(spoilt[None], spoilt[None]),
    ):
        assert score.isnan().all()
    assert energy_in_mask(empty, CORNER) == 1 / 16 and target_preference(empty, LEFT, ~LEFT) == 0.5


def test_a_small_network_has_as_many_classes_as_its_labels():
    pictures, labels, _ = draw_pictures(12, "train")
    model = train_small(pictures, labels % 3, seed=0, width=2, epochs=1)
    assert model.head.out_features == 3
