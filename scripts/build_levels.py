"""Writes nbs/levels/README.md, which puts the three levels side by side, from the notebooks and the library.

    .venv/bin/python scripts/build_levels.py            write it
    .venv/bin/python scripts/build_levels.py --check    exit 1 where it is out of date

Nothing on the page is counted by hand. Level 1 names, with an arrow such as → `data.split_validation`, where a step lives
in the library; which calls lead there from levels 2 and 3 is read from the code, without running it.
"""

import ast
import dataclasses
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the library beside this script, not one that is installed elsewhere
NOTEBOOKS = ("1_all_in_one", "2_with_the_library", "3_one_call")
SECTIONS = ("Settings", "Data", "Model", "Training", "Evaluation", "Grad-CAM", "The numbers")
PAGE = """<!-- Written by scripts/build_levels.py from the notebooks of this folder: change those, not this. -->

# The three levels side by side

The same story three times: [1, everything in one notebook](1_all_in_one.ipynb); [2, a notebook that calls the
library](2_with_the_library.ipynb); [3, one call to main](3_one_call.ipynb). They have the same headings in the same order,
the same cell of settings, and the same last cell. That they give the same numbers is not a promise but a test: `make test`
executes all three with smaller settings, on drawn pictures and, where it is present, on CIFAR-10; compares losses, weights,
logits and maps bit by bit; and plants changes of one line, in level 1 and in the library, each of which must be noticed. (The
last bits depend on the processor and on the number of threads: another machine may print others, and the three agree there
too. All three compute on the CPU.)

## The same numbers

What the last cell of each notebook printed, on {images}; of the last four rows, the first sixteen hexadecimal digits of a sha256 sum:

{numbers}

## Which one, when

| level | take it to | what you see | what can still be changed |
|---|---|---|---|
| 1 | understand a step, or invent another one | {lines[0]} lines, every step written out | every line |
| 2 | exchange a part: your images, your network, your layers | {lines[1]} lines, {calls} functions and classes of the library | the order, and {arguments} arguments; any part can be replaced by your own |
| 3 | compare settings, run for hours, go on after an interruption | {lines[2]} lines, of which one does the work | {settings} settings (`Config`) |

{changes}

## How much there is to read

Lines of code, without empty lines and comments. Level 3 is not shorter because less happens: behind its one call stand
{behind} lines of the library, signatures and docstrings included.

{counted}

## What moved where

Each step of level 1 that has a name in the library, in its order ("Data 3" is the third code cell under the heading Data):
the function or class that holds it in the library, the chapter that teaches and exports it, and the way there from the other
two levels: the first name is called in the notebook (in level 3 always by `run(config)`), and each calls the next.

{moved}

{beside}
"""
# What a learner may want to do; `names` in it are checked to exist.
CHANGES = """
| you want | level 1 | level 2 | level 3 |
|---|---|---|---|
| another learning rate, width or seed | the settings | the settings | the settings |
| another augmentation | edit the list | any Albumentations transform that ends with `normalise_steps`, for `TransformedImages` | `Config.rotate_degrees`, `Config.padding`, `Config.flip`, `Config.cutout_size` |
| your own images | edit the first cell of Data | `LabelledImages` instead of `load_images` | no setting; `make_loaders` and `record_run` take them |
| another network | edit the class | any module instead of `resnet18`, and `gradcam(layers=...)` | its `Config.width` |
| another rule for the weights | edit two lines | any optimizer and schedule for `fit` | `Config.optimizer`, `Config.schedule` and their numbers |
| a stop when it gets worse | add it to the loop | leave the loop over `fit` | no setting |
| small images first, smoothed labels, an L1 penalty | write it | arguments of `fit` | `Config.image_sizes`, `Config.label_smoothing`, `Config.l1_factor` |
| Grad-CAM of other layers | edit the names | `gradcam(layers=...)` | no setting; afterwards `gradcam(layers=...)`, or, for picture files, `explain(layers=...)` |
| TensorBoard, saved weights, going on later | write it | `log_epoch`, `save_weights`, `save_checkpoint`, `load_checkpoint` | it is there |
"""


def sections(
    path,  # a level's notebook
):
    "The code cells under each heading: {heading: [source, ...]}; cells above the first heading are left out."
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
    "Its lines without empty ones, comments and directives."
    return [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]


