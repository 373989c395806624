"""Two runs on the same samples: the difference of every metric, with the standard error of the *difference*.

Samples that have a value in both runs are paired; the others are counted. For a mean the difference is the mean of b - a,
cluster-robust by picture; for a ratio (F1, precision, recall) both runs' counts are resampled together, picture by picture
(stats.py). MME's totals add their subtasks' means, a group's value is the unweighted mean of its tasks, MMBench's circular
accuracy counts a question once: what is compared is what the records report.

p is two-sided, from Student's t with (pictures - 1) degrees of freedom. Departures: 1. nothing is corrected for the number of
metrics looked at (the gates do: gates.py). 2. with standard error 0 there is no p unless the difference is 0, too: then 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from visrl.evals import stats
from visrl.evals.benchmarks import GROUPS, TASKS, UPSTREAM, Better, Unit, has_mean
from visrl.evals.sample_scores import Row, Rows
from visrl.evals.stats import Estimate, Floats, Part

Statistic = Callable[[Floats], Floats]
SCALE: dict[Unit, float] = {"percent": 100.0, "fraction": 1.0, "points": 1.0, "raw": 1.0}
RANGE: dict[Unit, float] = {"percent": 100.0, "fraction": 1.0, "points": 200.0}
"""The most one sample's value can change by, in the unit: MME's points of a picture run from 0 to 200. Raw has no known ends."""
_SHARES = ("percent", "fraction")
WORST = 5


@dataclass(frozen=True, slots=True)
class Flip:
    """A sample that scores otherwise than before, in the unit of the metric."""

    task: str
    sample_id: str
    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One set, sample by sample: ``before`` and ``after`` [n], or [n, k] for a ratio's counts; ``clusters`` [n]."""

    before: Floats
    after: Floats
    clusters: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Paired:
    """A metric of two runs: ``weight`` times the sum of the pairs' means, or the mean over pairs of ``statistic``."""

    task: str
    metric: str
    unit: Unit
    pairs: tuple[Pair, ...]
    flips: tuple[Flip, ...]
    unscored: int = 0
    weight: float = 1.0
    statistic: Statistic | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """after - before in ``unit``, over the ``n`` samples that have a value in both runs. None where nothing is defined.

    least_se: what one picture's change alone would give; a smaller ``se`` only says that too few pictures were seen.
    fixed, broken: samples that score more, or less, than before. unpaired: samples (of circular accuracy questions) without a
    value in one of the runs.
    """

    task: str
    metric: str
    unit: Unit
    before: float | None
    after: float | None
    delta: float | None
    se: float | None
    ci: tuple[float, float] | None
    p: float | None
    n: int
    n_clusters: int
    least_se: float | None
    fixed: int = 0
    broken: int = 0
    unpaired: int = 0
    worst: tuple[Flip, ...] = ()


def compare(a: Rows, b: Rows) -> list[Difference]:
    """Differences b - a of every task, metric and averaged group that both runs have. Empty when they share no sample."""
    tasks = {task: pair_task(task, a[task], b[task]) for task in a if task in b}
    found = [paired for task in tasks.values() for paired in task]
    found += [paired for group in GROUPS for paired in pair_group(group, tasks)]
    return [difference(paired) for paired in found]


def pair_task(task: str, a: Mapping[str, Row], b: Mapping[str, Row]) -> list[Paired]:
    """The metrics of one task that both runs have values of."""
    unit: Unit = TASKS[task].unit if task in TASKS else "raw" if task.startswith(UPSTREAM) else "fraction"
    benchmark = TASKS[task].benchmark if task in TASKS else ""
    both = [sample_id for sample_id in a if sample_id in b]
    lost = [a.get(i) or b[i] for i in a.keys() ^ b.keys()]
    metrics = dict.fromkeys(m for i in both for m in a[i].values if m in b[i].values)
    found = {m: _mean_of(task, m, unit, (a, b), both, lost) for m in metrics}
    if benchmark == "pope":
        return [*found.values(), *_ratios(task, found, a, b, both)]
    if benchmark == "mme":
        found.pop("correct", None)
        return [*_totals(task, found), *found.values()]
    return list(found.values())


