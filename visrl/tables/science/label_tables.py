"""Labels against reinforcement: records and costs of recipes/world-labels.yaml as table, figure and section of docs/science.md.

For each number N of labelled pictures there are two runs of a seed from one warm-up: ``rl<N>`` (``full`` for the loop's own N),
one iteration of reinforcement, and ``more<N>``, SFT continued on the same pictures for about as long. A gain is the end of a run
less its warm-up, seed by seed; only seeds that have both runs count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from visrl.core.records import TaskResult
from visrl.errors import UsageError
from visrl.evals import stats
from visrl.tables.ablation_tables import FULL, plus_minus
from visrl.tables.claims import by_seed
from visrl.tables.cost_tables import Cost, rerun, runs_of
from visrl.tables.formats import Cell, Row, Table, render
from visrl.tables.phase_tables import of_loops, runs
from visrl.world.splits import SFT_PICTURES

RECIPE = "recipes/world-labels.yaml"
FIGURE = "figures/labels.svg"
SCORES = {"box": "boxes", "answers": "answers"}
"""A metric's name in records' tables, and in this one's titles."""
_ABOUT = """The gain of one iteration of reinforcement over SFT on N labelled pictures, against that of SFT continued on the same
pictures for 300 steps: about as long as pairs, RL1 and RL2 take from 40 labels; the table has what both took. Both start
from the same warm-up of 140 steps, one per N and seed. The questions of reinforcement are of other pictures, the same for
every N. Where the difference crosses zero is read from straight lines between the numbers measured, over log N.
"""
_NOTHING = f"""**Not measured, so nothing is claimed.** `{RECIPE}` defines the comparison: reinforcement against SFT
continued with the same compute, from warm-ups on 10 to 1,280 labelled pictures.
"""
_RUN = re.compile(r"(rl|more)(\d+)$")
_END = {"rl": "SFT+RL1+RL2", "more": "SFT+more"}
"""The label of the phase that each arm ends with."""
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Arms:
    """Both arms of one number of labels, by one score in percent: the warm-up and each arm's gain over it, per seed."""

    warm_up: dict[str, float]
    reinforced: dict[str, float]
    continued: dict[str, float]

    @property
    def difference(self) -> stats.Estimate:
        """Reinforcement's gain less that of continued SFT, paired by seed, in percentage points."""
        seeds = list(self.warm_up)
        return stats.paired_difference([self.continued[s] for s in seeds], [self.reinforced[s] for s in seeds], seeds)


def over(values: Mapping[str, float]) -> stats.Estimate:
    """The mean over seeds, and its standard error."""
    return stats.mean(list(values.values()), list(values))


def arm(run: str) -> tuple[str, int] | None:
    """``rl`` or ``more``, and the number of labelled pictures; None for the name of another run."""
    found = ("rl", str(SFT_PICTURES)) if run == FULL else (match.groups() if (match := _RUN.match(run)) else None)
    return None if found is None else (found[0], int(found[1]))


def arms(results: Sequence[TaskResult]) -> dict[int, dict[str, Arms]]:
    """Labelled pictures, in order -> score -> both arms, of the seeds that have both. Raises UsageError where the two arms of a
    seed begin with different warm-ups.
    """
    found = of_loops(results)
    by_labels: dict[int, dict[str, str]] = {}
    for run in runs(found):
        if named := arm(run):
            by_labels.setdefault(named[1], {})[named[0]] = run
    whole: dict[int, dict[str, Arms]] = {}
    for labels, pair in sorted(by_labels.items()):
        for metric in SCORES if len(pair) == len(_END) else ():
            both = _arms(found, pair, metric)
            if both.warm_up:
                whole.setdefault(labels, {})[metric] = both
    return whole


