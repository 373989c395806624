"""Seeds every fault of faults.py into a copy of the source and sees whether its gate or test notices. By hand: `tox -e mutation`.

    python tests/mutation/run.py [--only WORDS] [--write]     # --write: the list into docs/ci.md

Each fault: the three source folders are laid out as an installed package in a temporary folder, one text is replaced there,
and the catcher runs in a new process with that folder first on the path. Caught means that the gate reports a failed
finding (its JSON says so: a crash is not counted) or that pytest reports a failed test (not an error of collection).
First every catcher must be content with the unchanged source. Exit code 1 if a fault survives.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
PACKAGE = {"visrl": "visrl", "evals": "visrl/evals", "tasks": "visrl/tasks"}
SUITES = {"G0": "prompts: true", "G1": "exact: [shipped]"}
BEGIN, END = "<!-- faults: written by tests/mutation/run.py -->", "<!-- end of faults -->"


def lay_out(target: Path) -> Path:
    """A copy of the source as one package below ``target``."""
    for folder, place in PACKAGE.items():
        shutil.copytree(
            ROOT / folder,
            target / place,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"),
        )
    return target


def seed(fault: Fault, target: Path) -> None:
    top, _, rest = fault.file.partition("/")
    path = target / PACKAGE[top] / rest
    text = path.read_text(encoding="utf-8")
    if text.count(fault.before) != 1:
        raise SystemExit(f"{fault.what}: the text to replace occurs {text.count(fault.before)} times in {fault.file}")
    path.write_text(text.replace(fault.before, fault.after), encoding="utf-8")


def notice(catcher: str, target: Path) -> str:
    """What the catcher says of the source in ``target``: "" when it is content, else its first complaint."""
    env = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import visrl.evals as e; print(e.__file__)"],
        env=env,
        capture_output=True,
        text=True,
        cwd=target,
    )
    assert where.stdout.startswith(str(target)), f"the copy is not what is imported: {where.stdout}{where.stderr}"
    return _gate(catcher, target, env) if catcher in SUITES else _pytest(catcher, env)


def _gate(gate: str, target: Path, env: dict[str, str]) -> str:
    (target / "suite.yaml").write_text(SUITES[gate])
    code = "import sys; from visrl.cli import main; sys.exit(main(['check', '--suite', 'suite.yaml', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=target)
    if not done.stdout.startswith("{"):
        raise SystemExit(f"{gate} crashed instead of failing:\n{done.stderr[-2000:]}")
    failed = [f for f in json.loads(done.stdout)["findings"] if f["status"] == "fail"]
    assert done.returncode == (1 if failed else 0)
    return f"{gate}: {failed[0]['name']}" if failed else ""


def _pytest(node: str, env: dict[str, str]) -> str:
    command = [Path(sys.executable).with_name("pytest"), "-q", "-x", "-p", "no:cacheprovider", node]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{node} did not run:\n{done.stdout[-2000:]}")
    failed = [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return failed[0].removeprefix("FAILED ").split("[")[0] if failed else ""


def try_fault(fault: Fault, pristine: Path) -> str:
    """What noticed the fault, or "" when it survived."""
    with tempfile.TemporaryDirectory(prefix="visrl-fault-") as folder:
        target = Path(shutil.copytree(pristine, Path(folder) / "source"))
        seed(fault, target)
        return notice(fault.catcher, target)


def write_list(caught: dict[str, str]) -> None:
    """The list into docs/ci.md, between its marks."""
    rows = [f"| {i} | {f.what} | `{f.file}` | {_code(caught[f.what])} |" for i, f in enumerate(FAULTS, 1)]
    path = ROOT / "docs" / "ci.md"
    head, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    table = ["| | fault | in | caught by |", "|---|---|---|---|", *rows]
    path.write_text("\n".join([head + BEGIN, *table, END]) + rest.partition(END)[2], encoding="utf-8")


def _code(text: str) -> str:
    return f"`{text}`" if text.startswith("tests/") else text or "**nothing**"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="faults whose name holds these words")
    parser.add_argument("--write", action="store_true", help="the list into docs/ci.md")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if options.only in fault.what]
    caught: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="visrl-mutation-") as folder:
        pristine = lay_out(Path(folder) / "source")
        for catcher in dict.fromkeys(fault.catcher for fault in chosen):
            if complaint := notice(catcher, pristine):
                raise SystemExit(f"{catcher} complains of the unchanged source: {complaint}")
        for fault in chosen:
            start = time.monotonic()
            caught[fault.what] = try_fault(fault, pristine)
            print(f"{time.monotonic() - start:5.1f} s  {fault.what}: {caught[fault.what] or 'SURVIVED'}", flush=True)
    survivors = [what for what, by in caught.items() if not by]
    print(f"{len(caught) - len(survivors)} of {len(caught)} faults caught")
    if options.write and not options.only:
        write_list(caught)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
