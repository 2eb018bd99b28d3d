"""Set-up: one place for settings, pins that fit the ranges, a careful repair, checks that see."""

import importlib
import importlib.util
import re
import subprocess
import sys
from importlib.metadata import distributions, entry_points, version
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from scripts import everywhere, repair_torchvision
from scripts.project import ROOT, SETTINGS
from scripts.publish.build_readme import from_top
from scripts.publish.run_notebooks import faults


@pytest.fixture
def repair(monkeypatch, tmp_path):
    """The repair script, in a virtual environment whose site-packages is `tmp_path`."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(repair_torchvision, "compiled_library_fails", lambda spec: True)
    return repair_torchvision


def test_what_is_installed_is_what_settings_say():
    assert version("cifar_cam_lib") == SETTINGS["version"]
    (command,) = entry_points(group="console_scripts", name="cifar-cam")
    assert f"cifar-cam={command.value}" == SETTINGS["console_scripts"]


def test_pins_fit_the_ranges():
    lines = [
        line.partition("#")[0].strip()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    ]
    pins = dict(re.split("==", line.lower().replace("_", "-")) for line in lines if line)
    for requirement in map(
        Requirement, (SETTINGS["requirements"] + SETTINGS["dev_requirements"]).split()
    ):
        assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement


def test_the_lowest_versions_are_those_of_the_ranges():
    """The workflow installs them together; 4.10 of OpenCV begins with 4.10.0.82."""
    lines = (ROOT / ".github" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    lowest = dict(line.split("==") for line in lines if "==" in line)
    requirements = [Requirement(line) for line in SETTINGS["requirements"].split()]
    assert {requirement.name for requirement in requirements} == set(lowest)
    for requirement in requirements:
        (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
        assert f"{lowest[requirement.name]}.".startswith(f"{bound}."), requirement


def test_what_is_pinned_runs_on_the_oldest_python():
    oldest, pinned = (
        f"{SETTINGS['min_python']}.0",
        (ROOT / "constraints.txt").read_text().lower().replace("_", "-"),
    )
    needs = {
        found.name: found.metadata["Requires-Python"]
        for found in distributions()
        if f"{found.name.lower().replace('_', '-')}==" in pinned
    }
    assert (
        len(needs) > 100
        and [
            name
            for name, range_ in needs.items()
            if range_ and not SpecifierSet(range_).contains(oldest)
        ]
        == []
    )


def test_the_library_needs_no_nbdev():
    names = {Requirement(line).name for line in SETTINGS["requirements"].split()}
    assert "torch" in names
    assert not names & {"nbdev", "fastcore", "execnb", "jupyterlab"}
    imports = re.compile(r"^\s*(?:import|from)\s+(nbdev|fastcore|execnb)\b", re.MULTILINE)
    assert [
        path.name
        for path in (ROOT / "cifar_cam_lib").glob("*.py")
        if imports.search(path.read_text())
    ] == []


def test_the_public_address_is_the_one_in_settings():
    files = [ROOT / "README.md", *(ROOT / "nbs").rglob("*.ipynb")]
    address = re.compile(rf"github(?:\.com)?/([\w-]+)/{SETTINGS['repo']}\b")
    owners = {
        owner for path in files for owner in address.findall(path.read_text(encoding="utf-8"))
    }
    assert owners <= {SETTINGS["user"]}


def test_repair_refuses_outside_a_virtual_environment(repair, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(repair, "import_error", lambda: repair.MISSING)
    assert repair.main() == 1
    assert "not in a virtual environment" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_repair_leaves_a_healthy_torchvision_alone(repair, monkeypatch, tmp_path):
    monkeypatch.setattr(repair, "import_error", lambda: "")
    assert repair.main() == 0
    assert list(tmp_path.iterdir()) == []


def test_repair_leaves_other_faults_alone(repair, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        repair, "import_error", lambda: "ModuleNotFoundError: No module named 'PIL'"
    )
    assert repair.main() == 1
    assert "No module named 'PIL'" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_repair_leaves_a_matching_compiled_library_alone(repair, monkeypatch, tmp_path):
    monkeypatch.setattr(repair, "import_error", lambda: repair.MISSING)
    monkeypatch.setattr(repair, "compiled_library_fails", lambda spec: False)
    assert repair.main() == 1
    assert list(tmp_path.iterdir()) == []


def test_repair_installs_two_files_once_and_says_so(repair, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        repair, "import_error", lambda: "" if list(tmp_path.glob("*.pth")) else repair.MISSING
    )
    for _ in range(2):
        assert repair.main() == 0
        assert "repaired" in capsys.readouterr().out
        assert {path.name for path in tmp_path.iterdir()} == {
            "repair_torchvision.pth",
            "repair_torchvision.py",
        }


def test_torch_built_for_cuda_is_left_alone(monkeypatch):
    monkeypatch.setattr("torch.version.cuda", "12.6")
    spec = importlib.util.find_spec("torchvision")
    assert not repair_torchvision.compiled_library_fails(spec)


def test_what_a_notebook_must_not_hold():
    def of(text, **metadata):
        cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text=text)])
        return list(faults(nbformat.v4.new_notebook(cells=[cell], metadata=metadata)))

    assert of("see /content/data and https://example.org/home/page") == []
    for folder in (
        "/" + "home/ann/data",
        "/" + "root/x.py:3: Warning",
        "C:" + r"\Users\ann",
        f"{ROOT}/nbs",
    ):
        assert len(of(f"saved in '{folder}'")) == 1, folder
    assert "widget" in of("", widgets={})[0]


SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "scripts").rglob("*.py")
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_fits_the_library_and_says_how_to_run_it(name):
    module = importlib.import_module(name)
    source = Path(module.__file__).read_text(encoding="utf-8")
    if 'if __name__ == "__main__"' in source:
        path = Path(module.__file__).relative_to(ROOT).as_posix()
        assert f"python -m {name}" in module.__doc__ or f"python {path}" in module.__doc__


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_is_there(path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    targets = re.findall(
        r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    for command in filter(None, commands):
        words = command.split()
        files = {word for word in words if word.endswith(".txt")} - {"colab.txt"}  # made there
        assert all((ROOT / name).exists() for name in files)
        if words[0] == "make":
            assert set(words[1:]) <= set(targets)
        elif "-m" in words and (name := words[words.index("-m") + 1]).startswith("scripts."):
            importlib.import_module(name)
        else:
            assert (
                words[:4] == ["python", "-m", "pip", "install"]
                or words[2:3] == ["pytest"]
                or words[-3:] == ["install", "--with-deps", "chromium"]
                or (words == ["bash", ".ci/run"])
            ), command
    if path.stem == "everywhere":
        assert set(jobs["parts"]["strategy"]["matrix"]["part"]) == set(everywhere.PARTS)


def test_readme_links_hold_from_the_top_folder():
    assert from_top("![map](figures/a.png) [chapter](01_data.ipynb#x)") == (
        "![map](nbs/figures/a.png) [chapter](nbs/01_data.ipynb#x)"
    )
    assert (
        from_top('<img src="figures/a.png"> [MIT](../LICENSE)')
        == '<img src="nbs/figures/a.png"> [MIT](LICENSE)'
    )
    for same in (
        "[web](https://example.org/a)",
        "[here](#part)",
        "`[code](a.png)`",
        "```\n[code](a.png)\n```",
    ):
        assert from_top(same) == same


def test_a_second_setup_does_nothing():
    if sys.prefix != str(ROOT / ".venv") or not (ROOT / ".venv" / "ready").exists():
        pytest.skip("these tests do not run in the .venv of make setup")
    result = subprocess.run(["make", "setup"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    assert "Setting up" not in result.stdout
