"""Optimizers against PyTorch's, losses that are not finite, and 16 bits."""

import functools
import math

import pytest
import torch
from torch import nn

from cifar_cam_lib.data import BatchedImages, draw_once, LabelledImages, make_loader, source_pixels
from cifar_cam_lib.model import resnet18
from cifar_cam_lib.training import History, Muon, fit, load_checkpoint, make_optimizer, make_schedule, orthogonalise, save_checkpoint, train_epoch


def loader(count=120, batch_size=40):
    images, labels, _ = draw_once(count, "train")
    sources = functools.partial(source_pixels, rotate_degrees=0, padding=2, flip=True, cutout_size=0)
    return make_loader(BatchedImages(LabelledImages(images, labels), sources, 0), batch_size, True, 0)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8), (1, 9)])
def test_orthogonalise_follows_the_singular_vectors(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert 0.3 < values.min() and values.max() < 1.3 and orthogonalise(matrix).shape == shape
    assert ((left @ right) * orthogonalise(matrix)).sum() / (left @ right).norm() / orthogonalise(matrix).norm() > 0.9
    assert torch.allclose(orthogonalise(1e-3 * matrix), orthogonalise(1e3 * matrix), atol=1e-3), "the size of the gradient does not count"


@pytest.mark.parametrize(("rows", "momentum", "weight_decay"), [(6, 0.6, 0.3), (30, 0.95, 0.0), (6, 0.0, 1.0)])
def test_muon_is_that_of_pytorch(rows, momentum, weight_decay, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)  # the reference rounds to bfloat16 by that method; here it keeps float32
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, rows, 2, bias=False))
    theirs = nn.Parameter(model[1].weight.detach().flatten(1).clone())
    start = theirs.detach().clone()
    ours = Muon(model, 0.05, momentum, weight_decay)
    reference = torch.optim.Muon([theirs], lr=0.05, momentum=momentum, weight_decay=weight_decay, nesterov=True)
    for _ in range(4):
        model(torch.randn(8, 3, 5, 5)).square().mean().backward()
        theirs.grad = model[1].weight.grad.flatten(1).clone()
        ours.step()
        ours.zero_grad()
        reference.step()
    assert (theirs - start).abs().max() > 0.01
    assert torch.allclose(model[1].weight.flatten(1), theirs, atol=1e-5)


def test_muon_leaves_everything_else_to_adamw():
    torch.manual_seed(0)
    model, twin = resnet18(width=4), resnet18(width=4)
    twin.load_state_dict(model.state_dict())
    ours = Muon(model, 0.02, 0.6, 0.3)
    others = [parameter for parameter in twin.parameters() if parameter.ndim != 4] + [twin.stem[0].weight]
    reference = torch.optim.AdamW(others, 0.002, weight_decay=0)
    for net, optimizer in ((model, ours), (twin, reference)):
        net(torch.ones(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    assert torch.equal(model.head.weight, twin.head.weight) and torch.equal(model.stem[0].weight, twin.stem[0].weight)
    assert not torch.equal(model.layer1[0].conv1.weight, twin.layer1[0].conv1.weight)
    assert sum(len(group["params"]) for group in ours.param_groups) == len(list(model.parameters()))


def test_muon_goes_on_from_a_checkpoint(tmp_path):
    def start():
        torch.manual_seed(0)
        model = resnet18(width=4)
        optimizer = make_optimizer(model, "muon", 0.02, 0.6, 0.1)
        return model, optimizer, make_schedule(optimizer, "one-cycle", 2 * len(loader()))

    def go_on(model, optimizer, schedule, history, epochs):
        passes = fit(model, loader(), {}, optimizer, schedule, 2, (8,), 0.0, 0.0, "sum", first_epoch=len(history.epochs) + 1)
        for _, (row, steps) in zip(range(epochs), passes):
            history.add(row, steps)
        return model

    whole = go_on(*start(), History(), 2)
    model, optimizer, schedule = start()
    history = History()
    go_on(model, optimizer, schedule, history, 1)
    save_checkpoint(tmp_path / "checkpoint.pt", model, optimizer, schedule, history)
    fresh = start()
    resumed = go_on(*fresh, load_checkpoint(tmp_path / "checkpoint.pt", *fresh), 1)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters()))


def test_the_first_step_without_a_finite_loss_is_named():
    model = resnet18(width=4)
    optimizer = make_optimizer(model, "sgd", 0.0, 0, 0)
    batches = [(images.mul_(math.nan) if number == 1 else images, labels) for number, (images, labels) in enumerate(loader())]
    with pytest.raises(FloatingPointError, match="nan at step 2 of the epoch"):
        train_epoch(model, batches, optimizer, None, 8, 0.0, 0.0, "sum")


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_sixteen_bits_train_like_float32(precision):
    losses = {}
    for kind in (torch.float32, precision):
        torch.manual_seed(0)
        model = resnet18(width=8)
        optimizer = make_optimizer(model, "sgd", 0.02, 0.9, 0)
        losses[kind] = train_epoch(model, loader(), optimizer, None, 16, 0.0, 0.0, "sum", kind)[0]
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert losses[precision] != losses[torch.float32] and losses[precision] == pytest.approx(losses[torch.float32], rel=0.02)


def test_muon_leaves_frozen_layers_alone():
    model = resnet18(width=2)
    model.layer1.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = make_optimizer(model, "muon", 0.02, 0.9, 0.01)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert {name.split(".")[0] for name, weight in model.state_dict().items() if torch.equal(weight, before[name])} == {"layer1"}


def test_a_checkpoint_of_a_gpu_is_read_on_the_cpu(tmp_path, monkeypatch):
    model, seen, load = resnet18(width=2), [], torch.load
    optimizer = make_optimizer(model, "sgd", 0.1, 0.9, 0)
    save_checkpoint(tmp_path / "checkpoint.pt", model, optimizer, None, History())
    monkeypatch.setattr(torch, "load", lambda path, **options: seen.append(options) or load(path, **options))
    load_checkpoint(tmp_path / "checkpoint.pt", model, optimizer, None)
    assert seen == [{"map_location": "cpu", "weights_only": True}]
