"""Optimizers against PyTorch, losses that are not finite, 16 bits, and what a resumed run needs."""

import http.server
import math
import platform
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from cifar_cam_lib import runs, training
from cifar_cam_lib.data import (
    TransformedImages,
    draw_once,
    evaluation_transform,
    make_loader,
)
from cifar_cam_lib.fast import BatchedImages, Muon, describe_chip, orthogonalise, widen
from cifar_cam_lib.model import resnet18
from cifar_cam_lib.runs import load_state, save_state
from cifar_cam_lib.training import (
    Training,
    fit,
    load_model,
    load_shipped_model,
    loss_and_accuracy,
    make_optimizer,
    make_schedule,
    predict,
    restore,
    save_weights,
    train_epoch,
)
from cifar_cam_lib.trust import randomise
from scripts.measure.bench_gradcam import machine_file
from scripts.project import ROOT


def loader(count=120, batch_size=40, side=8, epochs=2):
    """Drawn pictures, shrunk so that a step takes no time."""
    sizes = {"image_sizes": (side,), "epochs": epochs}
    dataset = BatchedImages(draw_once(count, "train"), 0, padding=2, flip=True, **sizes)
    return make_loader(dataset, batch_size, True, 0)


def first_epoch(**options):
    """The same loader, told that its first epoch comes."""
    found = loader(**options)
    found.sampler.set_epoch(1)
    return found


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8), (1, 9)])
def test_orthogonalise_follows_the_singular_vectors(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    ours, exact = orthogonalise(matrix[None])[0], left @ right
    values = torch.linalg.svdvals(ours)
    assert values.min() > 0.3 and values.max() < 1.3 and ours.shape == shape
    assert (exact * ours).sum() / exact.norm() / ours.norm() > 0.9
    small, large = orthogonalise(torch.stack([1e-3 * matrix, 1e3 * matrix]))
    assert torch.allclose(small, large, atol=1e-3), "the size of the gradient does not count"


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_orthogonalise_takes_each_matrix_for_itself_in_any_precision(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    together = orthogonalise(matrices)
    for matrix, ours in zip(matrices, together, strict=True):
        assert torch.allclose(orthogonalise(matrix[None])[0], ours, atol=1e-5)
    rounded = orthogonalise(matrices, torch.bfloat16)
    assert rounded.dtype is torch.float32 and 1e-4 < (rounded - together).abs().max() < 0.05
    values = torch.linalg.svdvals(rounded)
    assert values.min() > 0.3 and values.max() < 1.3


@pytest.mark.parametrize(
    ("rows", "momentum", "weight_decay"), [(6, 0.6, 0.3), (30, 0.95, 0.0), (6, 0.0, 1.0)]
)
def test_muon_is_that_of_pytorch(rows, momentum, weight_decay, monkeypatch):
    # The reference rounds to bfloat16 by that method, and ours where the chip is fast at it.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, rows, 2, bias=False))
    theirs = nn.Parameter(model[1].weight.detach().flatten(1).clone())
    start = theirs.detach().clone()
    ours = Muon(model, 0.05, momentum, weight_decay)
    options = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": True}
    reference = torch.optim.Muon([theirs], lr=0.05, **options)
    for _ in range(4):
        model(torch.randn(8, 3, 5, 5)).square().mean().backward()
        theirs.grad = model[1].weight.grad.flatten(1).clone()
        ours.step()
        ours.zero_grad()
        reference.step()
    assert (theirs - start).abs().max() > 0.01
    assert torch.allclose(model[1].weight.flatten(1), theirs, atol=1e-5)


def test_muon_takes_convolutions_of_one_shape_together_and_each_for_itself(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 1), *(nn.Conv2d(4, 4, 2, padding=1, bias=False) for _ in range(3))]
    model = nn.Sequential(*layers)
    theirs = [nn.Parameter(layer.weight.detach().flatten(1).clone()) for layer in layers[1:]]
    layers[2].weight.requires_grad_(False)  # a frozen one between them
    ours, reference = Muon(model, 0.05, 0.9, 0.1), torch.optim.Muon(theirs, 0.05, 0.1, 0.9)
    for _ in range(3):
        model(torch.randn(8, 3, 5, 5)).square().mean().backward()
        for layer, weight in zip(layers[1:], theirs, strict=True):
            weight.grad = None if layer.weight.grad is None else layer.weight.grad.flatten(1)
        ours.step()
        ours.zero_grad()
        reference.step()
    for layer, weight in zip(layers[1:], theirs, strict=True):
        assert torch.allclose(layer.weight.flatten(1), weight, atol=1e-5)


@pytest.mark.parametrize("abilities", [{"amx_bf16": True}, {"avx512_bf16": True}, {}])
def test_muon_rounds_where_the_chip_is_fast_at_it(abilities, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    asked, real = [], orthogonalise
    monkeypatch.setattr(
        "cifar_cam_lib.fast.orthogonalise",
        lambda matrices, dtype: asked.append(dtype) or real(matrices, dtype),
    )
    model = resnet18(width=2)
    model(torch.ones(2, 3, 8, 8)).square().mean().backward()
    Muon(model, 0.02, 0.9, 0).step()
    assert set(asked) == {torch.bfloat16 if abilities else torch.float32}
    assert len(asked) < 19, "equal shapes go together"


def test_the_chip_is_described_by_what_decides(monkeypatch):
    cpu = torch.device("cpu")
    known = {"cpu_name": "Chip 9", "sse": True, "amx_bf16": True, "avx2": True, "avx512_f": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert describe_chip(cpu) == "Chip 9, avx2, amx_bf16"
    assert machine_file(Path("bench"), "x.json") == Path("bench/chip-9-avx2-amx_bf16/x.json")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert describe_chip(cpu) == platform.machine()


def test_muon_leaves_everything_else_to_adamw():
    torch.manual_seed(0)
    model, twin = resnet18(width=4), resnet18(width=4)
    twin.load_state_dict(model.state_dict())
    ours = Muon(model, 0.02, 0.6, 0.3)
    others = [parameter for parameter in twin.parameters() if parameter.ndim != 4]
    others.append(twin.stem[0].weight)
    reference = torch.optim.AdamW(others, 0.002, weight_decay=0)
    for net, optimizer in ((model, ours), (twin, reference)):
        net(torch.ones(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    assert torch.equal(model.head.weight, twin.head.weight)
    assert torch.equal(model.stem[0].weight, twin.stem[0].weight)
    assert not torch.equal(model.layer1[0].conv1.weight, twin.layer1[0].conv1.weight)
    assert sum(len(group["params"]) for group in ours.param_groups) == len(list(model.parameters()))


def test_muon_takes_a_closure_as_all_optimizers_of_pytorch_do():
    torch.manual_seed(0)
    model, twin = resnet18(width=2), resnet18(width=2)
    twin.load_state_dict(model.state_dict())
    images, first, second = (
        torch.randn(2, 3, 8, 8),
        Muon(model, 0.02, 0.9, 0),
        Muon(twin, 0.02, 0.9, 0),
    )
    calls = []

    def closure():
        first.zero_grad()
        loss = model(images).square().mean()
        loss.backward()
        calls.append(loss)
        return loss

    assert first.step(closure) is calls[0] and len(calls) == 1
    twin(images).square().mean().backward()
    assert second.step() is None
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def muon_training(precision=torch.float32):
    torch.manual_seed(0)
    model = resnet18(width=4)
    optimizer = Muon(model, 0.02, 0.6, 0.1)
    schedule = make_schedule(optimizer, "one-cycle", 2 * len(loader()))
    return Training(model, optimizer, schedule, precision)


def same_weights(one, other):
    weights = one.model.parameters(), other.model.parameters()
    return all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def train(training, epochs=2):
    """Finish this many epochs of a training of two."""
    passes = fit(training, loader(), {}, 2)
    for _ in range(len(training.history.epochs), epochs):
        next(passes)
    return training


def without_seconds(training):
    return [{**row, "seconds": 0} for row in training.history.epochs]


def test_muon_continues_from_a_state(tmp_path):
    whole, part, resumed = train(muon_training()), train(muon_training(), 1), muon_training()
    save_state(tmp_path, part.state_dict())
    restore(resumed, load_state(tmp_path))
    assert [row["epoch"] for row in resumed.history.epochs] == [1]
    assert same_weights(whole, train(resumed))
    assert without_seconds(whole) == without_seconds(resumed)


class InterruptionError(Exception):
    pass


def interrupt_after(steps):
    """A loss function that lets so many steps pass."""
    calls = []

    def loss_function(logits, labels):
        calls.append(1)
        if len(calls) > steps:
            raise InterruptionError
        return nn.functional.cross_entropy(logits, labels)

    return loss_function


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_a_run_continues_in_the_middle_of_an_epoch(steps, precision, tmp_path):
    """To the last bit, whatever was saved: place, sums, generators, state of the loss scaler."""
    whole = train(muon_training(precision))
    part = muon_training(precision)
    with pytest.raises(InterruptionError):
        list(fit(part, loader(), {}, 2, interrupt_after(steps)))
    save_state(tmp_path, part.state_dict())
    state = load_state(tmp_path)
    assert bool(state["scaler"]) is (precision is torch.float16)
    assert len(state["history_steps"]) + len(state["steps"]) == steps
    torch.manual_seed(99)
    resumed = muon_training(precision)
    with torch.no_grad():
        resumed.model.head.weight.zero_()
    restore(resumed, load_state(tmp_path))
    assert resumed.scaler.state_dict() == part.scaler.state_dict()
    train(resumed)
    assert same_weights(whole, resumed)
    assert without_seconds(whole) == without_seconds(resumed)
    steps_of = [training.history.steps for training in (whole, resumed)]
    assert steps_of[0] == steps_of[1] and len(steps_of[0]) == 6 and resumed.steps == []
    assert whole.scaler.state_dict() == resumed.scaler.state_dict()


class Interruption:
    """A loader that is interrupted before its first batch."""

    def __iter__(self):
        raise InterruptionError


def test_a_run_continues_after_the_last_step_of_an_epoch(tmp_path):
    """As after an interruption of the evaluation: the steps are done, the row isn't written."""
    whole, part, resumed = train(muon_training()), muon_training(), muon_training()
    with pytest.raises(InterruptionError):
        list(fit(part, loader(), {"validation": Interruption()}, 2))
    save_state(tmp_path, part.state_dict())
    restore(resumed, load_state(tmp_path))
    assert (len(resumed.steps), resumed.history.epochs) == (3, [])
    train(resumed)
    assert same_weights(whole, resumed)
    assert without_seconds(whole) == without_seconds(resumed)


def changed(state, name, value):
    return state | {name: value}


HISTORIES = [5, None, "text", [1], [{}], [{"epoch": 2}], [{"epoch": 1}, {"epoch": 1}]]


def test_a_state_of_another_training_is_refused(tmp_path):
    state, model = muon_training().state_dict(), resnet18(width=2)
    others = [
        (Training(model, Muon(model, 0.1, 0.9, 0)), state),
        (muon_training(), {"weights": torch.zeros(3)}),
        (muon_training(), changed(state, "history_steps", [[1, 2]])),
        (muon_training(), changed(state, "steps", [["a", 0.1, 1, 1, 1, 1]])),
        *((muon_training(), changed(state, "epochs", history)) for history in HISTORIES),
    ]
    for begun, other in others:
        with pytest.raises(OSError, match="the state is not one of this training"):
            restore(begun, other)


def test_the_first_step_without_a_finite_loss_is_named():
    model = resnet18(width=4)
    training = Training(model, make_optimizer(model, "sgd", 0.0, 0, 0))
    batches = [
        (images.mul_(math.nan) if number == 1 else images, labels)
        for number, (images, labels) in enumerate(first_epoch())
    ]
    with pytest.raises(FloatingPointError, match="nan at step 2 of the epoch"):
        train_epoch(training, batches)


def test_a_loss_of_the_evaluation_that_is_not_finite_stops_the_training():
    model = resnet18(width=2)
    training = Training(model, make_optimizer(model, "sgd", 0.0, 0, 0))
    broken = DataLoader(TensorDataset(torch.full((4, 3, 8, 8), math.nan), torch.arange(4)), 2)
    with pytest.raises(FloatingPointError, match="the loss is nan after epoch 1: try a lower"):
        list(fit(training, loader(), {"validation": broken}, 1))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_sixteen_bits_train_like_float32(precision):
    losses = {}
    for kind in (torch.float32, precision):
        torch.manual_seed(0)
        model = resnet18(width=8)
        optimizer = make_optimizer(model, "sgd", 0.02, 0.9, 0)
        training = Training(model, optimizer, precision=kind)
        losses[kind] = train_epoch(training, first_epoch(side=16))[0]
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert losses[precision] != losses[torch.float32]
    assert losses[precision] == pytest.approx(losses[torch.float32], rel=0.02)


def test_muon_leaves_frozen_layers_alone():
    model = resnet18(width=2)
    model.layer1.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = Muon(model, 0.02, 0.9, 0.01)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    after = model.state_dict()
    same = {name.split(".")[0] for name in after if torch.equal(after[name], before[name])}
    assert same == {"layer1"}


def test_a_state_of_a_gpu_is_read_on_the_cpu(tmp_path, monkeypatch):
    training, seen, load = muon_training(), [], torch.load
    save_state(tmp_path, training.state_dict())

    def spy(path, **options):
        seen.append(options)
        return load(path, **options)

    monkeypatch.setattr(torch, "load", spy)
    restore(training, load_state(tmp_path))
    assert seen == [{"map_location": "cpu", "weights_only": True}]


@pytest.mark.parametrize("shuffle", [True, False])
def test_fit_takes_an_ordinary_loader(shuffle):
    torch.manual_seed(0)
    dataset = TensorDataset(torch.randn(8, 3, 12, 12), torch.arange(8))
    plain = DataLoader(dataset, 4, shuffle=shuffle)
    model = resnet18(width=2)
    training = Training(model, make_optimizer(model, "sgd", 0.1, 0.9, 0))
    rows = list(fit(training, plain, {"test": DataLoader(dataset, 3)}, 2))
    assert [row["epoch"] for row in rows] == [1, 2] and rows == training.history.epochs
    assert {row["image_size"] for row in rows} == {12}, "the data's own size"


def test_predict_shows_images_at_their_own_size():
    model, seen = resnet18(width=2), []
    model.stem[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-1]))
    predict(model, DataLoader(TensorDataset(torch.zeros(2, 3, 64, 64), torch.zeros(2).long()), 2))
    assert seen == [64]


def test_evaluation_follows_the_size_of_the_epoch():
    images, seen = draw_once(20, "train"), []
    sizes = {"image_sizes": (8, 16), "epochs": 2}
    dataset = TransformedImages(images, evaluation_transform(), 0, **sizes)
    train_loader, evaluation_loader = (
        make_loader(dataset, 10, shuffle=shuffle, workers=0) for shuffle in (True, False)
    )
    model = resnet18(width=2)
    training = Training(model, make_optimizer(model, "sgd", 0.01, 0.9, 0))
    model.stem[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[-1]))
    rows = list(fit(training, train_loader, {"validation": evaluation_loader}, 2))
    assert seen == [8] * 4 + [16] * 4 and [row["image_size"] for row in rows] == [8, 16]
    seen.clear()
    predict(model, evaluation_loader)
    assert seen == [32, 32], "after training, images have their own size again"


WRAPPERS = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "compiled and parallel": lambda model: nn.DataParallel(torch.compile(model)),
    "parallel and compiled": lambda model: torch.compile(nn.DataParallel(model)),
}


def partly_compiled(model):
    model.layer2 = torch.compile(model.layer2)
    model.layer4[1] = torch.compile(model.layer4[1])
    return model


@pytest.mark.parametrize("wrap", [*WRAPPERS.values(), partly_compiled], ids=[*WRAPPERS, "partly"])
def test_weights_of_a_wrapped_network_are_its_own(wrap, tmp_path):
    torch.manual_seed(0)
    model = resnet18(width=2)
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wrapped = wrap(model)
    save_weights(wrapped, tmp_path / "weights.safetensors")
    loaded = load_model(tmp_path / "weights.safetensors").state_dict()
    assert list(loaded) == list(plain)
    assert all(torch.equal(loaded[name], plain[name]) for name in plain)
    changed = randomise(wrapped, ("head",), seed=1)
    assert not torch.equal(changed.head.weight, plain["head.weight"])
    assert torch.equal(changed.stem[0].weight, plain["stem.0.weight"])
    assert torch.equal(model.head.weight, plain["head.weight"]), "the model stays as it is"
    wide = widen(wrapped, 2).eval()
    images = torch.randn(2, 3, 8, 8)
    assert wide.stem[0].out_channels == 4
    with torch.no_grad():
        narrow = load_model(tmp_path / "weights.safetensors")
        assert torch.allclose(wide(images), narrow(images), atol=1e-4)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_state_of_a_wrapped_network_fits_a_plain_one(wrap, tmp_path):
    wrapped, plain = muon_training(), muon_training()
    wrapped.model = wrap(wrapped.model)
    save_state(tmp_path, wrapped.state_dict())
    with torch.no_grad():
        plain.model.head.weight.zero_()
    restore(plain, load_state(tmp_path))
    assert torch.equal(plain.model.head.weight, muon_training().model.head.weight)


def test_names_that_are_unknown_are_refused():
    model = resnet18(width=2)
    with pytest.raises(ValueError, match="unknown optimizer 'adam': known are 'sgd' and 'adamw'"):
        make_optimizer(model, "adam", 0.1, 0.9, 0)
    optimizer = make_optimizer(model, "sgd", 0.1, 0.9, 0)
    with pytest.raises(ValueError, match="unknown schedule 'cosine': known are 'plateau'"):
        make_schedule(optimizer, "cosine", 10)
    with pytest.raises(ValueError, match="no trained network for 'imagenet' of width 16: known"):
        load_shipped_model("imagenet")


def test_weights_that_are_absent_or_damaged_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_model(path)
    save_weights(resnet18(width=2), path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(OSError, match="is not a safetensors file, or is truncated"):
        load_model(path)


@pytest.mark.parametrize(("num_classes", "width"), [(0, 4), (10, 0), (10, -1)])
def test_a_network_without_channels_or_classes_is_refused(num_classes, width):
    with pytest.raises(ValueError, match=f"num_classes is {num_classes} and width {width}"):
        resnet18(num_classes, width)


def plain_training(rate=0.01):
    torch.manual_seed(0)
    model = resnet18(width=4)
    return Training(model, torch.optim.SGD(model.parameters(), rate))


def test_a_pass_counts_once():
    """Steps of a pass that has ended aren't taken for those of an interrupted epoch."""
    training, data = plain_training(), loader()
    first = train_epoch(training, data)
    assert train_epoch(training, data) != first and len(training.passed) == 3
    before = training.model.head.weight.clone()
    (row,) = fit(training, data, {}, 1)
    assert not torch.equal(before, training.model.head.weight) and row["train_loss"] > 0
    assert len(training.history.steps) == 3


def test_after_a_loss_that_is_not_finite_the_next_try_trains():
    training, data = plain_training(), loader()
    good = {name: weight.clone() for name, weight in training.model.state_dict().items()}
    training.model.head.weight.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="step 1"):
        list(fit(training, data, {}, 1))
    training.model.load_state_dict(good)
    (row,) = fit(training, data, {}, 1)
    assert math.isfinite(row["train_loss"]) and len(training.history.steps) == 3


def test_an_interrupted_evaluation_leaves_the_loader_at_its_own_size(monkeypatch):
    training, data = plain_training(), loader(side=8)

    def stop(model, loader, precision):
        raise KeyboardInterrupt

    monkeypatch.setattr("cifar_cam_lib.training.predict", stop)
    with pytest.raises(KeyboardInterrupt):
        list(fit(training, data, {"validation": data}, 1))
    assert next(iter(data))[0].shape[-1] == 32


def test_a_loader_without_a_batch_is_named():
    with pytest.raises(ValueError, match="no batch"):
        train_epoch(plain_training(), [])


@pytest.fixture
def without_checkout(tmp_path, monkeypatch):
    """The library as pip installs it, with a cache of its own."""
    monkeypatch.setattr(training, "__file__", str(tmp_path / "package" / "training.py"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("IN_TEST", raising=False)
    return tmp_path


@pytest.fixture
def served(without_checkout, monkeypatch):
    """A repository on this machine, with the network of the published size."""
    source = ROOT / training.LARGE
    served = without_checkout / "repository" / "model.safetensors"
    served.parent.mkdir()
    shutil.copyfile(source, served)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=served.parent)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/model.safetensors"
    monkeypatch.setattr(training, "ADDRESS", address)
    monkeypatch.setattr(runs, "PAUSE", 0)
    monkeypatch.setenv("NO_PROXY", "*")
    yield served
    server.shutdown()
    server.server_close()


def test_the_large_network_is_fetched_once(served):
    first = load_shipped_model("cifar10", width=64)
    served.unlink()
    again = load_shipped_model("cifar10", width=64)
    assert first.stem[0].out_channels == 64 and not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))


