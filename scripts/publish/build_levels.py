"""Writes nbs/levels/README.md, which puts the three levels side by side, from the notebooks.

    .venv/bin/python -m scripts.publish.build_levels            write it
    .venv/bin/python -m scripts.publish.build_levels --check    exit 1 if it is out of date

Nothing on the page is counted by hand.
"""

import ast
import inspect
import re
import sys
from importlib import import_module

import nbformat

from cifar_cam_lib.settings import Config
from scripts.project import ROOT

FOLDER = ROOT / "nbs" / "levels"
NOTEBOOKS = ("1_all_in_one", "2_with_the_library", "3_one_call")
SECTIONS = ("Settings", "Data", "Model", "Training", "Evaluation", "Grad-CAM", "The numbers")
MODULES = ("data", "model", "training", "evaluation", "gradcam", "main")  # that CHANGES may name
PAGE = """<!-- Written by scripts/publish/build_levels.py: change the notebooks, not this. -->

# The three levels side by side

The same story three times: [1, everything in one notebook](1_all_in_one.ipynb); [2, a notebook
that calls the library](2_with_the_library.ipynb); [3, one call to main](3_one_call.ipynb). They
have the same headings in the same order, the same cell of settings, and the same last cell. That
they give the same numbers is not a promise but a test: `make test` executes all three with smaller
settings, on drawn pictures and, if it's there, on CIFAR-10; compares losses, weights, logits and
maps bit by bit; and plants changes of one line, in level 1 and in the library, each of which must
be noticed. (The last bits depend on the processor and on the number of threads: another machine may
print others, and the three agree there too. All three compute on the CPU.)

## The same numbers

What the last cell of each notebook printed, on {images}; of the last four rows, the first sixteen
hexadecimal digits of a sha256 sum:

{numbers}

## Which one, when

| level | take it to | what you see | what you can still change |
|---|---|---|---|
| 1 | understand a step, or invent another one | {lines[0]} lines, every step written out | every line |
| 2 | exchange a part: your images, your network, your layers | {lines[1]} lines, {names} names of the library | the order, and every argument; any part can be replaced by your own |
| 3 | compare settings, run for hours, continue after an interruption | {lines[2]} lines, of which one does the work | {settings} settings (`Config`) |

{changes}

## How much there is to read

Lines of code, without empty lines and comments.

{counted}

{beside}
"""  # noqa: E501
# What a learner may want to do; that the names in it exist is checked.
CHANGES = """
| you want | level 1 | level 2 | level 3 |
|---|---|---|---|
| another learning rate, width or seed | the settings | the settings | the settings |
| another augmentation | edit the list | any Albumentations transform that ends with `normalise_steps`, for `TransformedImages` | `Config.rotate_degrees`, `Config.padding`, `Config.flip`, `Config.cutout_size` |
| your own images | edit the first cell of Data | `LabelledImages` instead of `load_images` | no setting; `make_loaders` and `record_run` take them |
| another network | edit the class | any module instead of `resnet18`, and `gradcam(layers=...)` | its `Config.width` |
| another rule for the weights | edit two lines | any optimizer and schedule for `Training` | `Config.optimizer`, `Config.schedule` and their numbers |
| a stop when it gets worse | add it to the loop | leave the loop over `fit` | no setting |
| small images first | write it | `TransformedImages(image_sizes=...)` | `Config.image_sizes` |
| smoothed labels, an L1 penalty | write it | `make_loss`, or any function of logits and labels, for `fit(loss_function=...)` | `Config.label_smoothing`, `Config.l1_factor` |
| Grad-CAM of other layers | edit the names | `gradcam(layers=...)` | no setting; afterwards `gradcam(layers=...)`, or, for picture files, `explain(layers=...)` |
| TensorBoard, saved weights, continuing later | write it | `log_epoch`, `save_weights`, `save_state`, `load_state` | it is there |
"""  # noqa: E501


def sections(
    path,  # a level's notebook
):
    """The code cells under each heading, {heading: [source, ...]}; none above the first heading."""
    found, cells = {}, []
    for cell in nbformat.read(path, as_version=4).cells:
        for line in cell.source.splitlines() if cell.cell_type == "markdown" else []:
            if line.startswith("## "):
                cells = found.setdefault(line[3:], [])
        if cell.cell_type == "code":
            cells.append(cell.source)
    return found


def code_lines(
    source,  # of a cell
):
    """Its lines without empty ones, comments and directives."""
    return [line for line in source.splitlines() if not re.match(r"\s*(#|$)", line)]


