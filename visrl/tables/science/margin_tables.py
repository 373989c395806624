"""A critic by margin beside the likelihood critic, domain by domain: records of recipes/world-margin.yaml as a table, a verdict
and a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from visrl.core.records import TaskResult
from visrl.evals import stats
from visrl.evals.benchmarks import GROUPS
from visrl.tables.ablation_tables import FULL, plus_minus
from visrl.tables.claims import BEYOND, SEEDS, BySeed
from visrl.tables.formats import Cell, Row, Table
from visrl.tables.phase_tables import METRICS, Point, draw_lines, percent, phase_ends, phase_of, points, runs, short

RUN = "margin"
FIGURE = "figures/margin.svg"
YES_OR_NO = "world_viscot_fine"
"""The task that this critic is for."""


def by_domain(found: Sequence[TaskResult], run: str, label: str) -> dict[str, BySeed]:
    """A phase's scores, in percent: domain and metric, the groups' means last -> seed -> value."""
    values: dict[tuple[str, str], BySeed] = {}
    for result in found:
        about = phase_of(result)
        if (about["run"], about["label"]) == (run, label) and result.value is not None:
            values.setdefault((result.metric, result.task), {})[str(about["seed"])] = percent(result, result.value)
    whats = sorted(values, key=lambda what: (list(METRICS).index(what[0]), what[1] in GROUPS, what[1]))
    return {f"{short(task)} {METRICS[metric]}": values[metric, task] for metric, task in whats}


def ends(found: Sequence[TaskResult]) -> dict[str, dict[str, BySeed]]:
    """``SFT`` (of ``full``), then each run at its last phase -> domain and metric -> seed -> percent."""
    rows = {}
    for run in sorted(runs(found), key=lambda name: (name != FULL, name)):
        labels = list(phase_ends(found, run))
        if run == FULL:
            rows["SFT"] = by_domain(found, run, labels[0])
        rows[run] = by_domain(found, run, labels[-1])
    return rows


def domains_table(rows: Mapping[str, Mapping[str, BySeed]]) -> Table:
    """A row per domain and metric: each end, and the margin's less that of ``full``, paired by seed."""
    names = [name for name in rows if name != RUN]
    lines = []
    for what in rows[FULL]:
        ended = [_over(rows[name].get(what, {})) for name in (*names, RUN)]
        gap = difference(rows, what)
        lines.append(Row(what, tuple(Cell((cell,)) for cell in (*ended, _said(gap), str(gap.n)))))
    titles = [*names, RUN, f"{RUN} less {FULL}", "seeds"]
    note = (
        "Percent, mean ± standard error over seeds; differences are paired by seed. All seeds start from one warm-up."
    )
    return Table("Two critics, at the last iteration", "domain", tuple((t, t) for t in titles), tuple(lines), (note,))


def difference(rows: Mapping[str, Mapping[str, BySeed]], what: str) -> stats.Estimate:
    """The margin's end less that of ``full``, paired by seed, in percentage points."""
    full, margin = rows[FULL][what], rows[RUN].get(what, {})
    seeds = [seed for seed in full if seed in margin]
    return stats.paired_difference([full[s] for s in seeds], [margin[s] for s in seeds], seeds)


def verdict(rows: Mapping[str, Mapping[str, BySeed]]) -> str:
    """A sentence: where the margin ends above ``full``, and where below, beyond two standard errors."""
    told: dict[str, list[str]] = {"above": [], "below": []}
    for what in rows[FULL]:
        gap = difference(rows, what)
        if gap.value is not None and gap.n >= SEEDS and abs(gap.value) > BEYOND * (gap.se or 0.0):
            told["above" if gap.value > 0 else "below"].append(f"{what} {_said(gap)}")
    said = (f"{where} it: {', '.join(whats) or 'nothing'}" for where, whats in told.items())
    return f"`{RUN}` against `{FULL}`, beyond two standard errors over {SEEDS} seeds or more: {'; '.join(said)}."


def _over(values: BySeed) -> str:
    over = stats.mean(list(values.values()), list(values))
    return plus_minus(over.value, over.se)


def _said(gap: stats.Estimate) -> str:
    return plus_minus(gap.value, gap.se, "+")


def draw_margin(found: Sequence[TaskResult], path: Path) -> None:
    """The figure, as SVG: answers to yes-or-no questions over iterations, with either critic."""
    lines: dict[str, list[tuple[str, Point]]] = {}
    for run in sorted(runs(found), key=lambda name: (name != FULL, name)):
        of_run = points(found, run)
        lines[run] = [
            (number, of_run[label][YES_OR_NO, "answer"])
            for label, number in phase_ends(found, run).items()
            if (YES_OR_NO, "answer") in of_run[label]
        ]
    draw_lines(lines, "Yes-or-no answers with two critics, small world", path)
