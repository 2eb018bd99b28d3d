"""What the tests share: CIFAR-10 where it is present, one small finished run, a copy for pip, and a browser."""

import os
import shutil
from pathlib import Path

os.environ["IN_TEST"] = "1"  # nothing is downloaded
os.environ["TQDM_DISABLE"] = "1"

import pytest

from cifar_cam_lib.data import check_cifar10, default_root
from cifar_cam_lib.main import Config, run

SMALL = Config(device="cpu", train_size=300, validation_size=60, width=4, epochs=2, image_sizes=(16,), batch_size=20)


LONGEST = ("test_levels", "test_main", "test_planted_bugs", "test_site", "test_browser", "test_results")


def pytest_collection_modifyitems(items):
    "The longest files first, so that no process is left alone with one of them."
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def cifar10_root():
    "The folder of real CIFAR-10; tests that need it are skipped where it is absent."
    try:
        check_cifar10(default_root())
    except FileNotFoundError:
        pytest.skip("CIFAR-10 is not on this machine: set CIFAR_CAM_DATA to its folder")
    return default_root()


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    "The result of two short epochs on drawn pictures; do not change its folder."
    from dataclasses import replace

    return run(replace(SMALL, out=tmp_path_factory.mktemp("runs") / "small"))


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    "A copy of what pip needs, for building leaves folders beside setup.py."
    root, folder = Path(__file__).resolve().parent.parent, tmp_path_factory.mktemp("checkout")
    for name in ("settings.ini", "setup.py", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(root / name, folder)
    shutil.copytree(root / "cifar_cam_lib", folder / "cifar_cam_lib", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="session")
def browser():
    "Chromium without a window; tests that need it are skipped where it is absent."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        programs = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")] + [playwright.chromium.executable_path]
        program = next((program for program in programs if program and os.path.exists(program)), None)
        if program is None:
            pytest.skip("Chromium is not on this machine: apt install chromium, or playwright install chromium")
        chromium = playwright.chromium.launch(executable_path=program)
        yield chromium
        chromium.close()
