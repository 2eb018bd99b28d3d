"""The test of one map: its error rate, closed forms, planted faults, and what people read of it."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from PIL import Image
from scipy.stats import binom, binomtest
from torch import nn

from cifar_cam_lib.data import as_batch
from cifar_cam_lib.drawn import draw_pairs, draw_pictures
from cifar_cam_lib.gradcam import contrast, gradcam, log_probability, show_gradcam
from cifar_cam_lib.main import cli
from cifar_cam_lib.model import channels_last
from cifar_cam_lib.training import load_shipped_model
from cifar_cam_lib.trust import (
    LEVEL,
    MapCheck,
    blurred,
    check_maps,
    describe_check,
    draw_places,
    keep_and_hide,
    map_stability,
    roll_around,
)
from scripts.project import ROOT


@pytest.fixture(scope="module")
def trained():
    return channels_last(load_shipped_model("drawn"))  # half as fast again


class Corner(nn.Module):
    """Class 1 gains with the contrast of the left upper quarter, and nothing else matters."""

    def forward(self, images):
        quarter = images[..., : images.shape[2] // 2, : images.shape[3] // 2]
        contrast_there = quarter.std(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(contrast_there), contrast_there], dim=1)


def bump(side, top, left, size):
    map_ = torch.zeros(side, side)
    map_[top : top + size, left : left + size] = 1
    return map_


@pytest.mark.parametrize("side", [16, 12])
def test_a_map_at_a_random_place_passes_as_rarely_as_it_says(side):
    """On a grid of places, and where eight doesn't divide the side and they are drawn."""
    torch.manual_seed(side)
    count = 500
    model = nn.Sequential(nn.AvgPool2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(3 * side**2 // 4, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    images = torch.randn(count, 3, side, side)
    maps = F.interpolate(torch.rand(count, 1, 4, 4), (side, side), mode="bilinear")[:, 0]
    shifts = torch.randint(0, side, (count, 2)).tolist()
    maps = torch.stack([map_.roll(shift, (0, 1)) for map_, shift in zip(maps, shifts)])
    p = check_maps(model, images, {"maps": maps}, [1] * count)["maps"].p
    for places in (3, 6):
        low, high = binom.interval(0.99, count, places / 64)
        assert low <= (p <= places / 64).sum() <= high
    assert p.min() == 1 / 64 and p.mul(64).frac().abs().max() == 0
    assert LEVEL == 0.05


@pytest.mark.parametrize("high, wide", [(32, 64), (20, 33), (8, 8), (9, 8)])
def test_places_are_64_and_all_different(high, wide):
    image = torch.rand(3, high, wide)
    places = draw_places(image)
    assert torch.equal(places, draw_places(image.clone()))
    assert places.shape == (64, 2) and places[0].tolist() == [0, 0]
    assert len({tuple(place) for place in places.tolist()}) == 64
    assert (places >= 0).all() and (places < torch.tensor([high, wide])).all()
    if high % 8 == wide % 8 == 0:
        assert not (places % torch.tensor([high // 8, wide // 8])).any()
    else:
        assert not torch.equal(places, draw_places(image / 2))


def test_a_rolled_map_keeps_its_shape():
    map_ = torch.rand(16, 24)
    places = draw_places(torch.zeros(3, 16, 24))
    for rolled, (down, right) in zip(roll_around(map_, places), places.tolist()):
        assert torch.equal(rolled.flatten().sort()[0], map_.flatten().sort()[0])
        assert rolled[(5 + down) % 16, (7 + right) % 24] == map_[5, 7]


def test_what_is_kept_stays_and_what_is_hidden_is_filled():
    torch.manual_seed(0)
    image, mask = torch.randn(3, 32, 48), torch.zeros(32, 48)
    mask[:, :20] = 1
    soft = blurred(image)
    (kept,), (hidden,) = keep_and_hide(image, mask[None], soft)
    assert torch.allclose(kept[..., :20], image[..., :20], atol=1e-6)
    assert torch.equal(kept[..., 20:], soft[..., 20:])
    assert torch.allclose(hidden[..., :20], soft[..., :20], atol=1e-6)
    assert torch.equal(hidden[..., 20:], image[..., 20:])
    assert torch.allclose(kept + hidden, image + soft, atol=1e-5)
    assert soft.std() < 0.1 * image.std()
    flat = torch.full((3, 16, 16), 0.7)
    assert torch.allclose(blurred(flat), flat)


def test_the_place_that_matters_passes_and_no_other_does():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 16, 16)
    there, elsewhere = bump(16, 0, 0, 8), bump(16, 8, 8, 8)
    right = check_maps(Corner(), images, {"map": torch.stack([there, there])}, [1, 1])["map"]
    wrong = check_maps(Corner(), images, {"map": torch.stack([elsewhere] * 2)}, [1, 1])["map"]
    against = check_maps(Corner(), images, {"map": torch.stack([there, there])}, [0, 0])["map"]
    assert (right.p == 1 / 64).all() and (right.spread > 0).all()
    assert (wrong.p > 0.5).all() and (against.p == 1).all()


def test_targets_are_those_of_gradcam(trained):
    images = as_batch(draw_pictures(2, "test")[0][:, ::2, ::2])
    maps = gradcam(trained, images, [[1, 7], [2, 3]], ("layer3", "layer4"))
    both = check_maps(trained, images, maps, [[1, 7], [2, log_probability(3)]])
    for layer, check in both.items():
        assert check.p.shape == check.spread.shape == (2, 2)
        for k, classes in enumerate(([1, 2], [7, 3])):
            one = check_maps(trained, images, {layer: maps[layer][:, k]}, classes)[layer]
            assert torch.equal(one.p, check.p[:, k])
    first = {"layer4": maps["layer4"][:, 0]}
    shared = check_maps(trained, images, first, [[1, contrast(1, 7)], [2, contrast(2, 3)]])[
        "layer4"
    ]
    assert torch.equal(shared.p[:, 0], both["layer4"].p[:, 0])
    predicted = trained(images).argmax(1).tolist()
    assert torch.equal(
        check_maps(trained, images, first)["layer4"].p,
        check_maps(trained, images, first, predicted)["layer4"].p,
    )


def test_other_outputs_sizes_and_devices_of_the_answer():
    class Several(nn.Module):
        def forward(self, images):
            return {"logits": Corner()(images), "mean": images.mean((1, 2, 3))}

    images, map_ = torch.randn(1, 3, 20, 33), torch.zeros(1, 20, 33)
    map_[:, :10, :16] = 1
    by_name = check_maps(Several(), images, {"map": map_}, lambda one: one["logits"][1])["map"]
    assert by_name.p.shape == (1,) and by_name.p < 0.1
    one_logit = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 33, 1))
    assert 0 < check_maps(one_logit, images, {"map": map_}, [1])["map"].p <= 1


@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_a_map_without_a_place_passes_nothing(value, trained):
    images = as_batch(draw_pictures(1, "test")[0])
    check = check_maps(trained, images, {"map": torch.full((1, 32, 32), value)}, [3])["map"]
    assert check.p == 1 and check.spread == 0


@pytest.mark.parametrize("noise", [0, 1e-8])
def test_a_network_that_answers_the_same_to_everything_passes_nothing(noise):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 5))
    with torch.no_grad():
        model[1].weight.mul_(noise)
    check = check_maps(model, torch.randn(1, 3, 16, 16), {"map": bump(16, 2, 2, 5)[None]}, [3])
    assert check["map"].p == 1 and check["map"].spread == 0