def table(
    rows,  # of texts; the first one is the head
):
    """Markdown."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


def counts(
    levels,  # `sections` of the three notebooks
):
    """The table of lines, and their sums."""
    numbers = [
        [sum(len(code_lines(cell)) for cell in level[heading]) for level in levels]
        for heading in SECTIONS
    ]
    sums = [sum(column) for column in zip(*numbers)]
    rows = [("", "level 1", "level 2", "level 3")]
    rows += [(heading, *map(str, row)) for heading, row in zip(SECTIONS, numbers)]
    return table([*rows, ("**all**", *(f"**{number}**" for number in sums))]), sums


def imported_names(
    level,  # from `sections`
):
    """The names that a level takes from our library."""
    nodes = [node for cells in level.values() for cell in cells for node in ast.parse(cell).body]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("cifar_cam_lib")]
    return {alias.name for node in ours for alias in node.names}


def saved_numbers(
    paths,  # the three notebooks
):
    """What the last code cells printed, as a table, and the source of the images.

    Raises SystemExit if the notebooks were saved with different images.
    """
    rows, sources = [["", "level 1", "level 2", "level 3"]], set()
    for path in paths:
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
        sources |= set(re.findall(r"^Images: ([\w -]+\w)", "\n".join(printed), re.MULTILINE))
        lines = re.findall(r"^(.+?) +([0-9.]+%|[0-9a-f]{16})$", printed[-1], re.MULTILINE)
        rows += [[name] for name, _ in lines] if len(rows) == 1 else []
        for row, (_, value) in zip(rows[1:], lines):
            row.append(f"`{value}`")
    if len(sources) != 1:
        named = ", ".join(sorted(sources)) or "none named"
        raise SystemExit(f"the levels were saved with different images: {named}")
    return table(rows), sources.pop()


def beside(
    levels,  # `sections` of the three notebooks
):
    """The code of the three levels under each other, folded, for each section but the last."""
    parts = [
        "## The code, section by section",
        "Open a section to read it at the three levels, one after the other.",
    ]
    for heading in SECTIONS[:-1]:
        codes = [
            re.sub(r"^#\|.*\n", "", "\n\n".join(level[heading]), flags=re.MULTILINE)
            for level in levels
        ]
        blocks = [f"Level {n}\n\n```python\n{code}\n```" for n, code in enumerate(codes, 1)]
        parts.append("\n\n".join([f"<details><summary>{heading}</summary>", *blocks, "</details>"]))
    return "\n\n".join(parts)


def check_names(
    text,  # markdown
):
    """Raises SystemExit if a name in backticks isn't of the library, or has no such argument."""
    known = {}
    for module in MODULES:
        known |= vars(import_module(f"cifar_cam_lib.{module}"))
    for name, argument in re.findall(r"`(\w[\w.]*)(?:\((\w+)=\.\.\.\))?`", text):
        if name not in known and name.removeprefix("Config.") not in Config.model_fields:
            raise SystemExit(f"build_levels names {name}, which is not in the library")
        if argument and argument not in inspect.signature(known[name]).parameters:
            raise SystemExit(f"build_levels names {name}({argument}=...): it has no such argument")


def build(
    folder=FOLDER,  # that holds the three notebooks
):
    """The page as markdown. Raises SystemExit if the notebooks don't fit each other."""
    paths = [folder / f"{name}.ipynb" for name in NOTEBOOKS]
    levels = [sections(path) for path in paths]
    for path, level in zip(paths, levels):
        if tuple(level) != SECTIONS:
            headings, expected = ", ".join(level), ", ".join(SECTIONS)
            raise SystemExit(f"{path.name} has the headings {headings}, expected {expected}")
    check_names(CHANGES)
    numbers, images = saved_numbers(paths)
    counted, lines = counts(levels)
    return PAGE.format(
        numbers=numbers,
        images=images,
        lines=lines,
        names=len(imported_names(levels[1])),
        settings=len(Config.model_fields),
        changes=CHANGES.strip(),
        counted=counted,
        beside=beside(levels),
    )


def main():
    """Returns the exit status."""
    page, text = FOLDER / "README.md", build()
    if "--check" not in sys.argv:
        page.write_text(text, encoding="utf-8")
    elif not page.exists() or page.read_text(encoding="utf-8") != text:
        print("nbs/levels/README.md is out of date: run `make export`.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
