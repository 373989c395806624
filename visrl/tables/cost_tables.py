"""Methods of reinforcement on equal compute: scores at the same number of model tokens, and at the same processor time.

A cost is a line of ``costs.csv`` (train/loop/ablations.py): a phase of a run of one seed, the model tokens it computed (drawn and
criticised, differentiated, and of the reference, train/loop/cost.py) and its processor time in seconds, scoring left out. A
run's path is its score after each phase of reinforcement over what it had cost by then; between two phases it is taken as a
straight line, after the last one as its end.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import BaseModel, ValidationError

from visrl.core.json_files import read_text, reason
from visrl.core.records import TaskResult, write_atomically
from visrl.errors import UsageError
from visrl.evals import stats
from visrl.evals.benchmarks import GROUPS
from visrl.tables.ablation_tables import FULL, plus_minus
from visrl.tables.formats import Cell, Row, Table
from visrl.tables.phase_tables import METRICS, is_phase, order, phase_of

Kind = Literal["tokens", "seconds"]
NAMES = ("box", "answers")


class Cost(BaseModel):
    """What one phase took. tokens: computed by policy, critic and reference; seconds: of one processor."""

    run: str
    seed: int
    phase: str
    tokens: int
    seconds: float


COLUMNS = tuple(Cost.model_fields)
HINT = f"columns: {', '.join(COLUMNS)}"


def read_costs(path: Path) -> list[Cost]:
    """The lines of a costs.csv; none where there is no file. Raises UsageError naming the line."""
    if not path.is_file():
        return []
    rows = list(csv.DictReader(io.StringIO(read_text(path, HINT))))
    costs = []
    for number, row in enumerate(rows, 2):
        try:
            costs.append(Cost.model_validate(row))
        except ValidationError as error:
            raise UsageError(f"{path}:{number}: {reason(error)}", HINT) from error
    return costs


def write_costs(path: Path, costs: Iterable[Cost]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(cost.model_dump() for cost in costs)
    write_atomically(path, text.getvalue())


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
    """run -> seed -> path, of the runs that ``costs`` are of. metrics: of records, and the names of their scores. tasks: which
    records are read; of a loop over several tasks those of their means.
    """
    scored: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for result in results:
        if is_phase(result) and result.metric in metrics and result.task in tasks and result.value is not None:
            about = phase_of(result)
            of_run = scored.setdefault((about["run"], int(about["seed"])), {})
            of_run.setdefault(about["phase"], {})[metrics[result.metric]] = 100.0 * result.value
    spent: dict[tuple[str, int], list[Cost]] = {}
    for cost in costs:
        spent.setdefault((cost.run, cost.seed), []).append(cost)
    found: dict[str, dict[int, Progress]] = {}
    for (run, seed), lines in spent.items():
        found.setdefault(run, {})[seed] = _path(scored.get((run, seed), {}), lines, dict.fromkeys(metrics.values()))
    return found


def _path(scored: Mapping[str, Mapping[str, float]], costs: Sequence[Cost], names: Iterable[str]) -> Progress:
    tokens, seconds, phases = [0.0], [0.0], ["sft"]
    so_far = np.zeros(2)
    for cost in sorted(costs, key=lambda c: (int(c.phase.split("/")[0].removeprefix("iter")), order(c.phase)[2])):
        so_far += (cost.tokens, cost.seconds)
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
    """Means over seeds of as many phases as all of them have."""
    n = min(len(path.tokens) for path in seeds)
    x = [float(np.mean([path.tokens[i] / 1e6 for path in seeds])) for i in range(n)]
    values = [[path.scores[name][i] for path in seeds] for i in range(n)]
    over = [stats.mean(found, [str(i) for i in range(len(found))]) for found in values]
    return x, [float(e.value or 0.0) for e in over], [float(e.se or 0.0) for e in over]
