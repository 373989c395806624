"""The shape of the package, held by reading the source: who may import whom, and how large things may grow.

docs/architecture.md says what each room is for. Imports within functions count; those under ``if TYPE_CHECKING:`` do not.
"""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"visrl": ROOT / "visrl", "visrl.evals": ROOT / "evals", "visrl.tasks": ROOT / "tasks"}

LEVELS = [
    {"errors"},
    {"core"},
    {"world", "evals", "runs"},
    {"policies", "tasks", "tables"},
    {"rollout"},
    {"evaluation"},
    {"lmms", "regression"},
    {"train"},
    {"report", "estimate"},
    {"cli", "api"},
]
"""Rooms, bottom to top: each may import those of lower levels, and none of its own level but itself."""
TRAIN_LEVELS = [{"config"}, {"data"}, {"common"}, {"critics"}, {"sft", "dpo", "grpo", "pairs", "small_model"}, {"loop"}]
"""Likewise inside visrl.train."""
TORCH = ("visrl.policies", "visrl.train", "visrl.world", "visrl.runs.distributed", "visrl.lmms", "visrl.estimate")
ANSWER_KEY = ("visrl.evals.paper", "visrl.evals.gates")

LOOSE_MODULES = 3  # at visrl/
MODULES_OF_A_FOLDER = 14
LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 60
LINES_OF_THE_MEDIAN_FUNCTION = 7
PARAMETERS = 7  # but where parameters are the user's options: the command line, and --model-args in policies' loaders


# --- reading the source


