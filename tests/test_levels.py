"""The three levels give the same numbers, to the last bit.

And the comparison notices changes of one line, in level 1 and in the library.
"""

import ast
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from cifar_cam_lib.data import default_root, verify_cifar10
from cifar_cam_lib.model import resnet18
from scripts.project import ROOT
from scripts.publish import build_levels

LEVELS = [build_levels.FOLDER / f"{name}.ipynb" for name in build_levels.NOTEBOOKS]
FIRST, SECOND, THIRD = (path.stem for path in LEVELS)
# Two epochs of 20 steps: 460 images, less 60 for validation, in batches of 20.
SETTINGS = """
train_size, validation_size = 460, 60
rotate_degrees, padding, flip, cutout_size = 5, 4, True, 8
width, epochs, batch_size = 8, 2, 20
learning_rate, momentum = 0.05, 0.9
seed = 3
"""
# Of real CIFAR-10, too, the first 1,000 images of each split will do: all test images, three times,
# take a minute.
FEWER = """
from torchvision.datasets import CIFAR10
read_all = CIFAR10.__init__

def read_some(dataset, *words, **options):
    read_all(dataset, *words, **options)
    dataset.data, dataset.targets = dataset.data[:1000], dataset.targets[:1000]

CIFAR10.__init__ = read_some
"""
# What the notebook found out, in full, not as the fingerprints that it prints.
SAVE = """
weights = model.state_dict().items()
columns = "train_loss", "validation_loss", "validation_accuracy"
np.savez(
    os.environ["LEVEL_RESULT"],
    steps=epochs * (train_size - validation_size) // batch_size,
    test_accuracy=test_accuracy,
    history=[[row[column] for column in columns] for row in history],
    predictions=test_logits.numpy(),
    **{f"weights {name}": weight.numpy() for name, weight in weights},
    **{f"maps {side} {name}": map_.numpy() for side in maps for name, map_ in maps[side].items()},
)
"""
ALL = {"history", "weights", "predictions", "maps"}
# name: level to run, file of the library to change (None: the notebook itself), the text, what
# takes its place, what must differ
CHANGES = {
    "the seed": (FIRST, None, "seed = 3", "seed = 4", ALL),
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


def run_level(level, folder, data_root="nowhere", change=(None, "", "")):
    """Execute a level in a kernel of its own, with small settings and one change.

    Returns its arrays by name.
    """
    file, old, new = change
    notebook = nbformat.read(ROOT / "nbs" / "levels" / f"{level}.ipynb", as_version=4)
    sources = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (settings,) = [
        cell for cell in sources if cell.source.startswith("train_size, validation_size")
    ]
    settings.source = SETTINGS + FEWER
    if file is None and old:
        assert sum(cell.source.count(old) for cell in sources) == 1, (
            "the text to change is not there"
        )
        for cell in sources:
            cell.source = cell.source.replace(old, new)
    notebook.cells.append(nbformat.v4.new_code_cell("import os\n" + SAVE))
    library = shutil.copytree(
        ROOT / "cifar_cam_lib",
        folder / "cifar_cam_lib",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    drawn, all_pictures = (library / "drawn.py").read_text(), "clue) for index in range(count)"
    assert drawn.count(all_pictures) == 1
    # Drawing more than are used takes time.
    some = all_pictures.replace("count", "min(count, 1000)")
    (library / "drawn.py").write_text(drawn.replace(all_pictures, some))
    if file:
        text = (library / file).read_text()
        assert text.count(old) == 1, "the text to change is not there"
        (library / file).write_text(text.replace(old, new))
    # Coverage would count the copy.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("COVERAGE")
    }
    environment |= {
        "PYTHONPATH": str(folder),
        "CIFAR_CAM_DATA": str(data_root),
        "LEVEL_RESULT": str(folder / "result.npz"),
        "OMP_NUM_THREADS": "1",
    }
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    return dict(np.load(folder / "result.npz"))


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
            key: pool.submit(run_level, words[0], tmp_path_factory.mktemp("level"), *words[1:])
            for key, words in folders.items()
        }
        pool.shutdown(cancel_futures=True)  # if only some tests were asked for


def test_the_levels_have_the_same_headings_settings_and_end():
    levels = [build_levels.sections(path) for path in LEVELS]
    assert {tuple(level) for level in levels} == {build_levels.SECTIONS}
    (settings,) = {level["Settings"][0] for level in levels}
    assert settings.startswith("train_size")
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
    assert first["steps"] == 40 and len(first["history"]) == 2
    torch.manual_seed(3)
    before = resnet18(width=8).state_dict()
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


@pytest.mark.parametrize("name", CHANGES)
def test_the_comparison_notices(name, runs):
    level, *_, expected = CHANGES[name]
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
    assert build_levels.build() == (build_levels.FOLDER / "README.md").read_text()


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
