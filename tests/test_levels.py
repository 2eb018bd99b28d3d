"""The three levels give the same numbers, to the last bit.

And the comparison notices changes of one line, in level 1 and in the library.
"""

import ast
import json
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from cifar_cam_lib.data import default_root, verify_cifar10
from cifar_cam_lib.model import resnet18
from scripts.measure.levels import run_small
from scripts.project import ROOT
from scripts.publish import build_levels

LEVELS = [build_levels.FOLDER / f"{name}.ipynb" for name in build_levels.NOTEBOOKS]
FIRST, SECOND, THIRD = (path.stem for path in LEVELS)
RECORD = json.loads((ROOT / "results" / "levels.json").read_text())
ALL = {"history", "weights", "predictions", "maps"}
# name: level to run, file of the library to change (None: the notebook itself), the text, what
# takes its place, what must differ
CHANGES = {
    "the seed": (FIRST, None, "seed, device = 3", "seed, device = 4", ALL),
    "a line of level 1: the share of mirrored images": (
        FIRST,
        None,
        "p=0.5 * flip",
        "p=0.4 * flip",
        ALL,
    ),
    "a line of level 1: negative evidence": (
        FIRST,
        None,
        ".sum(dim=1).relu()",
        ".sum(dim=1).abs()",
        {"maps"},
    ),
    "a default of the library": (
        THIRD,
        "settings.py",
        "label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0",
        "label_smoothing: Annotated[float, Field(ge=0, le=1)] = 0.01",
        ALL,
    ),
    "a line of the library: the order": (
        SECOND,
        "data.py",
        "default_rng((self.seed, self.epoch))",
        "default_rng((self.seed, self.epoch + 1))",
        ALL,
    ),
    "a line of the library: the weights of the channels": (
        THIRD,
        "gradcam.py",
        "weights = gradients.mean(",
        "weights = gradients.amax(",
        {"maps"},
    ),
}


def is_stale(result):
    """Do the first losses differ, by more than between processors, from those of the full runs?"""
    return not np.allclose(result["history"][:, :2], RECORD["first_losses"], rtol=3e-5, atol=0)


