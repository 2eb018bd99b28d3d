"""Writes nbs/levels/README.md, which puts the three levels side by side, from the notebooks.

    .venv/bin/python -m scripts.publish.build_levels            write it
    .venv/bin/python -m scripts.publish.build_levels --check    exit 1 if it is out of date

Nothing on the page is counted by hand. Its picture, nbs/figures/levels.svg, is written here, too.
"""

import ast
import inspect
import json
import re
import statistics
import sys
from importlib import import_module
from types import SimpleNamespace

import nbformat
import torch

from cifar_cam_lib.settings import Config
from scripts.project import ROOT

FOLDER = ROOT / "nbs" / "levels"
NOTEBOOKS = ("1_all_in_one", "2_with_the_library", "3_one_call")
SECTIONS = (
    "Settings",
    "Data",
    "Model",
    "Training",
    "Evaluation",
    "Grad-CAM",
    "The numbers",
    "A change",
)
MODULES = (  # that CHANGES may name
    "runs",
    "data",
    "model",
    "training",
    "evaluation",
    "gradcam",
    "main",
)
RECORD = ROOT / "results" / "levels.json"
PICTURE = ROOT / "nbs" / "figures" / "levels.svg"
PAGE = """<!-- Written by scripts/publish/build_levels.py: change the notebooks, not this. -->

# The three levels side by side

The same network is trained three times, from the same pictures, with the same numbers in the end. What differs is how much of it you see.

![Three cards. Level 1, everything in one notebook: five steps, each a stack of lines, all of them open. Level 2, a notebook that calls the library: the same five steps as boxes with names, one of them pulled out and another one pushed in. Level 3, one call: a single box called run, and three results that come out of it.](../figures/levels.svg)

1. **[Everything in one notebook](1_all_in_one.ipynb)** shows every line. Stay here to understand a step, or to invent another one. Leave when you need a second network, because then you'd have to copy.
2. **[A notebook that calls the library](2_with_the_library.ipynb)** gives each step a name, and so you can take one out and put yours in. Stay here to work with your own network or your own pictures. Leave when you only turn knobs.
3. **[One call](3_one_call.ipynb)** makes the whole a line. Stay here to ask what needs many trainings, or long ones. Go back when no setting asks your question.

If you read them in this order, each begins where the one before hurt: level 1 ends with three learning rates and the names that they overwrote, level 2 with another network and another data set, level 3 with three seeds, their mean and their spread.

## The same numbers

All 50,000 training images, a thousand of them held back, {recipe}: that's what the saved notebooks show. Under "The numbers" they printed this; of the last four rows, the first sixteen hexadecimal digits of a sha256 sum.

{numbers}

{measured}

That the three agree is not a promise but a test. `make test` executes all of them with smaller settings, on drawn pictures and, if it's there, on CIFAR-10; compares losses, weights, logits and maps bit by bit; and plants changes of one line, in level 1 and in the library, each of which must be noticed. Another test notices when the code has changed since the notebooks were saved. (The last bits depend on the processor and on the number of threads. Another machine may print others, and the three agree there, too.)

## Which one, when

| level | take it to | what you see | what you can still change |
|---|---|---|---|
| 1 | understand a step, or invent another one | {lines[0]} lines, every step written out | every line |
| 2 | exchange a part: your images, your network, your layers | {lines[1]} lines, {names} names of the library | the order, and every argument; any part can be replaced by your own |
| 3 | compare settings, run for hours, continue after an interruption | {lines[2]} lines, of which one does the work | {settings} settings (`Config`) |

{changes}

## How much there is to read

Lines of code, without empty lines and comments. The last section of each is an experiment of its own.

{counted}

{beside}
"""  # noqa: E501
# What a learner may want to do; that the names in it exist is checked.
CHANGES = """
| you want | level 1 | level 2 | level 3 |
|---|---|---|---|
| another learning rate, width or seed | the settings | the settings | the settings |
| another augmentation | edit the list | any Albumentations transform that ends with `normalise_steps`, for `TransformedImages` | `Config.padding`, `Config.flip`, `Config.rotate_degrees`, `Config.cutout_size` |
| your own images | edit the first cell of Data | `LabelledImages` instead of `load_images` | no setting; `make_loaders` and `record_run` take them |
| another network | edit the class | any module instead of `resnet18`, and `gradcam(layers=...)` | its `Config.width` |
| another rule for the weights | edit two lines | any optimizer and schedule for `Training` | `Config.optimizer`, `Config.schedule` and their numbers |
| a stop when it gets worse | add it to the loop | leave the loop over `fit` | no setting |
| no small images first | the settings | the settings | the settings |
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


def printed(
    path,  # a level's notebook
):
    """What its cells printed when it was saved."""
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    return "\n".join(output.get("text", "") for cell in cells for output in cell.outputs)


def printed_numbers(
    path,  # a level's notebook
):
    """Name and value of each line of the numbers that it printed: two accuracies, fingerprints."""
    names = "validation accuracy|test accuracy|history|weights|predictions|maps"
    return re.findall(rf"^({names}) +([0-9.]+%|[0-9a-f]{{16}})$", printed(path), re.MULTILINE)


def settings(
    path,  # a level's notebook
):
    """The source of its cell of settings."""
    return sections(path)["Settings"][0]


def saved_numbers(
    paths,  # the three notebooks
):
    """What the levels printed in the end, as a table, and the source of the images.

    Raises SystemExit if the notebooks were saved with different images.
    """
    rows, sources = [["", "level 1", "level 2", "level 3"]], set()
    for path in paths:
        sources |= set(re.findall(r"^Images: ([\w -]+\w)", printed(path), re.MULTILINE))
        lines = printed_numbers(path)
        rows += [[name] for name, _ in lines] if len(rows) == 1 else []
        for row, (_, value) in zip(rows[1:], lines):
            row.append(f"`{value}`")
    if len(sources) != 1:
        named = ", ".join(sorted(sources)) or "none named"
        raise SystemExit(f"the levels were saved with different images: {named}")
    return table(rows), sources.pop()


BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#b8b8b8"
STEPS = {  # step: what level 2 calls for it, and how many lines it is drawn with at level 1
    "data": ("load_images", 8),
    "model": ("resnet18", 7),
    "training": ("fit", 6),
    "mistakes": ("find_mistakes", 4),
    "maps": ("gradcam", 5),
}


def words(x, y, text, size=15, colour="#222222", style="", anchor="middle"):
    """A text of the picture; `style` is CSS."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'style="{style}">{text}</text>'
    )


