"""Grad-CAM against other libraries and closed forms, in every context, and without a trace.

The other libraries are imported where they are needed, so that a test without them starts fast.
"""

import contextlib
import copy
import dataclasses
import json
import math
import re
import warnings
from collections import OrderedDict, namedtuple
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from cifar_cam_lib.data import LabelledImages, TransformedImages, evaluation_transform
from cifar_cam_lib.drawn import draw_pictures
from cifar_cam_lib.evaluation import find_mistakes
from cifar_cam_lib.gradcam import (
    LAST_LAYERS,
    capture_activations,
    check_feature_map,
    contrast,
    draw_map,
    explain_mistakes,
    from_channels_last,
    from_tokens,
    gradcam,
    gradcam_map,
    gradcam_plus_plus_map,
    hirescam_map,
    layer_gradients,
    log_probability,
    show_gradcam,
    suggest_layers,
)
from cifar_cam_lib.model import resnet18
from cifar_cam_lib.training import load_shipped_model

LAYERS = ("layer1", "layer2", "layer3", "layer4")
# Network, layers to explain. What follows these layers does not work in place; if it did, torchcam
# and grad-cam would be wrong.
NETS = {
    "ours": LAYERS,
    "resnet18": LAYERS,
    "densenet121": ("features.denseblock1", "features.transition2", "features.denseblock4"),
    "mobilenet_v3_small": ("features.3", "features.8", "features.12"),
}


def drawn_images(count):
    pictures = torch.tensor(draw_pictures(count, "test")[0]).permute(0, 3, 1, 2)
    return pictures.double() / 64 - 2


@pytest.fixture(scope="module", params=NETS)
def case(request):
    """A network in float64, images, a target for each, layers."""
    if request.param == "ours":
        return load_shipped_model("drawn").double(), drawn_images(4), [0, 1, 2, 3], LAYERS
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = getattr(torchvision.models, request.param)(weights=None).double().eval()
    if request.param == "mobilenet_v3_small":
        # Its untrained maps are about 1e-11, so the 1e-7 that grad-cam adds to the divisor counts.
        model.classifier[-1].weight.data *= 1e12
    return model, torch.randn(3, 3, 64, 64, dtype=torch.float64), [1, 7, 999], NETS[request.param]


@pytest.fixture(scope="module")
def explained():
    return load_shipped_model("drawn").double(), drawn_images(8), [0, 1, 2, 3, 3, 2, 1, 0]


def scaled(maps, size):
    """As in the paper's figures, written again: enlarge, divide by the maximum."""
    maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def from_captum(model, images, targets, layer):
    from captum.attr import LayerGradCam

    return (
        LayerGradCam(model, model.get_submodule(layer))
        .attribute(images, target=targets, relu_attributions=True)
        .detach()[:, 0]
    )


def from_torchcam(model, images, targets, layers):
    from torchcam.methods import GradCAM

    with GradCAM(model, list(layers)) as cam:
        return dict(zip(layers, cam(targets, model(images), normalized=False)))


def from_grad_cam(model, images, targets, layer, method="GradCAM"):
    """It stretches each map to 0..1, twice, and computes that in float32."""
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with getattr(pytorch_grad_cam, method)(model, [model.get_submodule(layer)]) as cam:
        maps = cam(images, [ClassifierOutputTarget(target) for target in targets])
    model.zero_grad()
    return torch.from_numpy(maps)


