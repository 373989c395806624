"""Many runs as one table: a row per run and main result, best first; and their paired differences.

What may stand side by side is decided as everywhere: samples are paired by id, and only where both runs saw the same documents.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from visrl.core.records import TaskResult, interval, read_records
from visrl.errors import UsageError
from visrl.evals.benchmarks import GROUPS
from visrl.evals.compare import Difference, Paired, difference, pair_group, pair_task
from visrl.evals.sample_scores import Rows, of_run
from visrl.runs.meta import read_evaluation, unlike_documents
from visrl.tables.formats import UNIT_SHOWN, Cell, Row, Table, cleaned, plain
from visrl.tables.result_tables import is_direct, main_results, of_expected, shown

DEPTH = 4
MOST_COMPARED = 12
"""Runs of a task of which all pairs are compared: 66 differences."""


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run folder of an evaluation. name: relative to the folder that was asked for."""

    name: str
    folder: Path
    request: Mapping[str, Any]
    started: str
    results: tuple[TaskResult, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """A main result of a run."""

    entry: RunEntry
    result: TaskResult


@dataclass(frozen=True, slots=True)
class Versus:
    """The differences of one task and metric, of each run (row) to each other (column); by (row, column), row minus column."""

    task: str
    metric: str
    unit: str
    names: tuple[str, ...]
    differences: Mapping[tuple[str, str], Difference]
    left_out: int


def run_folders(folder: Path) -> list[Path]:
    """The folders of evaluations at or below ``folder``, by name; those a loop set aside left out."""
    found, places = list[Path](), [folder]
    for _ in range(DEPTH + 1):
        found += [place for place in places if (place / "episodes.jsonl").is_file() and (place / "run.json").is_file()]
        places = [
            child
            for place in places
            for child in place.iterdir()
            if child.is_dir()
            and not child.name.startswith(("checkpoint-", "."))
            and child.name not in ("old", "records")
        ]
    return sorted(found)


def read_entries(folder: Path) -> list[RunEntry]:
    """The runs below a folder, each with its main results. Raises UsageError where there is none, and for a damaged file."""
    entries = []
    for place in run_folders(folder):
        meta = read_evaluation(place)
        results = read_records(place) if (place / "records").is_dir() else []
        name = str(place.relative_to(folder)) if place != folder else place.resolve().name
        entries.append(
            RunEntry(
                plain(name, 120),
                place,
                meta["request"],
                str(meta.get("started", ""))[:10],
                tuple(main_results(results)),
            )
        )
    if not entries:
        raise UsageError(f"{folder} contains no runs", "give the parent folder of your runs; default runs/")
    return entries


def of_task(entries: Sequence[RunEntry], task: str) -> list[RunEntry]:
    """The runs with the results of one task or group only."""
    return [replace(entry, results=tuple(r for r in entry.results if r.task == task)) for entry in entries]


def standings(entries: Sequence[RunEntry]) -> list[Standing]:
    """Every main result of every run: task by task in the order of the first run that has it, the best first."""
    found = [Standing(entry, result) for entry in entries for result in entry.results]
    names = list(dict.fromkeys((s.result.task, s.result.metric) for s in found))

    def place(standing: Standing) -> tuple[int, float]:
        value = standing.result.value
        sign = -1.0 if standing.result.higher_is_better else 1.0
        key = standing.result.task, standing.result.metric
        return names.index(key), float("inf") if value is None else sign * value

    return sorted(found, key=place)


def protocol_of(request: Mapping[str, Any]) -> str:
    """The protocol, with the focus where something was cropped."""
    protocol: str = request["protocol"]
    return protocol if is_direct(protocol) or request["focus"] == "predicted" else f"{protocol}, {request['focus']}"


def leaderboard(entries: Sequence[RunEntry]) -> Table:
    """The standings as a table for Markdown, LaTeX or CSV; CSV has every digit and the commands' names."""
    rows, tidy = [], []
    for standing in standings(entries):
        entry, result = standing.entry, standing.result
        ends = interval(result)
        texts = (
            result.task,
            result.metric,
            "—" if result.value is None else shown(result.value, result.unit),
            "" if ends is None else "–".join(shown(end, result.unit) for end in ends),
            UNIT_SHOWN[result.unit],
            of_expected(result),
            protocol_of(entry.request),
            entry.name,
            entry.started,
        )
        rows.append(Row(plain(str(entry.request["model"])), tuple(Cell((text,)) for text in texts)))
        tidy.append(_tidy(standing))
    titles = ("task", "metric", "value", "95 % CI", "unit", "n", "protocol", "run", "date")
    return Table("", "model", tuple((title, title) for title in titles), cleaned(rows), (), tuple(tidy))


def on_a_screen(entries: Sequence[RunEntry]) -> Table:
    """The standings for a terminal: a section per task and metric; what model and protocol a run is of stands below, once."""
    rows = []
    before = None
    for standing in standings(entries):
        result = standing.result
        what = f"{result.task} {result.metric}"
        value = "—" if result.value is None else shown(result.value, result.unit)
        error = "" if result.value is None or result.se is None else f" ± {shown(result.se, result.unit)}"
        texts = (what, value + error, UNIT_SHOWN[result.unit], of_expected(result))
        cells = tuple(Cell((text,)) for text in texts)
        rows.append(Row(plain(standing.entry.name, 120), cells, opens_section=before not in (None, what)))
        before = what
    titles = ("task and metric", "value ± SE", "unit", "n")
    notes = tuple(plain(_run_line(entry), 300) for entry in entries)
    return Table("", "run", tuple((title, title) for title in titles), cleaned(rows), notes)


def _run_line(entry: RunEntry) -> str:
    facts = (str(entry.request["model"]), protocol_of(entry.request), entry.started)
    return f"{entry.name}: {' · '.join(fact for fact in facts if fact)}"


def _tidy(standing: Standing) -> dict[str, Any]:
    entry, result = standing.entry, standing.result
    low, high = interval(result) or (None, None)
    return {
        "model": entry.request["model"],
        "task": result.task,
        "metric": result.metric,
        "value": result.value,
        "se": result.se,
        "ci_low": low,
        "ci_high": high,
        "unit": result.unit,
        "n": result.n,
        "n_expected": result.n_expected,
        "protocol": entry.request["protocol"],
        "focus": entry.request["focus"],
        "run": entry.name,
        "date": entry.started,
    }


def differences(entries: Sequence[RunEntry]) -> Iterator[Versus]:
    """The paired differences of every main result that two runs or more have. Raises UsageError for damaged scores."""
    by_result: dict[tuple[str, str], list[Standing]] = {}
    for standing in standings(entries):
        by_result.setdefault((standing.result.task, standing.result.metric), []).append(standing)
    scores: dict[str, Rows] = {}
    for (task, metric), found in by_result.items():
        kept = [s for s in found if (s.entry.folder / "scores.jsonl").is_file()][:MOST_COMPARED]
        if len(kept) < 2:
            continue
        for s in kept:
            scores.setdefault(s.entry.name, of_run(s.entry.folder))
        pairs: dict[tuple[str, str], Difference] = {}
        for a, b in combinations(kept, 2):
            for first, second in ((a, b), (b, a)):
                change = _difference(task, metric, (first.entry, second.entry), scores)
                if change is not None:
                    pairs[first.entry.name, second.entry.name] = change
        names = tuple(s.entry.name for s in kept)
        yield Versus(task, metric, UNIT_SHOWN[kept[0].result.unit], names, pairs, len(found) - len(kept))


def _difference(
    task: str, metric: str, runs: tuple[RunEntry, RunEntry], scores: Mapping[str, Rows]
) -> Difference | None:
    """The first run minus the second; None where they share no sample, or saw other documents."""
    members = GROUPS.get(task, (task,))
    if any(member in unlike_documents(runs[0].request, runs[1].request) for member in members):
        return None
    after, before = (scores[run.name] for run in runs)
    tasks = {m: pair_task(m, before[m], after[m]) for m in members if m in before and m in after}
    found: Sequence[Paired] = pair_group(task, tasks) if task in GROUPS else tasks.get(task, ())
    return next((difference(paired) for paired in found if paired.metric == metric), None)


def view_command(entry: RunEntry) -> str:
    """The command that writes a run's page."""
    return shlex.join(["visrl-eval", "view", str(entry.folder)])