def box(x, y, width, height, fill, stroke="none", dash=""):
    """A rectangle of the picture."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="1.5" stroke-dasharray="{dash}"/>'
    )


def card(number, title, length, advice):
    """Frame, title and foot of a level's card; the first one begins at 10, each is 280 wide."""
    left = 10 + 300 * (number - 1)
    yield box(left, 10, 280, 400, "#ffffff", GREY)
    yield words(left + 140, 40, f"{number}. {title}", 17, style="font-weight:bold")
    yield words(left + 140, 62, f"{length} lines", 14, "#555555")
    yield words(left + 140, 396, advice, 14, style="font-style:italic")


def open_steps():
    """Level 1: every line of every step is in sight."""
    top = 84
    for step, (_, count) in STEPS.items():
        yield words(100, round(top + 4.3 * count + 6), step, anchor="end")
        for line in range(count):
            start, length = 116 + 12 * (line % 3), 70 + 26 * (line * line % 4)
            stroke = f'stroke="{BLUE}" stroke-width="3" stroke-linecap="round"'
            path = f"M{start} {top + 8.6 * line + 4:.1f} h{length}"
            yield f'<path d="{path}" {stroke}/>'
        top += 8.6 * count + 7


def named_steps():
    """Level 2: each step is a box with a name, and one of them is exchanged."""
    for place, (name, _) in enumerate(STEPS.values()):
        top, exchanged = 84 + 58 * place, name == "resnet18"
        if exchanged:
            yield box(322, top, 100, 42, "#ffffff", GREY, "5 4")
            yield words(372, top + 27, name, 14, "#777777")
            yield box(450, top, 130, 42, ORANGE)
            yield words(515, top + 27, "your network", 14, "#ffffff")
            yield words(436, top + 29, "\N{LEFTWARDS ARROW}", 20, ORANGE)
        else:
            yield box(372, top, 156, 42, BLUE)
            yield words(450, top + 27, name, 14, "#ffffff")


