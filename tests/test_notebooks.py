"""The notebooks as texts: each exported name is tried where it's taught, each figure has words."""

import ast
import base64
import importlib.util
import io
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
from PIL import Image

from cifar_cam_lib import course
from scripts.project import ROOT, SETTINGS
from scripts.publish.run_notebooks import with_palette

NOTEBOOKS = sorted(
    path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
CHAPTERS = [path for path in NOTEBOOKS if re.match(r"\d\d_|appendix", path.name)]
EXPORTS = {"#| export", "#| exporti"}
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def code_cells(path):
    """(directives, the rest of the source without magics, outputs) of each code cell."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            directives = [line for line in lines if line.startswith("#|")]
            rest = [re.sub(r"%\w+ .*", "pass", line) for line in lines if not line.startswith("#|")]
            yield directives, "\n".join(rest), cell.outputs


def own_cells(path):
    """The sources of the cells that aren't exported, without magics."""
    for directives, source, _ in code_cells(path):
        if not EXPORTS & set(directives):
            yield source


def exported(path):
    """Names of the functions and classes that a notebook exports."""
    for directives, source, _ in code_cells(path):
        if EXPORTS & set(directives):
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    yield node.name


def nodes(source, kinds):
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def names_used(source):
    names = {node.id for node in nodes(source, ast.Name)}
    return names | {node.attr for node in nodes(source, ast.Attribute)}


def expects_error(source):
    """Whether a cell has a block such as `with raises(ValueError, "words"):`."""
    blocks = nodes(source, ast.With)
    calls = [item.context_expr for block in blocks for item in block.items]
    called = [ast.unparse(call.func) for call in calls if isinstance(call, ast.Call)]
    return any(name.rpartition(".")[2] in ("raises", "assertRaisesRegex") for name in called)


def asserts(source):
    return bool(nodes(source, ast.Assert)) or expects_error(source)


@each_chapter
def test_every_exported_symbol_is_called_with_an_assertion(path):
    asserted = set()
    for source in own_cells(path):
        if asserts(source):
            asserted |= names_used(source)
    assert set(exported(path)) - asserted == set()


def test_what_is_public_fits_in_a_head():
    names = []
    for path in (ROOT / "cifar_cam_lib").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names += ast.literal_eval(node.value)
    assert 50 < len(names) <= 100 and len(names) == len(set(names))


@each_notebook
def test_no_line_of_code_is_too_wide(path):
    cells = nbformat.read(path, as_version=4).cells
    lines = [line for cell in cells if cell.cell_type == "code" for line in cell.source.split("\n")]
    wide = [line for line in lines if len(line) > 100 and not line.startswith("#| fig-alt: ")]
    assert wide == []


@each_notebook
def test_imports_have_cells_of_their_own(path):
    """The tools of nbdev ask for it; only the cell that installs the library may be mixed."""
    mixed = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "%pip" not in cell.source:
            source = re.sub(r"^%\w+ .*", "pass", cell.source, flags=re.MULTILINE)
            kinds = {
                isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(source).body
            }
            if len(kinds) > 1:
                mixed.append(cell.source)
    assert mixed == []


@each_notebook
def test_a_notebook_asks_for_nothing_that_pytorch_is_to_drop(path):
    """A model's graph for TensorBoard is traced by torch.jit, which torch 2.14 warns of."""
    assert not re.search(r"add_graph|torch\.jit", "\n".join(own_cells(path)))


def is_solution(source):
    return "# @title Solution" in source


@each_chapter
def test_a_chapter_shows_one_expected_error_at_most(path):
    shown = [source for source in own_cells(path) if not is_solution(source)]
    assert len([source for source in shown if expects_error(source)]) <= 1


@each_notebook
def test_no_cell_passes_because_nothing_was_raised(path):
    silent = []
    for source in own_cells(path):
        for attempt in nodes(source, ast.Try):
            inside = ast.unparse(attempt)
            if attempt.handlers and not attempt.orelse and not nodes(inside, ast.Raise):
                silent.append(inside)
    assert silent == []


@each_notebook
def test_a_notebook_says_its_language(path):
    """So that `nbconvert --to script` writes .py, and not .txt."""
    metadata = nbformat.read(path, as_version=4).metadata
    language = metadata.get("language_info", {})
    assert language.get("name") == language.get("nbconvert_exporter") == "python"
    assert language.get("file_extension") == ".py"
    assert metadata["kernelspec"]["name"] == "python3"


def has_picture(output):
    return any(kind.startswith("image/") for kind in output.get("data", {}))


@each_notebook
def test_saved_figures_are_small_and_have_words(path):
    assert path.stat().st_size < 1_000_000
    for directives, source, outputs in code_cells(path):
        described = [line for line in directives if line.startswith("#| fig-alt: ")]
        pictures = [output for output in outputs if has_picture(output)]
        assert bool(pictures) == bool(described), f"words without a figure, or none: {source[:60]}"
        for output in pictures:
            (line,) = described
            assert len(line) > 30, f"hardly any alternative text: {source[:60]}"
            words = line.removeprefix("#| fig-alt: ").strip('"')
            assert output.metadata["image/png"]["alt"] == words


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem != "index"], ids=lambda path: path.stem
)
def test_notebooks_run_in_order_and_keep_their_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in cells), "saved without outputs"
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


