"""Writes README.md, the tables of nbs/speed.md, and the public address in the notebooks.

    .venv/bin/python -m scripts.publish.build_readme            write them
    .venv/bin/python -m scripts.publish.build_readme --check    exit 1 if one is out of date

README.md is nbs/index.ipynb down to the line `<!-- README ends here -->`; what follows that line
is on the site's home alone. Cells marked `#| hide` are left out, `#| echo: false` leaves out a
cell's code, and a picture that a cell drew becomes a file in nbs/figures. Written here because
nbdev's own way, nbdev_readme, needs Quarto, which pip cannot install. The tables come
from results/bench, the address from settings.ini.
"""

import base64
import json
import posixpath
import re
import sys

import nbformat

from scripts.project import ROOT, SETTINGS

LINK = re.compile(r"""(\]\(|(?:src|href)=["'])(?![a-z]+:|[#/])([^)"'\s]+)""")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
END = "<!-- README ends here -->"
TABLES = re.compile(r"(<!-- tables -->).*(<!-- end of the tables -->)", re.DOTALL)
# What the speed page compares: file, part or number of images, our case, the other's.
SPEED = [
    ("training", "loader", "ours all", "albumentations all"),
    ("training", "loader", "ours crop+flip", "torchvision crop+flip"),
    ("training", "step", "ours", "tutorial"),
    ("training", "step", "ours", "kuangliu"),
    ("training", "full", "ours sgd", "convolutions"),
    ("training", "full", "ours muon", "ours sgd"),
    ("training", "full", "watching", "watching float32"),
    ("gradcam", "256", "ours", "captum"),
    ("gradcam", "256", "ours", "grad-cam"),
    ("gradcam", "256", "ours", "torchcam"),
    ("gradcam", "256", "ours whole", "torchcam"),
    ("gradcam", "20", "ours", "torchcam"),
]


def from_top(
    text,  # markdown of a page in nbs/
):
    "The same markdown with its links as seen from the top folder; code is left alone."
    parts = CODE.split(text)
    parts[::2] = [
        LINK.sub(lambda m: m[1] + posixpath.normpath(posixpath.join("nbs", m[2])), part)
        for part in parts[::2]
    ]
    return "".join(parts)


def render(
    cell,  # a notebook's cell
    pictures,  # file name to bytes; the cell's own are added
):
    "Markdown of one cell, with links as seen from nbs/; empty if it is hidden."
    if cell.cell_type == "markdown":
        return cell.source
    marks = re.findall(r"^#\|\s*(.+?)\s*$", cell.source, flags=re.MULTILINE)
    if cell.cell_type != "code" or "hide" in marks:
        return ""
    code = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE).strip()
    parts = [f"```python\n{code}\n```"] if code and "echo: false" not in marks else []
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            name = f"figures/index_{len(pictures) + 1}.png"
            pictures[name] = base64.b64decode(data["image/png"])
            parts.append(f"![{output.metadata['image/png']['alt']}]({name})")
        elif "text/markdown" in data:
            parts.append(data["text/markdown"].strip())
        else:
            text = output.get("text") or data.get("text/plain", "")
            parts.append("```text\n" + text.strip("\n") + "\n```")
    return "\n\n".join(parts)


def index():
    "The index as markdown: README.md's part, the rest for the site's home, pictures by file name."
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", as_version=4)
    pictures = {}
    text = "\n\n".join(part for cell in notebook.cells if (part := render(cell, pictures)))
    readme, _, rest = text.partition(END)
    return readme.strip() + "\n", rest.strip() + "\n", pictures


def speed_table(
    folder,  # a machine's folder in results/bench
):
    "The comparisons of one machine, from the files that `make bench` wrote there."
    files = {file: folder / f"{file}.json" for file in ("training", "gradcam")}
    records = {file: json.loads(path.read_text()) for file, path in files.items() if path.exists()}
    machine = next(iter(records.values()))["machine"]
    lines = [
        f"### {machine['cpu']}, {machine['threads']} threads\n",
        "| Ours | Compared with | Ours | The other | Ratio |",
        "|---|---|--:|--:|--:|",
    ]
    for file, part, *cases in SPEED:
        if part not in records.get(file, {}).get("numbers", {}):
            continue
        names = records[file]["cases"]
        numbers = [records[file]["numbers"][part][case] for case in cases]
        if file == "training":
            names, what = names[part], "width 64: " if part == "full" else ""
            ours, other = (number["images_per_second"] for number in numbers)
        else:
            what = f"Grad-CAM of four layers, {part} images: "
            ours, other = (int(part) / number["cpu_seconds"] for number in numbers)
        digits = 0 if file == "training" else 1
        ours_name, other_name = (names[case] for case in cases)
        lines.append(
            f"| {what}{ours_name} | {other_name} | {ours:,.{digits}f} | {other:,.{digits}f} "
            f"| {ours / other:.3g} |"
        )
    return "\n".join(lines)


def addressed(
    text,  # a notebook's file
):
    "The same with the owner and repository of settings.ini in badges, addresses and install lines."
    user, repo = SETTINGS["user"], SETTINGS["repo"]
    site = SETTINGS["doc_host"] + SETTINGS["doc_baseurl"]
    text = re.sub(rf"https://[\w-]+\.github\.io/{repo}\b", site, text)
    return re.sub(
        rf"(colab\.research\.google\.com/github/|github\.com/)[\w-]+/{repo}\b",
        rf"\g<1>{user}/{repo}",
        text,
    )


def wanted():
    "Path and content of all that is written here."
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        yield path, addressed(path.read_text(encoding="utf-8")).encode()
    readme, _, pictures = index()
    note = "<!-- Written by scripts/publish/build_readme.py from nbs/index.ipynb: change that. -->"
    yield ROOT / "README.md", f"{note}\n\n{from_top(addressed(readme))}".encode()
    for name, content in pictures.items():
        yield ROOT / "nbs" / name, content
    path = ROOT / "nbs" / "speed.md"
    folders = sorted({file.parent for file in (ROOT / "results" / "bench").glob("*/*.json")})
    tables = "\n\n".join(speed_table(folder) for folder in folders)
    text = path.read_text(encoding="utf-8")
    yield path, TABLES.sub(lambda found: f"{found[1]}\n\n{tables}\n\n{found[2]}", text).encode()


def main():
    "Returns the exit status."
    check, stale = "--check" in sys.argv, False
    for path, content in wanted():
        if not path.exists() or path.read_bytes() != content:
            stale = True
            if check:
                print(f"{path.relative_to(ROOT)} is out of date: run `make export`.")
            else:
                path.write_bytes(content)
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
