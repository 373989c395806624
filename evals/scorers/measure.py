"""The vocabulary between a scorer and a record: a scorer yields Estimands, an Estimand becomes a Measured number.

A scorer gives each sample its scores and says, per metric, what is averaged over what (:class:`Estimand`). Standard
errors, group averages and counts of what could not be scored follow from that in one place, here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ParamSpec, TypeVar

import numpy as np

from visrl.core.types import CoTSample, Episode, Score
from visrl.errors import UsageError
from visrl.evals import stats
from visrl.evals.benchmarks import LESS_IS_BETTER, NEITHER_IS_BETTER
from visrl.evals.scorers.columns import SampleScores
from visrl.evals.stats import Estimate, Floats, Part

T = TypeVar("T")
P = ParamSpec("P")
Done = tuple[int, CoTSample, Episode]
"""A sample that was run: its row in the scores, itself, what happened."""
REASONS_KEPT = 20
_REASON_LENGTH = 200
_DECIMALS = 10  # of recorded numbers: below what a BLAS may round differently, above what anybody reads
_CHUNK = 1000  # samples a scorer has in hand: enough for numpy and for the requests of a judge


@dataclass(frozen=True, slots=True, eq=False)
class Estimand:
    """What a metric is: ``statistic`` of the parts, or without one the sum over parts of ``weight`` times their means.

    values of the parts are already in the task's unit, except a statistic's, whose result is multiplied by ``scale``.
    unscored: reason -> samples without a value. unparsed: samples scored as wrong because nothing could be read.
    judge: who judged, where someone did. undefined: why there is no value although samples were scored.
    expected: samples of the published split the metric is about; None: all of the task's. top: the most the number can be, with
    0 the least; None: it has no ends. A statistic is a share of ``scale``. unit: where it is not the task's.
    """

    metric: str
    parts: tuple[Part, ...]
    statistic: Callable[[Floats], Floats] | None = None
    weight: float = 1.0
    scale: float = 1.0
    unscored: Mapping[str, int] = field(default_factory=dict)
    unparsed: int = 0
    judge: str | None = None
    notes: tuple[str, ...] = ()
    undefined: str = ""
    expected: int | None = None
    top: float | None = None
    unit: str = ""

    def estimate(self) -> Estimate:
        """The value with standard error and interval."""
        if self.undefined:
            empty = stats.weighted_means(self.parts, [0.0] * len(self.parts))
            return Estimate(None, None, None, empty.n, empty.n_clusters)
        if self.statistic is not None:
            return stats.bootstrap(self.parts, self.statistic).scaled(self.scale)
        return stats.weighted_means(self.parts, [self.weight] * len(self.parts), self.top)


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of one task or group, in ``unit``: what a TaskResult says, less the run it came from.

    n + n_unscored + n_missing = n_expected: samples with a value, samples that failed or could not be judged (reasons
    counted), and documents that were not run. n_unparsed of the n hold no box or option and count as wrong.
    """

    metric: str
    value: float | None
    se: float | None
    ci: tuple[float, float] | None
    unit: str
    n: int
    n_clusters: int
    n_expected: int = 0
    n_missing: int = 0
    n_unscored: int = 0
    n_unparsed: int = 0
    unscored_reasons: Mapping[str, int] = field(default_factory=dict)
    higher_is_better: bool = True
    judge: str | None = None
    notes: tuple[str, ...] = ()


def measured(what: Estimand, unit: str, n_task: int) -> Measured:
    """The number of an estimand of a task (or group) of ``n_task`` published samples."""
    result = what.estimate()
    n_unscored = sum(what.unscored.values())
    n_expected = n_task if what.expected is None else what.expected
    notes = what.notes
    if result.value is None:
        notes = (*notes, what.undefined or ("undefined: 0 / 0" if result.n else "nothing could be scored"))
    ci = None if result.ci is None else (_rounded(result.ci[0]), _rounded(result.ci[1]))
    return Measured(
        metric=what.metric,
        value=None if result.value is None else _rounded(result.value),
        se=None if result.se is None else _rounded(result.se),
        ci=ci,
        unit=what.unit or unit,
        n=result.n,
        n_clusters=result.n_clusters,
        n_expected=n_expected,
        n_missing=max(0, n_expected - result.n - n_unscored),
        n_unscored=n_unscored,
        n_unparsed=what.unparsed,
        unscored_reasons=commonest(what.unscored),
        higher_is_better=what.metric not in LESS_IS_BETTER | NEITHER_IS_BETTER,
        judge=what.judge,
        notes=notes,
    )


def _rounded(value: float) -> float:
    return round(value, _DECIMALS) + 0.0  # + 0.0: no minus zero in a record


def commonest(reasons: Mapping[str, int]) -> dict[str, int]:
    """At most REASONS_KEPT reasons, the most frequent first, the others under one name; reasons cut to a line."""
    short: Counter[str] = Counter()
    for reason, count in reasons.items():
        short[" ".join(reason.split())[:_REASON_LENGTH]] += count
    ranked = sorted(short.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ranked[:REASONS_KEPT])
    if rest := sum(count for _, count in ranked[REASONS_KEPT:]):
        kept["other reasons"] = rest
    return kept


def done(samples: Iterable[CoTSample], episodes: Mapping[str, Episode], scores: SampleScores) -> Iterator[Done]:
    """The samples that were run, in order and one at a time, each with a new row. The others are missing, not unscored."""
    for sample in samples:
        if sample.id in episodes:
            yield scores.add(sample), sample, episodes[sample.id]


def chunks(items: Iterable[Done]) -> Iterator[list[Done]]:
    """The same, some at a time."""
    iterator = iter(items)
    while chunk := list(islice(iterator, _CHUNK)):
        yield chunk


def attempt(what: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Score:
    """What ``what`` returns of one sample, or an unscored Score that says what it raised: one odd sample ends no run."""
    try:
        return what(*args, **kwargs)
    except UsageError:  # about the whole run: a key that is missing
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the reason is kept with the sample
        return Score(None, f"could not be scored: {type(error).__name__}: {error}")


def average(
    metric: str,
    scores: SampleScores,
    scale: float,
    *,
    unparsed: int = 0,
    judge: str | None = None,
    notes: tuple[str, ...] = (),
    top: float = 1.0,
) -> Estimand:
    """The mean over the samples that have a value, times ``scale``; the others counted by reason. top: of a sample's value."""
    values = scores.column(metric)
    rows = np.flatnonzero(~np.isnan(values))
    part = scores.part(scale * values[rows], rows)
    unscored = scores.unscored(metric)
    return Estimand(metric, (part,), unscored=unscored, unparsed=unparsed, judge=judge, notes=notes, top=scale * top)


def among(whole: Estimand, name: str, scores: SampleScores, rows: Sequence[int], scale: float) -> Estimand:
    """The mean of an average's metric over some of its rows, called ``name``. What failed is counted with the whole alone."""
    values = scores.column(whole.metric)
    mine = [row for row in rows if not np.isnan(values[row])]
    part = scores.part(scale * values[mine], mine)
    return replace(whole, metric=name, parts=(part,), unscored={}, unparsed=0, notes=(), expected=len(mine))