def _arms(found: Sequence[TaskResult], pair: Mapping[str, str], metric: str) -> Arms:
    starts = {name: by_seed(found, run, "SFT", metric) for name, run in pair.items()}
    ends = {name: by_seed(found, run, _END[name], metric) for name, run in pair.items()}
    seeds = sorted(set.intersection(*(set(values) for values in (*starts.values(), *ends.values()))))
    for seed in seeds:
        if abs(starts["rl"][seed] - starts["more"][seed]) > _SAME:
            raise UsageError(
                f"{pair['rl']} and {pair['more']}, seed {seed}: their warm-ups score differently ({metric}"
                f" {starts['rl'][seed]:.2f} and {starts['more'][seed]:.2f} %)",
                "both arms of a seed start from one warm-up: run both by the same queue",
            )
    gains = {name: {seed: ends[name][seed] - starts[name][seed] for seed in seeds} for name in pair}
    return Arms({seed: starts["rl"][seed] for seed in seeds}, gains["rl"], gains["more"])


def seconds(costs: Sequence[Cost], labels: int, which: str, seeds: Sequence[str]) -> dict[str, float]:
    """Seed -> processor time of what followed the warm-up in one arm; seeds of which it is known whole."""
    spent: dict[str, list[float | None]] = {}
    for cost in costs:
        if arm(cost.run) == (which, labels) and cost.phase != "sft" and str(cost.seed) in seeds:
            spent.setdefault(str(cost.seed), []).append(cost.seconds)
    return {seed: math.fsum(s for s in found if s) for seed, found in spent.items() if None not in found}


def labels_table(found: Mapping[int, Mapping[str, Arms]], costs: Sequence[Cost]) -> Table:
    """A row per number of labels: score of the warm-up, both gains and their difference, for boxes and answers; both costs."""
    rows = []
    for labels, scores in found.items():
        cells = [cell for metric in SCORES for cell in _cells(scores.get(metric))]
        seeds = list(next(iter(scores.values())).warm_up)
        spent = (over(seconds(costs, labels, which, seeds)).scaled(1 / 60) for which in _END)
        cells += [plus_minus(estimate.value, estimate.se) for estimate in spent]
        rows.append(Row(f"{labels:,}", tuple(Cell((cell,)) for cell in (*cells, str(len(seeds))))))
    of_score = ("SFT", "gain of RL", "gain of continued SFT", "difference")
    titles = [f"{name}: {what}" for name in SCORES.values() for what in of_score]
    columns = tuple((t, t) for t in (*titles, "CPU of RL, min", "CPU of continued SFT, min", "seeds"))
    note = "Percent and percentage points, mean ± standard error over seeds; gains and differences are paired by seed."
    return Table("Labels against reinforcement", "labelled pictures", columns, tuple(rows), (note,))


def _cells(both: Arms | None) -> Iterator[str]:
    if both is None:
        yield from ("—",) * 4
        return
    for estimate, sign in (
        (over(both.warm_up), ""),
        (over(both.reinforced), "+"),
        (over(both.continued), "+"),
        (both.difference, "+"),
    ):
        yield plus_minus(estimate.value, estimate.se, sign)


def section(results: Sequence[TaskResult], costs: Sequence[Cost]) -> list[str]:
    """The section of docs/science.md: what was compared and how to do so again, the table, where it crosses zero, the figure."""
    found = arms(results)
    if not found:
        return [_NOTHING]
    said = (f"{crossing(found, metric)}\n" for metric in SCORES)
    again = rerun(RECIPE, runs_of(results), costs)
    figure = f"![Gain against labelled pictures]({FIGURE})"
    return [_ABOUT, again, render(labels_table(found, costs), "md"), *said, figure, ""]


# --- where it crosses zero


def crossings(labels: Sequence[int], values: Sequence[float]) -> list[float]:
    """Where the line through ``values`` over the logarithm of ``labels`` is zero or changes its sign, in labels."""
    found = [float(n) for n, value in zip(labels, values, strict=True) if value == 0]
    points = list(zip(labels, values, strict=True))
    for (n, a), (m, b) in pairwise(points):
        if a * b < 0:
            found.append(math.exp(math.log(n) + (math.log(m) - math.log(n)) * a / (a - b)))
    return sorted(found)