def test_the_model_is_left_as_it_was(trained):
    images, model = (
        torch.randn(1, 3, 16, 16),
        nn.Sequential(nn.Dropout(), nn.Flatten(), nn.Linear(768, 3)),
    )
    model[0].eval()
    maps = {"map": bump(16, 2, 2, 5)[None]}
    first = check_maps(model, images, maps, [1])["map"]
    assert torch.equal(first.p, check_maps(model, images, maps, [1])["map"].p)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    with pytest.raises(ValueError, match="targets must be"):
        check_maps(model, images, maps, [1, 2])
    assert model.training and torch.is_grad_enabled()


def test_what_surrounds_an_image_changes_nothing(trained):
    images = as_batch(draw_pictures(3, "test")[0])[..., :28, :28]
    maps = gradcam(trained, images, [1, 2, 3], ("layer4",))
    with torch.autocast("cpu", torch.bfloat16):
        together = check_maps(trained, images, maps, [1, 2, 3])["layer4"]
    alone = check_maps(trained, images[2:], {"layer4": maps["layer4"][2:]}, [3])["layer4"]
    assert torch.equal(together.p[2:], alone.p)
    mixing = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), Corner())
    with pytest.raises(ValueError, match="'0' is a batch norm without running statistics"):
        check_maps(mixing, images, maps, [1, 1, 1])


