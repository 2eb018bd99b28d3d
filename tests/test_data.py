"""Where images come from, what a damaged file of CIFAR-10 does, and whether the pipelines agree."""

import copy
import gc
import math
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, TensorDataset

from cifar_cam_lib import data, runs
from cifar_cam_lib.data import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    CLASS_NAMES,
    EpochSampler,
    LabelledImages,
    TransformedImages,
    as_batch,
    channel_statistics,
    denormalise,
    draw_once,
    epoch_size,
    evaluation_transform,
    image_grid,
    load_images,
    make_loader,
    open_picture,
    read_cifar10,
    read_picture,
    show_augmented,
    split_validation,
    train_transform,
    verify_cifar10,
)
from cifar_cam_lib.fast import (
    BatchedImages,
    augment_indices,
    choose_device,
    hidden_pixel,
    pack_images,
    random_numbers,
)
from cifar_cam_lib.training import load_shipped_model

FOLDER = "cifar-10-batches-py"


def test_without_data_a_test_draws_and_says_why(tmp_path, capsys):
    train_images, test_images = load_images("auto", tmp_path, drawn_count=50)
    assert train_images.source == test_images.source == "drawn"
    assert (len(train_images), len(test_images)) == (50, 10)
    said = capsys.readouterr().out
    assert "a test does not download" in said and str(tmp_path) not in said


def test_without_network_the_course_draws_and_says_why(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("IN_TEST")
    monkeypatch.setenv("CIFAR_CAM_MIRROR", "http://127.0.0.1:1/cifar")  # where nobody listens
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(runs, "PAUSE", 0)
    assert load_images("auto", tmp_path, drawn_count=50)[0].source == "drawn"
    assert "the download failed with ConnectionError" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="can't be fetched from http://127.0.0.1:1/cifar"):
        load_images("cifar10", tmp_path)


def test_a_download_is_used(tmp_path, monkeypatch, cifar10_root):
    calls = []

    def fetch_alone(missing, address, path, digest, size):
        calls.append((address, path, digest, size))
        path.write_bytes(b"archive")

    def unpack(archive, folder):
        folder.symlink_to(cifar10_root / FOLDER)

    monkeypatch.delenv("IN_TEST")
    monkeypatch.delenv("CIFAR_CAM_MIRROR", raising=False)
    monkeypatch.setattr(runs, "fetch_alone", fetch_alone)
    monkeypatch.setattr(runs, "unpack", unpack)
    assert load_images("cifar10", tmp_path)[1].source == "cifar10"
    address = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    digest = "md5:c58f30108f718f92721af3b95e74349a"
    assert calls == [(address, tmp_path / f"{FOLDER}.tar.gz", digest, 170_498_071)]
    assert os.listdir(tmp_path) == [FOLDER]


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR_CAM_DATA", str(tmp_path))
    assert data.default_root() == tmp_path
    monkeypatch.setenv("CIFAR_CAM_DATA", "")
    assert data.default_root().name == "cifar_cam_lib"


def test_without_a_home_the_course_draws_and_says_why(homeless, capsys):
    assert load_images("auto", drawn_count=50)[0].source == "drawn"
    assert "drawn stand-in" in capsys.readouterr().out
    assert load_images("drawn", drawn_count=50)[0].source == "drawn"
    with pytest.raises(FileNotFoundError, match="set CIFAR_CAM_DATA to the folder that contains"):
        load_images("cifar10")


def test_an_unknown_source_is_refused():
    with pytest.raises(ValueError, match="unknown source 'imagenet': known are 'auto'"):
        load_images("imagenet")


