"""Where images come from, and what happens when a file of CIFAR-10 is missing or damaged."""

import os
import shutil
import urllib.error

import numpy as np
import pytest

from cifar_cam_lib import data
from cifar_cam_lib.data import CIFAR10, CIFAR10_MEAN, CIFAR10_STD, channel_statistics, check_cifar10, choose_source, fetch_cifar10, load_images
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