def stretched(maps):
    """From 0 to 1, as grad-cam does it."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), 0.0)


def test_maps_are_those_of_captum(case):
    model, images, targets, layers = case
    maps = gradcam(model, images, targets, layers)
    for layer in layers:
        theirs = from_captum(model, images, targets, layer)
        assert maps[layer].dtype == torch.float64 and maps.resolution[layer] == theirs.shape[1:]
        assert (maps.raw[layer] - theirs).abs().max() <= 1e-12 * theirs.max()
        assert torch.allclose(maps[layer], scaled(theirs, images.shape[2:]), rtol=0, atol=1e-12)
        assert torch.allclose(maps.maximum[layer], theirs.amax((1, 2)), rtol=1e-12, atol=0)
        assert torch.equal(maps.empty[layer], theirs.amax((1, 2)) == 0)


def test_maps_are_those_of_torchcam(case):
    model, images, targets, layers = case
    maps = gradcam(model, images, targets, layers)
    for layer, theirs in from_torchcam(model, images, targets, layers).items():
        assert (maps.raw[layer] - theirs).abs().max() <= 1e-12 * theirs.max()
        assert torch.allclose(maps[layer], scaled(theirs, images.shape[2:]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ours, theirs", [(gradcam_map, "GradCAM"), (hirescam_map, "HiResCAM")])
def test_maps_are_those_of_grad_cam(case, ours, theirs):
    model, images, targets, layers = case
    maps = gradcam(model, images, targets, layers, ours)
    for layer in layers:
        assert torch.allclose(
            stretched(maps[layer]).float(),
            from_grad_cam(model, images, targets, layer, theirs),
            rtol=0,
            atol=1e-6,
        )


def test_in_float32_all_four_agree(case):
    model, images, targets, layers = case
    model, images = copy.deepcopy(model).float(), images.float()
    maps, of_torchcam = (
        gradcam(model, images, targets, layers),
        from_torchcam(model, images, targets, layers),
    )
    for layer in layers:
        for theirs in (from_captum(model, images, targets, layer), of_torchcam[layer]):
            assert torch.allclose(maps[layer], scaled(theirs, images.shape[2:]), rtol=0, atol=5e-6)
        assert torch.allclose(
            stretched(maps[layer]), from_grad_cam(model, images, targets, layer), rtol=0, atol=5e-6
        )


def test_grad_cam_plus_plus_is_that_of_grad_cam():
    """Large gradients, so that the 1e-6 which grad-cam adds to the divisor does not count.

    torchcam 0.5.0 is no reference here: its division falls on a copy, so that alpha is g^2.
    """
    from pytorch_grad_cam import GradCAMPlusPlus

    generator = np.random.default_rng(0)
    activations, gradients = (
        1e-4 * generator.random((2, 5, 8, 8)),
        1e3 * generator.standard_normal((2, 5, 8, 8)),
    )
    theirs = GradCAMPlusPlus.get_cam_weights(None, None, None, None, activations, gradients)
    theirs = np.maximum((theirs[:, :, None, None] * activations).sum(axis=1), 0)
    ours = gradcam_plus_plus_map(torch.tensor(activations), torch.tensor(gradients)).numpy()
    assert np.abs(ours - theirs).max() <= 1e-9 * theirs.max()


def test_grad_cam_plus_plus_of_a_network_is_that_of_grad_cam(explained):
    model, images, targets = explained
    loud = copy.deepcopy(model)
    loud.head.weight.data *= 1e9  # for the same reason
    maps = gradcam(loud, images, targets, method=gradcam_plus_plus_map)
    for layer in LAYERS:
        assert torch.allclose(
            stretched(maps[layer]).float(),
            from_grad_cam(loud, images, targets, layer, "GradCAMPlusPlus"),
            rtol=0,
            atol=1e-6,
        )


def test_grad_cam_plus_plus_is_the_equation_of_its_paper():
    """The derivatives of exp(logit) by autograd, three times, for each of eight activations."""
    torch.manual_seed(0)
    activations, head = (
        torch.rand(8, dtype=torch.float64, requires_grad=True),
        torch.tensor([1.5, -0.5], dtype=torch.float64),
    )
    outcome = (head * activations.reshape(2, 4).mean(1)).sum().exp()
    (first,) = torch.autograd.grad(outcome, activations, create_graph=True)
    second = torch.stack(
        [torch.autograd.grad(first[n], activations, create_graph=True)[0][n] for n in range(8)]
    )
    third = torch.stack(
        [torch.autograd.grad(second[n], activations, retain_graph=True)[0][n] for n in range(8)]
    )
    sums = activations.reshape(2, 4).sum(1).repeat_interleave(4)
    weights = (second / (2 * second + sums * third) * first.relu()).reshape(2, 4).sum(1)
    theirs = (weights[:, None] * activations.reshape(2, 4)).sum(0).relu().detach()
    shape = (1, 2, 2, 2)
    ours = gradcam_plus_plus_map(
        activations.detach().reshape(shape), head.repeat_interleave(4).reshape(shape) / 4
    ).flatten()
    assert torch.allclose(ours / ours.max(), theirs / theirs.max(), rtol=0, atol=1e-12)
    assert torch.allclose(ours * outcome.detach(), theirs, rtol=1e-12)


def test_grad_cam_plus_plus_says_where_it_is_not_defined():
    with pytest.raises(ValueError, match="needs a layer whose activations are zero or above"):
        gradcam_plus_plus_map(-torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))


def test_at_the_last_layer_the_map_is_that_of_the_head(explained):
    """CAM (Zhou et al. 2016) is Grad-CAM before its ReLU, times the number of pixels.

    No other pixel's gradient differs.
    """
    model, images, targets = explained
    with torch.no_grad():
        features = model.layer4(model.layer3(model.layer2(model.layer1(model.stem(images)))))
        cam = (model.head.weight[targets][:, :, None, None] * features).sum(1)
    maps = gradcam(model, images, targets)
    assert torch.allclose(64 * maps.raw["layer4"], cam.relu(), rtol=0, atol=1e-12 * cam.max())
    assert torch.allclose(maps["layer4"], scaled(cam.relu(), (32, 32)), rtol=0, atol=1e-12)
    assert torch.allclose(
        gradcam(model, images, targets, method=hirescam_map)["layer4"],
        maps["layer4"],
        rtol=0,
        atol=1e-12,
    )


def test_activations_times_gradients_and_bias_are_the_logit():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)
    ).double()
    images = torch.randn(1, 3, 9, 9, dtype=torch.float64)
    with capture_activations(model, ("1",)) as kept:
        logits = model(images)
        for target in range(10):
            gradient = layer_gradients(logits[0, target], kept, retain_graph=True)["1"]
            assert ((kept["1"] * gradient).sum() + model[4].bias[target]).item() == pytest.approx(
                logits[0, target].item(), abs=1e-12
            )


def test_by_default_the_predicted_class_is_explained(explained):
    model, images, _ = explained
    assert torch.equal(
        gradcam(model, images)["layer4"], gradcam(model, images, model(images).argmax(1))["layer4"]
    )


def test_maps_are_bilinear_and_reach_exactly_one(explained):
    model, images, targets = explained
    maps = gradcam(model, images, targets)
    for layer, map_ in maps.items():
        assert torch.allclose(map_, scaled(maps.raw[layer], (32, 32)), rtol=0, atol=1e-12)
        assert torch.equal(map_.amax((1, 2)), (~maps.empty[layer]).double()) and map_.min() >= 0


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("factor", [1e6, 1e-6, 1e-12])
def test_the_scale_of_the_logits_does_not_matter(explained, factor, dtype, tolerance):
    model, images, targets = explained
    model, images = copy.deepcopy(model).to(dtype), images.to(dtype)
    expected = gradcam(model, images, targets)
    model.head.weight.data *= factor
    maps = gradcam(model, images, targets)
    for layer in LAYERS:
        assert torch.allclose(maps[layer], expected[layer], rtol=0, atol=tolerance)
        assert torch.allclose(maps.maximum[layer], factor * expected.maximum[layer], rtol=1e-3)


def test_log_probability_is_that_of_a_network_that_ends_in_log_softmax(explained):
    model, images, targets = explained
    expected = gradcam(nn.Sequential(model, nn.LogSoftmax(1)), images, targets, ("0.layer3",))[
        "0.layer3"
    ]
    maps = gradcam(model, images, list(map(log_probability, targets)), ("layer3",))["layer3"]
    assert torch.allclose(maps, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(
        gradcam(model, images, targets, ("layer3",))["layer3"], expected, atol=1e-3
    )


def test_one_image_is_explained_as_in_a_batch(explained):
    model, images, targets = explained
    whole = gradcam(model, images, targets)
    for batch_size in (1, 3, 64):
        maps = gradcam(model, images, targets, batch_size=batch_size)
        assert all(
            torch.allclose(maps[layer], whole[layer], rtol=0, atol=1e-12) for layer in LAYERS
        )
        assert all(
            torch.allclose(maps.maximum[layer], whole.maximum[layer], rtol=1e-12)
            for layer in LAYERS
        )
    assert torch.allclose(
        gradcam(model, images[2:3], targets[2:3])["layer2"],
        whole["layer2"][2:3],
        rtol=0,
        atol=1e-12,
    )


def test_no_forward_pass_is_larger_than_a_batch(explained):
    model, images, targets = explained
    seen = []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    gradcam(model, images, targets, batch_size=3)
    gradcam(model, images, np.array([targets, targets]).T, batch_size=8)
    handle.remove()
    assert seen == [3, 3, 2, 8]


def test_a_repeated_call_is_equal_to_the_last_bit(explained):
    model, images, targets = explained
    first, second = gradcam(model, images, targets), gradcam(model, images, targets)
    assert all(torch.equal(first[layer], second[layer]) for layer in LAYERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [int, log_probability, contrast])
def test_k_targets_are_k_calls_to_the_last_bit(explained, dtype, kind):
    model, images = copy.deepcopy(explained[0]).to(dtype), explained[1].to(dtype)
    columns = [[(target + shift) % 10 for target in explained[2]] for shift in (0, 1, 1)]
    columns = [list(map(kind, column)) for column in columns]
    maps = gradcam(model, images, [list(row) for row in zip(*columns)])
    for k, column in enumerate(columns):
        single = gradcam(model, images, column)
        for layer in LAYERS:
            assert maps[layer].shape == (8, 3, 32, 32) and torch.equal(
                maps[layer][:, k], single[layer]
            )
            assert torch.equal(maps.maximum[layer][:, k], single.maximum[layer]) and torch.equal(
                maps.empty[layer][:, k], single.empty[layer]
            )


def test_the_shared_scale_keeps_the_ratio_of_two_classes(explained):
    model, images, targets = explained
    maps = gradcam(model, images, [[target, (target + 1) % 10] for target in targets])
    for layer, shared in maps.shared_scale().items():
        assert torch.allclose(shared.amax((1, 2, 3)), torch.ones(8, dtype=torch.float64))
        large = F.interpolate(maps.raw[layer], (32, 32), mode="bilinear", align_corners=False)
        assert torch.allclose(
            shared * large.amax((1, 2, 3), keepdim=True), large, rtol=0, atol=1e-12 * large.max()
        )


def test_an_empty_map_is_zeros_and_says_so(explained):
    model, images, targets = explained
    silent = copy.deepcopy(model)
    silent.head.weight.data[:5] = 0
    maps = gradcam(silent, images, [[target, target + 5] for target in targets])
    for layer in LAYERS:
        assert (
            maps.empty[layer][:, 0].all()
            and (maps[layer][:, 0] == 0).all()
            and (maps.maximum[layer][:, 0] == 0).all()
        )
        assert not maps[layer].isnan().any() and not maps.empty[layer][:, 1].all()


def test_what_is_not_a_number_is_not_shown_as_an_empty_map(explained):
    model, images, targets = copy.deepcopy(explained[0]), *explained[1:]
    model.layer4[1].norm2.bias.data[0] = math.nan
    maps = gradcam(model, images, targets, ("layer4",))
    assert maps["layer4"].isnan().all() and not maps.empty["layer4"].any()


def state(model):
    """All that a call might leave in a model, comparable with ==."""
    hooks = [
        (name, sorted(hooks))
        for module in model.modules()
        for name, hooks in vars(module).items()
        if "hook" in name and hooks
    ]
    modes = [module.training for module in model.modules()]
    gradients = [
        None if parameter.grad is None else (id(parameter.grad), parameter.grad.tolist())
        for parameter in model.parameters()
    ]
    numbers = [tensor.tolist() for tensor in model.state_dict().values()]
    return (
        hooks,
        modes,
        gradients,
        [parameter.requires_grad for parameter in model.parameters()],
        numbers,
    )


@pytest.fixture
def marked():
    """A small network with a hook, a mode, a gradient and a frozen part of its own."""
    torch.manual_seed(0)
    model = resnet18(width=4).train()
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    model.layer1.eval().requires_grad_(False)
    model.layer2.register_forward_hook(lambda module, inputs, output: None)
    model.stem[0].weight.grad = None
    return model


def raise_error(*arguments):
    raise IndexError("planted")


def test_a_call_leaves_no_trace(marked):
    images, before = torch.randn(2, 3, 16, 16), state(marked)
    copied = images.clone()
    gradcam(marked, images)
    gradcam(marked, images, [[0, 1], [2, 3]], batch_size=1)
    assert state(marked) == before and torch.equal(images, copied) and not images.requires_grad


@pytest.mark.parametrize(
    "where",
    [
        "before the layers",
        "between them",
        "in a hook",
        "in the method",
        "in the second batch",
        "in the backward pass",
    ],
)
def test_an_error_leaves_no_trace(marked, where):
    options = {"batch_size": 1}
    if where in ("before the layers", "between them", "in the second batch"):
        module, calls = (marked.stem if where == "before the layers" else marked.layer3), []
        forward = module.forward
        module.forward = lambda features: (
            calls.append(1)
            or (
                raise_error()
                if len(calls) > (where == "in the second batch")
                else forward(features)
            )
        )
    elif where == "in a hook":
        marked.layer3.register_forward_hook(raise_error)
    elif where == "in the method":
        options["method"] = raise_error
    else:
        marked.layer4.register_forward_hook(
            lambda module, inputs, output: output.register_hook(raise_error) and None
        )
    before = state(marked)
    with pytest.raises(IndexError, match="planted"):
        gradcam(marked, torch.randn(2, 3, 16, 16), **options)
    assert state(marked) == before


ERRORS = [
    ({"layers": ("layer5",)}, "unknown layer 'layer5': did you mean layer"),
    ({"layers": ("layer4.1.conv22",)}, "did you mean layer4.1.conv2"),
    ({"layers": ("_orig_mod.layer3",)}, "did you mean layer3"),
    (
        {"layers": ("entirely different",)},
        "did you mean stem, layer1, layer2, layer3, layer4, head",
    ),
    ({"layers": "layer4"}, "layers must be a tuple"),
    ({"layers": ()}, "layers must be a tuple"),
    ({"layers": ("layer4", "head")}, "layer 'head' has no feature map"),
    ({"targets": [1]}, "targets must be 2 integers"),
    ({"targets": [1, 2, 3]}, "targets must be 2 integers"),
    ({"targets": 1}, "targets must be 2 integers"),
    ({"targets": [0.5, 1.0]}, "targets must be 2 integers"),
    ({"targets": [True, False]}, "targets must be 2 integers"),
    ({"targets": [[], []]}, "targets must be 2 integers"),
    ({"targets": [0, 10]}, "classes from 0 to 9"),
    ({"targets": [[0, 1], [2, -1]]}, "classes from 0 to 9"),
    ({"targets": "truck"}, "targets must be 2 integers or functions"),
    ({"targets": ["truck", "ship"]}, "targets must be 2 integers or functions"),
    ({"targets": [[0, 1], [2]]}, "targets must be 2 integers"),
    ({"targets": [[0, 1], log_probability(2)]}, "targets must be 2 integers or functions"),
    ({"targets": [[0, log_probability(1)], [2]]}, "targets must be 2 integers or functions"),
    ({"targets": [0.5, log_probability(1)]}, "targets must be 2 integers or functions"),
    ({"targets": [log_probability(1)]}, "targets must be 2 integers or functions"),
    ({"targets": [log_probability(1), 10]}, "classes from 0 to 9"),
    ({"targets": log_probability(10)}, "log_probability takes classes from 0 to 9, not 10"),
    ({"targets": contrast(0, 12)}, "contrast takes classes from 0 to 9, not 0, 12"),
    ({"targets": lambda logits: logits}, r"must give a single number, not \[10\]"),
    ({"targets": lambda logits: 3.0}, "must give a single number, not 3.0"),
    ({"targets": lambda logits: logits.detach()[0]}, "a number without a gradient"),
    ({"layout": from_tokens}, r"from_tokens needs \[N, L, C\], not \[2, 4, 16, 16\]"),
    ({"layout": lambda output: output.mean(1)}, r"layout of layer 'layer1' must give \[N, C, h, w"),
    ({"batch_size": 0}, "batch_size 1 or more, not 0"),
    ({"images": torch.zeros(3, 16, 16)}, r"images must be \[N, 3, H, W\]"),
    ({"images": torch.zeros(0, 3, 16, 16)}, r"images must be \[N, 3, H, W\]"),
]


@pytest.mark.parametrize("options, message", ERRORS, ids=[message for _, message in ERRORS])
def test_a_wrong_argument_is_named_and_leaves_no_trace(marked, options, message):
    before = state(marked)
    with pytest.raises(ValueError, match=message):
        gradcam(**{"model": marked, "images": torch.randn(2, 3, 16, 16)} | options)
    assert state(marked) == before


class Odd(nn.Module):
    """Two branches side by side, and layers that are odd.

    One is never called, one bears on nothing, and one is called twice.
    """

    def __init__(self):
        super().__init__()
        self.left, self.right, self.idle, self.lost = (nn.Conv2d(3, 4, 3) for _ in range(4))
        self.relu, self.head, self.output = nn.ReLU(), nn.Linear(4, 5), "logits"

    def forward(self, images):
        self.lost(images)
        features = self.relu(self.relu(self.left(images)) - 0.1) + self.right(images)
        logits = self.head(features.mean(dim=(2, 3)))
        return {"logits": logits, "pair": (logits, logits), "detached": logits.detach()}[
            self.output
        ]


def test_side_by_side_and_called_twice():
    torch.manual_seed(0)
    model, images = Odd().double(), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    maps = gradcam(model, images, [1, 2], ("right", "left", "relu"))
    assert list(maps) == ["right", "left", "relu"]
    for layer in ("left", "right"):
        assert torch.allclose(
            maps.raw[layer], from_captum(model, images, [1, 2], layer), rtol=0, atol=1e-12
        )
    last_call = model.relu(model.relu(model.left(images)) - 0.1).detach()
    by_head = (model.head.weight[[1, 2]][:, :, None, None] * last_call).sum(1).relu() / 49
    assert torch.allclose(maps.raw["relu"], by_head, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "layer, output, message",
    [
        ("idle", "logits", "'idle' is not used in the model's forward pass"),
        ("lost", "logits", "target does not depend on layer 'lost'"),
        ("left", "detached", "target does not depend on layer 'left'"),
        ("left", "pair", r"the model must return logits \[N, classes\].*give a function"),
    ],
)
def test_a_layer_that_bears_on_nothing_is_named(layer, output, message):
    model = Odd()
    model.output = output
    before = state(model)
    with pytest.raises(ValueError, match=message):
        gradcam(model, torch.zeros(2, 3, 9, 9), layers=(layer,))
    assert state(model) == before


def test_an_operation_in_place_after_the_layer_does_not_change_its_map():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)]
    plain, images = nn.Sequential(*body), torch.randn(2, 3, 16, 16)
    in_place = nn.Sequential(body[0], nn.ReLU(inplace=True), *body[2:])
    assert torch.equal(
        gradcam(plain, images, [1, 2], ("0",))["0"], gradcam(in_place, images, [1, 2], ("0",))["0"]
    )


def test_an_operation_in_place_on_the_images_does_not_reach_the_callers():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    images = torch.randn(2, 3, 16, 16)
    before = images.clone()
    gradcam(model, images, layers=("1",))
    assert torch.equal(images, before)


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "all three": lambda: stack(
        torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)
    ),
}


@contextlib.contextmanager
def stack(*contexts):
    with contextlib.ExitStack() as stacked:
        for context in contexts:
            stacked.enter_context(context)
        yield


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CONTEXTS)
def test_what_surrounds_the_call_does_not_matter(marked, name, frozen):
    images, targets = torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    expected = gradcam(marked, images, targets)
    marked.requires_grad_(not frozen)
    before = state(marked)
    with CONTEXTS[name]():
        maps = gradcam(marked, images.clone(), targets.clone())  # made inside
    for layer in LAYERS:
        assert (
            torch.equal(maps[layer], expected[layer])
            and maps[layer].dtype == torch.float32
            and not maps[layer].requires_grad
        )
    assert state(marked) == before


def test_a_model_in_bfloat16_is_explained_in_float32(explained):
    model, images, targets = explained
    maps = gradcam(copy.deepcopy(model).bfloat16(), images.bfloat16(), targets)
    assert all(map_.dtype == torch.float32 for map_ in maps.values())
    assert (maps["layer4"] - gradcam(model, images, targets)["layer4"]).abs().mean() < 0.05


def test_channels_last_is_the_same(explained):
    model, images, targets = explained
    expected = gradcam(model, images, targets)
    maps = gradcam(
        copy.deepcopy(model).to(memory_format=torch.channels_last),
        images.contiguous(memory_format=torch.channels_last),
        targets,
    )
    assert all(torch.allclose(maps[layer], expected[layer], rtol=0, atol=1e-12) for layer in LAYERS)


@pytest.mark.parametrize("how", ["wrapped", "in place", "a part"])
def test_a_compiled_model_is_explained_like_the_plain_one(explained, how):
    plain, images, targets = explained
    model, layers, expected = copy.deepcopy(plain), LAYERS, gradcam(plain, images, targets)
    compiled = model
    if how == "wrapped":
        compiled = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    else:
        model.layer2 = torch.compile(model.layer2, backend="eager")
    with torch.no_grad():
        logits = compiled(images)  # compiled before the hooks are there
    before = state(compiled)
    for _ in range(2):
        maps = gradcam(compiled, images, targets, layers)
        assert all(torch.equal(maps[layer], expected[layer]) for layer in layers)
    assert state(compiled) == before
    with torch.no_grad():
        assert torch.allclose(compiled(images), logits, rtol=0, atol=1e-12)


def test_a_subset_of_the_maps_is_the_maps_of_a_subset(explained):
    model, images, targets = explained
    part = gradcam(model, images, targets).subset(slice(2, 5))
    whole = gradcam(model, images[2:5], targets[2:5])
    assert all(torch.allclose(part[layer], whole[layer], rtol=0, atol=1e-12) for layer in LAYERS)
    assert part.resolution == whole.resolution and math.isclose(
        part.maximum["layer1"][0], whole.maximum["layer1"][0], rel_tol=1e-12
    )


def test_maps_of_one_target_have_no_shared_scale(explained):
    model, images, targets = explained
    with pytest.raises(ValueError, match="none to share a scale with"):
        gradcam(model, images, targets).shared_scale()


def tile(image, map_, **options):
    """The pixels that `draw_map` draws, and its axis."""
    figure, axis = plt.subplots()
    draw_map(axis, image, map_, **options)
    plt.close(figure)
    return axis.images[0].get_array(), axis


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.uint8),
        np.full((8, 8, 3), 255, np.uint8),
        np.random.default_rng(0).random((8, 8, 3)),
    ],
)
def test_evidence_is_bright_even_without_colour(image):
    pixels, _ = tile(image, torch.linspace(0, 1, 8).repeat(8, 1))
    grey = pixels @ [0.2126, 0.7152, 0.0722]
    assert grey[:, -1].min() > grey[:, 0].max() + 0.2
    assert np.allclose(
        pixels[:, 0], 0.6 * (image / (255 if image.dtype == np.uint8 else 1)).mean(2)[:, :1]
    )


def test_an_empty_tile_says_so_and_a_tiny_one_does_not():
    image = np.zeros((8, 8, 3))
    assert [text.get_text() for text in tile(image, torch.zeros(8, 8))[1].texts] == [
        "no positive\nevidence"
    ]
    assert not tile(image, torch.full((8, 8), 1e-6))[1].texts


def test_the_figure_tells_class_layer_resolution_and_maximum(explained):
    model, images, targets = explained
    maps = gradcam(model, images[:2], [[0, 1], [1, 0]])
    pictures, names = np.zeros((2, 32, 32, 3)), [["for a", "for b"], ["for c", "for d"]]
    figure = show_gradcam(pictures, ["one", "two"], names, maps, shared_scale=True, difference=True)
    plt.close(figure)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert {
        "one",
        "two",
        "for a",
        "for d",
        "difference",
        "layer1\n32×32",
        "layer2\n16×16",
        "layer4\n8×8",
    } <= set(texts)
    assert {
        f"{number:.2g}" for maximum in maps.maximum.values() for number in maximum.flatten()
    } <= set(texts)
    assert len(figure.axes[0].images) == 2 * (1 + 4 * 3)
    assert [axis.get_ylabel() for axis in figure.axes[1:]] == [
        "evidence / the largest maximum of the row",
        "first minus second class /\nthe largest maximum of the row",
    ]
    with pytest.raises(ValueError, match="a difference needs two classes"):
        show_gradcam(
            pictures, ["one", "two"], [["a"], ["b"]], gradcam(model, images[:2]), difference=True
        )
    single = show_gradcam(pictures, ["one", "two"], [["a"], ["b"]], gradcam(model, images[:2]))
    plt.close(single)
    assert len(single.axes[0].images) == 2 * (1 + 4)


# This file is also run alone.
BENCH = sorted((Path(__file__).resolve().parents[1] / "results" / "bench").glob("*/gradcam.json"))


@pytest.mark.parametrize("file", BENCH, ids=lambda file: file.parent.name)
def test_the_saved_benchmark_tells_all_it_should(file):
    """The record is whole, and its verdicts follow from its numbers."""
    record = json.loads(file.read_text())
    parts = {"command", "machine", "versions", "cases", "numbers", "targets"}
    assert parts <= record.keys() and set(record["numbers"]) == {"20", "256"}
    for row in record["targets"]:
        case, reference = row["ratio"].split(" / ")
        ratios, side = row["measured"], row["target"].rpartition(" ")[0]
        for size, ratio in ratios.items():
            numbers = record["numbers"][size]
            expected = numbers[case][row["of"]] / numbers[reference][row["of"]]
            assert ratio == pytest.approx(expected, abs=0.006)
        limit = float(row["target"].split()[-1])
        worst = max(ratios.values()) if side == "at most" else min(ratios.values())
        assert row["met"] == (worst <= limit if side == "at most" else worst >= limit)


def test_a_model_of_inference_mode_is_refused_and_left_as_it_was():
    with torch.inference_mode():
        model = resnet18(width=2)
    with pytest.raises(ValueError, match="inference_mode"):
        gradcam(model, torch.zeros(1, 3, 32, 32))
    assert all(parameter.requires_grad for parameter in model.parameters())


# Targets: a class, or a function of one image's output.


class Headed(nn.Module):
    """A small network; how it returns its logits and its embedding is a choice."""

    def __init__(self, classes=5, form=lambda logits, embedding: logits):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.head, self.form = nn.Linear(8, classes), form
        self.double()

    def forward(self, images):
        embedding = self.body(images).mean((2, 3))
        return self.form(self.head(embedding), embedding)


@pytest.fixture(scope="module")
def noise():
    return torch.randn(
        3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


def by_hand(model, images, weights):
    """Grad-CAM of the body where the score's gradient by the embedding is known, [N, 8]."""
    features = model.body(images).detach()
    scaled_weights = weights[:, :, None, None] / features[0, 0].numel()
    return (scaled_weights * features).sum(1).relu()