def test_drawn_images_are_shared_and_cannot_be_written(tmp_path):
    first, _ = load_images("drawn", drawn_count=50)
    for array in (first.images, first.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    second, _ = load_images("drawn", drawn_count=50)
    assert second.images.max() > 200 and set(second.labels.tolist()) == set(range(10))
    part = first.subset(np.arange(3))
    part.images[:] = 0  # a subset by numbers is a copy of its own
    assert load_images("drawn", drawn_count=50)[0].images[:3].max() > 200


@pytest.fixture
def copied(cifar10_root, tmp_path):
    """A copy of CIFAR-10 made of links, so that a test can damage a file of it."""
    folder = tmp_path / FOLDER
    folder.mkdir()
    for file in (cifar10_root / FOLDER).iterdir():
        (folder / file.name).symlink_to(file)
    return tmp_path


def test_real_data_passes_its_check(copied, capsys):
    verify_cifar10(copied)
    assert load_images("auto", copied)[0].source == "cifar10"
    assert "Images: CIFAR-10" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_file_is_named(copied, damage):
    file = copied / FOLDER / "data_batch_3"
    content = bytearray(file.read_bytes())
    file.unlink()
    if damage == "truncated":
        file.write_bytes(content[:1_000_000])
    elif damage == "altered":
        content[5_000_000] ^= 1
        file.write_bytes(content)
    for source in ("cifar10", "auto"):  # a damaged folder is not an absent one
        with pytest.raises(OSError, match="data_batch_3"):
            load_images(source, copied)


def test_absent_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="CIFAR-10 is not in the data folder"):
        read_cifar10(tmp_path, download=False)
    with pytest.raises(OSError, match="data_batch_1 in the data folder .* is missing"):
        verify_cifar10(tmp_path)


def test_statistics_of_real_data(cifar10_root):
    mean, std = channel_statistics(load_images("cifar10", cifar10_root)[0].images)
    assert np.allclose(mean, CIFAR10_MEAN, atol=1e-7) and np.allclose(std, CIFAR10_STD, atol=1e-7)


@pytest.mark.parametrize("size", [-1, 50, 51])
def test_a_split_leaves_something_to_train_on(size):
    with pytest.raises(ValueError, match=f"validation size is {size}, expected 0 to 49"):
        split_validation(draw_once(50, "train"), size, seed=0)


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
    """Random images: each pixel has a colour of its own."""
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (300, 32, 32, 3), dtype=np.uint8)
    return LabelledImages(images, generator.integers(0, 10, 300), CLASS_NAMES)


BYTES = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_are_the_same_images(kind):
    """As plt.imread gives a PNG, and torchvision's ToTensor any picture."""
    floats = (BYTES / 255).astype(kind)
    labelled = LabelledImages(floats, [0, 1, 2, 3])
    assert np.array_equal(labelled.images, BYTES) and labelled.images.dtype == np.uint8
    assert (as_batch(floats) - as_batch(BYTES)).abs().max() < 0.02
    one = TransformedImages(labelled, evaluation_transform(), 0)[2][0]
    (other, _), *_ = make_loader(BatchedImages(labelled, 0), 4, False, 0)
    assert torch.allclose(one, as_batch(BYTES)[2], atol=1e-5)
    assert torch.allclose(other[2], one, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 16, 16), (4, 16, 16, 1)])
def test_grey_images_get_three_channels(shape):
    labelled = LabelledImages(BYTES[..., 0].reshape(shape), [0, 1, 2, 3])
    assert labelled.images.shape == BYTES.shape
    assert all(np.array_equal(labelled.images[..., channel], BYTES[..., 0]) for channel in range(3))
    assert torch.equal(as_batch(BYTES[..., 0].reshape(shape)), as_batch(labelled.images))


WRONG_IMAGES = {
    "floats to 255": (BYTES.astype(np.float32), "floats from 0 to 255, expected from 0 to 1"),
    "floats from -1": (BYTES / 127.5 - 1, "floats from -1 to 1, expected from 0 to 1"),
    "not a number": (np.full((4, 16, 16, 3), np.nan), "floats from nan to nan"),
    "integers": (BYTES.astype(np.int64), "are int64, expected uint8, or floats from 0 to 1"),
    "flags": (BYTES > 9, "are bool, expected uint8"),
    "channels in front": (BYTES.transpose(0, 3, 1, 2), r"shape \(4, 3, 16, 16\), expected \[N, H"),
    "transparency": (np.zeros((4, 16, 16, 4), np.uint8), r"shape \(4, 16, 16, 4\)"),
    "one image": (BYTES[0], r"shape \(16, 16, 3\), expected \[N, H, W, 3\]"),
    "flat": (BYTES.reshape(4, -1), r"shape \(4, 768\)"),
}


