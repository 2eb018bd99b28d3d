"""The notebooks as texts: every exported symbol is tried where it is taught, every figure has words, every address is one."""

import ast
import re
import statistics
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
CHAPTERS = [path for path in NOTEBOOKS if re.match(r"\d\d_|appendix", path.name)]


def code_cells(path):
    "(directives, the rest of the source without magics, outputs) of each code cell."
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            directives = [line for line in lines if line.startswith("#|")]
            rest = [re.sub(r"%pip.*", "pass", line) for line in lines if not line.startswith("#|")]
            yield directives, "\n".join(rest), cell.outputs


def exported(path):
    "Names of the functions and classes that a notebook exports."
    for directives, source, _ in code_cells(path):
        if "#| export" in directives:
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    yield node.name


def names_used(source):
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_exported_symbol_is_called_with_an_assertion(path):
    asserted = set()
    for directives, source, _ in code_cells(path):
        if "#| export" not in directives and any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(source))):
            asserted |= names_used(source)
    assert set(exported(path)) - asserted == set()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_figures_are_small_and_have_words(path):
    assert path.stat().st_size < 1_000_000
    for directives, source, outputs in code_cells(path):
        pictures = [output for output in outputs if any(kind.startswith("image/") for kind in output.get("data", {}))]
        assert pictures or not any(line.startswith("#| fig-alt: ") for line in directives), "a figure was not saved"
        if pictures:
            (words,) = [line for line in directives if line.startswith("#| fig-alt: ")] or [""]
            assert len(words) > 30, f"a figure has no alternative text: {source[:60]}"
            for output in pictures:
                assert output.metadata["image/png"]["alt"] == words.removeprefix("#| fig-alt: ").strip('"')


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != "index"], ids=lambda path: path.stem)
def test_notebooks_run_in_order_and_keep_their_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in cells), "saved without outputs"
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


PARTS = ("colab-badge.svg", "**You will learn**", "**You need**", "**It takes**", "**Numbers to expect**", "## Where this step lives now",
         "## Exercises", "## Questions and answers", "## Further reading")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_opens_and_closes_as_all_do(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    places = [text.find(part) for part in PARTS]
    assert -1 not in places and places == sorted(places), dict(zip(PARTS, places))
    exercises, questions = text[places[6]:places[7]], text[places[7]:places[8]]
    assert exercises.count("<summary>Solution</summary>") == 3
    assert len(re.findall(r"<summary>[^<]+\?</summary>", questions)) >= 4


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_code_of_solutions_is_folded_away_and_no_other(path):
    section = ""
    for cell in nbformat.read(path, as_version=4).cells:
        section = cell.source if cell.source.startswith("## ") else section
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        if cell.cell_type == "code":
            assert folded == section.startswith("## Exercises") == ("# @title Solution" in cell.source) == (cell.metadata.get("cellView") == "form")


def lines_to_read(source):
    "Lines of a code cell, without blank ones, directives, docstrings and the lines that declare one parameter or one field."
    source = "\n".join("" if line.startswith("#|") else re.sub(r"^(\s*)%.*", r"\1pass", line) for line in source.splitlines())
    declared = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            declared |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, ast.arg | ast.AnnAssign):
            declared.add(node.lineno)
        if isinstance(node, ast.FunctionDef):
            declared.discard(node.lineno)
    return sum(bool(line.strip()) and number not in declared for number, line in enumerate(source.splitlines(), 1))


def words_to_read(source):
    "Words of a Markdown cell, without what is folded away, tables, code blocks and addresses."
    for pattern in (r"<details>.*?</details>", r"```.*?```"):
        source = re.sub(pattern, "", source, flags=re.DOTALL)
    source = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", re.sub(r"^\|.*$", "", source, flags=re.MULTILINE))
    return len(re.findall(r"\w[\w\-'’.,]*", re.sub(r"<[^>]+>", "", source)))


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem not in ("index", "the_original")], ids=lambda path: path.stem)
def test_the_pace_is_that_of_a_lesson(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    words = {source: words_to_read(source) for source in prose if not source.startswith(("## Questions and answers", "## Further reading"))}
    assert 0.4 <= len(prose) / len(cells) <= 0.6
    assert [source for source, count in words.items() if not 8 <= count <= 50] == []
    assert sum(15 <= count <= 40 for count in words.values()) / len(words) > 0.9
    if path.stem != "1_all_in_one":  # all of the library in one notebook
        plain = ["\n".join(line for line in source.splitlines() if line.strip() and not line.startswith("#|")) for source in code]
        assert 2 <= statistics.median(len(source.splitlines()) for source in plain) <= 6
        assert [source for source in code if lines_to_read(source) > 25] == []


def test_the_table_of_the_original_points_at_symbols_that_are_asserted():
    notebook = nbformat.read(ROOT / "nbs" / "the_original.ipynb", as_version=4)
    rows = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines() if line.startswith("| ")]
    symbols = [name for row in rows for name in re.findall(r"`([a-z0-9]+)\.(\w+)`", row)]
    assert len(symbols) >= 20
    modules = {path.stem.partition("_")[2]: path for path in CHAPTERS}
    for module, name in symbols:
        cells = [names_used(source) for directives, source, _ in code_cells(modules[module]) if "#| export" not in directives and "assert" in source]
        assert any(name in names for names in cells), f"{module}.{name} has no asserting cell in its chapter"
