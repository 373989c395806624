"""Draws mutants of arithmetic and logic at random and sees whether the tests notice. By hand: `tox -e mutants`.

    python tests/mutation/random_mutants.py [--seed N] [--number N] [--only PATH] [--narrow] [--threshold PERCENT]

A mutant (mutants.py) is one changed comparison, operator, number, condition or returned value in scoring, boxes, rollout,
losses or the selection of pairs. All mutants of these files are drawn from with equal chance; the same seed draws the same ones
of the same source. Each is put into a copy of the source laid out as an installed package (run.py), and the tests that are near the
file run in a forked process, stopping at the first failure; where they pass, all tests of the area. Killed: a test
failed, could not be collected, or did not end in time. Mutants listed in equivalent.py are counted, and not tried.

Prints every survivor; exit code 1 when less than ``--threshold`` percent of those tried were killed.
(It is not called random alone: as a script's neighbour that would shadow the standard library's module.)
"""

import argparse
import compileall
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

from equivalent import EQUIVALENT
from mutants import Mutant, mutants
from run import PACKAGE, ROOT, _in_child, lay_out, preload

FILES = (
    "evals/*.py", "evals/scorers/*.py", "visrl/core/boxes.py", "visrl/core/box_formats.py", "visrl/core/crops.py",
    "visrl/core/final_answer.py", "visrl/rollout/*.py", "visrl/train/dpo/losses.py", "visrl/train/common/logprobs.py",
    "visrl/train/pairs/selection.py", "visrl/train/pairs/diversity.py", "visrl/train/critics/critics.py",
)  # fmt: skip
LIMIT = 60  # seconds of processor time the tests may take, and four times that by the clock
MEMORY = 24 << 30  # bytes of address space: a loop without end must not take the machine

_EVALS = (
    "evals/test_scoring evals/test_judge evals/test_extractors evals/test_rec_scores evals/test_pope_scores evals/test_mme_scores \
evals/test_mmbench_scores evals/test_viscot_scores evals/test_stats evals/test_compare evals/test_gate_rules evals/test_gates evals/test_benchmarks \
evals/test_paper evals/test_shipped_suites test_replay test_tables"
)
_CORE = "test_boxes test_focus test_parsing test_final_answer test_rollout test_replay evals/test_rec_scores evals/test_viscot_scores"
_TRAIN = "train/test_train_losses train/test_selection train/test_diversity train/test_critics train/test_pairs"
AREAS = {"evals/": _EVALS, "visrl/core/": _CORE, "visrl/rollout/": _CORE, "visrl/train/": _TRAIN}
NEAR = {
    "evals/baselines.py": "evals/test_gate_rules evals/test_gates",
    "evals/benchmarks.py": "evals/test_benchmarks",
    "evals/compare.py": "evals/test_compare evals/test_gate_rules evals/test_gates",
    "evals/equal_words.py": "evals/test_judge",
    "evals/gates.py": "evals/test_gate_rules evals/test_gates",
    "evals/judge.py": "evals/test_judge",
    "evals/paper.py": "evals/test_paper test_tables",
    "evals/sample_scores.py": "evals/test_compare evals/test_gate_rules evals/test_gates",
    "evals/stats.py": "evals/test_stats evals/test_rec_scores",
    "evals/suite.py": "evals/test_gate_rules evals/test_gates evals/test_shipped_suites",
    "evals/scorers/columns.py": "evals/test_scoring evals/test_rec_scores evals/test_mme_scores",
    "evals/scorers/letters.py": "evals/test_mmbench_scores evals/test_extractors",
    "evals/scorers/measure.py": "evals/test_scoring evals/test_mme_scores evals/test_rec_scores evals/test_pope_scores",
    "evals/scorers/mmbench.py": "evals/test_mmbench_scores",
    "evals/scorers/mme.py": "evals/test_mme_scores",
    "evals/scorers/plain_text.py": "evals/test_mmbench_scores evals/test_extractors",
    "evals/scorers/pope.py": "evals/test_pope_scores",
    "evals/scorers/rec.py": "evals/test_rec_scores evals/test_scoring",
    "evals/scorers/scoring.py": "evals/test_scoring",
    "evals/scorers/viscot.py": "evals/test_viscot_scores",
    "evals/scorers/yes_no.py": "evals/test_pope_scores evals/test_extractors",
    "visrl/core/boxes.py": "test_boxes",
    "visrl/core/box_formats.py": "test_parsing",
    "visrl/core/crops.py": "test_focus",
    "visrl/core/final_answer.py": "test_final_answer",
    "visrl/train/dpo/losses.py": "train/test_train_losses",
    "visrl/train/common/logprobs.py": "train/test_train_exact train/test_train_losses",
    "visrl/train/pairs/selection.py": "train/test_selection train/test_diversity",
    "visrl/train/pairs/diversity.py": "train/test_diversity train/test_selection",
    "visrl/train/critics/critics.py": "train/test_critics",
}
"""The tests that are near a file, quick ones first; what stands under visrl/rollout/ has tests/test_rollout.py."""