def same(maps, expected):
    """Equal to 1e-12 of the largest value, and there is something to compare."""
    assert expected.max() > 0
    assert (maps - expected).abs().max() <= 1e-12 * expected.max()


def test_log_probability_in_closed_form(noise):
    """Its gradient by the logits is one for the class, minus the softmax."""
    model, targets = Headed(), [0, 1, 2]
    shares = model(noise).detach().softmax(1)
    weights = (torch.eye(5)[targets] - shares) @ model.head.weight.detach()
    maps = gradcam(model, noise, list(map(log_probability, targets)), ("body",))
    same(maps.raw["body"], by_hand(model, noise, weights))


def test_contrast_in_closed_form(noise):
    """Weights w of the rivals: d(sum of w z) / dz_i = w_i (1 + z_i - sum of w z)."""
    model, strength = Headed(), 0.7
    logits, weights = model(noise).detach(), []
    for row in logits:
        others = (row - row[1]).abs().argsort()[1:4]
        shares = row[others].softmax(0)
        by_logit = torch.zeros(5, dtype=torch.float64)
        by_logit[1] = 1
        by_logit[others] -= strength * shares * (1 + row[others] - (shares * row[others]).sum())
        weights.append(by_logit)
    weights = torch.stack(weights) @ model.head.weight.detach()
    maps = gradcam(model, noise, contrast(1, strength=strength), ("body",))
    same(maps.raw["body"], by_hand(model, noise, weights))