def test_a_damaged_copy_in_the_cache_is_fetched_again(served):
    load_shipped_model("cifar10", width=64)
    (cached,) = served.parents[1].rglob("cifar_cam_lib-*.safetensors")
    cached.write_bytes(b"cut off")
    assert load_shipped_model("cifar10", width=64).head.out_features == 10


def test_another_network_at_the_address_is_refused(served):
    with served.open("r+b") as file:
        file.seek(5000)
        file.write(b"other")
    with pytest.raises(OSError, match="was damaged on the way, or is newer than this version"):
        load_shipped_model("cifar10", width=64)
    assert not list(served.parents[1].rglob("cifar_cam_lib-*.safetensors*[!k]"))  # but for .lock


def test_another_file_at_the_address_is_refused(served):
    served.write_bytes(served.read_bytes()[:100_000])
    with pytest.raises(OSError, match=r"the file there has 100,000 bytes, expected 22,353,312"):
        load_shipped_model("cifar10", width=64)
    assert not list(served.parents[1].rglob("cifar_cam_lib-*.safetensors*[!k]"))


def test_a_cache_that_cannot_be_written_is_named(served, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(served))  # a file, where no folder can be made
    with pytest.raises(FileNotFoundError, match=f"the folder {served}.* can't be written to"):
        load_shipped_model("cifar10", width=64)


