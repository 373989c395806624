"""Damaged files and the commands that read them: only exit codes 0 to 3 may come out, no exception, and on 2 nothing was touched."""

import hashlib
import random
import shutil
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import fuzz_benchmarks
import fuzz_foreign
import fuzz_looks
from fuzz_made import call, make, run_words
from fuzz_mutations import mutated

CODES = (0, 1, 2, 3)
HUNG_S = 30


@dataclass(frozen=True)
class Target:
    """A file of the valid folder, its kind, and the commands that read it."""

    name: str
    path: str
    kind: str
    commands: tuple = ()


def targets(folder):
    run, other, base = (str(folder / name) for name in ("run", "other", "base/baselines.yaml"))
    page = str(folder / "page.html")
    show, score, view = (
        ("visrl-eval", "show", run),
        ("visrl-eval", "score", run),
        ("visrl-eval", "view", run, "-o", page),
    )
    two, compare = ("visrl-eval", "view", other, run, "-o", page), ("visrl-eval", "compare", run, other)
    accept = ("visrl-eval", "accept", run, "--name", "accepted", "--baseline", base)
    check = ("visrl-eval", "check", "--suite", str(folder / "suite.yaml"), "--run", run, "--baseline", base)
    resume = ("visrl-eval", *run_words(folder, run))
    tables = tuple(("visrl-eval", "tables", "--paper", paper, run) for paper in ("viscot", "general", "rec", "datagen"))
    training = ("visrl-eval", "view", str(folder / "training"), "-o", page)
    export = ("visrl-eval", "export", run, "-o", str(folder / "rows.html"))  # a name that is taken for no input
    audit, card, board = (
        ("visrl-eval", "audit", run, "--data", str(folder / "data")),
        ("visrl-eval", "card", run),
        ("visrl-eval", "leaderboard", str(folder)),
    )
    found = [
        Target(
            "run.json",
            "run/run.json",
            "json",
            (show, score, view, two, compare, accept, check, resume, export, audit, card, board),
        ),
        Target("episodes", "run/episodes.jsonl", "jsonl", (score, view, two, resume, export, audit)),
        Target("scores", "run/scores.jsonl", "jsonl", (view, two, compare, accept, check, export, card)),
        Target(
            "records", f"run/records/{'viscot_vsr'}.json", "json", (show, view, accept, check, card, board, *tables)
        ),
        Target("suite", "suite.yaml", "yaml", (check,)),
        Target("baselines", "base/baselines.yaml", "yaml", (check, accept)),
        *(
            Target("training", f"training/{name}", kind, (training,))
            for name, kind in (
                ("settings.json", "json"),
                ("history.json", "json"),
                ("training.json", "json"),
                ("manifest.json", "json"),
                ("score/metrics.json", "json"),
            )
        ),
    ]
    loop = str(folder / "recipes" / "loop.yaml")
    for name in ("dpo", "grpo", "sft", "small_model", "pairs", "loop", "ablations"):
        found.append(Target("recipe", f"recipes/{name}.yaml", "yaml", tuple(_recipe_commands(folder, name))))
    for name in ("base/phase_config.json", "base/outputs.json", "sft/phase_config.json"):
        found.append(Target("phase", f"loop/{name}", "json", (("visrl-train", loop, "--dry-run"),)))
    output = fuzz_foreign.OUTPUT
    others = (
        *fuzz_foreign.targets(folder),
        *fuzz_looks.targets(folder, output),
        *fuzz_benchmarks.targets(folder, output),
    )
    return found + [Target(*about) for about in others]


def _recipe_commands(folder, name):
    """A dry run; an estimate of the kinds that have one; both also with a model and rows that are there."""
    recipe, rows = str(folder / "recipes" / f"{name}.yaml"), {"sft": "chains", "dpo": "pairs"}.get(name)
    sets = ["model.path=tiny"] if name in ("sft", "dpo", "grpo") else []
    if rows:
        sets += [f"data.path={folder / 'rows' / rows}.jsonl", f"data.pictures={folder / 'data/images'}"]
    there = [word for each in sets for word in ("--set", each)]
    yield ("visrl-train", recipe, "--dry-run")
    if there:
        yield ("visrl-train", recipe, *there, "--dry-run")
    if name not in ("small_model", "ablations"):
        yield ("visrl-train", "estimate", recipe, *there)