@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
def test_contrast_is_that_of_grad_cam(noise, strength):
    from pytorch_grad_cam import FinerCAM
    from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget

    model = Headed()
    with torch.no_grad():
        model.head.weight *= 20  # so that the 1e-7 that they add to the divisor doesn't count
    for target, others in ((0, [1]), (2, [0, 4, 3])):
        logits = model(noise)[0].detach()
        theirs = FinerWeightedTarget(target, others, strength)(logits)
        assert torch.isclose(contrast(target, others, strength)(logits), theirs, rtol=1e-6)
    with FinerCAM(model, [model.body]) as cam:
        theirs = torch.from_numpy(cam(noise, alpha=strength))
    predicted = model(noise).argmax(1).tolist()
    targets = [contrast(target, strength=strength) for target in predicted]
    maps = gradcam(model, noise, targets, ("body",))["body"]
    assert torch.allclose(stretched(maps).float(), theirs.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("others", [0, [0, 1], []])
def test_a_contrast_without_a_rival_is_refused(others):
    with pytest.raises(ValueError, match="contrast needs other classes than 0"):
        contrast(0, others)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_one_logit_has_two_answers(noise, flat, count):
    """1 is the logit, 0 minus the logit; what is predicted goes by its sign."""
    model, images = Headed(1, lambda z, embedding: z.squeeze() if flat else z), noise[:count]
    with torch.no_grad():
        model.head.bias -= Headed(1)(images).median()  # answers of both kinds
    weight = model.head.weight.detach().expand(count, -1)
    maps = gradcam(model, images, [[1, 0]] * count, ("body",))
    same(maps.raw["body"][:, 0], by_hand(model, images, weight))
    same(maps.raw["body"][:, 1], by_hand(model, images, -weight))
    yes = model(images).reshape(count) > 0
    of_predicted = gradcam(model, images, layers=("body",)).raw["body"]
    expected = torch.where(yes[:, None, None], maps.raw["body"][:, 0], maps.raw["body"][:, 1])
    assert torch.equal(of_predicted, expected)
    with pytest.raises(ValueError, match="classes from 0 to 1"):
        gradcam(model, images, [2] * count, ("body",))
    with pytest.raises(ValueError, match="contrast needs two classes or more"):
        gradcam(model, images, contrast(0, 1), ("body",))
    for answer, sign in ((1, 1), (0, -1)):
        slope = sign * (1 - (sign * model(images).reshape(count)).sigmoid()).detach()
        of_log = gradcam(model, images, log_probability(answer), ("body",)).raw["body"]
        same(of_log, by_hand(model, images, slope[:, None] * weight))


Pair = namedtuple("Pair", "logits, embedding")


@dataclasses.dataclass
class Output(OrderedDict):
    """As other libraries return it: a dictionary with attributes."""

    logits: torch.Tensor = None
    embedding: torch.Tensor = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            super().__setitem__(field.name, getattr(self, field.name))

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        setattr(self, key, value)


FORMS = {
    "tuple": (lambda z, e: (z, e), lambda one: one[0][2]),
    "list": (lambda z, e: [e, z], lambda one: one[1][2]),
    "namedtuple": (Pair, lambda one: one.logits[2]),
    "dictionary": (lambda z, e: {"z": z, "e": e, "loss": z.sum()}, lambda one: one["z"][2]),
    "with attributes": (Output, lambda one: one.logits[2]),
    "nested": (lambda z, e: {"heads": (z, None, 3)}, lambda one: one["heads"][0][2]),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_function_gets_what_the_model_returned_for_one_image(noise, form):
    returned, target = FORMS[form]
    expected = gradcam(Headed(), noise, [2, 2, 2], ("body",)).raw["body"]
    model = Headed(form=returned)
    maps = gradcam(model, noise, target, ("body",), batch_size=2)
    same(maps.raw["body"], expected)
    for targets in (None, [0, 1, 2], [target, target, 1]):
        with pytest.raises(ValueError, match=r"logits \[N, classes\], not \w+.*give a function"):
            gradcam(model, noise, targets, ("body",))


def test_a_part_without_a_row_for_each_image_is_none(noise):
    model = Headed(form=lambda z, e: {"z": z, "prototypes": torch.zeros(7, 8)})
    seen = []
    gradcam(model, noise, lambda one: seen.append(one["prototypes"]) or one["z"][0], ("body",))
    assert seen == [None] * 3


def test_embeddings_by_their_cosine_are_those_of_captum_and_torchcam(noise):
    """Both take a network that returns the number itself, so a wrapper computes it for them."""
    model = Headed(form=lambda logits, embedding: embedding)
    reference = torch.linspace(-1, 1, 8, dtype=torch.float64)

    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return F.cosine_similarity(self.model(images), reference[None])[:, None]

    maps = gradcam(model, noise, lambda e: F.cosine_similarity(e, reference, dim=0), ("body.1",))
    same(maps.raw["body.1"], from_captum(Cosine().eval(), noise, [0] * 3, "model.body.1"))
    layers = ("model.body.1",)
    same(maps.raw["body.1"], from_torchcam(Cosine().eval(), noise, [0] * 3, layers)[layers[0]])


def test_classes_and_functions_can_be_mixed(noise):
    model, layers = Headed(), ("body.1", "body")
    mixed = [[0, lambda logits: logits[1]], [log_probability(3), 2], [np.int64(4), torch.tensor(1)]]
    maps = gradcam(model, noise, mixed, layers, batch_size=2)
    assert maps["body"].shape == (3, 2, 12, 12)
    whole = gradcam(model, noise, [[0, 1], [3, 2], [4, 1]], layers)
    for layer in layers:
        for n, k in ((0, 0), (0, 1), (1, 1), (2, 0), (2, 1)):
            same(maps.raw[layer][n, k], whole.raw[layer][n, k])
    assert gradcam(model, noise, np.array([log_probability(0)] * 3), layers)["body"].ndim == 3
    rows = [torch.tensor([0, 1]), np.array([3, 2]), torch.tensor([4, 1])]
    assert torch.equal(gradcam(model, noise, rows, layers)["body"], whole["body"])


# Layouts: where the channels are.


class Turned(nn.Module):
    """A layer whose output is [N, C, h, w] in between, so that others can explain it."""

    def __init__(self, layer, there, back):
        super().__init__()
        self.layer, self.there, self.back, self.map = layer, there, back, nn.Identity()

    def forward(self, *inputs):
        return self.back(self.map(self.there(self.layer(*inputs))))


def last(maps):
    return maps.permute(0, 2, 3, 1)


def small(family):
    """A small network of torchvision with random weights, in float64."""
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if family == "swin":
            model = models.SwinTransformer([4, 4], 16, [2, 1], [2, 2], [4, 4], num_classes=5)
        elif family == "vit":
            model = models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5)
            nn.init.normal_(model.heads.head.weight)  # it begins with zeros
        else:
            setting = models.convnext.CNBlockConfig
            model = models.ConvNeXt([setting(8, 16, 2), setting(16, None, 1)], num_classes=5)
            for block in model.modules():
                if hasattr(block, "layer_scale"):
                    nn.init.constant_(block.layer_scale, 1)  # 1e-6 would hide what's inside
    return model.double().eval()


def replace(model, layer, module):
    parent, _, name = layer.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


LAYOUTS = [
    ("swin", "features.1", from_channels_last, last),
    ("swin", "features.1.0.norm1", from_channels_last, last),
    ("swin", "features.3.0.mlp", from_channels_last, last),
    ("swin", "norm", from_channels_last, last),
    ("convnext", "features.1.0.block.2", from_channels_last, last),
    ("convnext", "features.1.1.block.3", from_channels_last, last),
    ("vit", "encoder.layers.encoder_layer_0.mlp", from_tokens, None),
    ("vit", "encoder.layers.encoder_layer_1.ln_1", from_tokens, None),
]


@pytest.mark.parametrize("family, layer, layout, back", LAYOUTS)
def test_maps_in_another_layout_are_those_of_torchcam(family, layer, layout, back):
    model = small(family)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    maps = gradcam(model, images, [1, 4], (layer,), layout=layout)
    with pytest.raises(ValueError, match="has no feature map.*layout=from_channels_last"):
        gradcam(model, images, [1, 4], (layer,))
    turned, class_token = copy.deepcopy(model), []

    def without_token(tokens):
        class_token[:] = [tokens[:, :1]]
        return layout(tokens)

    def with_token(patches):
        return torch.cat([class_token[0], patches.flatten(2).transpose(1, 2)], dim=1)

    there, back = (layout, back) if back else (without_token, with_token)
    replace(turned, layer, Turned(turned.get_submodule(layer), there, back))
    name = f"{layer}.map"
    same(maps.raw[layer], from_torchcam(turned, images, [1, 4], (name,))[name])
    same(maps.raw[layer], from_captum(turned, images, [1, 4], name))


def test_a_grid_of_tokens_that_is_no_square_is_told():
    model = small("vit")
    tokens = torch.randn(2, 5 + 6, 4)
    patches = from_tokens(tokens, grid=(2, 3))
    assert torch.equal(patches[:, :, 1, 2], tokens[:, -1]) and patches.shape == (2, 4, 2, 3)
    for count in (2 + 49, 11, 3):
        with pytest.raises(ValueError, match=f"{count} tokens don't fill a grid of patches"):
            from_tokens(torch.zeros(1, count, 4))
    with pytest.raises(ValueError, match="5 tokens don't fill"):
        from_tokens(torch.zeros(1, 5, 4), grid=(2, 3))
    images, layer = torch.randn(1, 3, 64, 64).double(), "encoder.layers.encoder_layer_1.ln_1"
    with_grid = gradcam(model, images, [1], (layer,), layout=partial(from_tokens, grid=(4, 4)))
    assert torch.equal(
        with_grid[layer], gradcam(model, images, [1], (layer,), layout=from_tokens)[layer]
    )

    class Tokens(nn.Module):
        """2 x 8 patches, which are as many as 4 x 4."""

        def __init__(self):
            super().__init__()
            self.patches, self.row, self.head = (
                nn.Conv2d(3, 6, 8, 8),
                nn.Identity(),
                nn.Linear(6, 5),
            )

        def forward(self, images):
            return self.head(self.row(self.patches(images).flatten(2).transpose(1, 2)).mean(1))

    wide, images = Tokens(), torch.randn(1, 3, 16, 64)
    with pytest.raises(ValueError, match="the layout doesn't suit layer 'row'"):
        gradcam(wide, images, layers=("row",), layout=from_tokens)
    maps = gradcam(wide, images, [1], ("row",), layout=partial(from_tokens, grid=(2, 8)))
    same(maps.raw["row"], gradcam(wide, images, [1], ("patches",)).raw["patches"])


def test_own_layouts_are_believed():
    model, images = small("swin"), torch.randn(1, 3, 64, 64).double()
    ours = gradcam(model, images, [1], ("norm",), layout=lambda output: output.movedim(3, 1))
    assert torch.equal(ours["norm"], gradcam(model, images, [1], ("permute",))["permute"])
    as_it_is = gradcam(model, images, [1], ("norm",), layout=lambda output: output)
    assert as_it_is.resolution["norm"] == (8, 32)


class ChannelNorm(nn.LayerNorm):
    """A layer norm that turns the axes itself, as torchvision's LayerNorm2d does."""

    def forward(self, features):
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Ambiguous(nn.Module):
    """Outputs [N, 8, 8, 8]: sizes can't tell where the channels are."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, 4)
        self.mixer = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Dropout())
        self.norm, self.root = nn.LayerNorm(8), nn.RMSNorm(8)
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), ChannelNorm(8))
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        mixed = self.norm(self.mixer(self.first(images).permute(0, 2, 3, 1)))
        mixed = self.root(mixed).permute(0, 3, 1, 2)
        return self.head(self.second(mixed).mean((2, 3)))


@pytest.mark.parametrize("name", ["first", "second", "second.0", "second.1", "second.2"])
def test_channels_in_second_place_are_accepted_even_if_sizes_agree(name):
    assert gradcam(Ambiguous(), torch.randn(2, 3, 32, 32), layers=(name,))[name].shape[0] == 2


@pytest.mark.parametrize(
    "name", ["mixer", "mixer.0", "mixer.1", "mixer.2", "mixer.3", "norm", "root"]
)
def test_channels_in_last_place_are_refused_even_if_sizes_agree(name):
    with pytest.raises(ValueError, match=rf"layer '{name}' has no feature map.*\[2, 8, 8, 8\]"):
        gradcam(Ambiguous(), torch.randn(2, 3, 32, 32), layers=(name,))


def test_sizes_that_agree_do_not_matter_if_the_proportions_tell():
    """96 channels and a map 96 wide, but only read as [N, C, h, w] has it the image's ratio."""
    model, shape = without_numbers("convnext_tiny"), (1, 96, 64, 96)
    assert shapes_of(model, (256, 384))["features.1"] == shape
    check_feature_map(model, "features.1", shape, (1, 3, 256, 384))


def test_attention_weights_are_no_feature_map():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries, self.drop = nn.Linear(8, 16), nn.Dropout()

        def forward(self, tokens):
            queries, keys = self.queries(tokens).chunk(2, -1)
            weights = self.drop((queries @ keys.mT).softmax(-1)[:, None])  # [N, 1, L, L]
            return weights[:, 0] @ tokens

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.attention = nn.Conv2d(3, 8, 4, 4), Attention()
            self.head = nn.Linear(8, 5)

        def forward(self, images):
            tokens = self.patches(images).flatten(2).transpose(1, 2)
            return self.head(self.attention(tokens).mean(1))

    for layer in ("attention.drop", "attention", "attention.queries"):
        with pytest.raises(ValueError, match=f"layer '{layer}' has no feature map"):
            gradcam(Net(), torch.randn(2, 3, 32, 32), layers=(layer,))


FAMILIES = {
    "resnet18": "layer4",
    "densenet121": "features",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "efficientnet_b0": "features",
    "convnext_tiny": "features",
    "vgg11": "features",
    "alexnet": "features",
    "squeezenet1_0": "features",
    "regnet_y_400mf": "trunk_output",
    "mnasnet0_5": "layers",
    "shufflenet_v2_x0_5": "conv5",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "swin_t": "norm",
    "swin_v2_t": "norm",
    "maxvit_t": "blocks.3",
    "vit_b_32": "encoder.layers.encoder_layer_11.ln_1",
}


def without_numbers(name):
    """A network of torchvision, of shapes only: nothing is drawn or computed."""
    models = pytest.importorskip("torchvision").models
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("regnet"):  # it computes its shapes with tensors
        return getattr(models, name)(weights=None).eval().to("meta")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(models, name)(weights=None, **options).eval()


def shapes_of(model, size):
    """Of each layer's output, in one forward pass without numbers."""
    shapes, handles = {}, []
    for name, module in model.named_modules():

        def hook(module, inputs, output, name=name):
            if isinstance(output, torch.Tensor):
                shapes[name] = output.shape

        handles.append(module.register_forward_hook(hook))
    model(torch.zeros(1, 3, *size, device="meta"))
    for handle in handles:
        handle.remove()
    return {name: shape for name, shape in shapes.items() if name}


@pytest.mark.parametrize("size", [(224, 224), (32, 32), (224, 160), (96, 72)], ids=str)
@pytest.mark.parametrize("name", [*list(FAMILIES)[:7], "squeezenet1_0", "shufflenet_v2_x0_5"])
def test_no_feature_map_of_torchvision_is_refused(name, size):
    model = without_numbers(name)
    shapes = {layer: shape for layer, shape in shapes_of(model, size).items() if len(shape) == 4}
    assert len(shapes) > 10
    for layer, shape in shapes.items():
        if re.search(r"block\.[1-5]$", layer) and name.startswith("convnext"):
            with pytest.raises(ValueError, match="has no feature map"):
                check_feature_map(model, layer, shape, (1, 3, *size))
        else:
            check_feature_map(model, layer, shape, (1, 3, *size))


@pytest.mark.parametrize("size", [(224, 224), (32, 32), (224, 160), (96, 72)], ids=str)
@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_what_swin_puts_last_is_refused(name, size):
    model = without_numbers(name)
    for layer, shape in shapes_of(model, size).items():
        if layer in ("features.0.0", "permute", "avgpool"):
            check_feature_map(model, layer, shape, (1, 3, *size))
        else:
            with pytest.raises(ValueError, match="has no feature map"):
                check_feature_map(model, layer, shape, (1, 3, *size))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_layer_is_known_for_each_family(name):
    model = without_numbers(name)
    (layer,), layout = suggest_layers(nn.DataParallel(model))
    assert layer == FAMILIES[name]
    side = 299 if name == "inception_v3" else 224
    shape = shapes_of(model, (side, side))[layer]
    if layout:
        shape = layout(torch.zeros(shape, device="meta")).shape
    assert len(shape) == 4 and shape[2] == shape[3] > 1
    assert shape[0] == 1 and shape[1] > shape[2]
    if not layout:
        check_feature_map(model, layer, shape, (1, 3, side, side))
    kinds = {type(without_numbers(known)).__name__ for known in (name,)}
    assert kinds <= set(LAST_LAYERS)


def test_suggested_layers_give_maps():
    images = torch.randn(2, 3, 64, 64).double()
    for family in ("swin", "vit", "convnext"):
        model = small(family)
        layers, layout = suggest_layers(model)
        maps = gradcam(model, images, [1, 2], layers, layout=layout)
        assert not maps.empty[layers[0]].all()


def test_behind_the_last_attention_no_patch_counts():
    """Why the table takes the layer norm before it."""
    images, layer = torch.randn(2, 3, 64, 64).double(), "encoder.layers.encoder_layer_1"
    maps = gradcam(small("vit"), images, [1, 2], (layer,), layout=from_tokens)
    assert maps.empty[layer].all()


def test_at_the_norm_of_swin_the_map_is_that_of_the_head():
    """It's followed by the mean over all places and a linear head."""
    model, images = small("swin"), torch.randn(2, 3, 64, 64).double()
    features = model.permute(model.norm(model.features(images))).detach()
    cam = (model.head.weight[[1, 2]][:, :, None, None] * features).sum(1).relu() / 64
    same(gradcam(model, images, [1, 2], ("norm",), layout=from_channels_last).raw["norm"], cam)


class VisionTransformer(nn.Sequential):
    """As in another library: the name of torchvision's, other parts."""


@pytest.mark.parametrize("kind", [nn.Sequential, VisionTransformer])
def test_for_an_unknown_network_candidates_are_listed(kind):
    model = kind(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), nn.Flatten())
    words = (
        rf"no layer is known for {kind.__name__}: .*layers=\(\.\.\.\).*--layers; candidates: 0, 1"
    )
    with pytest.raises(ValueError, match=words):
        suggest_layers(model)
    with pytest.raises(ValueError, match="candidates: none with a convolution or a norm"):
        suggest_layers(nn.Linear(2, 2))


