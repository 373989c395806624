"""Where iterations saturate, and what is still wrong then: recipes/world-saturation.yaml's records, and errors.csv of
tests/studies/remaining_errors.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from visrl.core.records import TaskResult
from visrl.evals import stats
from visrl.tables.ablation_tables import plus_minus
from visrl.tables.claims import BEYOND, by_seed
from visrl.tables.formats import Cell, Row, Table
from visrl.tables.phase_tables import of_loops, phase_ends

SIZES = ("small", "medium", "large")
"""Terciles of the true box's share of the picture."""
REASONS = ("unexplored", "misjudged", "unlearnt")
NAMES = ("box", "answers")


class Errors(BaseModel):
    """Questions of a domain and size whose box is wrong, by reason. seed: of the loop."""

    seed: int
    domain: str
    size: str
    questions: int
    unexplored: int
    misjudged: int
    unlearnt: int

    @property
    def wrong(self) -> int:
        return self.unexplored + self.misjudged + self.unlearnt


# --- iterations


def ends(results: Sequence[TaskResult], run: str) -> list[dict[str, dict[str, float]]]:
    """Of SFT and of each iteration's last phase: name -> seed -> percent."""
    found = of_loops(results)
    return [{name: by_seed(found, run, label, name) for name in NAMES} for label in phase_ends(found, run)]


def iterations_table(results: Sequence[TaskResult], run: str) -> Table:
    """A row per iteration: its scores, and what it added to the one before, paired by seed."""
    rows = []
    points = ends(results, run)
    for number, point in enumerate(points):
        cells: list[Cell] = []
        for name in NAMES:
            over = stats.mean(list(point[name].values()), list(point[name]))
            cells.append(Cell((plus_minus(over.value, over.se),)))
            added = _added(points, number, name)
            cells.append(Cell((plus_minus(added.value, added.se, "+") if added is not None else "—",)))
        rows.append(Row("SFT" if number == 0 else str(number), (*cells, Cell((str(len(point[NAMES[0]])),)))))
    columns = tuple((t, t) for name in NAMES for t in (name, f"{name}: added"))
    notes = ("Percent, mean ± standard error over seeds; what is added is paired by seed.",)
    return Table("Iterations to the end", "iteration", (*columns, ("seeds", "seeds")), tuple(rows), notes)


def _added(points: Sequence[dict[str, dict[str, float]]], number: int, name: str) -> stats.Estimate | None:
    if number == 0:
        return None
    before, after = points[number - 1][name], points[number][name]
    both = [seed for seed in after if seed in before]
    return stats.paired_difference([before[s] for s in both], [after[s] for s in both], both) if both else None


def saturates(results: Sequence[TaskResult], run: str, name: str) -> int | None:
    """The last iteration after which two in a row add nothing: at most two standard errors. None where there is none such."""
    points = ends(results, run)
    gains = [_gains(_added(points, number, name)) for number in range(1, len(points))]
    for number in range(1, len(gains)):
        if not gains[number - 1] and not gains[number]:
            return number - 1
    return None


def _gains(added: stats.Estimate | None) -> bool:
    return added is not None and added.value is not None and added.value > BEYOND * (added.se or 0.0)


# --- errors


def errors_table(lines: Sequence[Errors]) -> Table:
    """Rows: all, each domain, each size. Wrong boxes in percent of the questions, and their reasons in percent of the wrong."""
    rows = [_row("all", lines)]
    rows += [_row(domain, [x for x in lines if x.domain == domain]) for domain in sorted({x.domain for x in lines})]
    rows += [_row(f"{size} regions", [x for x in lines if x.size == size]) for size in SIZES]
    columns = tuple((t, t) for t in ("wrong", *REASONS, "seeds"))
    notes = (
        "Wrong: boxes of `test`, in percent, mean ± standard error over seeds; reasons in percent of the wrong ones. Unexplored:"
        " none of 64 samples is right. Misjudged: one is, but the critic scores a wrong one at least as high. Unlearnt: one is,"
        " and the critic prefers it. Sizes: terciles of the true box's share of the picture.",
    )
    return Table("Boxes that are still wrong", "questions", columns, tuple(rows), notes)


WHAT = {
    "unexplored": "exploration: no sample is right, so there is nothing to choose",
    "misjudged": "the critic: a right sample exists, but a wrong one scores at least as high",
    "unlearnt": "training: a right sample exists and the critic prefers it, but the model does not write it",
}
"""Reason -> what limits the boxes, in a sentence."""


def ceiling(lines: Sequence[Errors]) -> str:
    """A sentence: which reason the wrong boxes have most often, where it leads the next by more than two standard errors."""
    shares = {why: list(_shares(lines, why).values()) for why in REASONS}
    seeds = [str(seed) for seed in _shares(lines, REASONS[0])]
    if not seeds:
        return ""
    first, second, _ = sorted(REASONS, key=lambda why: -sum(shares[why]))
    lead = stats.paired_difference(shares[second], shares[first], seeds)
    points = f"{plus_minus(lead.value, lead.se, '+')} points"
    if lead.value is None or lead.value <= BEYOND * (lead.se or 0.0):
        return f"No reason leads by more than two standard errors (`{first}` over `{second}`: {points})."
    return f"The most frequent reason is {WHAT[first]} (lead over `{second}`: {points})."


def _shares(lines: Sequence[Errors], why: str) -> dict[int, float]:
    """Seed -> percent of its wrong boxes that have this reason; seeds without a wrong box are left out."""
    found: dict[int, float] = {}
    for seed in sorted({line.seed for line in lines}):
        of_seed = [line for line in lines if line.seed == seed]
        if wrong := sum(line.wrong for line in of_seed):
            found[seed] = 100.0 * sum(line.model_dump()[why] for line in of_seed) / wrong
    return found


def _row(title: str, lines: Sequence[Errors]) -> Row:
    seeds = sorted({line.seed for line in lines})
    of_seed = {seed: [line for line in lines if line.seed == seed] for seed in seeds}
    rates = [100.0 * sum(x.wrong for x in found) / sum(x.questions for x in found) for found in of_seed.values()]
    shares = [_shares(lines, why) for why in REASONS]
    cells = [_over(rates, seeds), *(_over(list(share.values()), list(share)) for share in shares)]
    return Row(title, (*(Cell((text,)) for text in cells), Cell((str(len(seeds)),))))


def _over(values: Sequence[float], seeds: Sequence[int]) -> str:
    over = stats.mean(values, [str(seed) for seed in seeds]) if values else None
    return "—" if over is None else plus_minus(over.value, over.se)