@cache
def modules() -> dict[str, Path]:
    """Module name -> its file; a package is its ``__init__.py``."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = file
    return found


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def names_imported(file: Path) -> Iterator[str]:
    """Every module, and every name of a module, that a file imports."""
    for_types = {
        id(inner)
        for node in ast.walk(tree(file))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree(file)):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name: str) -> str:
    """``visrl.core.boxes`` for ``visrl.core.boxes.Box``; the name itself where it is not ours."""
    return name if name in modules() or name.rpartition(".")[0] not in modules() else name.rpartition(".")[0]


@cache
def graph() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""
    return {
        module: {module_of(name) for name in names_imported(file) if within(name, "visrl")} - {module}
        for module, file in modules().items()
    }


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def level(room: str, levels: list[set[str]]) -> int:
    (found,) = [number for number, rooms in enumerate(levels) if room in rooms]
    return found


def components(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module: import cycles. Each node's reach, met from both sides."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for target in edges.get(todo.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return seen

    reached = {module: reach(module) for module in edges}
    return sorted({tuple(sorted({n for n in reached[m] if m in reached.get(n, ())})) for m in edges} - {()})


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, file in modules().items():
        for node in ast.walk(tree(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield module, node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return node.end_lineno - node.lineno + 1


# --- the direction of imports


def test_a_room_imports_only_rooms_below_it():
    wrong = []
    for module, targets in graph().items():
        for target in targets - {"visrl"}:
            mine, theirs = (name.split(".")[1] if "." in name else "" for name in (module, target))
            if mine and mine != theirs and level(mine, LEVELS) <= level(theirs, LEVELS):
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(sorted(wrong))


def test_a_part_of_training_imports_only_parts_below_it():
    wrong = []
    for module, targets in graph().items():
        for target in targets:
            if not (within(module, "visrl.train.") or module.startswith("visrl.train.")):
                continue
            parts = [name.split(".")[2] for name in (module, target) if name.startswith("visrl.train.")]
            if len(set(parts)) == 2 and level(parts[0], TRAIN_LEVELS) <= level(parts[1], TRAIN_LEVELS):
                wrong.append(f"{module} imports {target}")
    assert not wrong, "\n".join(sorted(wrong))


def test_every_room_has_a_level():
    rooms = {module.split(".")[1] for module in modules() if "." in module}
    assert rooms == set().union(*LEVELS)
    parts = {module.split(".")[2] for module in modules() if module.startswith("visrl.train.")}
    assert parts <= set().union(*TRAIN_LEVELS)


def test_no_import_cycle():
    assert components(graph()) == []


def test_cycles_are_found():
    """a -> b -> c -> a, and d -> a that leads into it and is not of it."""
    edges = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert components(edges) == [("a", "b", "c")]


def test_training_never_sees_the_answer_key():
    assert not [
        f"{module} imports {target}"
        for module, targets in graph().items()
        if within(module, "visrl.train")
        for target in targets
        if any(within(target, key) for key in ANSWER_KEY)
    ]


def importers(package: str) -> set[str]:
    return {module for module, file in modules().items() for name in names_imported(file) if within(name, package)}


def test_only_the_plugin_imports_lmms_eval():
    assert {module.split(".")[1] for module in importers("lmms_eval")} == {"lmms"}


def test_torch_stays_where_models_are():
    assert not [module for module in importers("torch") if not any(within(module, place) for place in TORCH)]


@pytest.mark.parametrize(
    "command",
    [
        "import visrl",
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


def test_core_needs_little():
    """The standard library; beyond it pydantic and msgspec for what is on disk, and PIL and numpy where a picture or an array is in hand."""
    allowed = {"visrl", "msgspec", "pydantic", "PIL", "numpy", *sys.stdlib_module_names}
    found = {
        f"{module} imports {name}"
        for module, file in modules().items()
        if within(module, "visrl.core")
        for name in names_imported(file)
        if name.split(".")[0] not in allowed
    }
    assert not found


def test_what_is_looked_up_by_name_is_explained():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(
        r"`((?:visrl|evals|tasks)/[\w/.]*)`", page.split("## Remaining lookups by name")[1].split("\n## ")[0]
    )
    found = {
        str(file.relative_to(ROOT))
        for room in ("visrl", "evals", "tasks")
        for file in (ROOT / room).rglob("*.py")
        if re.search(r"\b(getattr|hasattr)\(", file.read_text())
    }
    assert {file for file in found if not any(file.startswith(name) for name in named)} == set()
    assert {name for name in named if not any(file.startswith(name) for file in found)} == set()


# --- sizes


def test_folders_are_small():
    inside = {}
    for file in modules().values():
        if file.name != "__init__.py":
            inside.setdefault(file.parent.relative_to(ROOT).as_posix(), []).append(file.name)
    assert len(inside.pop("visrl")) <= LOOSE_MODULES
    assert not {folder: len(names) for folder, names in inside.items() if len(names) > MODULES_OF_A_FOLDER}


def test_files_are_short():
    lengths = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in modules().items()}
    assert not {module: n for module, n in lengths.items() if n > LINES_OF_A_FILE}


def test_functions_are_short():
    assert not {f"{m}.{f.name}": length(f) for m, f in functions() if length(f) > LINES_OF_A_FUNCTION}
    assert statistics.median(length(function) for _, function in functions()) <= LINES_OF_THE_MEDIAN_FUNCTION


def test_functions_take_few_parameters():
    many = {}
    for module, function in functions():
        arguments = function.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        count = len([name for name in names if name not in ("self", "cls")])
        options = within(module, "visrl.cli") or (within(module, "visrl.policies") and function.name.startswith("load"))
        if count > PARAMETERS and not options:
            many[f"{module}.{function.name}"] = count
    assert not many


# --- the rest


def test_declared_packages_are_those_on_disk():
    tomllib = pytest.importorskip("tomllib", reason="part of Python 3.11")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {module for module, file in modules().items() if file.name == "__init__.py"}
    assert set(declared) == on_disk | {"visrl.recipes"}  # a folder of data


def test_no_dangerous_calls():
    pattern = re.compile(r"\b(import pickle|pickle\.|torch\.load|yaml\.load|yaml\.unsafe_load|eval\(|exec\()")
    allowed = re.compile(r"\.eval\(\)|ast\.literal_eval|#|`|def ")
    hits = [
        f"{file.name}:{number}: {line.strip()}"
        for file in modules().values()
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if pattern.search(line) and not allowed.search(line)
    ]
    assert not hits
