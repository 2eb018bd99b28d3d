"""The three levels give the same numbers, to the last bit: history, weights, predictions, maps."""

import contextlib
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

LEVELS = sorted((Path(__file__).resolve().parent.parent / "nbs" / "levels").glob("*.ipynb"))
SMALL = """
train_size, validation_size = 460, 60
rotate_degrees, padding, flip, cutout_size = 5, 4, True, 8
width, epochs, batch_size = 8, 2, 20
learning_rate, momentum = 0.05, 0.9
seed = 3
"""


def code(path):
    "Sources of the code cells."
    cells = nbformat.read(path, as_version=4).cells
    return [re.sub(r"%pip.*", "pass", cell.source) for cell in cells if cell.cell_type == "code"]


def run_level(path, replace=("", "")):
    "Run a level with small settings; returns the lines that its last cell prints."
    cells = code(path)
    assert sum(cell.startswith("train_size, validation_size") for cell in cells) == 1
    cells = [SMALL if cell.startswith("train_size, validation_size") else cell.replace(*replace) for cell in cells]
    namespace, printed = {"__name__": "__main__"}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for cell in cells:
            exec(compile(cell, path.name, "exec"), namespace)
            plt.close("all")
    return printed.getvalue().splitlines()[-5:]


@pytest.fixture(scope="module")
def second_level():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIFAR_CAM_DATA", "nowhere")
        yield run_level(LEVELS[1])


def test_there_are_three_levels_with_the_same_settings_and_the_same_end():
    assert [path.stem for path in LEVELS] == ["1_all_in_one", "2_with_the_library", "3_one_call"]
    assert len({next(cell for cell in code(path) if cell.startswith("train_size")) for path in LEVELS}) == 1
    assert len({code(path)[-1] for path in LEVELS}) == 1


@pytest.mark.parametrize("path", [LEVELS[0], LEVELS[2]], ids=lambda path: path.stem)
def test_the_levels_agree_to_the_last_bit(path, second_level, monkeypatch):
    monkeypatch.setenv("CIFAR_CAM_DATA", "nowhere")
    assert second_level[1].startswith("history")
    assert run_level(path) == second_level


def test_the_comparison_can_fail(second_level, monkeypatch):
    monkeypatch.setenv("CIFAR_CAM_DATA", "nowhere")
    changed = run_level(LEVELS[0], replace=("HorizontalFlip(p=0.5)", "HorizontalFlip(p=0.4)"))
    assert changed != second_level


def test_the_saved_levels_show_the_same_numbers():
    def saved(path):
        cell = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"][-1]
        return "".join(output.text for output in cell.outputs)

    assert len({saved(path) for path in LEVELS}) == 1 and "weights" in saved(LEVELS[0])
