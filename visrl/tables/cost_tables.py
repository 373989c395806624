"""Methods of reinforcement on equal compute: scores at the same number of model tokens, and at the same processor time.

A cost is a line of ``costs.csv`` (train/loop/ablations.py): a phase of a run of one seed, the model tokens it computed (drawn and
criticised, differentiated, and of the reference, train/loop/cost.py) and its processor time in seconds, scoring left out. Phases
before reinforcement are all methods' alike and are not part of a comparison. A run's path is its score after each phase of
reinforcement over what it had cost by then; between two phases it is taken as a straight line, after the last one as its end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import BaseModel, BeforeValidator

from visrl.core.records import TaskResult
from visrl.evals import stats
from visrl.evals.benchmarks import GROUPS
from visrl.tables.ablation_tables import FULL, plus_minus
from visrl.tables.csv_files import read_lines, write_lines
from visrl.tables.formats import Cell, Row, Table
from visrl.tables.phase_tables import METRICS, is_phase, order, phase_of

Kind = Literal["tokens", "seconds"]
NAMES = ("box", "answers")
NOT_RECORDED = "not recorded"


_Empty = BeforeValidator(lambda cell: None if cell == "" else cell)  # a CSV's way of writing None


class Cost(BaseModel):
    """What one phase took. tokens: computed by policy, critic and reference, None where they are not counted; seconds: of one
    processor, None where they are not known; first: the run that has the very same phase first, from which this one copied it;
    empty for its own.
    """

    run: str
    seed: int
    phase: str
    tokens: Annotated[int | None, _Empty]
    seconds: Annotated[float | None, _Empty]
    first: str = ""


def read_costs(path: Path) -> list[Cost]:
    """The lines of a costs.csv; none where there is no file. Raises UsageError naming the line."""
    return read_lines(path, Cost)


def write_costs(path: Path, costs: Iterable[Cost]) -> None:
    write_lines(path, Cost, costs)


def minutes(costs: Sequence[Cost], runs: Collection[tuple[str, int]]) -> float | None:
    """Processor minutes that it takes to make these runs (name, seed), once, without scoring: a phase that several of them share
    counts once. None where a run has no line or a line no time.
    """
    lines = [cost for cost in costs if (cost.run, cost.seed) in runs]
    if {(cost.run, cost.seed) for cost in lines} != set(runs) or any(cost.seconds is None for cost in lines):
        return None
    once = {(cost.first or cost.run, cost.seed, cost.phase): cost.seconds or 0.0 for cost in lines}
    return sum(once.values()) / 60


def cost_of(costs: Sequence[Cost], runs: Collection[tuple[str, int]]) -> str:
    """Their processor minutes, as a cell has them."""
    spent = minutes(costs, runs)
    return NOT_RECORDED if spent is None else f"{spent:,.0f}"


def runs_of(results: Iterable[TaskResult]) -> set[tuple[str, int]]:
    """Runs, by name and seed, that records of loops are of."""
    return {(phase_of(r)["run"], int(phase_of(r)["seed"])) for r in results if is_phase(r)}


def rerun(recipe: str, runs: Collection[tuple[str, int]], costs: Sequence[Cost]) -> str:
    """A paragraph: the command that makes these runs again, and what they took."""
    timed = {run for run in runs if minutes(costs, {run}) is not None}  # not one that was begun again after a kill
    took = f"processor time {NOT_RECORDED}"
    if timed:
        of_some = "" if len(timed) == len(runs) else f" for the {len(timed)} of them whose time is on file"
        took = f"{cost_of(costs, timed)} processor minutes{of_some}, scoring left out"
    return f"`visrl-train {recipe}` measures this again ({len(runs)} runs; {took}).\n"


@dataclass(frozen=True, slots=True)
class Progress:
    """One run of one seed, phase by phase from the warm-up: what it had cost (first 0), and its scores, by name, in percent."""

    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...]]

    def at(self, kind: Kind, budget: float, name: str) -> float:
        """The score for a cost; of a run that ended before, its last."""
        spent = self.tokens if kind == "tokens" else self.seconds
        return float(np.interp(budget, spent, self.scores[name]))


def paths(
    results: Sequence[TaskResult],
    costs: Sequence[Cost],
    metrics: Mapping[str, str] = METRICS,
    tasks: Collection[str] = GROUPS,
) -> dict[str, dict[int, Progress]]:
    """run -> seed -> path, of the runs whose costs are all known; a seed that has not come as far as another of its run is left
    out: what it took is not what the method takes. metrics: of records, and the names of their scores. tasks: which records are
    read; of a loop over several tasks those of their means.
    """
    scored: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for result in results:
        if is_phase(result) and result.metric in metrics and result.task in tasks and result.value is not None:
            about = phase_of(result)
            of_run = scored.setdefault((about["run"], int(about["seed"])), {})
            of_run.setdefault(about["phase"], {})[metrics[result.metric]] = 100.0 * result.value
    spent: dict[tuple[str, int], list[Cost]] = {}
    for cost in costs:
        if cost.phase.startswith("iter"):
            spent.setdefault((cost.run, cost.seed), []).append(cost)
    found: dict[str, dict[int, Progress]] = {}
    for (run, seed), lines in spent.items():
        if all(cost.tokens is not None and cost.seconds is not None for cost in lines):
            found.setdefault(run, {})[seed] = _path(scored.get((run, seed), {}), lines, dict.fromkeys(metrics.values()))
    return {run: _whole(by_seed) for run, by_seed in found.items()}


def _whole(by_seed: Mapping[int, Progress]) -> dict[int, Progress]:
    most = max(len(path.tokens) for path in by_seed.values())
    return {seed: path for seed, path in by_seed.items() if len(path.tokens) == most}


def _path(scored: Mapping[str, Mapping[str, float]], costs: Sequence[Cost], names: Iterable[str]) -> Progress:
    tokens, seconds, phases = [0.0], [0.0], ["sft"]
    so_far = np.zeros(2)
    for cost in sorted(costs, key=lambda c: (int(c.phase.split("/")[0].removeprefix("iter")), order(c.phase)[2])):
        so_far += (cost.tokens or 0, cost.seconds or 0.0)  # paths() leaves out what is not known
        if cost.phase in scored:  # pairs are part of the training that follows
            tokens.append(float(so_far[0]))
            seconds.append(float(so_far[1]))
            phases.append(cost.phase)
    scores = {name: tuple(scored.get(phase, {}).get(name, float("nan")) for phase in phases) for name in names}
    return Progress(tuple(tokens), tuple(seconds), scores)


def costs_table(
    found: Mapping[str, Mapping[int, Progress]], names: Sequence[str] = NAMES, title: str = "Methods on equal compute"
) -> Table:
    """A row per method: what it cost, and its scores at the tokens, and at the processor time, of ``full`` of the same seed."""
    rows = []
    for run, by_seed in found.items():
        both = [seed for seed in by_seed if seed in found.get(FULL, {})]
        ends = [Cell((_over([p.tokens[-1] / 1e6 for p in by_seed.values()]),))]
        ends += [Cell((_over([p.seconds[-1] / 60 for p in by_seed.values()]),))]
        cells = [_beside(found, run, both, kind, name) for kind in get_args(Kind) for name in names]
        rows.append(Row(run, (*ends, *(Cell((cell,)) for cell in cells), Cell((str(len(both)),)))))
    equal = [f"{name} at equal {kind}" for kind in ("tokens", "time") for name in names]
    columns = tuple((t, t) for t in ("tokens, M", "CPU, min", *equal, "seeds"))
    notes = (
        "Percent, mean ± standard error over seeds; in parentheses the difference to `full`, paired by seed. Equal: the tokens,"
        " or the processor time, that `full` of the same seed took; of a run that took less, its end.",
    )
    return Table(title, "method", columns, tuple(rows), notes)


def _over(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f}"


def _beside(found: Mapping[str, Mapping[int, Progress]], run: str, seeds: Sequence[int], kind: Kind, name: str) -> str:
    """``62.1 ± 0.4 (+2.0 ± 0.3)``; a dash where no seed was scored so."""
    both: dict[str, tuple[float, float]] = {}
    for seed in seeds:
        budget = _end(found[FULL][seed], kind)
        values = found[run][seed].at(kind, budget, name), found[FULL][seed].at(kind, budget, name)
        if np.isfinite(values).all():
            both[str(seed)] = values
    if not both:
        return plus_minus(None, None)
    ours, theirs, clusters = [a for a, _ in both.values()], [b for _, b in both.values()], list(both)
    mean, change = stats.mean(ours, clusters), stats.paired_difference(theirs, ours, clusters)
    said = plus_minus(mean.value, mean.se)
    return said if run == FULL else f"{said} ({plus_minus(change.value, change.se, '+')})"


def _end(path: Progress, kind: Kind) -> float:
    return (path.tokens if kind == "tokens" else path.seconds)[-1]


def draw_costs(
    found: Mapping[str, Mapping[int, Progress]], path: Path, names: Sequence[str] = NAMES, world: str = "small world"
) -> None:
    """The figure, as SVG: a score each over tokens, a line per method, a mark per phase."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "visrl"  # else an SVG's ids are drawn at random
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.6 * len(names), 3.8), sharex=True)
    for axis, name in zip(axes, names, strict=True):
        for (run, by_seed), marker in zip(found.items(), "osD^v<>P", strict=False):
            x, y, bars = _line(list(by_seed.values()), name)
            axis.errorbar(x, y, yerr=bars, label=run, marker=marker, markersize=4, capsize=2, linewidth=1.2)
        axis.set(xlabel="model tokens, millions (0: warm-up)", ylabel=f"{name}, percent")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    seeds = max(len(by_seed) for by_seed in found.values())
    figure.suptitle(f"Methods from one warm-up, {world}; bars: ± 1 standard error over {seeds} seeds", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _line(seeds: Sequence[Progress], name: str) -> tuple[list[float], list[float], list[float]]:
    """Means over seeds, phase by phase."""
    n = len(seeds[0].tokens)
    x = [float(np.mean([path.tokens[i] / 1e6 for path in seeds])) for i in range(n)]
    values = [[path.scores[name][i] for path in seeds] for i in range(n)]
    over = [stats.mean(found, [str(i) for i in range(len(found))]) for found in values]
    return x, [float(e.value or 0.0) for e in over], [float(e.se or 0.0) for e in over]