def drawn(seed: int, number: int, only: str = "") -> list[Mutant]:
    """``number`` mutants of FILES (below ``only``), or all there are."""
    files = sorted({path for pattern in FILES for path in ROOT.glob(pattern)})
    names = [name for path in files if (name := path.relative_to(ROOT).as_posix()).startswith(only)]
    found = [mutant for name in names for mutant in mutants(name, (ROOT / name).read_text(encoding="utf-8"))]
    return random.Random(seed).sample(found, min(number, len(found)))


def near_and_area(file: str) -> tuple[str, str]:
    """The tests near a file, and the others of its area, as pytest nodes parted by blanks."""
    near = NEAR.get(file, "test_rollout").split()
    area = next(tests for area, tests in AREAS.items() if file.startswith(area)).split()
    return _nodes(near), _nodes([test for test in area if test not in near])


def _nodes(tests: list[str]) -> str:
    return " ".join(f"tests/{test}.py" for test in tests)


def passes(nodes: str, target: Path, limit: int = LIMIT) -> bool:
    """Whether the tests end well in time on the source in ``target``, in a fork of this process."""
    said = target.parent / "said"
    said.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os.setsid()  # what the tests start can be ended with them
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        _in_child(nodes, target, said)
    end = time.monotonic() + 4 * limit
    pid, status = 0, 0
    while not pid and time.monotonic() < end:
        time.sleep(0.05)
        pid, status = os.waitpid(child, os.WNOHANG)
    if not pid:
        os.killpg(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status) == 0


def survives(mutant: Mutant, target: Path, narrow: bool) -> bool:
    top, _, rest = mutant.file.partition("/")
    path = target / PACKAGE[top] / rest
    source = path.read_text(encoding="utf-8")
    Path(str(path.parent / "__pycache__" / path.stem) + f".{sys.implementation.cache_tag}.pyc").unlink(missing_ok=True)
    path.write_text(mutant.applied(source), encoding="utf-8")
    near, others = near_and_area(mutant.file)
    try:
        return passes(near, target) and (narrow or passes(others, target))
    finally:
        path.write_text(source, encoding="utf-8")


def check_unchanged(chosen: list[Mutant], target: Path, narrow: bool) -> None:
    """The tests must pass on the source as it is, or every mutant would seem killed."""
    near = {node for mutant in chosen for node in near_and_area(mutant.file)[0].split()}
    others = {node for mutant in chosen for node in near_and_area(mutant.file)[1].split()} - near
    for nodes in (" ".join(sorted(near)), "" if narrow else " ".join(sorted(others))):
        if nodes and not passes(nodes, target, 5 * LIMIT):
            said = (target.parent / "said").read_text(encoding="utf-8")
            raise SystemExit(f"{nodes} complain of the unchanged source:\n{said[-2000:]}")


def run(chosen: list[Mutant], narrow: bool) -> list[Mutant]:
    """The survivors."""
    survivors = []
    with tempfile.TemporaryDirectory(prefix="visrl-mutants-") as folder:
        target = lay_out(Path(folder) / "source")
        compileall.compile_dir(target, quiet=2)
        check_unchanged(chosen, target, narrow)
        for i, mutant in enumerate(chosen, 1):
            start = time.monotonic()
            alive = survives(mutant, target, narrow)
            word = "SURVIVED" if alive else "killed"
            print(f"{i:4} {time.monotonic() - start:5.1f} s  {word}  {mutant}", flush=True)
            survivors += [mutant] if alive else []
    return survivors


def without_shrinking() -> None:
    """A property's first counterexample kills a mutant: it need not be made small."""
    from hypothesis import Phase, settings

    phases = [Phase.explicit, Phase.generate]
    settings.register_profile("mutants", phases=phases, derandomize=True, database=None, deadline=None)
    settings.load_profile("mutants")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=100, help="how many to draw")
    parser.add_argument("--only", default="", help="files whose path begins so")
    parser.add_argument("--narrow", action="store_true", help="only the tests near the file: quicker, and more survive")
    parser.add_argument("--threshold", type=float, default=92.0, help="least percent killed of those tried")
    options = parser.parse_args()
    chosen = drawn(options.seed, options.number, options.only)
    tried = [mutant for mutant in chosen if mutant.key not in EQUIVALENT]
    os.environ["OMP_NUM_THREADS"] = "1"
    preload()
    without_shrinking()
    survivors = run(tried, options.narrow)
    print("\nsurvivors:", *survivors, sep="\n")
    killed = len(tried) - len(survivors)
    share = 100.0 * killed / max(len(tried), 1)
    print(f"{len(chosen)} drawn, {len(chosen) - len(tried)} equivalent, {killed} of {len(tried)} killed: {share:.1f} %")
    return 1 if share < options.threshold else 0


if __name__ == "__main__":
    sys.exit(main())
