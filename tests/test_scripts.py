"""The scripts fit the library: what they import from it exists, and takes what they give it."""

import ast
import importlib
import inspect

import pytest

from scripts.project import ROOT

SCRIPTS = sorted(path for path in (ROOT / "scripts").rglob("*.py") if path.name != "__init__.py")


def misfits(code):
    """Calls of the library's functions that Python would refuse, as 'line N: why'."""
    tree, known, found = ast.parse(code), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("cifar_cam_lib"):
            module = importlib.import_module(node.module)
            known |= {name.asname or name.name: getattr(module, name.name) for name in node.names}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        function = known.get(node.func.id)
        if function is None or any(isinstance(word, ast.Starred) for word in node.args):
            continue
        signature, keywords = inspect.signature(function), [word.arg for word in node.keywords]
        try:
            if None in keywords:  # **something, which may hold what is missing
                signature.bind_partial(*node.args, **dict.fromkeys(filter(None, keywords)))
            else:
                signature.bind(*node.args, **dict.fromkeys(keywords))
        except TypeError as error:
            found.append(f"line {node.lineno}, {node.func.id}: {error}")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_call_the_library_as_it_is(script):
    assert not misfits(script.read_text(encoding="utf-8"))


def test_a_call_that_the_library_refuses_is_found():
    code = "from cifar_cam_lib.main import load_splits\nload_splits({}, 1)\nload_splits(config=1)\n"
    assert [line.partition(",")[0] for line in misfits(code)] == ["line 2"]
    with pytest.raises(AttributeError, match="no_such_name"):
        misfits("from cifar_cam_lib.main import no_such_name")