def test_an_offset_of_the_answer_does_not_matter():
    images, maps = torch.randn(2, 3, 16, 16), {"map": torch.rand(2, 16, 16)}
    plain = check_maps(Corner(), images, maps, lambda output: output[1])["map"]
    moved = check_maps(Corner(), images, maps, lambda output: output[1] + 50)["map"]
    assert (plain.p - moved.p).abs().max() <= 2 / 64


def test_wrong_maps_and_answers_are_refused():
    images, model = torch.randn(2, 3, 16, 16), Corner()
    for wrong in (
        255 * torch.rand(2, 16, 16),
        torch.rand(2, 16, 16) - 0.5,
        torch.full((2, 16, 16), torch.nan),
    ):
        with pytest.raises(ValueError, match="maps of 'map' aren't from 0 to 1"):
            check_maps(model, images, {"map": wrong}, [0, 1])
    with pytest.raises(ValueError, match="4x4 pixels, expected 64 or more"):
        check_maps(model, images[..., :4, :4], {"map": torch.rand(2, 4, 4)}, [0, 1])
    with pytest.raises(ValueError, match="must give a single number"):
        check_maps(model, images, {"map": torch.rand(2, 16, 16)}, lambda output: output)
    with pytest.raises(ValueError, match="needs a check of shape"):
        describe_check(torch.rand(16, 16), MapCheck(torch.ones(3), torch.ones(3)), "cat", "dog")
    for shape in ((2, 8, 8), (1, 16, 16), (2, 3, 16, 16)):
        with pytest.raises(ValueError, match=r"maps of 'map' are .*, expected \[2, 16, 16\] or"):
            check_maps(model, images, {"map": torch.rand(shape)}, [[0, 1], [0, 1]])
    with pytest.raises(ValueError, match="a target isn.t a finite number"):
        check_maps(model, images * torch.nan, {"map": torch.rand(2, 16, 16)}, [0, 1])
    with pytest.raises(ValueError, match="takes classes from 0 to 1, not 2"):
        check_maps(model, images, {"map": torch.rand(2, 16, 16)}, [0, 2])


def test_maps_mirrored_to_the_other_object_pass_far_less_often(trained):
    """The objects of a pair stand left and right; McNemar's exact test."""
    pictures, labels, _ = draw_pairs(40, "test")
    images, classes = as_batch(pictures), labels[:, 0].tolist()
    true = gradcam(trained, images, classes, ("layer4",))["layer4"]
    checks = check_maps(trained, images, {"true": true, "mirrored": true.flip(-1)}, classes)
    passed = {name: check.p <= LEVEL for name, check in checks.items()}
    only_true = int((passed["true"] & ~passed["mirrored"]).sum())
    only_mirrored = int((passed["mirrored"] & ~passed["true"]).sum())
    assert only_true > only_mirrored
    assert binomtest(only_true, only_true + only_mirrored).pvalue < 0.001


