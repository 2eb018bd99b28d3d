"""The wheel holds the modules, the shipped weights and the command, and no tool that made it."""

import re
import subprocess
import sys
import tarfile
from zipfile import ZipFile

import pytest

from scripts.project import ROOT, SETTINGS


def build_wheel(source, target):
    """The wheel that pip makes of a folder or an sdist, without asking the network."""
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--use-pep517", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", target, source]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = target.glob("*.whl")
    return ZipFile(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, checkout):
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


def test_modules_and_weights_are_in_the_wheel(wheel):
    files = [
        path
        for path in (ROOT / "cifar_cam_lib").rglob("*")
        if path.suffix in {".py", ".safetensors"}
    ]
    assert {path.suffix for path in files} == {".py", ".safetensors"}
    assert {path.relative_to(ROOT).as_posix() for path in files} <= set(wheel.namelist())


def test_command_and_requirements_are_in_the_wheel(wheel):
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    command = SETTINGS["console_scripts"].replace("=", " = ")
    assert command in wheel.read(f"{folder}/entry_points.txt").decode()
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "Requires-Python: >=3.11" in metadata
    assert "Requires-Dist: torch>=2.9\n" in metadata
    assert all(
        "extra ==" in line
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: nbdev")
    )


def test_what_a_package_index_shows_is_in_the_wheel(wheel):
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "cifar_cam_lib/py.typed" in wheel.namelist()
    metadata = wheel.read(f"{folder}/METADATA").decode()
    head, _, description = metadata.partition("\n\n")
    assert "Classifier: Typing :: Typed" in head
    assert f"Project-URL: Source, {SETTINGS['git_url']}" in head
    links = re.findall(r"\]\(([^)]+)\)", description)
    assert (
        len(links) > 20 and [link for link in links if not link.startswith(("https:", "#"))] == []
    )
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", description)
    assert all("/raw/" in link or "colab" in link for link in pictures)
    points = wheel.read(f"{folder}/entry_points.txt").decode()
    assert "cifar_cam_lib = cifar_cam_lib._modidx:d" in points


def test_the_sdist_makes_the_same_wheel_and_holds_no_test(wheel, checkout, tmp_path):
    """Its tests couldn't run: they need the notebooks and records of the repository."""
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_alone.py").write_text("")  # setuptools would take it
    code = f"import setuptools.build_meta as build; build.build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {"settings.ini", "setup.py", "LICENSE", "README.md", "constraints.txt"} <= files
    assert not [name for name in files if name.startswith("tests")]
    assert set(build_wheel(sdist, tmp_path).namelist()) == set(wheel.namelist())
