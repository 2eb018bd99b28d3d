"""JupyterLab and TensorBoard as a learner meets them: in a browser, with mouse and keyboard."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from scripts.project import ROOT

WINDOW = {"width": 1400, "height": 1000}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def serving(command, address, log, **options):
    """Run a server until the block ends; its address answers when the block begins."""
    with (
        log.open("w") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **options) as process,
    ):
        try:
            for _ in range(120):
                with contextlib.suppress(URLError, ConnectionError):
                    urlopen(address, timeout=5).close()
                    break
                assert process.poll() is None, log.read_text()
                time.sleep(0.5)
            else:
                pytest.fail(f"no answer from {address}: {log.read_text()}")
            yield
        finally:
            process.terminate()


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab on a copy of the notebooks, and the folder of the copy."""
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs")
    port, own = free_port(), tmp_path / "jupyter"
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(own),
        "JUPYTERLAB_SETTINGS_DIR": str(own),
        "JUPYTERLAB_WORKSPACES_DIR": str(own),
        "PYTHONPATH": str(ROOT),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={tmp_path / 'nbs'}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with serving(
        command, f"http://127.0.0.1:{port}/api", tmp_path / "lab.log", env=environment, cwd=tmp_path
    ):
        yield f"http://127.0.0.1:{port}", tmp_path / "nbs"


def run_all_cells(tab, path):
    """Through the menu, as a learner does.

    Returns the code cells of the notebook as JupyterLab saves it, when each has run.
    """
    tab.get_by_text("| Idle").wait_for(timeout=120_000)  # the kernel is ready
    tab.get_by_role("menuitem", name="Run", exact=True).click()
    tab.locator(".lm-Menu-itemLabel").get_by_text("Run All Cells", exact=True).click()
    for _ in range(300):
        tab.wait_for_timeout(1000)
        tab.keyboard.press("Control+s")
        try:
            cells = [
                cell
                for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
                if cell["cell_type"] == "code"
            ]
        except json.JSONDecodeError:
            continue  # JupyterLab is just writing it
        if all(cell["execution_count"] for cell in cells) or any(
            error for cell in cells for error in errors(cell)
        ):
            return cells
    pytest.fail("some cells did not run within five minutes")


def errors(cell):
    return [output["evalue"] for output in cell["outputs"] if output["output_type"] == "error"]


def test_a_chapter_runs_through_the_menu_of_jupyterlab_and_its_explorer_follows_the_slider(
    lab, browser, tmp_path
):
    address, notebooks = lab
    tab = browser.new_page(viewport=WINDOW)
    tab.goto(f"{address}/lab/tree/05_gradcam.ipynb?reset")
    cells = run_all_cells(tab, notebooks / "05_gradcam.ipynb")
    assert [error for cell in cells for error in errors(cell)] == []
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))

    slider = tab.get_by_role("slider").first
    slider.scroll_into_view_if_needed()
    before = tab.locator(".widget-interact img").get_attribute("src")
    tab.screenshot(path=tmp_path / "explorer-before.png")
    slider.press("ArrowRight")
    tab.wait_for_function(
        """before => {
            const image = document.querySelector('.widget-interact img');
            return image?.src && image.src !== before;
        }""",
        arg=before,
        timeout=60_000,
    )
    tab.screenshot(path=tmp_path / "explorer-after.png")
    assert float(slider.get_attribute("aria-valuenow")) == 3
    tab.close()


def test_tensorboard_shows_the_curves_of_a_run(small_run, browser, tmp_path):
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        small_run.folder / "tb",
        "--port",
        str(port),
    ]
    with serving(command, f"http://127.0.0.1:{port}/data/runs", tmp_path / "tensorboard.log"):
        tab = browser.new_page(viewport=WINDOW)
        tab.goto(f"http://127.0.0.1:{port}/#timeseries")
        for name in ("accuracy/train", "accuracy/validation"):
            card = tab.locator("card-view").filter(has=tab.get_by_title(name))
            card.locator("line-chart").wait_for(timeout=60_000)
            last = small_run.history.epochs[-1]["_".join(reversed(name.split("/")))]
            number = re.compile(rf"\b{re.escape(f'{last:.4g}'[:5])}")
            table = card.locator("scalar-card-data-table").filter(has_text=number)
            table.wait_for(timeout=60_000)  # the numbers come after the curve
        tab.screenshot(path=tmp_path / "tensorboard.png")
        tab.close()