def steps(
    path,  # level 1
):
    "(heading, number of the code cell under it, module, symbol) for each arrow of level 1."
    heading, number = None, 0
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            number += 1
            continue
        for line in cell.source.splitlines():
            if line.startswith("## "):
                heading, number = line[3:], 0
        arrows = cell.source.partition("→ ")[2] if heading else ""
        for module, symbol in re.findall(r"`(\w+)\.(\w+)`", arrows):
            yield heading, number + 1, module, symbol


def library():
    "What the chapters export: {symbol: (module, chapter, names that its code uses, its number of lines)}."
    symbols = {}
    for path in sorted((ROOT / "cifar_cam_lib").glob("[a-z]*.py")):
        source = path.read_text(encoding="utf-8")
        chapter = re.search(r"File to edit: \.\./nbs/(.+\.ipynb)", source)[1]
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                symbols[node.name] = (path.stem, chapter, names_used(node), len(code_lines(ast.get_source_segment(source, node))))
    return symbols


def names_used(
    node,  # of a syntax tree
):
    "Names that the code reads, in their order; annotations, parameters and names that it sets itself are left out."
    hints = [getattr(child, field, None) for child in ast.walk(node) for field in ("annotation", "returns")]
    hints = {id(name) for hint in hints if hint for name in ast.walk(hint)}
    names = [child for child in ast.walk(node) if isinstance(child, ast.Name) and id(child) not in hints]
    own = {name.id for name in names if isinstance(name.ctx, ast.Store)} | {child.arg for child in ast.walk(node) if isinstance(child, ast.arg)}
    return list(dict.fromkeys(name.id for name in names if name.id not in own))


def ways(
    start,  # a symbol of the library
    symbols,  # from `library`
):
    "The shortest chain of calls to each symbol that the start leads to: {symbol: [start, ..., symbol]}."
    chains, waiting = {start: [start]}, [start]
    for name in waiting:  # grows while it is gone through: shorter chains come first
        new = [used for used in symbols[name][2] if used in symbols and used not in chains]
        chains |= {used: [*chains[name], used] for used in new}
        waiting += new
    return chains


def called(
    level,  # from `sections`
    symbols,  # from `library`
):
    "Where a level calls the library: {symbol: (heading, number of the code cell under it)}, the first call of each."
    places = {}
    for heading, cells in level.items():
        for number, cell in enumerate(cells, 1):
            for name in names_used(ast.parse(cell)):
                if name in symbols:
                    places.setdefault(name, (heading, number))
    return places


def table(
    rows,  # of texts; the first one is the head
):
    "Markdown."
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


def moved(
    first,  # level 1's file
    second,  # level 2, from `sections`
    symbols,  # from `library`
):
    "The table of what moved where. Raises SystemExit where level 1 names what is not in the library, or another level never reaches it."
    rows = [("level 1", "in the library", "taught in", "level 2", "level 3")]
    places, from_run = called(second, symbols), ways("run", symbols)
    from_second = [(len(chain), where, chain) for start, where in places.items() for chain in ways(start, symbols).values()]
    for heading, number, module, symbol in steps(first):
        if symbols.get(symbol, [None])[0] != module:
            raise SystemExit(f"{first.name} names {module}.{symbol}, which is not in the library")
        chains = [found for found in from_second if found[2][-1] == symbol]
        if not chains or symbol not in from_run:
            raise SystemExit(f"{first.name} names {module}.{symbol}, but level {3 if chains else 2} does not come there")
        _, (place, cell), chain = min(chains, key=lambda found: found[0])
        chapter = symbols[symbol][1]
        rows.append((f"[{heading} {number}](1_all_in_one.ipynb#{heading})", f"`{module}.{symbol}`", f"[{chapter.removesuffix('.ipynb')}](../{chapter})",
                     f"{place} {cell}: `{' → '.join(chain)}`", f"`{' → '.join(from_run[symbol])}`"))
    return table(rows)