def pair_group(group: str, tasks: Mapping[str, Sequence[Paired]]) -> list[Paired]:
    """The averages of a group all of whose tasks are there: those that scoring.score_group knows."""
    members = GROUPS[group]
    if len(members) < 2 or not has_mean(group) or not all(member in tasks for member in members):
        return []
    averages = []
    for first in tasks[members[0]]:
        whats = [what for member in members for what in tasks[member] if what.metric == first.metric]
        if len(whats) == len(members):
            averages.append(_average(group, whats))
    return averages


def _average(group: str, whats: Sequence[Paired]) -> Paired:
    return replace(
        whats[0],
        task=group,
        pairs=tuple(pair for what in whats for pair in what.pairs),
        flips=tuple(flip for what in whats for flip in what.flips),
        unscored=sum(what.unscored for what in whats),
        weight=whats[0].weight / len(whats),
    )


def _mean_of(
    task: str,
    metric: str,
    unit: Unit,
    runs: tuple[Mapping[str, Row], Mapping[str, Row]],
    both: Sequence[str],
    lost: Sequence[Row],
) -> Paired:
    """A metric that is a mean over samples, or for circular accuracy over questions. both: ids; lost: rows of one run alone."""
    scale = SCALE[unit]
    asked = [i for i in both if any(metric in run[i].values for run in runs)]
    scored = [i for i in asked if all(run[i].values.get(metric) is not None for run in runs)]
    alone = [row for row in lost if metric in row.values]
    if metric == "circular":
        rows = list({runs[0][i].group: i for i in reversed(scored)}.values())[::-1]
        unscored = len({row.group for row in (*(runs[0][i] for i in asked), *alone)}) - len(rows)
    else:
        rows, unscored = scored, len(asked) + len(alone) - len(scored)
    before, after = (np.array([scale * _value(run[i], metric) for i in rows], dtype=np.float64) for run in runs)
    flips = tuple(
        Flip(task, i, float(x), float(y)) for i, x, y in zip(rows, before, after, strict=True) if float(x) != float(y)
    )
    pair = Pair(before, after, tuple(runs[0][i].cluster for i in rows))
    shown = TASKS[task].unit_of(metric) if task in TASKS else unit
    return Paired(task, metric, shown, (pair,), flips, unscored)


def _value(row: Row, metric: str) -> float:
    value = row.values[metric]
    assert value is not None  # the caller chose rows that have one
    return value


def _ratios(
    task: str, found: Mapping[str, Paired], a: Mapping[str, Row], b: Mapping[str, Row], both: Sequence[str]
) -> list[Paired]:
    """POPE's F1, precision and recall, from each sample's ``accuracy`` and ``yes_ratio``."""
    from visrl.evals.scorers.pope import RATIOS  # here: other benchmarks do not pay for the words of answers

    if "accuracy" not in found or "yes_ratio" not in found:
        return []
    names = ("accuracy", "yes_ratio")
    rows = [i for i in both if all(run[i].values.get(m) is not None for run in (a, b) for m in names)]
    before, after = (np.array([_counts(run[i]) for i in rows], dtype=np.float64).reshape(-1, 3) for run in (a, b))
    pair = Pair(before, after, tuple(a[i].cluster for i in rows))
    accuracy = found["accuracy"]
    return [replace(accuracy, metric=name, pairs=(pair,), statistic=rule) for name, rule in RATIOS.items()]


def _counts(row: Row) -> tuple[float, float, float]:
    """True positives, false positives, false negatives of one answer."""
    right, yes = _value(row, "accuracy"), _value(row, "yes_ratio")
    return right * yes, (1 - right) * yes, (1 - right) * (1 - yes)


def _totals(task: str, found: Mapping[str, Paired]) -> list[Paired]:
    from visrl.evals.scorers.mme import TOTALS

    totals = []
    for name, members in TOTALS.items():
        parts = [found[f"mme/{member}"] for member in members if f"mme/{member}" in found]
        whole = parts if TASKS[task].small_world or len(parts) == len(members) else []
        if whole:
            totals.append(replace(_average(task, whole), metric=name, weight=1.0))
    return totals


