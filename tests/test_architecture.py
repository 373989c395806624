"""design.md's import direction, held by reading the source: a rule nobody checks is a wish."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"visrl": ROOT / "visrl", "visrl.evals": ROOT / "evals", "visrl.tasks": ROOT / "tasks"}

# module prefix -> what it may never import, by prefix
FORBIDDEN = {
    "visrl.core.boxes": ["visrl."],
    "visrl.core.types": ["visrl.evals", "visrl.tasks", "visrl.policies.protocol", "torch"],
    "visrl.rollout.rollout": ["visrl.evals", "visrl.tasks", "torch"],
    "visrl.core.records": ["visrl.evals", "visrl.policies.protocol"],
    "visrl.evals": [
        "torch",
        "lmms_eval",
        "visrl.tasks",
        "visrl.policies.protocol",
        "visrl.rollout.rollout",
        "visrl.train",
    ],
    "visrl.tasks": ["torch", "lmms_eval", "visrl.policies.protocol", "visrl.train"],
    "visrl.train": ["visrl.evals.paper", "visrl.evals.gates", "visrl.cli.evaluate"],
    "visrl": ["visrl.cli.evaluate"],
}
LMMS_EVAL_IMPORTERS = {"visrl.lmms.model", "visrl.lmms.plugin"}
TORCH_IMPORTERS = ("visrl.policies", "visrl.train", "visrl.world", "visrl.runs.distributed")


def modules():
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(p for p in parts if p != "__init__"))), file


def imported(file):
    """Names a module imports, those only for type checking left out."""
    tree = ast.parse(file.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, prefix):
    return name == prefix.rstrip(".") or name.startswith(prefix if prefix.endswith(".") else prefix + ".")


def test_import_direction():
    broken = [
        f"{module} imports {name}"
        for module, file in modules()
        for prefix, banned in FORBIDDEN.items()
        if within(module, prefix)
        for name in imported(file)
        if any(within(name, b) for b in banned) and not within(name, module)
    ]
    assert not broken


def test_only_two_modules_import_lmms_eval():
    found = {module for module, file in modules() for name in imported(file) if within(name, "lmms_eval")}
    assert found <= LMMS_EVAL_IMPORTERS


def test_torch_stays_where_models_are():
    found = {module for module, file in modules() for name in imported(file) if within(name, "torch")}
    assert not [module for module in found if not module.startswith((*TORCH_IMPORTERS, *LMMS_EVAL_IMPORTERS))]


@pytest.mark.parametrize(
    "command",
    [
        "import visrl.cli.evaluate",
        "from visrl.cli.evaluate import main; main(['--help'])",
        "from visrl.cli.evaluate import main; main(['ls', 'tasks'])",
    ],
)
def test_help_and_ls_load_nothing_heavy(command):
    heavy = ("torch", "transformers", "lmms_eval", "datasets", "numpy", "scipy")
    code = f"{command}; import sys; print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_declared_packages_are_those_on_disk():
    tomllib = pytest.importorskip("tomllib", reason="part of Python 3.11")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {
        ".".join((package, *file.parent.relative_to(folder).parts))
        for package, folder in FOLDERS.items()
        for file in folder.rglob("__init__.py")
    }
    assert set(declared) == on_disk


def test_no_dangerous_calls():
    pattern = re.compile(r"\b(import pickle|pickle\.|torch\.load|yaml\.load|yaml\.unsafe_load|eval\(|exec\()")
    allowed = re.compile(r"\.eval\(\)|ast\.literal_eval|#|`|def ")
    hits = [
        f"{file.name}:{number}: {line.strip()}"
        for _, file in modules()
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if pattern.search(line) and not allowed.search(line)
    ]
    assert not hits
