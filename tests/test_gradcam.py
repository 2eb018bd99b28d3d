"""Grad-CAM against other libraries and closed forms, in every context, and without a trace.

The other libraries are imported where they are needed, so that a test without them starts fast.
"""

import contextlib
import copy
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_cam_lib.drawn import draw_pictures
from cifar_cam_lib.gradcam import (
    capture_activations,
    draw_map,
    gradcam,
    gradcam_map,
    gradcam_plus_plus_map,
    hirescam_map,
    layer_gradients,
    show_gradcam,
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
    assert torch.equal(
        gradcam(model, images, targets, ("layer3",), score="log_probability")["layer3"], expected
    )
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
@pytest.mark.parametrize("score", ["logit", "log_probability"])
def test_k_targets_are_k_calls_to_the_last_bit(explained, dtype, score):
    model, images, targets = (
        copy.deepcopy(explained[0]).to(dtype),
        explained[1].to(dtype),
        torch.tensor(explained[2]),
    )
    columns = [targets, (targets + 1) % 10, (targets + 1) % 10]
    maps = gradcam(model, images, torch.stack(columns, dim=1), score=score)
    for k, column in enumerate(columns):
        single = gradcam(model, images, column, score=score)
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
    (
        {"score": "probability"},
        "unknown score 'probability': known are 'logit' and 'log_probability'",
    ),
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
        ("lost", "logits", "logits do not depend on layer 'lost'"),
        ("left", "detached", "logits do not depend on layer 'left'"),
        ("left", "pair", r"the model must return logits \[N, classes\]"),
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
        "first minus second class / the largest maximum of the row",
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