@dataclass
class Tally:
    """What came out: (kind of file, exit code) -> how often, and every fault with what made it."""

    codes: Counter = field(default_factory=Counter)
    faults: list = field(default_factory=list)
    slowest: float = 0.0


def contents(folder):
    return {
        p: hashlib.sha256(p.read_bytes()).digest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.suffix != ".html"
    }


class Hung(BaseException):
    """Not an Exception: a command's own handlers must not take it for a fault of a file."""


def _hung(*_):
    raise Hung(f"over {HUNG_S} s")


def one(target, command, damaged, folder, tally):
    """One damaged file read by one command."""
    path = folder / target.path
    before_bytes = path.read_bytes()
    path.write_bytes(damaged)
    before = contents(folder)
    began = time.process_time()
    signal.signal(signal.SIGALRM, _hung)
    signal.alarm(HUNG_S)
    try:
        code, said = call(*command)
    except BaseException:  # noqa: BLE001 - whatever comes out is the finding
        code, said = "raised", traceback.format_exc()
    finally:
        signal.alarm(0)
    tally.slowest = max(tally.slowest, time.process_time() - began)
    touched = code == 2 and command[1] != "run" and contents(folder) != before
    tally.codes[target.name, code] += 1
    if code not in CODES or "Traceback" in said or touched or (code == 2 and "error: " not in said):
        tally.faults.append((target.path, command[:2], "touched" if touched else code, said[-700:], damaged))
    path.write_bytes(before_bytes)


def damaged(data, kind, dice):
    """One damaged version of a valid file."""
    if kind == "parquet":
        return fuzz_benchmarks.mutated(data, dice)
    return (fuzz_foreign.mutated if kind in ("gz", "xlsx", "tsv") else mutated)(data, kind, dice)


def campaign(folder, number, seed, report=lambda tally: None, only=()):
    """``number`` damaged files in turn over all targets, or those named in ``only``; the valid folder is made anew from a copy after each."""
    pristine = make(folder / "work")
    kept = folder / "kept"
    shutil.copytree(pristine, kept)
    dice, tally = random.Random(seed), Tally()
    found = [target for target in targets(pristine) if not only or target.name in only]
    for target in found:  # valid, it is read; and what is imported then is not timed below
        for command in target.commands:
            code, said = call(
                *command
            )  # a recipe is read whole before its model, of which there is none here, is missed
            assert code == 0 or "cannot load m: no such folder" in said, (command, said)
            shutil.rmtree(pristine / fuzz_foreign.OUTPUT, ignore_errors=True)
    shutil.rmtree(kept)
    shutil.copytree(pristine, kept)
    for i in range(number):
        target = found[i % len(found)]
        one(
            target,
            dice.choice(target.commands),
            damaged((kept / target.path).read_bytes(), target.kind, dice),
            pristine,
            tally,
        )
        shutil.rmtree(pristine / fuzz_foreign.OUTPUT, ignore_errors=True)
        for name in ("run", "base", "loop"):
            shutil.rmtree(pristine / name)
            shutil.copytree(kept / name, pristine / name)
        report(tally)
    return tally


def table(tally):
    """Lines of a table: a row per kind of file, a column per exit code."""
    names = dict.fromkeys(name for name, _ in tally.codes)
    yield f"{'file':<12}" + "".join(f"{code!s:>8}" for code in (*CODES, "raised"))
    for name in names:
        yield f"{name:<12}" + "".join(f"{tally.codes[name, code]:>8}" for code in (*CODES, "raised"))


def groups(faults):
    """Faults by their last line, with how many."""
    return Counter(
        (
            path.split("/")[0] + " " + " ".join(command),
            str(code),
            said.strip().splitlines()[-1][:140] if said.strip() else "",
        )
        for path, command, code, said, _ in faults
    )


def save(faults, folder):
    """Each fault's damaged file, and beside it what was said."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (path, command, code, said, damaged) in enumerate(faults):
        (folder / f"{number}-{Path(path).name}").write_bytes(damaged)
        (folder / f"{number}.txt").write_text(f"{path} {command} {code}\n{said}", errors="backslashreplace")