@pytest.mark.parametrize("images, message", WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_images_of_another_kind_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        LabelledImages(images, np.zeros(len(images), int))
    with pytest.raises(ValueError, match=message):
        as_batch(images)


@pytest.mark.parametrize(
    "shape, message",
    [
        (
            (4, 16, 24, 3),
            "16x24 pixels, height by width, expected squares of 8x8 or more: crop them",
        ),
        ((4, 7, 7, 3), "7x7 pixels"),
    ],
)
def test_a_size_that_the_network_cannot_take_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        LabelledImages(np.zeros(shape, np.uint8), [0, 1, 2, 3])


@pytest.mark.parametrize(
    "labels, message",
    [
        (
            [0, 1, 2],
            r"int64 of shape \(3,\), such as \[0 1 2\], expected 4 integers, zero or above",
        ),
        ([0, 1, 2, -1], r"such as \[ 0  1  2 -1\], expected 4 integers"),
        ([0.0, 1.0, 2.0, 3.0], "float64 of shape"),
        ([[0], [1], [2], [3]], r"shape \(4, 1\)"),
        ([True, False, True, False], "bool of shape"),
        (["cat", "dog", "cat", "dog"], "<U3 of shape"),
    ],
)
def test_labels_of_another_kind_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        LabelledImages(BYTES, labels)


@pytest.mark.parametrize(
    "names",
    [("cat", "dog"), ("cat", "cat", "dog", "cow"), "abcd", {"cat", "dog", "cow", "pig"}, range(4)],
)
def test_each_class_needs_a_name_of_its_own(names):
    with pytest.raises(ValueError, match="expected a name of its own for each class, at least 4"):
        LabelledImages(BYTES, [0, 1, 2, 3], names)
    few = LabelledImages(BYTES, [0, 1, 1, 0], ("cat", "dog", "cow"))
    assert few.subset([1, 2]).class_names == ("cat", "dog", "cow"), "one more than there are images"


@pytest.mark.parametrize("name, values", [("mean", (125, 123, 114)), ("std", (0.2, 0.2, 0.0))])
def test_the_scale_is_of_pixels_from_0_to_1(name, values):
    for wrong in (values, values[:1], (float("nan"), 0.2, 0.2)):
        with pytest.raises(ValueError, match=f"{name} is .*, expected three numbers from .* to 1"):
            LabelledImages(BYTES, [0, 1, 1, 0], **{name: wrong})


def test_own_names_and_scale_go_wherever_the_images_go():
    own = {"class_names": ("apple", "pear"), "mean": (0.2, 0.5, 0.7), "std": (0.1, 0.2, 0.3)}
    labelled = LabelledImages(BYTES, [0, 1, 1, 0], **own)
    training, held_back = split_validation(labelled, 2, seed=0)
    for part in (labelled.subset([3]), training, held_back):
        assert (part.class_names, part.mean, part.std) == tuple(own.values())
    scale = {"mean": own["mean"], "std": own["std"]}
    batch = as_batch(BYTES, **scale)
    assert torch.allclose(
        batch[1, :, 0, 0] * torch.tensor(own["std"]),
        (
            torch.tensor(BYTES[1, 0, 0] / 255) - torch.tensor(own["mean"], dtype=torch.float64)
        ).float(),
        atol=1e-6,
    )
    assert np.allclose(denormalise(batch, **scale), BYTES / 255, atol=1e-6)
    per_image = TransformedImages(labelled, evaluation_transform(**scale), 0)
    batched = BatchedImages(labelled, 0)
    for dataset in (per_image, batched):
        assert torch.allclose(seen(dataset, 0), batch, atol=1e-5)
        texts = show_augmented(dataset).axes[0].texts
        assert [text.get_text() for text in texts] == ["apple", "apple", "pear", "pear"]
    grey = LabelledImages(np.full((30, 16, 16, 3), 255, np.uint8), [0] * 30, **own)
    transform = train_transform(**NOTHING | {"cutout_size": 16}, side=16, **scale)
    for dataset in (TransformedImages(grey, transform, 0), BatchedImages(grey, 0, cutout_size=16)):
        hidden = seen(dataset).permute(1, 0, 2, 3)[:, (seen(dataset)[:, 0] < 7)]
        assert hidden.numel() and hidden.abs().max() < 0.03, "what is hidden is nearly 0"


@pytest.mark.parametrize("side", [8, 64, 96])
def test_both_pipelines_take_images_of_another_side(side):
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    labelled = LabelledImages(images, [0, 1, 2])
    for dataset in augmented(labelled):
        assert torch.allclose(seen(dataset), as_batch(images), atol=1e-5)
    for dataset in augmented(labelled, padding=4, flip=True):
        assert seen(dataset).shape == (3, 3, side, side)


def test_a_picture_that_is_not_square_keeps_its_ratio():
    (axis,) = image_grid([np.zeros((10, 20, 3)), np.zeros((20, 10, 3))], ["wide", "high"], 2).axes
    for image, ratio in zip(axis.images, (2, 0.5), strict=True):
        left, right, bottom, top = image.get_extent()
        assert (right - left) / (bottom - top) == pytest.approx(ratio)
        assert max(right - left, bottom - top) == pytest.approx(1)


def test_broken_notes_do_not_cost_the_picture(tmp_path):
    """An EXIF block may be cut off or nonsense; if it tells the orientation, that counts."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    note = Image.Exif()
    note[0x0112] = 6
    whole = note.tobytes()
    for number, exif in enumerate(
        [whole[:9], whole[:14], b"Exif\0\0" + b"x" * 50, whole + b"?" * 9]
    ):
        for ending in ("png", "jpg"):
            path = tmp_path / f"{number}.{ending}"
            picture.save(path, exif=exif, quality=95)
            assert open_picture(path).size in [(60, 40), (40, 60)]
            assert read_picture(path, 32).shape == (32, 32, 3)
    picture.save(tmp_path / "turned.png", exif=whole)
    assert open_picture(tmp_path / "turned.png").size == (40, 60)


@pytest.mark.parametrize("ending", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_that_of_pillow(orientation, ending, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    note = Image.Exif()
    note[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(pixels).save(path, exif=note)
    with Image.open(path) as picture:
        picture.load()
        expected = ImageOps.exif_transpose(picture)
    assert expected.size == ((60, 40) if orientation < 5 else (40, 60))
    assert np.array_equal(np.asarray(open_picture(path)), np.asarray(expected))


@pytest.mark.parametrize(
    "there, name, chosen",
    [
        ("", "auto", "cpu"),
        ("mps", "auto", "mps"),
        ("cuda", "auto", "cuda"),
        ("cuda mps", "auto", "cuda"),
        ("cuda mps", "mps", "mps"),
        ("cuda mps", "cpu", "cpu"),
    ],
)
def test_the_device_is_the_one_that_is_there(there, name, chosen, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: "cuda" in there)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: "mps" in there)
    assert choose_device(name).type == chosen


def blank(count, value, side=32):
    """Images of one grey."""
    images = np.full((count, side, side, 3), value, dtype=np.uint8)
    return LabelledImages(images, np.zeros(count, dtype=np.int64))


def seen(dataset, epoch=1):
    return torch.stack([dataset[epoch, index][0] for index in range(len(dataset))])


def augmented(labelled, **changes):
    """The same images in both pipelines, augmented alike."""
    side = labelled.images.shape[1]
    transform = train_transform(**NOTHING | changes, side=side)
    return TransformedImages(labelled, transform, 0), BatchedImages(labelled, 0, **changes)


def test_batches_are_the_images_of_the_transform(noise):
    transform = evaluation_transform()
    one_by_one = torch.stack([transform(image=image)["image"] for image in noise.images])
    assert torch.allclose(as_batch(noise.images), one_by_one, atol=1e-6)
    (images, labels), *_ = make_loader(BatchedImages(noise, 0), 300, False, 0)
    assert torch.equal(images, as_batch(noise.images)) and images.dtype == torch.float32
    assert labels.tolist() == noise.labels.tolist()


@pytest.mark.parametrize("change", [{"padding": 4}, {"flip": True}, {"padding": 1, "flip": True}])
def test_shifts_and_flips_are_those_of_albumentations(noise, change):
    """On copies of one image, both pipelines make the same set of pictures."""
    copies = LabelledImages(np.repeat(noise.images[:1], 900, axis=0), np.zeros(900, dtype=np.int64))

    def pictures(dataset):
        thinned = (100 * seen(dataset)[:, :, ::3, ::3]).round().int()
        return {tuple(picture.flatten().tolist()) for picture in thinned}

    per_image, batched = map(pictures, augmented(copies, **change))
    assert per_image == batched
    assert len(per_image) == {4: 81, 0: 2, 1: 18}[change.get("padding", 0)]


def test_a_turn_is_that_of_opencv(noise):
    image, angle = noise.images[0], 5.0
    numbers = torch.zeros(1, 8)
    numbers[0, 3] = 1.0  # the largest angle
    source, shown = augment_indices(numbers, 32, **NOTHING | {"rotate_degrees": angle})
    packed = pack_images(image[None])[0][source[0]].masked_fill(~shown[0], 0)
    ours = packed.view(torch.uint8).view(32, 32, 4)[..., :3].numpy()
    matrix = cv2.getRotationMatrix2D((15.5, 15.5), -angle, 1.0)
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": (0, 0, 0)}
    theirs = cv2.warpAffine(image, matrix, (32, 32), flags=cv2.INTER_NEAREST, **border)
    assert (ours == theirs).all(axis=2).mean() > 0.97, "OpenCV rounds ties in its own way"


def test_holes_are_those_of_albumentations():
    datasets = augmented(blank(3000, 255), cutout_size=16)
    per_image, batched = ((seen(dataset)[:, 0] < 1).float() for dataset in datasets)
    assert (per_image.mean(0) - batched.mean(0)).abs().max() < 0.05, "where holes lie"
    first, second = (holes.sum((1, 2)) for holes in (per_image, batched))
    assert abs(first.mean() - second.mean()) < 4
    assert first.min() == second.min() == 64 and first.max() == second.max() == 256


def test_each_image_has_a_draw_of_its_own(noise):
    """What torchvision's transforms do to a batch, one draw for all, must not happen."""
    numbers = random_numbers(50_000, 0, 3)
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 0.02
    assert abs(numbers.mean() - 0.5) < 0.005
    copies = LabelledImages(np.repeat(noise.images[:1], 64, axis=0), np.zeros(64, dtype=np.int64))
    places = [(1, index) for index in range(64)]
    images, _ = BatchedImages(copies, 0, padding=4).__getitems__(places)
    assert len(images.flatten(1).unique(dim=0)) > 30


def test_the_draw_depends_on_seed_epoch_and_index_alone(noise):
    changes = {"rotate_degrees": 5, "padding": 4, "flip": True, "cutout_size": 8}
    dataset = BatchedImages(noise, seed=2, **changes)
    together, _ = dataset.__getitems__([(4, index) for index in (9, 2, 250)])
    for image, index in zip(together, (9, 2, 250)):
        assert torch.equal(image, BatchedImages(noise, seed=2, **changes)[4, index][0])
        assert not torch.equal(image, dataset[5, index][0])
        assert not torch.equal(image, BatchedImages(noise, seed=3, **changes)[4, index][0])


def test_the_hidden_colour_is_neutral():
    images = seen(BatchedImages(blank(4, 0), 0, cutout_size=32))
    hidden = images[:, 0] > -1
    assert hidden.any() and images.permute(1, 0, 2, 3)[:, hidden].abs().max() < 0.01
    assert hidden_pixel((0.0, 0.5, 1.0)) == 128 * 2**8 + 255 * 2**16


def test_alternating_flips_mirror_each_image_in_every_second_epoch(noise):
    dataset = BatchedImages(noise, 0, flip=True, alternate_flip=True)
    first, second, third = (seen(dataset, epoch) for epoch in (1, 2, 3))
    assert torch.equal(first, second.flip(3)) and torch.equal(first, third)
    mirrored = (first != as_batch(noise.images)).flatten(1).any(1)
    assert abs(mirrored.sum() - 150) < 5 * math.sqrt(300 / 4)


@pytest.mark.parametrize("alternate_flip", [False, True])
def test_batched_images_are_pickled_copied_and_freed(noise, alternate_flip):
    changes = {"padding": 4, "flip": True, "alternate_flip": alternate_flip}
    dataset = BatchedImages(noise, 0, **changes)
    before = seen(dataset)
    assert torch.equal(seen(pickle.loads(pickle.dumps(dataset))), before)
    other = copy.deepcopy(dataset)
    other.seed = 5
    assert torch.equal(seen(other), seen(BatchedImages(noise, 5, **changes)))
    assert torch.equal(seen(dataset), before) and not torch.equal(seen(other), before)
    watched = [weakref.ref(dataset), weakref.ref(other)]
    gc.disable()
    try:
        del dataset, other
        assert [reference() for reference in watched] == [None, None]
    finally:
        gc.enable()


UNGUARDED = """
import multiprocessing
import torch
from torch.utils.data import TensorDataset
from cifar_cam_lib.data import make_loader
from cifar_cam_lib.main import run
from cifar_cam_lib.settings import Config

if multiprocessing.current_process().name == "MainProcess":
    multiprocessing.set_start_method("{method}")
"""
STARTS = {
    "a run": "run(Config(train_size=400, validation_size=100, width=4, epochs=1, workers=2))",
    "a loader": "next(iter(make_loader(TensorDataset(torch.zeros(9, 99999)), 3, True, 2)))",
}


GUARDED = """
loader = make_loader(TensorDataset(torch.zeros(9, 9)), 3, True, 2)
if __name__ == "__main__":
    print(len(list(loader)))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_guarded_script_may_make_its_loader_above_the_guard(method, tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED.format(method=method) + GUARDED)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout == "3\n" and done.returncode == 0, done.stderr


def test_a_scout_that_takes_the_server_with_it_is_told_as_the_others(monkeypatch):
    """From Python 3.14 on the server that starts workers imports the script itself."""

    class Gone:
        def __init__(self, **options): ...

        def start(self):
            raise EOFError("unexpected EOF")

    context = SimpleNamespace(Process=Gone, get_start_method=lambda: "forkserver")
    monkeypatch.setattr(multiprocessing, "get_context", lambda: context)
    runs.send_scout.cache_clear()
    with pytest.raises(RuntimeError, match='under the line if __name__ == "__main__"'):
        runs.check_workers_start(1)
    assert runs.check_workers_start(0) is None


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_script_without_its_guard_is_told_so_where_it_would_hang(start, tmp_path):
    """The workers of Windows and Macs import the script, and would start workers of their own."""
    (tmp_path / "script.py").write_text(UNGUARDED.format(method="spawn") + start)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert 'under the line if __name__ == "__main__":' in done.stderr.splitlines()[-1]
    assert done.stderr.count("Traceback") == 1, "the worker says nothing"
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_batched_images_work_in_processes_of_their_own(noise, method):
    dataset = BatchedImages(noise.subset(slice(20)), 0, padding=4)
    plain = make_loader(dataset, 10, shuffle=True, workers=0)
    context = {"num_workers": 1, "multiprocessing_context": method}
    apart = DataLoader(dataset, 10, sampler=plain.sampler, collate_fn=tuple, **context)
    for loader in (plain, apart):
        loader.sampler.set_epoch(2)
    for (images, labels), (others, their_labels) in zip(plain, apart, strict=True):
        assert torch.equal(images, others) and torch.equal(labels, their_labels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pipeline", ["per-image", "batched"])
def test_every_batch_has_the_size_of_its_epoch(noise, pipeline, workers):
    """Workers that live on never hear of a new epoch, but for what the index says."""
    sizes, few = (16, 24), noise.subset(slice(40))
    if pipeline == "batched":
        dataset = BatchedImages(few, 0, padding=2, image_sizes=sizes, epochs=4)
    else:
        transform = train_transform(**NOTHING | {"padding": 2}, side=32)
        dataset = TransformedImages(few, transform, 0, sizes, epochs=4)
    loader = make_loader(dataset, 10, shuffle=True, workers=workers)
    for epoch, size in ((1, 16), (2, 16), (3, 24), (4, 24), (0, 32)):
        loader.sampler.set_epoch(epoch)
        shapes = [images.shape for images, _ in loader]
        assert shapes == [(10, 3, size, size)] * 4
    assert dataset[0][0].shape == (3, 32, 32), "an index alone shows the image's own size"


def test_sizes_are_shared_out_among_the_epochs():
    assert [epoch_size(epoch, 5, (16, 24, 32)) for epoch in range(1, 6)] == [16, 16, 24, 24, 32]
    assert epoch_size(0, 5, (16,)) is None and epoch_size(9, 5, (16,)) == 16
    with pytest.raises(ValueError, match="epoch 9, but the data set was made for 5"):
        epoch_size(9, 5, (16, 24))
    assert epoch_size(1, 5, ()) is None


def test_images_of_another_side_are_augmented_at_their_own():
    images = blank(30, 255, side=64)
    for dataset in augmented(images, padding=8, cutout_size=32, rotate_degrees=10, flip=True):
        pictures = seen(dataset)
        assert pictures.shape == (30, 3, 64, 64)
        assert (pictures[:, 0, :, 63] > 1).any(), "the right edge is shown, too"


def test_our_sampler_can_begin_in_the_middle_of_an_epoch():
    sampler = EpochSampler(10, seed=1)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.start = 4
    assert list(sampler) == whole[4:] and {epoch for epoch, _ in whole} == {3}
    sampler.set_epoch(3)
    assert list(sampler) == whole, "a new epoch begins at its beginning"
    assert [index for _, index in EpochSampler(5, 1, shuffle=False)] == [0, 1, 2, 3, 4]


class Folder:
    """Like torchvision's ImageFolder: items by number, and no seed."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.full((3, 8, 8), float(index)), index


@pytest.mark.parametrize("dataset", [Folder(), TensorDataset(torch.arange(12.0), torch.arange(12))])
def test_a_loader_takes_any_data_set(dataset):
    torch.manual_seed(0)
    for shuffle in (True, False):
        loader = make_loader(dataset, 5, shuffle=shuffle, workers=0)
        labels = torch.cat([labels for _, labels in loader]).tolist()
        assert sorted(labels) == list(range(12)) and (labels != sorted(labels)) is shuffle


def test_a_foreign_data_set_is_shuffled_by_pytorchs_own_seed():
    """A generator of the loader's own would give one order for all seeds."""
    orders = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        foreign = make_loader(TensorDataset(torch.arange(40)), 40, True, 0)
        orders.append(next(iter(foreign))[0].tolist())
    assert orders[0] == orders[2] != orders[1]


def test_alternating_flips_without_flips_are_refused():
    with pytest.raises(ValueError, match="needs flip=True"):
        BatchedImages(blank(4, 255), 0, alternate_flip=True)


@pytest.mark.parametrize(
    "draw, words, message",
    [
        ("draw_pictures", (0, "train"), "count must be at least 1, not 0"),
        ("draw_pairs", (0, "test"), "count must be at least 1, not 0"),
        ("draw_picture", (0, "validation", 0), "unknown split 'validation'"),
        ("draw_pair", (0, "validation", 0), "unknown split 'validation'"),
        ("draw_picture", (0, "train", -1), ""),  # NumPy's own words
        ("draw_pair", (0, "test", -1), ""),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, words, message):
    from cifar_cam_lib import drawn

    with pytest.raises(ValueError, match=message):
        getattr(drawn, draw)(*words)