def test_an_explanation_that_follows_the_picture_is_stable():
    torch.manual_seed(0)
    smooth = F.interpolate(torch.rand(3, 3, 6, 6), (32, 32), mode="bilinear")

    def follows(images):
        return {"map": images.mean(1)}

    def stays(images):
        return {"map": torch.linspace(0, 1, 32).expand(len(images), 32, 32)}

    def vanishes(images):
        return {"map": images.mean(1) * (images[0, 0, 0, 0] == smooth[0, 0, 0, 0])}

    vanishing = map_stability(smooth[:1], vanishes(smooth[:1]), vanishes)["map"]
    assert 0 <= vanishing < 0.7, "one that becomes empty is unstable, not unknown"
    long = torch.rand(1, 3, 8, 64)
    assert map_stability(long, follows(long), follows)["map"].isfinite().all()

    def several(images):
        return {"map": torch.stack([images[:, 0], torch.zeros(len(images), 32, 32)], dim=1)}

    assert torch.allclose(
        map_stability(smooth, follows(smooth), follows)["map"], torch.ones(3).double()
    )
    # mirrored, its rank correlation is -1; moved, it's 1
    expected = torch.full((3,), 1 / 3).double()
    assert torch.allclose(map_stability(smooth, stays(smooth), stays)["map"], expected, atol=1e-6)
    both = map_stability(smooth, several(smooth), several)["map"]
    assert both.shape == (3, 2) and both[:, 1].isnan().all()
    assert torch.allclose(both[:, 0], torch.ones(3).double())


def test_a_networks_maps_are_stabler_than_noise(trained):
    images = as_batch(draw_pictures(8, "test")[0])
    explain = partial(gradcam, trained, targets=trained(images).argmax(1), layers=("layer4",))
    stability = map_stability(images, explain(images), explain)["layer4"]
    noise = map_stability(images, explain(images), lambda x: {"layer4": torch.rand(8, 32, 32)})
    assert stability.mean() > 0.6 > 0.2 > noise["layer4"].abs().mean()


BETTER = "This place matters more to cat than the same shape at {} of 63 other places (p = {}). {}"
AS_GOOD = "The same shape does as well at {} of 63 other places (p = {}), so this place proves {}"
SENTENCES = {
    BETTER.format(62, "0.03", "It speaks for cat rather than for dog (p = 0.02)."): (2, 1, 1),
    BETTER.format(61, "0.05", "Whether for cat rather than for dog isn't shown (p = 0.06)."): (
        3,
        4,
        1,
    ),
    AS_GOOD.format(3, "0.06", "nothing for cat."): (4, 1, 1),
    "Wherever this shape lies, cat gains the same: no place matters more than another.": (
        64,
        64,
        0,
    ),
}


@pytest.mark.parametrize("sentence, found", SENTENCES.items())
def test_what_was_found_is_said_in_a_sentence(sentence, found):
    places, against, spread = found
    check = MapCheck(torch.tensor([places, against]) / 64, torch.tensor([spread, spread]))
    assert describe_check(bump(16, 2, 2, 5), check, "cat", "dog") == sentence
    empty = describe_check(torch.zeros(16, 16), check, "cat", "dog")
    assert empty == "The map is empty: nothing in the picture speaks for cat."
    same = describe_check(torch.ones(16, 16), check, "cat", "dog")
    assert same == "The map is the same everywhere, so there is no place to test."