def counts(
    levels,  # `sections` of the three notebooks
):
    "The table of lines, and their sums."
    numbers = [[sum(len(code_lines(cell)) for cell in level[heading]) for level in levels] for heading in SECTIONS]
    sums = [sum(column) for column in zip(*numbers)]
    rows = [(heading, *map(str, row)) for heading, row in zip(SECTIONS, numbers)]
    return table([("", "level 1", "level 2", "level 3"), *rows, ("**all**", *(f"**{number}**" for number in sums))]), sums


def saved_numbers(
    paths,  # the three notebooks
):
    "What the last code cells printed, as a table, and the source of the images."
    rows, sources = [["", "level 1", "level 2", "level 3"]], set()
    for path in paths:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
        sources |= set(re.findall(r"^Images: ([\w -]+\w)", "\n".join(printed), re.MULTILINE))
        lines = re.findall(r"(\w+ accuracy|\w+) +([0-9.%]+|[0-9a-f]{16})(?=,|$)", printed[-1], re.MULTILINE)
        rows += [[name] for name, _ in lines] if len(rows) == 1 else []
        for row, (_, value) in zip(rows[1:], lines):
            row.append(f"`{value}`")
    if len(sources) != 1:
        raise SystemExit(f"the levels were saved with different images: {', '.join(sorted(sources)) or 'none named'}")
    return table(rows), sources.pop()


def beside(
    levels,  # `sections` of the three notebooks
):
    "The code of the three levels under each other, folded, for each section but the last."
    parts = ["## The code, section by section", "Open a section to read it at the three levels, one after the other."]
    for heading in SECTIONS[:-1]:
        blocks = [f"Level {number}\n\n```python\n{without_directives(level[heading])}\n```" for number, level in enumerate(levels, 1)]
        parts.append("\n\n".join([f"<details><summary>{heading}</summary>", *blocks, "</details>"]))
    return "\n\n".join(parts)


def without_directives(
    cells,  # sources
):
    "The cells as one text."
    return "\n\n".join("\n".join(line for line in cell.splitlines() if not line.startswith("#|")) for cell in cells)


def check_names(
    text,  # markdown
    symbols,  # from `library`
    settings,  # names of the fields of Config
):
    "Raises SystemExit where a name in backticks is neither a symbol nor a setting, or a symbol has no such argument."
    for name, argument in re.findall(r"`(\w[\w.]*)(?:\((\w+)=\.\.\.\))?`", text):
        if name not in symbols and name.removeprefix("Config.") not in settings:
            raise SystemExit(f"scripts/build_levels.py names {name}, which is not in the library")
        if argument and argument not in inspect.signature(symbol_of(name, symbols)).parameters:
            raise SystemExit(f"scripts/build_levels.py names {name}({argument}=...), which has no such argument")


def symbol_of(
    name,  # of a function or class
    symbols,  # from `library`
):
    "The function or class itself."
    return getattr(import_module(f"cifar_cam_lib.{symbols[name][0]}"), name)


def build(
    folder,  # that holds the three notebooks
):
    "The page as markdown."
    paths = [folder / f"{name}.ipynb" for name in NOTEBOOKS]
    levels, symbols = [sections(path) for path in paths], library()
    for path, level in zip(paths, levels):
        if tuple(level) != SECTIONS:
            raise SystemExit(f"{path.name} has the headings {', '.join(level)}, not {', '.join(SECTIONS)}")
    settings = [field.name for field in dataclasses.fields(import_module("cifar_cam_lib.main").Config)]
    check_names(CHANGES, symbols, settings)
    functions = [symbol_of(name, symbols) for name in called(levels[1], symbols)]
    numbers, images = saved_numbers(paths)
    counted, sums = counts(levels)
    return PAGE.format(numbers=numbers, images=images, lines=sums, calls=len(functions), settings=len(settings), changes=CHANGES.strip(),
                       arguments=sum(len(inspect.signature(function).parameters) for function in functions), counted=counted,
                       behind=sum(symbols[name][3] for name in ways("run", symbols)), moved=moved(paths[0], levels[1], symbols), beside=beside(levels))


def main():
    "Returns the exit status."
    folder = ROOT / "nbs" / "levels"
    page, text = folder / "README.md", build(folder)
    if "--check" not in sys.argv:
        page.write_text(text, encoding="utf-8")
    elif not page.exists() or page.read_text(encoding="utf-8") != text:
        print("nbs/levels/README.md is out of date: run `make export`.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