def test_without_a_home_nothing_is_written_beside_the_work(served, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.hub.get_dir", lambda: "~/.cache/torch/hub")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no home folder to keep it in: set TORCH_HOME"):
        load_shipped_model("cifar10", width=64)
    assert not (tmp_path / "~").exists()


def test_without_a_connection_one_line_says_so(served, monkeypatch):
    served.unlink()
    with pytest.raises(FileNotFoundError, match="not on this machine, and can't be fetched"):
        load_shipped_model("cifar10", width=64)
    monkeypatch.setenv("IN_TEST", "1")
    with pytest.raises(FileNotFoundError, match="a test does not download"):
        load_shipped_model("cifar10", width=64)


def test_the_checkout_has_the_large_network(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(training, "ADDRESS", "http://127.0.0.1:1/nowhere")
    assert load_shipped_model("cifar10", width=64).stem[0].out_channels == 64


def test_watching_takes_the_precision_of_the_training_and_predicting_does_not():
    torch.manual_seed(0)
    model = resnet18(width=8)
    judge = make_loader(BatchedImages(draw_once(60, "test"), 0), 30, False, 0)
    optimizer = make_optimizer(model, "sgd", 0.01, 0, 0)
    sixteen = Training(model, optimizer, precision=torch.bfloat16)
    (row,) = fit(sixteen, first_epoch(), {"validation": judge}, 1)
    (exact, labels), (rounded, _) = predict(model, judge), predict(model, judge, torch.bfloat16)
    assert exact.dtype is rounded.dtype is torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.1
    assert row["validation_loss"] == loss_and_accuracy(rounded, labels)[0]
