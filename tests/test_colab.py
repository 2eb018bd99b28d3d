"""The first cell of each notebook, in an environment like Colab's.

Torch, numpy and a newer fastcore are there, the library is not. Nothing is fetched: the environment
sees this one's packages, and pip installs from a copy of this checkout.
"""

import json
import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import nbformat
import pytest

from scripts.project import ROOT, SETTINGS

NOTEBOOKS = sorted(
    path for path in (ROOT / "nbs").rglob("*.ipynb") if path.stem not in ("index", "the_original")
)
INSTALLED = """
import json
from importlib.metadata import distributions

print(json.dumps([f"{found.name}=={found.version}" for found in distributions()]))
"""
RUN = """
import sys

import nbformat
from nbclient import NotebookClient

NotebookClient(nbformat.read(sys.argv[1], 4), timeout=300).execute()
"""


def first_cell(path):
    return next(
        cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    ).source


def test_each_notebook_that_needs_the_library_begins_with_the_same_cell():
    imports = re.compile(r"^(from|import) cifar_cam_lib", re.MULTILINE)
    needy = [
        path
        for path in NOTEBOOKS
        if any(imports.search(cell.source) for cell in nbformat.read(path, as_version=4).cells)
    ]
    assert (
        len(needy) >= 9
        and len({first_cell(path) for path in needy}) == 1
        and "%pip install" in first_cell(needy[0])
    )


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """The Python of an environment that sees the packages of this one, and fastcore 2.

    The library is not among them.
    """
    folder = tmp_path_factory.mktemp("colab")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    (folder / "seen").mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.lower().startswith(
            ("cifar_cam_lib", "__editable__", "fastcore", "nbdev", "execnb", "ghapi")
        ):
            (folder / "seen" / path.name).symlink_to(path)
    (own / "colab.pth").write_text(f"{folder / 'seen'}\n")
    (own / "fastcore-2.0.3.dist-info").mkdir()
    (own / "fastcore-2.0.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fastcore\nVersion: 2.0.3\n"
    )
    (own / "fastcore").mkdir()
    (own / "fastcore" / "__init__.py").write_text(
        "raise ImportError('the library must not need fastcore')\n"
    )
    return folder / "venv" / "bin" / "python"


def on_colab(python, *arguments, log):
    """What a program prints there, where pip keeps a log of what it does."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))
    }
    environment |= {
        "PIP_LOG": str(log),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_USE_PEP517": "1",
        "IN_TEST": "1",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
    done = subprocess.run(
        [python, *arguments], env=environment, cwd=log.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_cell_installs_the_library_once_and_touches_nothing_else(
    colab, checkout, tmp_path
):
    log = tmp_path / "pip.log"
    # one that is done in seconds and needs no torchvision
    notebook = nbformat.read(ROOT / "nbs" / "appendix_drawn.ipynb", as_version=4)
    install = next(cell for cell in notebook.cells if cell.cell_type == "code")
    address = install.source.split("@ ")[1].split('"')[0]
    install.source = install.source.replace(address, checkout.as_uri())
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    before = set(json.loads(on_colab(colab, "-c", INSTALLED, log=log)))
    assert (
        not any(name.startswith("cifar_cam_lib") for name in before) and "fastcore==2.0.3" in before
    )
    assert any(name.startswith("torch==") for name in before)

    on_colab(colab, "-c", RUN, tmp_path / "chapter.ipynb", log=log)  # installs, then teaches
    assert set(json.loads(on_colab(colab, "-c", INSTALLED, log=log))) == before | {
        f"cifar_cam_lib=={SETTINGS['version']}"
    }
    where = on_colab(colab, "-c", "import cifar_cam_lib; print(cifar_cam_lib.__file__)", log=log)
    assert where.startswith(str(colab.parent.parent))

    first = log.read_text()
    on_colab(colab, "-c", RUN, tmp_path / "chapter.ipynb", log=log)
    assert log.read_text() == first and "cifar_cam_lib" in first, (
        "the second time, pip is not asked"
    )