def crossing(found: Mapping[int, Mapping[str, Arms]], metric: str) -> str:
    """A sentence: at how many labels the gain of reinforcement over continued SFT crosses zero, and the range of one standard
    error, which is where the difference less, and plus, its error crosses; or that it does not cross.
    """
    points = {labels: scores[metric].difference for labels, scores in found.items() if metric in scores}
    labels = list(points)
    values = [e.value or 0.0 for e in points.values()]
    where = crossings(labels, values)
    what = f"{SCORES[metric].capitalize()}: the gain of reinforcement over that of continued SFT"
    ends = f"between {labels[0]:,} and {labels[-1]:,} labelled pictures"
    if not where:
        more = "above" if values[0] > 0 else "below"
        if len(labels) == 1:
            return f"{what} is {more} zero at {labels[0]:,} labelled pictures, the only number measured."
        return f"{what} does not cross zero {ends}: it is {more} zero throughout."
    if len(where) > 1:
        return f"{what} crosses zero more than once, at {', '.join(f'{at:,.0f}' for at in where)} labelled pictures."
    return f"{what} crosses zero at {where[0]:,.0f} labelled pictures{_range(labels, list(points.values()))}."


def _range(labels: Sequence[int], points: Sequence[stats.Estimate]) -> str:
    """Where the line less its errors and the line plus them cross; beyond an end where one of them does not cross between it."""
    if any(point.se is None for point in points):
        return ", of one seed, so without a range"
    less, more = ([(p.value or 0.0) + side * (p.se or 0.0) for p in points] for side in (-1, 1))
    falls = (points[0].value or 0.0) > 0 or (points[-1].value or 0.0) < 0
    first, last = (less, more) if falls else (more, less)  # which of both reaches zero first
    sign = 1 if falls else -1
    at = [n for line in (first, last) for n in crossings(labels, line)]
    low = f"fewer than {labels[0]:,}" if sign * first[0] < 0 else f"{min(at):,.0f}"
    high = f"more than {labels[-1]:,}" if sign * last[-1] > 0 else f"{max(at):,.0f}"
    return f" ({low} to {high} within one standard error)"


# --- the figure


def draw_labels(found: Mapping[int, Mapping[str, Arms]], path: Path) -> None:
    """The figure, as SVG: both arms' gains over the number of labels, bars of one standard error, boxes and answers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "visrl"  # else an SVG's ids are drawn at random
    figure, axes = pyplot.subplots(1, len(SCORES), figsize=(9.2, 3.8), sharex=True)
    for axis, (metric, name) in zip(axes, SCORES.items(), strict=True):
        rows = {labels: scores[metric] for labels, scores in found.items() if metric in scores}
        for label, marker, of in (
            ("reinforcement", "o", [over(both.reinforced) for both in rows.values()]),
            ("continued SFT, equal compute", "s", [over(both.continued) for both in rows.values()]),
        ):
            y, bars = [e.value or 0.0 for e in of], [e.se or 0.0 for e in of]
            axis.errorbar(list(rows), y, yerr=bars, label=label, marker=marker, markersize=4, capsize=3, linewidth=1.2)
        axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        axis.set_xscale("log")
        axis.set_xticks(list(found), [f"{labels:,}" for labels in found])
        axis.minorticks_off()
        axis.set(xlabel="labelled pictures of the warm-up", ylabel=f"{name}: gain over SFT, points")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    seeds = max(len(both.warm_up) for scores in found.values() for both in scores.values())
    over_seeds = f"bars: ± 1 standard error over {seeds} seeds" if seeds > 1 else "one seed"
    figure.suptitle(f"Labels against reinforcement, small world; {over_seeds}", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