def pool(whats: Sequence[Paired]) -> Paired:
    """Several means as one, every sample counting alike, in percent; samples of one picture stay together across tasks.

    For the gates alone: a drop of the same size everywhere is seen with all samples' power. Raises ValueError for metrics that
    are no mean of samples in 0..1, which could not be added up.
    """
    wrong = [f"{what.task} {what.metric}" for what in whats if what.statistic is not None or what.unit not in _SHARES]
    if wrong or any(len(what.pairs) != 1 for what in whats):
        raise ValueError(f"only means over one task's samples can be pooled, not {', '.join(wrong) or 'averages'}")
    to_percent = [100.0 / SCALE[what.unit] for what in whats]
    before, after = (
        np.concatenate([k * _of(what.pairs[0], side) for k, what in zip(to_percent, whats, strict=True)])
        for side in ("before", "after")
    )
    clusters = tuple(cluster for what in whats for cluster in what.pairs[0].clusters)
    flips = tuple(
        replace(flip, before=k * flip.before, after=k * flip.after)
        for k, what in zip(to_percent, whats, strict=True)
        for flip in what.flips
    )
    name = " + ".join(f"{what.task} {what.metric}" for what in whats)
    unpaired = sum(what.unscored for what in whats)
    return Paired("pooled", name, "percent", (Pair(before, after, clusters),), flips, unpaired)


def difference(paired: Paired, better: Better = "more") -> Difference:
    """The numbers of a pair of runs. ``delta`` is after - before to the last bit that addition allows.

    better: which way ``worst`` looks; where neither is better, at the largest changes.
    """
    before, after, change = (_estimate(paired, which) for which in ("before", "after", "change"))
    scale = SCALE[paired.unit] if paired.statistic is not None else 1.0
    change = change.scaled(scale)
    worst = sorted(paired.flips, key=lambda flip: loss(flip.after - flip.before, better), reverse=True)
    return Difference(
        task=paired.task,
        metric=paired.metric,
        unit=paired.unit,
        before=before.scaled(scale).value,
        after=after.scaled(scale).value,
        delta=change.value,
        se=change.se,
        ci=change.ci,
        p=_p_value(change),
        n=change.n,
        n_clusters=change.n_clusters,
        least_se=_least_se(paired),
        fixed=sum(flip.after > flip.before for flip in paired.flips),
        broken=sum(flip.after < flip.before for flip in paired.flips),
        unpaired=paired.unscored,
        worst=tuple(flip for flip in worst[:WORST] if loss(flip.after - flip.before, better) > 0),
    )


def loss(delta: float, better: Better) -> float:
    """How much worse a change is; where neither direction is better, how large."""
    if better == "neither":
        return abs(delta)
    return -delta if better == "more" else delta


def _estimate(paired: Paired, which: str) -> Estimate:
    """``before``, ``after`` or the ``change`` between them."""
    if paired.statistic is not None:
        return _ratio_estimate(paired, paired.statistic, which)
    parts = [Part(_of(pair, which), pair.clusters) for pair in paired.pairs]
    return stats.weighted_means(parts, [paired.weight] * len(parts))


def _of(pair: Pair, which: str) -> Floats:
    if which == "change":
        return pair.after - pair.before
    return pair.before if which == "before" else pair.after


def _ratio_estimate(paired: Paired, rule: Statistic, which: str) -> Estimate:
    if which != "change":
        values = [rule(_of(pair, which).sum(axis=0)) for pair in paired.pairs]
        mean = float(np.mean(values)) if values else float("nan")
        return Estimate(None if np.isnan(mean) else mean, None, None, 0, 0)
    parts = [Part(np.hstack([pair.before, pair.after]), pair.clusters) for pair in paired.pairs]
    k = parts[0].values.shape[1] // 2
    return stats.bootstrap(parts, lambda sums: rule(sums[..., k:]) - rule(sums[..., :k]))


def _p_value(change: Estimate) -> float | None:
    if change.value is None or change.se is None:
        return None
    if change.se == 0.0:
        return 1.0 if change.value == 0.0 else None
    from scipy.special import stdtr  # not scipy.stats, which takes half a second to import

    return float(2.0 * stdtr(change.n_clusters - 1, -abs(change.value) / change.se))


def _least_se(paired: Paired) -> float | None:
    """One picture of the usual number of samples changing by the whole range: range / pictures, added over the sets."""
    sizes = [len(set(pair.clusters)) for pair in paired.pairs]
    if not sizes or min(sizes) == 0 or paired.unit not in RANGE:
        return None
    weight = paired.weight if paired.statistic is None else 1.0 / len(sizes)
    return RANGE[paired.unit] * weight * math.sqrt(sum(1.0 / size**2 for size in sizes))