def one_call():
    """Level 3: a single box, and as many results as one likes."""
    yield box(672, 84, 156, 60, BLUE)
    yield words(750, 120, "run(config)", 16, "#ffffff")
    for place, seed in enumerate((0, 1, 2)):
        middle = 660 + 90 * place
        paths = f"M750 148 L{middle} 188 M{middle} 278 L750 302"
        yield f'<path d="{paths}" stroke="{GREY}" stroke-width="2.5"/>'
        yield box(middle - 38, 190, 76, 84, "#f4f4f4", GREY)
        yield words(middle, 216, f"seed {seed}", 14)
        yield words(middle, 246, "% right", 13, "#555555")
        yield words(middle, 264, "maps", 13, "#555555")
    yield box(622, 304, 256, 46, "#ffffff", ORANGE)
    yield words(750, 333, "mean and spread", 15)


def picture(
    lines,  # of code at each level
):
    """What the three levels are, as an SVG of 900 by 420 points."""
    parts = [
        *card(1, "All in one notebook", lines[0], "every line is yours"),
        *open_steps(),
        *card(2, "With the library", lines[1], "any part can be exchanged"),
        *named_steps(),
        *card(3, "One call", lines[2], "the whole is one line"),
        *one_call(),
    ]
    head = 'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 420" font-family="sans-serif"'
    return "\n".join([f"<svg {head}>", box(0, 0, 900, 420, "#ffffff"), *parts, "</svg>\n"])


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


def recipe(
    source,  # the cell of settings
):
    """What it says of a full run, in words."""
    known = {"os": SimpleNamespace(environ={}), "torch": torch}
    exec(source, known)
    batches = f"{known['epochs']} epochs in batches of {known['batch_size']}"
    return f"width {known['width']}, {batches}, AdamW"


def measured(
    record,  # of results/levels.json
):
    """Minutes of a run and, once measured, the spread over seeds, in words."""
    minutes = [level["seconds"] / 60 for level in record["levels"].values()]
    machine = record["levels"][NOTEBOOKS[2]]["machine"]
    cpu = f"{machine['threads']} cores of an {machine['cpu'].split(',')[0]}"
    text = f"Each took {min(minutes):.0f} to {max(minutes):.0f} minutes on {cpu}. "
    if "seeds" in record:
        accuracies = [100 * run["test"] for run in record["seeds"].values()]
        accuracies += [float(record["levels"][NOTEBOOKS[2]]["numbers"]["test accuracy"][:-1])]
        mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
        text += f"With {len(accuracies)} seeds, level 3's call gets {mean:.1f} ± {spread:.1f} % of "
        text += "the test images right (mean and standard deviation). "
    return text + (
        "The numbers are in [results/levels.json](../../results/levels.json); `make levels` "
        "repeats all of it."
    )


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
    """The page as markdown, and its picture. Raises SystemExit if the notebooks don't fit."""
    paths = [folder / f"{name}.ipynb" for name in NOTEBOOKS]
    levels = [sections(path) for path in paths]
    for path, level in zip(paths, levels):
        if tuple(level) != SECTIONS:
            headings, expected = ", ".join(level), ", ".join(SECTIONS)
            raise SystemExit(f"{path.name} has the headings {headings}, expected {expected}")
    check_names(CHANGES)
    numbers, _ = saved_numbers(paths)
    counted, lines = counts(levels)
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    page = PAGE.format(
        recipe=recipe(settings(paths[0])),
        measured=measured(record),
        numbers=numbers,
        lines=lines,
        names=len(imported_names(levels[1])),
        settings=len(Config.model_fields),
        changes=CHANGES.strip(),
        counted=counted,
        beside=beside(levels),
    )
    return page, picture(lines)


def main():
    """Returns the exit status."""
    for path, text in zip((FOLDER / "README.md", PICTURE), build()):
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path.relative_to(ROOT)} is out of date: run `make export`.")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
