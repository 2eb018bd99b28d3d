"""Tries the course where its users are: other start methods, a fresh environment, three folders.

    .venv/bin/python -m scripts.everywhere               (an hour or two; pip needs its index)
    .venv/bin/python -m scripts.everywhere --only spawn  (one of its parts)
    .venv/bin/python -m scripts.everywhere --only places --constraints colab.txt   (other versions)

`spawn`: all tests, with worker processes started as on Windows and Macs, and a failure where the
    library opens a text without saying its encoding.
`wheel`: the wheel, alone in a fresh environment. It has one build of OpenCV, the one without
    windows, and trains, evaluates and explains there. It also trains with each of the other builds
    in its place, and with three at once, as on Colab.
`places`: each notebook in that environment by papermill, from its own folder, from the repository's
    root, as VS Code may be set to, and as a single file in an empty folder.
`convert`: each notebook by nbconvert, to a script that Python reads, to a page and to slides.
`nbdev`: in a clone of the last commit what a user's CI would call. nbdev_export and nbdev_clean
    change nothing, and nbdev_proc_nbs, the first step of its documentation, gets through all pages.

A line for each thing tried, and a last one that counts the failures.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from pathlib import Path

from scripts.project import ROOT, SETTINGS

# Nothing is downloaded, and no notebook takes more than one core.
QUIET = {"IN_TEST": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
QUIET |= {"NO_ALBUMENTATIONS_UPDATE": "1"}
NOTEBOOKS = sorted(
    path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
FRONT_ENDS = ["papermill", "nbconvert", "ipykernel", "ipywidgets"]
NBDEV = [line for line in SETTINGS["dev_requirements"].split() if "<" in line]  # and what it needs
BUILDS = ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless")
# The record names OpenCV's version, whichever package it came with.
NAMED = "import json, cv2; told = json.load(open('{run}/config.json'))['versions']; "
NAMED += "assert told['opencv'] == cv2.__version__"
FIGURE = "from PIL import Image; Image.linear_gradient('L').save('picture.png')"
TRAIN = "train --epochs 1 --train-size 600 --validation-size 100 --out run"


def tried(
    what: str,  # a few words
    command: list,  # a program and its arguments
    folder: Path,  # where it runs
    **environment: str,  # variables besides those of `QUIET`
) -> bool:
    """Run a command, print how it went, and if it failed the end of what it said."""
    inherited = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "MPLBACKEND")}
    start = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=inherited | QUIET | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    well = done.returncode == 0
    print(f"{'well' if well else 'FAILED':6} {time.perf_counter() - start:6.0f} s   {what}")
    if not well:
        print("\n".join(done.stdout.splitlines()[-25:]), flush=True)
    return well


def try_spawn(*_) -> list[bool]:
    """All tests, with workers that import what they need; returns whether each step went well."""
    environment = {"START_METHOD": "spawn", "PYTHONWARNDEFAULTENCODING": "1", "MPLBACKEND": "agg"}
    strict = ["-o", r"filterwarnings=error::EncodingWarning:cifar_cam_lib(\..*)?"]
    together = ["--dist", "loadfile"]  # the tests of a file share what they start
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests",
        "-q",
        "--numprocesses",
        "auto",
        *strict,
        *together,
    ]
    return [tried("all tests with spawned workers", command, ROOT, **environment)]


def fresh_environment(
    folder: Path,  # where to
    constraints: Path,  # versions, for pip
) -> Path:
    """The Python of an environment with the wheel of this checkout, and of front ends, alone."""
    python = folder / "fresh" / ("Scripts" if os.name == "nt" else "bin") / "python"
    print("a fresh environment, in some minutes", flush=True)
    pip = ["-m", "pip", "-qq", "--disable-pip-version-check"]
    venv.create(folder / "fresh", with_pip=True)
    wheel = [sys.executable, *pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run([str(word) for word in wheel], check=True)
    install = [python, *pip, "install", "-c", constraints, *FRONT_ENDS]
    subprocess.run([str(word) for word in [*install, *folder.glob("*.whl")]], check=True)
    repair = [python, ROOT / "scripts" / "repair_torchvision.py"]
    subprocess.run([str(word) for word in repair], check=True)
    return python


def try_wheel(folder: Path, python: Path) -> list[bool]:
    """The commands in an environment that has the wheel and what it asks for, and nothing else."""
    place = folder / "wheel"
    place.mkdir()
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    listed = subprocess.run([*pip, "list"], capture_output=True, text=True, check=True).stdout
    builds = [line.split()[0] for line in listed.splitlines() if line.startswith("opencv")]
    print(f"builds of OpenCV: {', '.join(builds)}")
    command = [python.parent / "cifar-cam"]
    steps = {"--version": [*command, "--version"], "pip check": [*pip, "check"]}
    steps |= {"a picture": [python, "-c", FIGURE], "train": [*command, *TRAIN.split()]}
    steps |= {"evaluate": [*command, "evaluate", "--run", "run"]}
    steps |= {"explain": [*command, "explain", "picture.png", "--check", "--layers", "layer4"]}
    went = [tried(f"wheel: {what}", words, place) for what, words in steps.items()]
    return [builds == [BUILDS[0]], *went, *try_builds(python, place)]


def try_builds(python: Path, place: Path) -> list[bool]:
    """Short trainings with OpenCV's other builds; those with windows need a screen's libraries."""
    went, pip = [], [python, "-m", "pip", "-qq", "--disable-pip-version-check"]
    for name, builds in {**{build: [build] for build in BUILDS[1:]}, "three": BUILDS}.items():
        if name != BUILDS[2] and not find_library("GL"):
            print(f"{name}: not tried, libGL isn't on this machine")
            continue
        subprocess.run([*pip, "uninstall", "--yes", *BUILDS], check=True)
        subprocess.run([*pip, "install", "--no-deps", *builds], check=True)
        train = [python.parent / "cifar-cam", *TRAIN.replace("out run", f"out {name}").split()]
        went.append(tried(f"OpenCV's builds: {name}", train, place))
        check = [python, "-c", NAMED.format(run=name)]
        went.append(tried(f"OpenCV's builds: {name}, the record", check, place))
    subprocess.run([*pip, "uninstall", "--yes", *BUILDS], check=True)
    subprocess.run([*pip, "install", "--no-deps", BUILDS[0]], check=True)  # for what comes next
    return went


def try_places(folder: Path, python: Path) -> list[bool]:
    """Each notebook by papermill, from its folder, from the root, and alone in an empty one."""
    copy = folder / "places" / "checkout"
    shutil.copytree(ROOT / "nbs", copy / "nbs")
    shutil.copytree(ROOT / "results", copy / "results")

    def execute(place, path):
        here = {"its folder": copy / path.relative_to(ROOT).parent, "the root": copy}
        cwd = here.get(place) or Path(tempfile.mkdtemp(dir=folder))
        out = folder / "places" / f"{path.stem} from {place}.ipynb"
        command = [python, "-m", "papermill", "--no-progress-bar", path, out, "--kernel", "python3"]
        return tried(f"{path.stem} from {place}", [*command, "--cwd", cwd], cwd)

    places = ("its folder", "the root", "an empty folder")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = [pool.submit(execute, place, path) for path in NOTEBOOKS for place in places]
        return [one.result() for one in waiting]


def try_convert(folder: Path, python: Path) -> list[bool]:
    """Each notebook by nbconvert: a script that Python reads, a page, and slides."""
    went = []
    for kind, ending in (("script", ".py"), ("html", ".html"), ("slides", ".slides.html")):
        out = folder / f"as {kind}"
        command = [python, "-m", "nbconvert", "--to", kind, "--output-dir", out, *NOTEBOOKS]
        went.append(tried(f"all notebooks to {kind}", command, ROOT))
        went += [(out / f"{path.stem}{ending}").exists() for path in NOTEBOOKS]
    read = [sys.executable, "-m", "compileall", "-q", folder / "as script"]
    return [*went, tried("Python reads the scripts", read, ROOT)]


def try_nbdev(folder: Path, python: Path) -> list[bool]:
    """In a clone of the last commit what a user's CI would call."""
    copy = folder / "nbdev"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    pip = [python, "-m", "pip", "-qq", "install", "-c", ROOT / "constraints.txt"]
    went = [tried("nbdev: install", [*pip, *NBDEV], copy)]
    programs = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    for name in ("nbdev_export", "nbdev_clean"):
        went.append(tried(name, [python.parent / name], copy, PATH=programs))
    went.append(tried("nothing is changed", ["git", "diff", "--exit-code", "--stat"], copy))
    # Without Quarto, nbdev installs the copy, so this comes last.
    went.append(tried("nbdev_proc_nbs", [python.parent / "nbdev_proc_nbs"], copy, PATH=programs))
    pages = {path.name for path in (copy / "_proc").rglob("*.ipynb")}
    return [*went, {path.name for path in NOTEBOOKS if path.stem != "index"} <= pages]


PARTS = {
    "spawn": try_spawn,
    "wheel": try_wheel,
    "places": try_places,
    "convert": try_convert,
    "nbdev": try_nbdev,
}


def main() -> int:
    """Returns the exit status: 1 if anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, help="try only this part")
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    options = parser.parse_args()
    parts = [options.only] if options.only else list(PARTS)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder, python = Path(place), None
        if parts != ["spawn"]:
            python = fresh_environment(folder, options.constraints.resolve())
        went = [one for part in parts for one in PARTS[part](folder, python)]
    print(f"{len(went)} things tried, {went.count(False)} failed")
    return int(not all(went))


if __name__ == "__main__":
    sys.exit(main())
