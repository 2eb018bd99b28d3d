"""What the tests share: CIFAR-10 if present, one small finished run, a copy for pip, a browser."""

import multiprocessing
import os
import shutil
from pathlib import Path

if "START_METHOD" in os.environ:  # `make everywhere`: as on Windows and Macs
    multiprocessing.set_start_method(os.environ["START_METHOD"], force=True)
    if "PYTEST_XDIST_WORKER" in os.environ:  # which has read it; the tests' own processes needn't
        os.environ.pop("PYTHONWARNDEFAULTENCODING", None)
os.environ["IN_TEST"] = "1"  # nothing is downloaded
os.environ["TQDM_DISABLE"] = "1"

import matplotlib.pyplot as plt
import pytest

from cifar_cam_lib import gradcam, main
from cifar_cam_lib.data import default_root, verify_cifar10
from cifar_cam_lib.main import run
from cifar_cam_lib.settings import Config
from scripts.project import ROOT

SMALL = {
    "device": "cpu",
    "train_size": 300,
    "validation_size": 60,
    "width": 4,
    "epochs": 2,
    "image_sizes": (16,),
    "batch_size": 20,
}


LONGEST = (
    "test_levels",
    "test_main",
    "test_planted_bugs",
    "test_site",
    "test_browser",
    "test_processes",
    "test_results",
)


def small(
    **changes,  # settings that are to be others
) -> Config:
    """The settings of a run that takes seconds."""
    return Config(**SMALL | changes)


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process is left alone with one of them."""
    names = [*LONGEST, None]

    def place(item):
        return names.index(item.path.stem if item.path.stem in LONGEST else None)

    items.sort(key=place)


@pytest.fixture(scope="session")
def cifar10_root():
    """The folder of real CIFAR-10; tests that need it are skipped if it's absent."""
    root = default_root()
    if not (root / "cifar-10-batches-py").exists():
        pytest.skip("CIFAR-10 is not on this machine: set CIFAR_CAM_DATA to its folder")
    verify_cifar10(root)
    return root


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The result of two short epochs on drawn pictures; do not change its folder."""
    return run(small(out=tmp_path_factory.mktemp("runs") / "small"))


@pytest.fixture
def no_figures(monkeypatch):
    """Two thirds of the time of a small run go into its figures; here they stay empty."""
    for name in ("show_augmented", "draw_network", "plot_history", "plot_confusion_matrix"):
        monkeypatch.setattr(main, name, lambda *words: plt.figure())
    monkeypatch.setattr(main, "show_mistakes", lambda *words: plt.figure())
    monkeypatch.setattr(gradcam, "show_gradcam", lambda *words: plt.figure())
    monkeypatch.setattr(main.runs, "save_figure", lambda figure, *rest: plt.close(figure))


@pytest.fixture
def homeless(monkeypatch):
    """As in a container with an unknown user and no HOME."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CIFAR_CAM_DATA", raising=False)
    monkeypatch.setattr(Path, "home", no_home)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of what pip needs, because building leaves folders beside setup.py."""
    folder = tmp_path_factory.mktemp("checkout")
    files = ("settings.ini", "setup.py", "MANIFEST.in", "LICENSE", "README.md", "constraints.txt")
    for name in files:
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cifar_cam_lib", folder / "cifar_cam_lib", ignore=ignored)
    return folder


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window; tests that need it are skipped if it's absent."""
    from playwright.sync_api import sync_playwright

    from scripts.publish.try_screenshot import find_chromium

    with sync_playwright() as playwright:
        program = find_chromium(playwright)
        if not program:
            advice = "apt install chromium, or playwright install chromium"
            pytest.skip(f"Chromium is not on this machine: {advice}")
        chromium = playwright.chromium.launch(executable_path=program)
        yield chromium
        chromium.close()
