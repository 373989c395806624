"""The vocabulary between a scorer and a record: a scorer yields Estimands, an Estimand becomes a Measured number.

A scorer gives each sample its scores and says, per metric, what is averaged over what (:class:`Estimand`). Standard
errors, group averages and counts of what could not be scored follow from that in one place, here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from visrl.evals import stats
from visrl.evals.stats import Estimate, Floats, Part
from visrl.types import CoTSample, Episode, Score

Done = list[tuple[CoTSample, Episode]]
SampleScores = dict[str, dict[str, Score]]
REASONS_KEPT = 20
_REASON_LENGTH = 200
_DECIMALS = 10  # of recorded numbers: below what a BLAS may round differently, above what anybody reads
ZERO, ONE = Score(0.0), Score(1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Estimand:
    """What a metric is: ``statistic`` of the parts, or without one the sum over parts of ``weight`` times their means.

    values of the parts are already in the task's unit, except a statistic's, whose result is multiplied by ``scale``.
    unscored: reason -> samples without a value. unparsed: samples scored as wrong because nothing could be read.
    judge: who judged, where someone did. undefined: why there is no value although samples were scored.
    expected: samples of the published split the metric is about; None: all of the task's.
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

    def estimate(self) -> Estimate:
        """The value with standard error and interval."""
        if self.undefined:
            empty = stats.weighted_means(self.parts, [0.0] * len(self.parts))
            return Estimate(None, None, None, empty.n, empty.n_clusters)
        if self.statistic is not None:
            return stats.bootstrap(self.parts, self.statistic).scaled(self.scale)
        return stats.weighted_means(self.parts, [self.weight] * len(self.parts))


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
        unit=unit,
        n=result.n,
        n_clusters=result.n_clusters,
        n_expected=n_expected,
        n_missing=max(0, n_expected - result.n - n_unscored),
        n_unscored=n_unscored,
        n_unparsed=what.unparsed,
        unscored_reasons=commonest(what.unscored),
        higher_is_better=what.metric != "yes_ratio",
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


def done(samples: Sequence[CoTSample], episodes: Mapping[str, Episode]) -> Done:
    """The samples that were run, in order, with what happened. The others are missing, not unscored."""
    return [(sample, episodes[sample.id]) for sample in samples if sample.id in episodes]


def cluster_of(sample: CoTSample) -> str:
    """The picture; a sample that names none is its own cluster."""
    return sample.cluster or sample.id


def part(values: Iterable[float] | Floats, samples: Sequence[CoTSample]) -> Part:
    """Values [n] or [n, k] of ``samples``, clustered by picture."""
    array = values if isinstance(values, np.ndarray) else np.array(list(values), dtype=np.float64)
    return Part(array, [cluster_of(sample) for sample in samples])


def average(
    metric: str,
    items: Sequence[tuple[CoTSample, Score]],
    scale: float,
    *,
    unparsed: int = 0,
    judge: str | None = None,
    notes: tuple[str, ...] = (),
) -> Estimand:
    """The mean over the samples that have a value, times ``scale``; the others counted by reason."""
    scored = [(sample, score.value) for sample, score in items if score.value is not None]
    values = part((scale * value for _, value in scored), [sample for sample, _ in scored])
    unscored = Counter(score.reason for _, score in items if score.value is None)
    return Estimand(metric, (values,), unscored=unscored, unparsed=unparsed, judge=judge, notes=notes)


def of_metric(scores: SampleScores, items: Done, metric: str) -> list[tuple[CoTSample, Score]]:
    """The samples that have a score of this name, with it."""
    return [(sample, scores[sample.id][metric]) for sample, _ in items if metric in scores[sample.id]]
