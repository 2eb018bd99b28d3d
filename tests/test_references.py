"""What the course teaches, against libraries that others wrote, and against closed forms."""

import math

import numpy as np
import pytest
import torch

from cifar_cam_lib.data import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    TransformedImages,
    denormalise,
    evaluation_transform,
    load_images,
    make_loader,
)
from cifar_cam_lib.evaluation import confusion_matrix, find_mistakes, show_mistakes
from cifar_cam_lib.fast import widen
from cifar_cam_lib.model import channels_last, count_parameters, resnet18
from cifar_cam_lib.training import Training, fit, l1_penalty, loss_and_accuracy, make_loss

LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.fixture(scope="module")
def guesses():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 10, generator=generator)
    return logits, torch.randint(0, 10, (500,), generator=generator)


def test_accuracy_and_confusion_matrix_are_those_of_torchmetrics(guesses):
    import torchmetrics.functional as metrics  # here, for it is slow to import

    logits, labels = guesses
    accuracy = metrics.accuracy(logits, labels, "multiclass", num_classes=10).item()
    assert loss_and_accuracy(logits, labels)[1] == pytest.approx(accuracy)
    theirs = metrics.confusion_matrix(logits.argmax(1), labels, "multiclass", num_classes=10)
    assert torch.equal(confusion_matrix(labels, logits.argmax(1)), theirs)


def test_mistakes_and_hits_are_all_images(guesses):
    logits, labels = guesses
    mistakes = find_mistakes(logits, labels)
    assert len(mistakes) + (logits.argmax(1) == labels).sum() == 500
    assert all(
        m.predicted_probability >= m.true_probability and m.true == labels[m.index] != m.predicted
        for m in mistakes
    )


def test_parameters_and_feature_maps():
    assert [count_parameters(resnet18(width=width)) for width in (16, 64)] == [701_456, 11_173_952]
    model, sides = resnet18(width=4), []
    for layer in LAYERS:
        getattr(model, layer).register_forward_hook(
            lambda module, inputs, output: sides.append(output.shape[-1])
        )
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
    assert make_loss(model)(logits, labels).item() == pytest.approx(math.log(10))
    for reduction, penalty in (("sum", 2), ("mean", 1)):
        loss = make_loss(model, l1_factor=0.5, l1_reduction=reduction)(logits, labels)
        assert loss.item() == pytest.approx(math.log(10) + penalty)
    with pytest.raises(ValueError, match="unknown L1 reduction 'median': known are 'mean'"):
        l1_penalty(model, "median")


def test_smoothing_is_that_of_pytorch(guesses):
    logits, labels = guesses
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    assert torch.equal(make_loss(resnet18(width=1), label_smoothing=0.1)(logits, labels), theirs)


def test_the_test_loader_keeps_the_order():
    _, test_images = load_images("drawn", drawn_count=200)
    loader = make_loader(
        TransformedImages(test_images, evaluation_transform(), 0), 16, shuffle=False, workers=0
    )
    assert torch.cat([labels for _, labels in loader]).tolist() == test_images.labels.tolist()


def test_denormalise_undoes_normalise_and_leaves_its_input_alone():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    normalised = evaluation_transform()(image=image)["image"][None]
    before = normalised.clone()
    assert np.abs(denormalise(normalised)[0] * 255 - image).max() < 0.01
    assert torch.equal(normalised, before)
    assert torch.allclose(
        normalised[0, :, 0, 0],
        (torch.tensor(image[0, 0]) / 255 - torch.tensor(CIFAR10_MEAN)) / torch.tensor(CIFAR10_STD),
        atol=1e-5,
    )


def test_fit_steps_any_schedule_of_pytorch_after_each_epoch():
    images = load_images("drawn", drawn_count=100)[1]
    dataset = TransformedImages(images, evaluation_transform(), 0, image_sizes=(8,), epochs=3)
    loader = make_loader(dataset, 20, shuffle=True, workers=0)
    model = resnet18(width=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    rows = list(fit(Training(model, optimizer, schedule), loader, {}, 3))
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.1, 0.01, 0.001])


@pytest.mark.parametrize("width", [1, 4, 8, 12, 15, 16, 64])
def test_channels_last_takes_any_network_and_leaves_narrow_ones_alone(width):
    """Narrow ones would corrupt memory in torch 2.13: an odd batch, two threads, AVX-512."""
    model = channels_last(torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.ReLU()))
    last = model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert last == (width >= 16)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_widened_network_computes_the_same_and_can_learn_more(factor):
    torch.manual_seed(0)
    narrow, images = resnet18(width=4).double(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    for parameter in narrow.parameters():
        # norms with scales and biases of their own
        parameter.data += 0.2 * torch.randn_like(parameter)
    wide = widen(narrow.float(), factor).double()
    assert torch.allclose(wide(images), narrow.double()(images), atol=1e-5)
    assert count_parameters(wide) == count_parameters(resnet18(width=4 * factor))
    wide(images)[:, 0].sum().backward()
    for block in (wide.layer1[0], wide.layer4[1]):
        copies = block.conv1.weight.grad.chunk(factor)
        assert all(not torch.allclose(copies[0], copy, rtol=0.01) for copy in copies[1:]), (
            "copies that stay copies teach nothing"
        )


def test_a_class_that_is_not_there_is_not_counted():
    for labels, predictions in ([0], [12]), ([-1], [0]):
        with pytest.raises(ValueError, match="from 0 to 9"):
            confusion_matrix(torch.tensor(labels), torch.tensor(predictions))
    none = torch.tensor([], dtype=torch.int64)
    assert confusion_matrix(none, none).sum() == 0


def test_logits_and_labels_must_be_as_many(guesses):
    logits, labels = guesses
    with pytest.raises(ValueError, match="500 rows of logits, but 499 labels"):
        find_mistakes(logits, labels[1:])


def test_no_mistakes_are_no_figure():
    with pytest.raises(ValueError, match="no image to show"):
        show_mistakes(np.zeros((1, 32, 32, 3), np.uint8), [])