def test_unproven_maps_are_marked_without_colour(trained):
    images = as_batch(draw_pictures(2, "test")[0])
    maps = gradcam(trained, images, [[1, 2], [3, 4]], ("layer3", "layer4"))
    unproven = {"layer4": torch.tensor([[False, False], [True, True]])}
    names = [["a", "b"], ["c", "d"]]
    figures = [
        show_gradcam(draw_pictures(2, "test")[0], ["x", "y"], names, maps, unproven=marks)
        for marks in (None, unproven)
    ]
    marks = [[t.get_text() for t in figure.axes[0].texts].count("?") for figure in figures]
    frames = [len(figure.axes[0].patches) // 2 for figure in figures]
    assert [len(figure.texts) for figure in figures] == [0, 1], "what the mark means"
    for figure in figures:
        plt.close(figure)
    assert marks == frames == [0, 2]
    places = [patch.get_y() for patch in figures[1].axes[0].patches]
    assert min(places) > 2, "in the row of layer4, the second"


def test_explain_says_which_maps_to_believe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures, _, _ = draw_pictures(2, "test")
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(f"{number}.png")
    words = ["explain", "0.png", "1.png", "--target", "cat", "--layers", "layer3", "layer4"]
    assert cli([*words, "--check", "--save", "why"]) == 0
    lines = capsys.readouterr().out.splitlines()
    sentences = [line for line in lines if line.startswith("  layer")]
    assert len(sentences) == 2 * 2 * 2 and lines[0].startswith("0.png: ")
    rows = json.loads((tmp_path / "why" / "manifest.json").read_text())
    assert len(rows) == 8
    for row in rows:
        assert row["passes"] is (row["p"] <= LEVEL) and 1 / 64 <= row["p_rival"] <= 1
        assert row["rival"] != row["class"] and -1 <= row["stability"] <= 1
    cats = [row for row in rows if row["class"] == "cat"]
    others = [row for row in rows if row["class"] != "cat"]
    assert {row["rival"] for row in others} <= {"cat"} and "cat" not in {r["rival"] for r in cats}
    for number in range(2):
        passed = [row["passes"] for row in rows if row["file"] == f"{number}.png"]
        said = [line for line in sentences[4 * number : 4 * number + 4]]
        assert sum("This place matters more" in line for line in said) == sum(passed)
    assert cli([*words, "--save", "plain", "--out", "plain.png"]) == 0
    assert "  layer" not in capsys.readouterr().out
    assert "p" not in json.loads((tmp_path / "plain" / "manifest.json").read_text())[0]
    first, second = (np.asarray(Image.open(name)) for name in ("gradcam.png", "plain.png"))
    different = first.shape != second.shape or bool((first != second).any())
    assert different == (not all(row["passes"] for row in rows))


def test_explain_says_nothing_twice(tmp_path, monkeypatch, capsys):
    """The class that is asked for may be the predicted one."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(draw_pictures(1, "test")[0][0]).save("0.png")
    words = ["explain", "0.png", "--layers", "layer3", "layer4", "--check"]
    assert cli(words) == 0
    alone = capsys.readouterr().out
    answer = alone.splitlines()[0].split()[1]
    assert alone.count("  layer") == 2
    assert cli([*words, "--target", answer]) == 0
    assert capsys.readouterr().out == alone


def test_the_record_says_what_the_chapter_does():
    record = json.loads((ROOT / "results" / "checks.json").read_text())
    assert record["command"] == "python -m scripts.measure.check_maps --out results/checks.json"
    for source in ("cifar10", "drawn", "pairs"):
        passes = record[source]["passes"]
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            assert passes["true"][layer]["share"] > 2 * passes["moved by half"][layer]["share"]
            low, high = passes["true"][layer]["interval"]
            assert low <= passes["true"][layer]["share"] <= high
        assert min(row["maps"] for row in passes["true"].values()) >= 500
    for source, fault in (("cifar10", "moved by half"), ("pairs", "mirrored")):
        against = record[source]["true maps against others"][fault]
        assert all(compared["p"] < 0.001 for compared in against.values())
    for places in (3, 6):
        rolled = record["error rate"][f"rolled, p <= {places}/64"]["none"]
        low, high = binom.interval(0.99, rolled["maps"], places / 64)
        assert rolled["maps"] == 1000 and low <= 1000 * rolled["share"] <= high
    passes = record["drawn"]["passes"]
    for layer, row in passes["true"].items():
        assert row["share"] > passes["prototype"][layer]["share"]
    for layer in ("layer3", "layer4"):
        told = record["pairs"]["on the object"][layer]
        assert told["passes"]["share"] > 0.6 > 0.4 > told["does not pass"]["share"]
