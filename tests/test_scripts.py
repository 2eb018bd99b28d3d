"""The scripts fit the library and each other: what they import exists, and takes what they give."""

import ast
import inspect
from pkgutil import resolve_name

import pytest

from scripts.project import ROOT

PROJECT = ("cifar_cam_lib", "scripts")
SCRIPTS = sorted(path for path in (ROOT / "scripts").rglob("*.py") if path.name != "__init__.py")


def misfits(code):
    """Calls of the project's functions that Python would refuse, as 'line N, function: why'."""
    tree, known, found = ast.parse(code), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(PROJECT):
            names = {name.asname or name.name: name.name for name in node.names}
            known |= {ours: resolve_name(f"{node.module}.{n}") for ours, n in names.items()}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function, called = None, node.func
        if isinstance(called, ast.Name):
            function = known.get(called.id)
        elif isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            module = known.get(called.value.id)  # as in training.fit(...)
            function = getattr(module, called.attr) if inspect.ismodule(module) else None
        if function is None or any(isinstance(word, ast.Starred) for word in node.args):
            continue
        signature, keywords = inspect.signature(function), [word.arg for word in node.keywords]
        try:
            if None in keywords:  # **something, which may hold what is missing
                signature.bind_partial(*node.args, **dict.fromkeys(filter(None, keywords)))
            else:
                signature.bind(*node.args, **dict.fromkeys(keywords))
        except TypeError as error:
            found.append(f"line {node.lineno}, {ast.unparse(node.func)}: {error}")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_call_the_library_as_it_is(script):
    assert not misfits(script.read_text(encoding="utf-8"))


def test_a_call_that_the_library_refuses_is_found():
    code = "from cifar_cam_lib.main import load_splits\nload_splits({}, 1)\nload_splits(config=1)\n"
    assert [line.partition(",")[0] for line in misfits(code)] == ["line 2"]
    code = "from cifar_cam_lib import training\ntraining.fit()\ntraining.fit(1, 2, 3, 4)\n"
    assert [line.partition(":")[0] for line in misfits(code)] == ["line 2, training.fit"]
    with pytest.raises(AttributeError, match="no_such_name"):
        misfits("from cifar_cam_lib.main import no_such_name")
