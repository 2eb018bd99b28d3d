"""What the course teaches, against libraries that others wrote, and against closed forms."""

import math

import numpy as np
import pytest
import torch

from cifar_cam_lib.data import CIFAR10_MEAN, CIFAR10_STD, TransformedImages, denormalise, load_images, make_loader, evaluation_transform
from cifar_cam_lib.evaluation import confusion_matrix, find_mistakes, show_mistakes
from cifar_cam_lib.model import channels_last, count_parameters, resnet18, widen
from cifar_cam_lib.training import fit, l1_penalty, loss_and_accuracy, objective

LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def guesses():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 10, generator=generator), torch.randint(0, 10, (500,), generator=generator)


def test_accuracy_and_confusion_matrix_are_those_of_torchmetrics(guesses):
    import torchmetrics.functional as metrics  # here, for it is slow to import

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


def test_fit_steps_any_schedule_of_pytorch_after_each_epoch():
    _, images = load_images("drawn", drawn_count=20)
    loader = make_loader(TransformedImages(images.subset(slice(20)), evaluation_transform(), 0), 20, shuffle=True, workers=0)
    model = resnet18(width=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = [row for row, _ in fit(model, loader, {}, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1), 3, (8,), 0, 0, "mean")]
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1, 0.01, 0.001])


def test_channels_last_takes_any_network():
    wide, narrow = (torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.ReLU()) for width in (8, 4))
    assert channels_last(wide)[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not channels_last(narrow)[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_widened_network_computes_the_same_and_can_learn_more(factor):
    torch.manual_seed(0)
    narrow, images = resnet18(width=4).double(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    for parameter in narrow.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)  # norms with scales and biases of their own
    wide = widen(narrow.float(), factor).double()
    assert torch.allclose(wide(images), narrow.double()(images), atol=1e-5) and count_parameters(wide) == count_parameters(resnet18(width=4 * factor))
    wide(images)[:, 0].sum().backward()
    for block in (wide.layer1[0], wide.layer4[1]):
        copies = block.conv1.weight.grad.chunk(factor)
        assert all(not torch.allclose(copies[0], copy, rtol=0.01) for copy in copies[1:]), "copies that stay copies teach nothing"


def test_a_class_that_is_not_there_is_not_counted():
    for labels, predictions in ([0], [12]), ([-1], [0]):
        with pytest.raises(ValueError, match="from 0 to 9"):
            confusion_matrix(torch.tensor(labels), torch.tensor(predictions))
    assert confusion_matrix(torch.tensor([], dtype=torch.int64), torch.tensor([], dtype=torch.int64)).sum() == 0


def test_no_mistakes_are_no_figure():
    with pytest.raises(ValueError, match="no image to show"):
        show_mistakes(np.zeros((1, 32, 32, 3), np.uint8), [])