def differences(first, second):
    """The kinds of arrays, such as weights, in which two results differ in any bit."""
    assert first.keys() == second.keys()
    return {name.split()[0] for name in first if not np.array_equal(first[name], second[name])}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Starts all runs, two at a time, each with one thread.

    {(name, source): its result, to be waited for}
    """
    folders = {(level, "drawn"): (level,) for level in (FIRST, SECOND, THIRD)}
    folders |= {
        (name, "drawn"): (level, "nowhere", change) for name, (level, *change, _) in CHANGES.items()
    }
    root = default_root()
    if (root / "cifar-10-batches-py").exists():  # else the tests that need it are skipped
        verify_cifar10(root)
        folders |= {(level, "cifar10"): (level, root) for level in (FIRST, SECOND, THIRD)}
    with ThreadPoolExecutor(2) as pool:
        yield {
            key: pool.submit(run_small, words[0], tmp_path_factory.mktemp("level"), *words[1:])
            for key, words in folders.items()
        }
        pool.shutdown(cancel_futures=True)  # if only some tests were asked for


def test_the_levels_have_the_same_headings_settings_and_end():
    levels = [build_levels.sections(path) for path in LEVELS]
    assert {tuple(level) for level in levels} == {build_levels.SECTIONS}
    (settings,) = {level["Settings"][0] for level in levels}
    assert settings.startswith("quick = ")
    (end,) = {level["The numbers"][-1] for level in levels}
    assert end.count("fingerprint") == 5


def test_level_1_takes_nothing_of_ours_but_the_drawn_pictures():
    code = "\n".join(cell for cells in build_levels.sections(LEVELS[0]).values() for cell in cells)
    modules = {
        node.module or "" for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)
    }
    modules |= {
        alias.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert {name for name in modules if name.startswith("cifar_cam_lib")} == {"cifar_cam_lib.drawn"}


def agree(runs, source):
    first, second, third = (runs[level, source].result() for level in (FIRST, SECOND, THIRD))
    assert differences(first, second) == differences(first, third) == set()
    assert first["steps"] == 8 and len(first["history"]) == 2
    torch.manual_seed(3)
    before = resnet18(width=16).state_dict()
    assert len(before) == sum(name.startswith("weights") for name in first) == 61
    assert all(
        not np.array_equal(first[f"weights {name}"], weight.numpy())
        for name, weight in before.items()
    ), "a weight never moved"
    maps = [first[name] for name in first if name.startswith("maps")]
    assert len(maps) == 8 and all(map_.shape == (20, 32, 32) and map_.max() == 1 for map_ in maps)
    return first


def test_the_levels_agree_to_the_last_bit_on_drawn_pictures(runs):
    assert agree(runs, "drawn")["predictions"].shape == (1000, 10)


def test_the_levels_agree_to_the_last_bit_on_cifar10(runs, cifar10_root):
    assert agree(runs, "cifar10")["predictions"].shape == (1000, 10)


def test_the_saved_outputs_belong_to_todays_code(runs):
    """If this fails, run the levels in full again: see scripts/measure/levels.py."""
    assert not is_stale(runs[FIRST, "drawn"].result())
    for path in LEVELS:
        saved = RECORD["levels"][path.stem]
        assert saved["settings"] == build_levels.settings(path)
        assert saved["numbers"] == dict(build_levels.printed_numbers(path))
    quoted = RECORD["levels"][FIRST]["numbers"]["history"]
    assert LEVELS[1].read_text().count(quoted) == 2  # in the text, and printed


def test_the_levels_are_right_four_times_out_of_five():
    numbers = [RECORD["levels"][path.stem]["numbers"] for path in LEVELS]
    assert numbers[0] == numbers[1] == numbers[2]
    assert float(numbers[0]["test accuracy"].strip("%")) >= 80
    for seed, run in RECORD.get("seeds", {}).items():
        assert run["test"] >= 0.79 and shlex.split(run["command"])[-2:] == ["--seed", seed]


@pytest.mark.parametrize("name", CHANGES)
def test_the_comparison_notices(name, runs):
    level, *_, expected = CHANGES[name]
    assert is_stale(runs[name, "drawn"].result()) == (expected == ALL)
    # Two networks that have hardly learnt may by chance be right equally often.
    assert (
        differences(runs[name, "drawn"].result(), runs[level, "drawn"].result()) - {"test_accuracy"}
        == expected
    )


def test_the_comparison_notices_a_millionth_of_one_weight(runs):
    first = runs[FIRST, "drawn"].result()
    head = first["weights head.weight"].copy()
    head[0, 0] *= 1 + 1e-6
    assert differences(first, first | {"weights head.weight": head}) == {"weights"}


def test_the_saved_levels_show_the_same_numbers():
    table, source = build_levels.saved_numbers(LEVELS)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "validation accuracy",
        "test accuracy",
        "history",
        "weights",
        "predictions",
        "maps",
    ]
    assert all(len(row) == 4 and len(set(row[1:])) == 1 for row in rows)
    assert source == "CIFAR-10"


def test_the_page_side_by_side_is_up_to_date():
    page, picture = build_levels.build()
    assert page == (build_levels.FOLDER / "README.md").read_text()
    assert picture == build_levels.PICTURE.read_text()
    ElementTree.fromstring(picture)


def test_the_page_names_nothing_that_is_not_there():
    for name in ("first_network", "Config.colour", "gradcam(colour=...)"):
        with pytest.raises(SystemExit, match=name.partition("(")[0]):
            build_levels.check_names(f"`{name}`")


@pytest.mark.parametrize(
    "old, new, stop",
    [
        ("seed = 0", "start = 0\nseed = start", None),  # one more line of code
        ("## Evaluation", "## Test", "has the headings Settings, Data, Model, Training, Test"),
        ("Images: CIFAR-10.", "Images: drawn stand-in.", "saved with different images"),
    ],
)
def test_the_page_notices_a_change_of_level_1(old, new, stop, tmp_path):
    for path in LEVELS:
        shutil.copy(path, tmp_path)
    text = LEVELS[0].read_text()
    assert old in text
    (tmp_path / LEVELS[0].name).write_text(text.replace(old, new.replace("\n", "\\n")))
    if stop:
        with pytest.raises(SystemExit, match=stop):
            build_levels.build(tmp_path)
    else:
        assert build_levels.build(tmp_path) != build_levels.build()