def test_our_network_has_four_layers(explained):
    assert suggest_layers(nn.DataParallel(explained[0])) == (LAYERS, None)


def test_a_wrapped_model_goes_by_either_name(explained):
    model, images, targets = explained
    expected = gradcam(model, images, targets, ("layer4",))["layer4"]
    for layer in ("layer4", "module.layer4"):
        maps = gradcam(nn.DataParallel(model), images, targets, (layer,))
        assert torch.equal(maps[layer], expected)


# Gradient checkpointing: layers that are called again in the backward pass.


class Checkpointed(nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.tail = nn.Conv2d(3, 4, 3), nn.Conv2d(6, 6, 3)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU())
        self.head, self.reentrant = nn.Linear(6, 5), reentrant
        self.double()

    def forward(self, images):
        features = self.stem(images)
        if self.reentrant is None:
            features = self.body(features)
        else:
            features = checkpoint(self.body, features, use_reentrant=self.reentrant)
        return self.head(self.tail(features).mean((2, 3)))


INSIDE, OUTSIDE = ("body.0", "body.2"), ("stem", "tail")


@pytest.mark.parametrize("targets", [[0, 1, 2], [[0, 1], [1, 2], [3, 3]], log_probability(1)])
@pytest.mark.parametrize(
    "layers", [INSIDE, OUTSIDE, INSIDE + OUTSIDE, INSIDE[:1], INSIDE[1:], ("body",)]
)
def test_a_checkpointed_model_is_explained_like_the_plain_one(noise, layers, targets):
    expected = gradcam(Checkpointed(), noise, targets, layers)
    maps = gradcam(Checkpointed(reentrant=False), noise, targets, layers, batch_size=2)
    for layer in layers:
        assert torch.allclose(maps.raw[layer], expected.raw[layer], rtol=0, atol=1e-15)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("targets", [[0, 1, 2], [[0, 1], [1, 2], [3, 3]]])
