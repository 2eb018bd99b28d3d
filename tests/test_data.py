"""Where images come from, what happens when a file of CIFAR-10 is damaged, and whether both pipelines do the same."""

import math
import os
import shutil
import urllib.error
from functools import partial

import cv2
import numpy as np
import pytest
import torch

from cifar_cam_lib import data
from cifar_cam_lib.data import (CIFAR10, CIFAR10_MEAN, CIFAR10_STD, HIDDEN, BatchedImages, LabelledImages, TransformedImages, as_batch, channel_statistics,
                                check_cifar10, choose_source, draw_epoch, evaluation_transform, fetch_cifar10, load_images, make_loader, pack_images,
                                source_pixels, train_transform)
from cifar_cam_lib.training import load_shipped_model


def test_without_data_a_test_draws_and_says_why(tmp_path, capsys):
    assert choose_source(tmp_path) == "drawn"
    said = capsys.readouterr().out
    assert "a test does not download" in said and str(tmp_path) not in said


def test_without_network_the_course_draws_and_says_why(tmp_path, capsys, monkeypatch):
    def no_network(root, download):
        raise urllib.error.URLError("no network")

    no_network.base_folder = CIFAR10.base_folder
    monkeypatch.delenv("IN_TEST")
    monkeypatch.setattr(data, "CIFAR10", no_network)
    assert choose_source(tmp_path) == "drawn" and "the download failed" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        fetch_cifar10(tmp_path, download=True)


def test_a_download_is_used(tmp_path, monkeypatch):
    calls = []

    def download(root, download):
        calls.append(root)

    download.base_folder = CIFAR10.base_folder
    monkeypatch.setattr(data, "CIFAR10", download)
    assert fetch_cifar10(tmp_path, download=True) == "just downloaded" and calls == [tmp_path]


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR_CAM_DATA", str(tmp_path))
    assert data.default_root() == tmp_path
    monkeypatch.setenv("CIFAR_CAM_DATA", "")
    assert data.default_root().name == "cifar_cam_lib"


@pytest.fixture
def copied(cifar10_root, tmp_path):
    "A copy of CIFAR-10 made of links, so that a test can damage a file of it."
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for file in (cifar10_root / CIFAR10.base_folder).iterdir():
        (folder / file.name).symlink_to(file)
    return tmp_path


def test_real_data_passes_its_check(copied, capsys):
    check_cifar10(copied)
    assert choose_source(copied) == "cifar10" and "Images: CIFAR-10" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_file_is_named(copied, damage):
    file = copied / CIFAR10.base_folder / "data_batch_3"
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "truncated":
        file.write_bytes(content[:1_000_000])
    elif damage == "altered":
        content[5_000_000] ^= 1
        file.write_bytes(content)
    with pytest.raises(OSError, match="data_batch_3"):
        load_images("cifar10", copied)
    with pytest.raises(OSError, match="data_batch_3"):
        choose_source(copied)  # a damaged folder is not an absent one


def test_statistics_of_real_data(cifar10_root):
    mean, std = channel_statistics(load_images("cifar10", cifar10_root)[0].images)
    assert np.allclose(mean, CIFAR10_MEAN, atol=1e-7) and np.allclose(std, CIFAR10_STD, atol=1e-7)


def test_altered_shipped_weights_are_refused(tmp_path, monkeypatch):
    import cifar_cam_lib.training as training

    folder = tmp_path / "weights"
    shutil.copytree(os.path.join(os.path.dirname(training.__file__), "weights"), folder)
    with open(folder / "drawn.safetensors", "r+b") as file:
        file.seek(5000)
        file.write(b"x")
    monkeypatch.setattr(training, "__file__", str(tmp_path / "training.py"))
    assert load_shipped_model("cifar10").head.out_features == 10
    with pytest.raises(OSError, match="drawn.safetensors are missing or altered"):
        load_shipped_model("drawn")


NOTHING = {"rotate_degrees": 0, "padding": 0, "flip": False, "cutout_size": 0}


@pytest.fixture(scope="module")
def noise():
    "Random images: each pixel has a colour of its own."
    generator = np.random.default_rng(3)
    return LabelledImages(generator.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8), generator.integers(0, 10, 300))


def seen(dataset, epoch=1):
    return torch.stack([dataset[epoch, index][0] for index in range(len(dataset))])


def test_batches_are_the_images_of_the_transform(noise):
    one_by_one = torch.stack([evaluation_transform()(image=image)["image"] for image in noise.images])
    assert torch.allclose(as_batch(noise.images), one_by_one, atol=1e-6)
    (images, labels), *_ = make_loader(BatchedImages(noise, None, 0), 300, False, 0)
    assert torch.equal(images, as_batch(noise.images)) and labels.tolist() == noise.labels.tolist() and images.dtype == torch.float32


