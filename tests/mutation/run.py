"""Seeds every fault of faults.py into a copy of the source and sees whether its gate or test notices. By hand: `tox -e mutation`.

    python tests/mutation/run.py [--only WORDS] [--write]     # --write: the list into docs/ci.md

Each fault: the three source folders are laid out as an installed package in a temporary folder, one text is replaced there,
and the catcher runs in a forked process that finds that folder first. Caught means that the gate reports a failed
finding (its JSON says so: a crash is not counted) or that pytest reports a failed test (not an error of collection).
First every catcher must be content with the unchanged source. Exit code 1 if a fault survives.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import yaml
from faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
WORLD = yaml.safe_load((ROOT / "evals" / "suites" / "world.yaml").read_text(encoding="utf-8"))
PACKAGE = {"visrl": "visrl", "evals": "visrl/evals", "tasks": "visrl/tasks"}
SUITES = {
    "prompt gate": {"prompts": True},
    "replay gate": {"exact": ["shipped"]},
    "paired gate": {"paired": WORLD["paired"]},
}
"""Each gate alone, as suites of their own."""
BEGIN, END = "<!-- faults: written by tests/mutation/run.py -->", "<!-- end of faults -->"


def lay_out(target: Path) -> Path:
    """A copy of the source as one package below ``target``."""
    for folder, place in PACKAGE.items():
        shutil.copytree(
            ROOT / folder,
            target / place,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
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
    """What the catcher says of the source in ``target``: "" when it is content, else its first complaint.

    It runs in a fork of this process, which forgets every module of visrl's and finds ``target`` first; torch and
    transformers, once loaded here, need not be loaded 40 times.
    """
    with tempfile.TemporaryDirectory(prefix="visrl-notice-") as folder:
        said = Path(folder) / "said"
        child = os.fork()
        if child == 0:
            _in_child(catcher, target, said)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        text = said.read_text(encoding="utf-8")
    return _gate_said(catcher, code, text) if catcher in SUITES else _pytest_said(catcher, code, text)


def _in_child(catcher: str, target: Path, said: Path) -> None:
    """Runs the catcher and ends the process; its output goes to ``said``."""
    code = 70
    try:
        descriptor = os.open(said, os.O_CREAT | os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (open(fd, "w", encoding="utf-8", closefd=False) for fd in (1, 2))  # noqa: SIM115 - until the process ends
        forget()
        sys.path.insert(0, str(target))
        sys.dont_write_bytecode = True
        os.environ["PYTHONPATH"] = str(target)
        code = _gate(catcher, target) if catcher in SUITES else _pytest(catcher)
        import visrl.evals

        if not str(visrl.evals.__file__).startswith(str(target)):
            print(f"not the copy: {visrl.evals.__file__}")
            code = 70
    except BaseException:  # noqa: BLE001 - whatever a fault does, the parent reads it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def forget() -> None:
    """Drop all of visrl's modules, so that the next import finds them anew."""
    for name in [name for name in sys.modules if name == "visrl" or name.startswith("visrl.")]:
        del sys.modules[name]


def preload() -> None:
    """Load here, once for all forks, what their imports would take most of their time with."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import pytest  # noqa: F401
    import scipy.special  # noqa: F401
    from trl import DPOTrainer  # noqa: F401 - its import is lazy

    import visrl.evaluation.evaluate  # noqa: F401
    from visrl.regression.prompt_snapshots import families

    families()  # torch and transformers


def _gate(gate: str, target: Path) -> int:
    os.chdir(target)
    Path("suite.yaml").write_text(yaml.safe_dump(SUITES[gate]))
    from visrl.cli.evaluate import main

    baselines = str(ROOT / "results" / "baselines.yaml")
    return main(["check", "--suite", "suite.yaml", "--baseline", baselines, "--json"])


def _pytest(node: str) -> int:
    """One node, or several parted by blanks."""
    import pytest

    os.chdir(ROOT)
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *node.split()]))


def _gate_said(gate: str, code: int, text: str) -> str:
    start, end = text.find("{\n"), text.rfind("}")
    if code not in (0, 1) or start < 0:
        raise SystemExit(f"{gate} crashed instead of failing:\n{text[-2000:]}")
    failed = [f for f in json.loads(text[start : end + 1])["findings"] if f["status"] == "fail"]
    assert code == (1 if failed else 0)
    return f"{gate}: {failed[0]['name']}" if failed else ""


def _pytest_said(node: str, code: int, text: str) -> str:
    if code not in (0, 1):
        raise SystemExit(f"{node} did not run:\n{text[-2000:]}")
    failed = [line.split(" - ")[0] for line in text.splitlines() if line.startswith("FAILED")]
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
    os.environ["OMP_NUM_THREADS"] = "1"
    preload()
    with tempfile.TemporaryDirectory(prefix="visrl-mutation-") as folder:
        pristine = lay_out(Path(folder) / "source")
        for catcher in dict.fromkeys(fault.catcher for fault in chosen):
            if complaint := notice(catcher, pristine):
                raise SystemExit(f"{catcher} complains of the unchanged source: {complaint}")
            print(f"content: {catcher}", flush=True)
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
