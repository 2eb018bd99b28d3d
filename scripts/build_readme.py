"""Writes README.md from nbs/index.ipynb, and the public address of settings.ini into the notebooks.

    .venv/bin/python scripts/build_readme.py            write them
    .venv/bin/python scripts/build_readme.py --check    exit 1 where it is out of date

Cells marked `#| hide` are left out, `#| echo: false` leaves out a cell's code and `#| output: false` its output; links
are rewritten to hold from the top folder. Written here because nbdev's own way, nbdev_readme, needs Quarto, which pip
cannot install.
"""

import posixpath
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"""(\]\(|(?:src|href)=["'])(?![a-z]+:|[#/])([^)"'\s]+)""")


def from_top(
    text,  # markdown as it stands in nbs/
):
    "The same markdown with its links as seen from the top folder; code is left alone."
    parts = re.split(r"(^```.*?^```$|`[^`\n]*`)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [LINK.sub(lambda m: m[1] + posixpath.normpath(posixpath.join("nbs", m[2])), p) for p in parts[::2]]
    return "".join(parts)


def render(
    cell,  # a notebook's cell
):
    "Markdown of one cell; empty where it is hidden."
    if cell.cell_type == "markdown":
        return from_top(cell.source)
    marks = re.findall(r"^#\|\s*(.+?)\s*$", cell.source, flags=re.MULTILINE)
    if cell.cell_type != "code" or {"hide", "include: false"} & set(marks):
        return ""
    code = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE).strip()
    parts = [] if "echo: false" in marks or not code else [f"```python\n{code}\n```"]
    for output in cell.outputs if "output: false" not in marks else []:
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            raise SystemExit("nbs/index.ipynb: a cell's output is a picture; save it to a file and link that file.")
        if "text/markdown" in data:
            parts.append(from_top(data["text/markdown"].strip()))
        else:
            parts.append("```text\n" + (output.get("text") or data.get("text/plain", "")).strip("\n") + "\n```")
    return "\n\n".join(parts)


def write_address(
    path,  # a notebook's file
    check,  # change nothing
):
    "Put the owner and repository of settings.ini into badges and install lines; returns whether that changes the file."
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    address = f"{settings['DEFAULT']['user']}/{settings['DEFAULT']['repo']}"
    old = path.read_text(encoding="utf-8")
    new = re.sub(r"(colab\.research\.google\.com/github/|git\+https://github\.com/)[\w-]+/[\w-]+", rf"\g<1>{address}", old)
    if not check and new != old:
        path.write_text(new, encoding="utf-8")
    return new != old


def main():
    "Returns the exit status."
    check = "--check" in sys.argv
    stale = [path for path in sorted((ROOT / "nbs").rglob("*.ipynb")) if write_address(path, check)]
    if check and stale:
        print(f"{stale[0].name} shows another address than settings.ini: run `make export`.")
        return 1
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    text = "\n\n".join(part for part in map(render, notebook.cells) if part)
    text = "<!-- Written by scripts/build_readme.py from nbs/index.ipynb: change that, not this. -->\n\n" + text + "\n"
    readme = ROOT / "README.md"
    if check:
        stale = not readme.exists() or readme.read_text(encoding="utf-8") != text
        if stale:
            print("README.md is out of date: run `make export`.")
        return int(stale)
    readme.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