def test_a_reentrant_checkpoint_has_a_message_of_its_own(noise, targets):
    model = Checkpointed(reentrant=True)
    advice = "set use_reentrant=False or switch checkpointing off"
    with pytest.raises(ValueError, match=f"layer 'body.2' runs under torch.no_grad.*{advice}"):
        gradcam(model, noise, targets, ("body.2",))
    with pytest.raises(ValueError, match=f"a reentrant checkpoint stops the gradient: {advice}"):
        gradcam(model, noise, targets, ("stem",))
    expected = gradcam(Checkpointed(), noise, targets, ("tail",))["tail"]
    assert torch.equal(gradcam(model, noise, targets, ("tail",))["tail"], expected)


# Pictures that aren't square.


@pytest.mark.parametrize(
    "size, extent", [((10, 20), (2, 3, 1.75, 1.25)), ((20, 5), (2.375, 2.625, 2, 1))]
)
def test_a_tile_keeps_the_ratio_of_its_image(size, extent):
    map_ = torch.zeros(size)
    map_[-1, -1] = 1  # the lower right corner
    for image in (np.zeros((*size, 3)), np.zeros((*size, 3), np.uint8)):
        _, axis = tile(image, map_, left=2, top=1)
        assert tuple(axis.images[0].get_extent()) == extent
        (line,) = [path.vertices for path in axis.collections[0].get_paths() if len(path.vertices)]
        first, last, lower, upper = extent
        assert (line[:, 0] > (first + last) / 2).all() and (line[:, 1] > (lower + upper) / 2).all()
        assert (line[:, 0] <= last).all() and (line[:, 1] <= lower).all()
    _, axis = tile(np.zeros((*size, 3)), torch.zeros(size), left=2, top=1)
    (hatched,) = axis.patches
    first, last, lower, upper = extent
    assert hatched.get_bbox().extents.tolist() == [first, upper, last, lower]