@pytest.mark.parametrize("change", [{"padding": 4}, {"flip": True}, {"padding": 1, "flip": True}])
def test_shifts_and_flips_are_those_of_albumentations(noise, change):
    "On copies of one image, both pipelines make the same set of pictures."
    copies = LabelledImages(np.repeat(noise.images[:1], 900, axis=0), np.zeros(900, dtype=np.int64))
    per_image = seen(TransformedImages(copies, train_transform(**NOTHING | change), 0))
    batched = seen(BatchedImages(copies, partial(source_pixels, **NOTHING | change), 0))
    sets = [{tuple((100 * picture[:, ::3, ::3]).round().int().flatten().tolist()) for picture in pictures} for pictures in (per_image, batched)]
    assert sets[0] == sets[1] and len(sets[0]) == {4: 81, 0: 2, 1: 18}[change.get("padding", 0)]


def test_a_turn_is_that_of_opencv(noise):
    image, angle = noise.images[0], 5.0
    draws = torch.zeros(1, 8)
    draws[0, 3] = 1.0  # the largest angle
    source, shown = source_pixels(draws, **NOTHING | {"rotate_degrees": angle})
    ours = pack_images(image[None])[0][source[0]].masked_fill(~shown[0], 0).view(torch.uint8).view(32, 32, 4)[..., :3].numpy()
    matrix = cv2.getRotationMatrix2D((15.5, 15.5), -angle, 1.0)
    theirs = cv2.warpAffine(image, matrix, (32, 32), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0))
    assert (ours == theirs).all(axis=2).mean() > 0.97, "OpenCV rounds ties in its own way"


def test_holes_are_those_of_albumentations():
    whites = LabelledImages(np.full((3000, 32, 32, 3), 255, dtype=np.uint8), np.zeros(3000, dtype=np.int64))
    change = NOTHING | {"cutout_size": 16}
    per_image, batched = ((seen(dataset)[:, 0] < 1).float() for dataset in (
        TransformedImages(whites, train_transform(**change), 0), BatchedImages(whites, partial(source_pixels, **change), 0)))
    assert (per_image.mean(0) - batched.mean(0)).abs().max() < 0.05, "where holes lie"
    areas = [holes.sum((1, 2)) for holes in (per_image, batched)]
    assert abs(areas[0].mean() - areas[1].mean()) < 4 and areas[0].min() == areas[1].min() == 64 and areas[0].max() == areas[1].max() == 256


def test_each_image_has_a_draw_of_its_own(noise):
    "What torchvision's transforms do to a batch, one draw for all, must not happen."
    draws = draw_epoch(50_000, 0, 3)
    assert torch.corrcoef(draws.T).fill_diagonal_(0).abs().max() < 0.02 and abs(draws.mean() - 0.5) < 0.005
    copies = LabelledImages(np.repeat(noise.images[:1], 64, axis=0), np.zeros(64, dtype=np.int64))
    images, _ = BatchedImages(copies, partial(source_pixels, **NOTHING | {"padding": 4}), 0).__getitems__([(1, index) for index in range(64)])
    assert len(images.flatten(1).unique(dim=0)) > 30


def test_the_draw_depends_on_seed_epoch_and_index_alone(noise):
    sources = partial(source_pixels, rotate_degrees=5, padding=4, flip=True, cutout_size=8)
    dataset = BatchedImages(noise, sources, seed=2)
    together, _ = dataset.__getitems__([(4, index) for index in (9, 2, 250)])
    for image, index in zip(together, (9, 2, 250)):
        assert torch.equal(image, BatchedImages(noise, sources, seed=2)[4, index][0])
        assert not torch.equal(image, dataset[5, index][0]) and not torch.equal(image, BatchedImages(noise, sources, seed=3)[4, index][0])


def test_the_hidden_colour_is_neutral():
    black = LabelledImages(np.zeros((4, 32, 32, 3), dtype=np.uint8), np.zeros(4, dtype=np.int64))
    images = seen(BatchedImages(black, partial(source_pixels, **NOTHING | {"cutout_size": 32}), 0))
    hidden = images[:, 0] > -1
    assert hidden.any() and images.permute(1, 0, 2, 3)[:, hidden].abs().max() < 0.01 and HIDDEN < 2**24


def test_alternating_flips_mirror_each_image_in_every_second_epoch(noise):
    dataset = BatchedImages(noise, partial(source_pixels, **NOTHING | {"flip": True}), 0, alternate_flip=True)
    first, second, third = (seen(dataset, epoch) for epoch in (1, 2, 3))
    assert torch.equal(first, second.flip(3)) and torch.equal(first, third)
    mirrored = (first != as_batch(noise.images)).flatten(1).any(1)
    assert abs(mirrored.sum() - 150) < 5 * math.sqrt(300 / 4)
