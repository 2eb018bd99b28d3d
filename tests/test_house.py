"""The house as contributing.md maps it: imports go one way only, and no room is crowded."""

import ast
import inspect
import re

from cifar_cam_lib.training import fit, train_epoch
from scripts.project import ROOT

FILES = {path.stem: path for path in (ROOT / "cifar_cam_lib").glob("*.py")}
TREES = {
    name: ast.parse(path.read_text(encoding="utf-8"))
    for name, path in FILES.items()
    if name not in ("__init__", "_modidx")
}


def imported(tree):
    """The modules of ours that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("cifar_cam_lib.")}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module.startswith((".", "cifar_cam_lib")):
                found |= {module} | {f".{name.name}" for name in node.names}
    return {name.rpartition(".")[2] for name in found} & set(TREES)


def test_modules_import_one_way_only_as_the_map_says():
    page = (ROOT / "nbs" / "contributing.md").read_text(encoding="utf-8")
    words = re.search(r"Modules import one way only.*", page)[0].partition("`tests/")[0]
    order = list(dict.fromkeys(re.findall(r"`(\w+)`", words)))
    assert set(order) == set(TREES)
    for place, name in enumerate(order):
        assert imported(TREES[name]) <= set(order[:place]), f"{name} imports a later room"
    assert imported(TREES["course"]) == imported(TREES["runs"]) == set() and imported(
        TREES["settings"]
    ) == {"runs"}
    assert imported(TREES["fast"]) <= {"data", "model"}
    assert imported(TREES["main"]) == set(order) - {"course", "drawn", "trust", "main", "__main__"}
    assert imported(TREES["__main__"]) == {"settings", "main"}


def test_no_room_is_crowded_and_no_function_long():
    assert len(FILES["main"].read_text(encoding="utf-8").splitlines()) <= 450
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 40, f"{name}.{node.name} is too long"
    assert len(inspect.signature(fit).parameters) <= 9
    assert len(inspect.signature(train_epoch).parameters) <= 7