def test_a_figure_keeps_the_ratio_of_its_images():
    model, images = resnet18(width=2), torch.randn(2, 3, 16, 32)
    maps = gradcam(model, images, [[0, 1], [2, 3]])
    assert maps["layer1"].shape == (2, 2, 16, 32) and maps.resolution["layer1"] == (16, 32)
    pictures = np.zeros((2, 16, 32, 3))
    figure = show_gradcam(pictures, ["", ""], [["a", "b"]] * 2, maps, difference=True)
    plt.close(figure)
    axis = figure.axes[0]
    assert axis.get_aspect() == 1
    for image in axis.images:
        first, last, lower, upper = image.get_extent()
        assert last - first == pytest.approx(1) and lower - upper == pytest.approx(0.5)


# All mistakes of a run, with the names and colours of the data set.


def test_mistakes_are_explained_by_the_names_and_colours_of_their_data_set():
    pictures, labels, _ = draw_pictures(8, "test")
    names, mean, std = ("ant", "bee", "cow"), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    labelled = LabelledImages(pictures, labels % 3, names, mean=mean, std=std)
    dataset = TransformedImages(labelled, evaluation_transform(mean=mean, std=std), seed=0)
    torch.manual_seed(0)
    model = resnet18(3, width=2)
    images = torch.stack([dataset[n][0] for n in range(8)])
    mistakes = find_mistakes(model(images).detach(), torch.tensor(labels % 3))
    _, (figure, *more) = explain_mistakes(model, dataset, mistakes[:5])
    for page in (figure, *more):
        plt.close(page)
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert f"for {names[mistakes[0].true]}" in texts and "class" not in texts
    drawn = next(image for image in figure.axes[0].images if image.get_array().shape[-1] == 3)
    assert np.allclose(drawn.get_array(), pictures[mistakes[0].index] / 255, atol=1e-3)


