"""Writes Colab's packages as constraints for pip, to try the library with what a learner has there.

    .venv/bin/python -m scripts.colab_constraints --freeze FILE_OR_URL --out FILE

Colab publishes a `pip freeze` of its image; without --freeze, that of the runtime that a badge
opens is fetched. Of a build of its own ("+cu128", or the address of a wheel) the bare version
stays. Everything is pinned, needed or not: a pin of a package that nobody asks for changes nothing,
and what our packages need in turn is theirs to know. Three kinds are left out:

- what has no version on a package index: an archive of Colab's, a checkout;
- the CUDA packages, which go with one build of torch, and pip may get another;
- what lies outside the ranges of settings.ini, for there pip takes another version on Colab, too.

Then, with the Python that the file names:

    pip install -c FILE cifar_cam_lib
"""

import argparse
import re
import sys
from datetime import date
from pathlib import Path
from urllib.parse import unquote

import requests
from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from scripts.project import SETTINGS

FREEZE = "https://raw.githubusercontent.com/googlecolab/backend-info/main/pip-freeze.txt"
PIN = re.compile(r"([\w.-]+)==(\S+)")
WHEEL = re.compile(r"[\w.-]+ @ \S+/([^/#\s]+\.whl)(#\S*)?")
OF_ONE_BUILD = re.compile(r"nvidia-|cuda-|triton$")  # by the name's beginning


def read(
    place: str,  # a file, or an address that begins with https://
) -> str:
    """The text that is there."""
    if not place.startswith("https://"):
        return Path(place).read_text(encoding="utf-8")
    answer = requests.get(place, timeout=30)
    answer.raise_for_status()
    return answer.text


def read_python(
    place: str,  # where the freeze is
) -> str:
    """The version of Colab's Python, from the file os-info beside the freeze; "?" if unknown."""
    folder, slash, name = place.rpartition("/")
    name = name.replace("pip-freeze", "os-info").replace(".gpu", "-gpu").replace(".tpu", "-tpu")
    try:
        found = re.search(r"^Python (\S+)", read(folder + slash + name), re.MULTILINE)
    except (OSError, ValueError):  # requests' own errors are OSErrors
        found = None
    return found[1] if found else "?"


def read_line(
    line: str,  # of a freeze
) -> tuple[str, str] | None:
    """A package and its version without the mark of a build; None where an index has none."""
    try:
        if pin := PIN.fullmatch(line):
            return canonicalize_name(pin[1]), Version(pin[2]).public
        if wheel := WHEEL.fullmatch(line):
            name, version, *_ = parse_wheel_filename(unquote(wheel[1]))
            return name, version.public
    except (InvalidVersion, InvalidWheelFilename):
        pass
    return None


def read_pins(
    freeze: str,  # what `pip freeze` printed
) -> dict[str, str]:
    """The versions by the names of the packages, sorted, without those that go with one build."""
    found = filter(None, (read_line(line.strip()) for line in freeze.splitlines()))
    return {name: version for name, version in sorted(found) if not OF_ONE_BUILD.match(name)}


def compare(
    pins: dict[str, str],  # versions by names
    requirements: list[str],  # lines as in settings.ini
) -> tuple[list[str], list[str]]:
    """The names of what the library needs and isn't there, and of what is there and doesn't fit."""
    missing, unfit = [], []
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        if name not in pins:
            missing.append(name)
        elif not requirement.specifier.contains(pins[name], prereleases=True):
            unfit.append(name)
    return missing, unfit


def write_constraints(
    place: str,  # where the freeze is: a file or an address
    source: str,  # the same for readers
    out: Path,  # the file to write
) -> str:
    """Write the file; returns the lines at its head, without their marks."""
    pins = read_pins(read(place))
    if "torch" not in pins:
        sys.exit(f"{place} holds no version of torch, so it's no `pip freeze` of Colab.")
    missing, unfit = compare(pins, SETTINGS["requirements"].split())
    head = [
        f"Colab's packages, from {source}, read on {date.today()}.",
        f"For Python {read_python(place)}. Made by scripts/colab_constraints.py.",
        f"Not there, so pip takes the newest: {', '.join(missing) or 'nothing'}.",
        "There, but outside the ranges of settings.ini, so not pinned: "
        + (", ".join(f"{name} {pins.pop(name)}" for name in unfit) or "nothing")
        + ".",
    ]
    lines = [f"# {line}" for line in head]
    lines += [f"{name}=={version}" for name, version in pins.items()]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "\n".join(head)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--freeze", default=FREEZE, help="a file or an address (%(default)s)")
    parser.add_argument("--source", help="what to call it in the file, as an address with a commit")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    options = parser.parse_args()
    try:
        print(write_constraints(options.freeze, options.source or options.freeze, options.out))
    except OSError as error:  # a file or an address that isn't there
        sys.exit(f"{options.freeze} can't be read, or {options.out} not written: {error}")


if __name__ == "__main__":
    main()
