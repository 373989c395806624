"""Scripts that are run by hand: whatever they import of the package, at the top or within a function, is there."""

import ast
import importlib
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SCRIPTS = [path for room in ("campaigns", "fuzz", "perf", "studies") for path in sorted((TESTS / room).glob("*.py"))]


def imported(tree):
    """(module, name) of every ``from visrl.… import name``, (module, "") of every ``import visrl.…``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "visrl":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "visrl")


def missing(source):
    gone = []
    for module, name in imported(ast.parse(source)):
        try:
            found = importlib.import_module(module)
            if name and not hasattr(found, name):
                importlib.import_module(f"{module}.{name}")
        except ModuleNotFoundError as error:
            gone.append(str(error))
    return gone


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_a_script_imports_is_there(path):
    assert missing(path.read_text()) == []


def test_a_moved_module_and_a_renamed_function_are_seen():
    assert missing("def f():\n    from visrl.nowhere import x\n") == ["No module named 'visrl.nowhere'"]
    assert missing("from visrl.errors import UsageEror\n") == [
        "No module named 'visrl.errors.UsageEror'; 'visrl.errors' is not a package"
    ]
    assert missing("import visrl.errors\nfrom visrl.errors import UsageError\nimport json\n") == []
