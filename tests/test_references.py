"""What the course teaches, against libraries that others wrote, and against closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics.functional as metrics
from captum.attr import LayerGradCam

from cifar_cam_lib.data import CIFAR10_MEAN, CIFAR10_STD, TransformedImages, denormalise, load_images, make_loader, evaluation_transform
from cifar_cam_lib.drawn import draw_pictures
from cifar_cam_lib.evaluation import confusion_matrix, find_mistakes
from cifar_cam_lib.gradcam import gradcam
from cifar_cam_lib.model import count_parameters, resnet18
from cifar_cam_lib.training import l1_penalty, load_shipped_model, loss_and_accuracy, objective

LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def guesses():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 10, generator=generator), torch.randint(0, 10, (500,), generator=generator)


def test_accuracy_and_confusion_matrix_are_those_of_torchmetrics(guesses):
    logits, labels = guesses
    assert loss_and_accuracy(logits, labels)[1] == pytest.approx(metrics.accuracy(logits, labels, "multiclass", num_classes=10).item())
    theirs = metrics.confusion_matrix(logits.argmax(1), labels, "multiclass", num_classes=10)
    assert torch.equal(confusion_matrix(labels, logits.argmax(1)), theirs)


def test_mistakes_and_hits_are_all_images(guesses):
    logits, labels = guesses
    mistakes = find_mistakes(logits, labels)
    assert len(mistakes) + (logits.argmax(1) == labels).sum() == 500
    assert all(m.predicted_probability >= m.true_probability and m.true == labels[m.index] != m.predicted for m in mistakes)


def test_parameters_and_feature_maps():
    assert [count_parameters(resnet18(width=width)) for width in (16, 64)] == [701_456, 11_173_952]
    model, sides = resnet18(width=4), []
    for layer in LAYERS:
        getattr(model, layer).register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    model(torch.zeros(1, 3, 32, 32))
    assert sides == [32, 16, 8, 8]


def test_layer_norm_takes_no_notice_of_the_other_images():
    model, images = resnet18(width=4), torch.randn(4, 3, 32, 32)
    assert torch.allclose(model(images)[:1], model(images[:1]), atol=1e-5)


def test_l1_and_its_factor():
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[3.0, -1.0]])
    assert l1_penalty(model, "sum") == 4 and l1_penalty(model, "mean") == 2
    logits, labels = torch.zeros(1, 10), torch.tensor([0])
    assert objective(model, logits, labels, 0, 0.5, "sum").item() == pytest.approx(math.log(10) + 2)


def test_the_test_loader_keeps_the_order():
    _, test_images = load_images("drawn", drawn_count=200)
    loader = make_loader(TransformedImages(test_images, evaluation_transform(), 0), 16, shuffle=False, workers=0)
    assert torch.cat([labels for _, labels in loader]).tolist() == test_images.labels.tolist()


def test_denormalise_undoes_normalise_and_leaves_its_input_alone():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    normalised = evaluation_transform()(image=image)["image"][None]
    before = normalised.clone()
    assert np.abs(denormalise(normalised)[0] * 255 - image).max() < 0.01
    assert torch.equal(normalised, before)
    assert torch.allclose(normalised[0, :, 0, 0], (torch.tensor(image[0, 0]) / 255 - torch.tensor(CIFAR10_MEAN)) / torch.tensor(CIFAR10_STD), atol=1e-5)


@pytest.fixture(scope="module")
def explained():
    pictures, labels, masks = draw_pictures(8, "test")
    images = torch.stack([evaluation_transform()(image=picture)["image"] for picture in pictures]).double()
    return load_shipped_model("drawn").double(), images, [0, 1, 2, 3, 3, 2, 1, 0]


@pytest.mark.parametrize("layer", LAYERS)
def test_gradcam_is_that_of_captum(explained, layer):
    model, images, targets = explained
    theirs = LayerGradCam(model, getattr(model, layer)).attribute(images, target=targets, relu_attributions=True).detach()
    theirs = F.interpolate(theirs, (32, 32), mode="bilinear", align_corners=False)[:, 0]
    theirs = theirs / theirs.amax((1, 2), keepdim=True).clamp_min(1e-300)
    ours = gradcam(model, images, targets)[layer]
    assert ours.dtype == torch.float64
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_gradcam_at_the_last_layer_is_the_head_weighted_features(explained):
    model, images, targets = explained
    kept = []
    handle = model.layer4.register_forward_hook(lambda module, inputs, output: kept.append(output.detach()))
    model(images)
    handle.remove()
    cam = (model.head.weight[targets][:, :, None, None] * kept[0]).sum(1).relu().detach()
    cam = F.interpolate(cam[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(gradcam(model, images, targets)["layer4"], cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-300), atol=1e-12)


def test_gradcam_by_default_explains_the_predicted_class(explained):
    model, images, _ = explained
    assert torch.equal(gradcam(model, images)["layer4"], gradcam(model, images, model(images).argmax(1))["layer4"])


def test_gradcam_of_one_image_is_that_of_the_batch(explained):
    model, images, targets = explained
    assert torch.allclose(gradcam(model, images[2:3], targets[2:3])["layer2"], gradcam(model, images, targets)["layer2"][2:3], atol=1e-12)


def test_an_empty_map_is_zeros(explained):
    model, images, targets = explained
    with torch.no_grad():
        weight, model.head.weight.data = model.head.weight.data, torch.zeros_like(model.head.weight)
        maps = gradcam(model, images, targets)
        model.head.weight.data = weight
    assert all((map_ == 0).all() for map_ in maps.values())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradcam_works_without_gradients_and_leaves_no_trace(explained, context):
    model, images, targets = explained
    expected = gradcam(model, images, targets)["layer3"]
    model.train()
    model.layer1.eval()
    model.requires_grad_(False)
    with context():
        assert torch.allclose(gradcam(model, images, targets)["layer3"], expected, atol=1e-12)
    assert model.training and not model.layer1.training
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    model.requires_grad_(True).eval()


def test_an_error_in_the_model_leaves_no_hook():
    model = resnet18(width=4).train()
    with pytest.raises(RuntimeError):
        gradcam(model, torch.zeros(1, 5, 32, 32))
    assert not any(module._forward_hooks for module in model.modules()) and model.training
    with pytest.raises(ValueError, match="unknown layer 'layer5': known are stem, layer1"):
        gradcam(model, torch.zeros(1, 3, 32, 32), layers=("layer5",))


def test_an_operation_in_place_after_the_layer_does_not_change_its_map():
    torch.manual_seed(0)
    body = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10)]
    plain, images = torch.nn.Sequential(*body), torch.randn(2, 3, 16, 16)
    in_place = torch.nn.Sequential(body[0], torch.nn.ReLU(inplace=True), *body[2:])
    assert torch.equal(gradcam(plain, images, [1, 2], ("0",))["0"], gradcam(in_place, images, [1, 2], ("0",))["0"])