OPENING = (
    "colab-badge.svg",
    "**You will learn**",
    "**You need**",
    "**It takes**",
    "**Numbers to expect**",
)


@each_chapter
def test_a_chapter_says_what_it_teaches_needs_and_takes(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    beginning = text.partition("\n## ")[0]
    assert [part for part in OPENING if part not in beginning] == []
    assert "<summary>Solution</summary>" in text


@each_chapter
def test_the_code_of_solutions_and_drawings_is_folded_away_and_no_other(path):
    """A solution hides what it prints, too; a drawing is there to be seen."""
    section = ""
    for cell in nbformat.read(path, as_version=4).cells:
        section = cell.source if cell.source.startswith("## ") else section
        if cell.cell_type != "code":
            continue
        hidden = cell.metadata.get("jupyter", {})
        solution, drawing = is_solution(cell.source), "# @title Drawing" in cell.source
        assert solution == section.startswith("## Exercises")
        assert hidden.get("source_hidden", False) == (solution or drawing)
        assert hidden.get("outputs_hidden", False) == solution
        assert (cell.metadata.get("cellView") == "form") == (solution or drawing)


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_saved_pictures_have_a_palette_and_their_pixels():
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 240, (120, 120, 1)) + generator.integers(0, 16, (120, 120, 3))
    picture = as_png(noise.astype(np.uint8))
    small = with_palette(picture)
    shown = Image.open(io.BytesIO(base64.b64decode(small)))
    assert shown.mode == "P" and shown.size == (120, 120) and len(small) < len(picture)
    difference = np.asarray(shown.convert("RGB")).astype(int) - noise
    assert np.abs(difference).mean() < 5
    few = noise // 64 * 64  # of few colours, each is kept
    kept = Image.open(io.BytesIO(base64.b64decode(with_palette(as_png(few.astype(np.uint8))))))
    assert np.array_equal(np.asarray(kept.convert("RGB")), few)
    clear = np.dstack([noise, np.full((120, 120), 99)]).astype(np.uint8)
    assert with_palette(as_png(clear)) == as_png(clear), "what shines through stays as it is"


def test_the_table_of_the_original_points_at_symbols_that_are_asserted():
    notebook = nbformat.read(ROOT / "nbs" / "the_original.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    symbols = [name for row in rows for name in re.findall(r"`([a-z0-9]+)\.(\w+)`", row)]
    assert len(symbols) >= 20
    modules = {path.stem.partition("_")[2]: path for path in CHAPTERS}
    for module, name in symbols:
        cells = [names_used(source) for source in own_cells(modules[module]) if asserts(source)]
        assert any(name in names for names in cells), (
            f"{module}.{name} has no asserting cell in its chapter"
        )


def test_results_are_found_from_any_folder_and_their_absence_is_one_line(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    assert (course.find_results() / "trust.json").samefile(ROOT / "results" / "trust.json")
    elsewhere = SimpleNamespace(origin=str(tmp_path / "site" / "cifar_cam_lib" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: elsewhere)
    for folder in (ROOT, ROOT / "nbs"):
        monkeypatch.chdir(folder)
        assert course.find_results().samefile(ROOT / "results")
    assert capsys.readouterr().out == ""
    monkeypatch.chdir(tmp_path)
    assert course.find_results() is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith(f"{SETTINGS['git_url']}/tree/main/results")


@each_notebook
def test_a_notebook_looks_for_results_in_that_way(path):
    code = "\n".join(own_cells(path))
    assert not re.search(r"Path\([^)]*results", code)
    assert "results /" not in code or "find_results()" in code