@pytest.mark.parametrize("layout", [from_channels_last, partial(from_tokens, grid=(8, 2))])
def test_a_layout_that_does_not_suit_the_layer_is_refused(layout):
    """A wrong map is worse than none, also if the layout was given by hand."""
    body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU())
    if layout is not from_channels_last:
        body = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.Flatten(2), Swapped())
    model = nn.Sequential(body, nn.Flatten(), nn.LazyLinear(3))
    images = torch.randn(2, 3, 16, 16)
    model(images)
    with pytest.raises(ValueError, match="the layout doesn't suit layer '0'"):
        gradcam(model, images, [0, 1], ("0",), layout=layout)


class Swapped(nn.Module):
    """[N, C, L] to tokens [N, L, C]."""

    def forward(self, features):
        return features.transpose(1, 2)


@dataclasses.dataclass
class Answer:
    """What networks of some libraries return."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Plain:
    """An object that nobody can take apart."""

    def __init__(self, logits):
        self.logits = logits


class Answering(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.body, self.head, self.kind = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), kind

    def forward(self, images):
        return self.kind(self.head(self.body(images).relu().mean((2, 3))))


def test_a_target_sees_one_image_of_a_dataclass_and_of_no_other_object():
    torch.manual_seed(0)
    model, images = Answering(Answer), torch.randn(3, 3, 16, 16)
    maps = gradcam(model, images, lambda one: one.logits.max(), ("body",))
    model.kind = lambda logits: logits
    assert torch.equal(maps["body"], gradcam(model, images, None, ("body",))["body"])
    model.kind = Plain
    with pytest.raises(ValueError, match="returns a Plain: let it return a tensor, tuple"):
        gradcam(model, images, lambda one: one.logits.max(), ("body",))


def test_a_norm_that_mixes_the_images_wants_them_one_by_one():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU())
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images = torch.rand(3, 3, 8, 8)
    with pytest.raises(ValueError, match="'0\\.1' is a batch norm without running statistics"):
        gradcam(model, images, layers=("0",))
    together = gradcam(model, images, layers=("0",), batch_size=1)["0"]
    alone = torch.cat([gradcam(model, image[None], layers=("0",))["0"] for image in images])
    assert torch.equal(together, alone)
