"""Standard errors that know that questions about one picture are not independent.

cluster: the samples that share a picture. All estimators take one or more *parts* (the sets of a benchmark), each with a
value and a cluster name per sample; parts may share pictures (POPE's three splits use the same 500), so clusters are
matched by name across parts.

Means: the cluster-robust (sandwich) variance. With x_i the values of a part of n samples and mean m, and w the part's
weight, sample i moves the estimate by  d_i = w (x_i - m) / n; with D_g the sum of d_i over cluster g of G,

    se^2 = G / (G - 1) * sum_g D_g^2          (CR1: the factor is the small-sample correction; CR0 has none)

which is the ordinary s / sqrt(n) when every sample has its own picture. The 95 % interval is value ± t(G - 1) se.

Ratios (F1, precision, circular accuracy): the cluster bootstrap. Pictures are drawn with replacement, 2,000 times, from a
fixed seed; se is the standard deviation of the statistic, the interval its 2.5 and 97.5 percentiles.

Ends of the scale and small n. Values that cannot leave 0..top say so (``top``), and then the interval is honest there, too:

* A proportion (all values 0 or top) gets Wilson's interval with the effective number of samples where fewer than 10 of these
  lie at either end, or where the interval above would leave the scale:  n_eff = min(n, p (1 - p) n / ((n - 1) se^2)), and where
  clusters hold several samples times (t(n - 1) / t(G - 1))^2, since few clusters say little about se (Korn and Graubard).
* Where se is 0 - all values are equal - any mean gets Wilson's interval with n_eff = G: five of five is 56.55..100, not 100..100.
* A ratio likewise, with G the clusters in which it is defined and n_eff = min(G, p (1 - p) / se^2).
* Every other interval is cut at 0 and top.

Departures: 1. se is 0 when all samples are equal: true of the formula; the interval is what says how sure one may be.
2. with one cluster there is no standard error: None, not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BOOTSTRAPS = 2000
_Z = 1.959963984540054
_NOTHING = 1e-12  # a standard error below it is what sums round
_FEW = 10  # effective samples at either end, below which a proportion's interval is Wilson's
SEED = 20261122
_CHUNK = 2_000_000  # drawn clusters held at a time: bounds the memory of a bootstrap


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its uncertainty, in the unit of the values. n samples in n_clusters clusters.

    value None: nothing to average, or the statistic is undefined (0 / 0). se and ci None: fewer than two clusters.
    """

    value: float | None
    se: float | None
    ci: tuple[float, float] | None
    n: int
    n_clusters: int

    def scaled(self, factor: float) -> Estimate:
        """In another unit: every number times ``factor``."""

        def times(value: float | None) -> float | None:
            return None if value is None else value * factor

        ci = None if self.ci is None else (self.ci[0] * factor, self.ci[1] * factor)
        return Estimate(times(self.value), times(self.se), ci, self.n, self.n_clusters)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One set: ``values`` [n] or, for ratios, ``values`` [n, k] whose sums are the statistic's input; ``clusters`` [n]."""

    values: Floats
    clusters: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.clusters):
            raise ValueError(f"{len(self.values)} values but {len(self.clusters)} clusters")
        if not np.isfinite(self.values).all():
            raise ValueError("values must be finite: leave unscored samples out")


def mean(values: Sequence[float] | Floats, clusters: Sequence[str], top: float | None = None) -> Estimate:
    """The mean of ``values`` [n] with its cluster-robust standard error. top: see :func:`weighted_means`."""
    return weighted_means([Part(np.asarray(values, dtype=np.float64), clusters)], [1.0], top)


def mean_of_means(parts: Sequence[Part], top: float | None = None) -> Estimate:
    """The unweighted mean of the parts' means: every set counts alike, whatever its n."""
    return weighted_means(parts, [1.0 / max(len(parts), 1)] * len(parts), top)


def paired_difference(a: Sequence[float] | Floats, b: Sequence[float] | Floats, clusters: Sequence[str]) -> Estimate:
    """mean(b - a) over the same samples in the same order: the standard error of the *difference*."""
    return mean(np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64), clusters)


def weighted_means(parts: Sequence[Part], weights: Sequence[float], top: float | None = None) -> Estimate:
    """sum_s w_s mean_s. Weights 1 give a total (MME), 1 / S the mean of means. None when a part is empty.

    top: the most the result can be, with 0 the least; None: it has no ends (a difference).
    """
    n = sum(len(part.values) for part in parts)
    index, size = _cluster_index(parts)
    if not parts or any(len(part.values) == 0 for part in parts):
        return Estimate(None, None, None, n, size)
    means = [float(part.values.mean()) for part in parts]
    value = math.fsum(w * m for w, m in zip(weights, means, strict=True))
    if any(len(set(part.clusters)) < 2 for part in parts):
        return Estimate(value, None, None, n, size)
    moves = np.concatenate([w * (p.values - m) / len(p.values) for p, w, m in zip(parts, weights, means, strict=True)])
    per_cluster = np.bincount(np.concatenate(index), weights=moves, minlength=size)
    se = math.sqrt(size / (size - 1) * float(per_cluster @ per_cluster))
    half = _t975(size - 1) * se
    if top is None:
        return Estimate(value, se, (value - half, value + half), n, size)
    binary = len(parts) == 1 and bool(np.isin(parts[0].values, (0.0, top)).all())
    return Estimate(value, se, _within(value / top, se / top, half / top, n if binary else 0, size, top), n, size)


def _within(p: float, se: float, half: float, n: int, size: int, top: float) -> tuple[float, float]:
    """The interval of a mean on a scale 0..top, all of it given as shares of top. n: samples of a proportion; 0: it is none."""
    p = min(max(p, 0.0), 1.0)
    effective = float(size)
    if n and se > _NOTHING:
        effective = min(n, p * (1.0 - p) * n / (max(n - 1, 1) * se * se))
        effective *= (_t975(n - 1) / _t975(size - 1)) ** 2 if n > size else 1.0
    few = effective * min(p, 1.0 - p) < _FEW or p - half < 0.0 or p + half > 1.0
    if se <= _NOTHING or (n and few):
        low, high = wilson(p, effective)
    else:
        low, high = max(p - half, 0.0), min(p + half, 1.0)
    return top * low, top * high


def wilson(p: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion ``p`` of ``n`` (effective) samples: never empty, never outside 0..1."""
    p, z2 = min(max(p, 0.0), 1.0), _Z * _Z
    centre = (n * p + z2 / 2.0) / (n + z2)
    half = _Z / (n + z2) * math.sqrt(n * p * (1.0 - p) + z2 / 4.0)
    return (0.0 if p == 0.0 else max(centre - half, 0.0)), (1.0 if p == 1.0 else min(centre + half, 1.0))


def bootstrap(parts: Sequence[Part], statistic: Callable[[Floats], Floats], seed: int = SEED) -> Estimate:
    """The unweighted mean over parts of ``statistic``, with pictures resampled jointly in all parts.

    statistic: sums [..., k] over the samples of a part -> values [...]; NaN where undefined. Undefined replicates are
    left out; if any part's own value is undefined, so is the estimate. Values are shares, 0..1.
    """
    n = sum(len(part.values) for part in parts)
    index, size = _cluster_index(parts)
    if n == 0:
        return Estimate(None, None, None, 0, 0)
    value = float(np.mean([statistic(part.values.sum(axis=0)) for part in parts]))
    if math.isnan(value):
        return Estimate(None, None, None, n, size)
    if size < 2:
        return Estimate(value, None, None, n, size)
    sums = [_cluster_sums(part.values, where, size) for part, where in zip(parts, index, strict=True)]
    drawn = np.concatenate(
        [np.mean([statistic(w @ s) for s in sums], axis=0) for w in _draws(size, np.random.default_rng(seed))]
    )
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < 2:
        return Estimate(value, None, None, n, size)
    low, high = np.percentile(drawn, [2.5, 97.5])
    se = float(drawn.std(ddof=1))
    defined = int(np.any([~np.isnan(statistic(s)) for s in sums], axis=0).sum())
    effective = min(defined, value * (1.0 - value) / (se * se)) if se > _NOTHING else defined
    few = effective * min(value, 1.0 - value) < _FEW
    ci = wilson(value, effective) if few else (max(float(low), 0.0), min(float(high), 1.0))
    return Estimate(value, se, ci, n, size)


def _cluster_index(parts: Sequence[Part]) -> tuple[list[NDArray[np.intp]], int]:
    """Per part the cluster number of every sample [n], and how many clusters there are in all."""
    numbers: dict[str, int] = {}
    index = [
        np.fromiter(
            (numbers.setdefault(c, len(numbers)) for c in part.clusters), dtype=np.intp, count=len(part.clusters)
        )
        for part in parts
    ]
    return index, len(numbers)


def _cluster_sums(values: Floats, index: NDArray[np.intp], size: int) -> Floats:
    """Sums of ``values`` [n, k] per cluster: [size, k]."""
    return np.stack([np.bincount(index, weights=column, minlength=size) for column in values.T], axis=1)


def _draws(size: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each of ``size`` clusters is drawn in each of BOOTSTRAPS replicates: chunks of [b, size]."""
    step = max(1, _CHUNK // size)
    for start in range(0, BOOTSTRAPS, step):
        rows = min(step, BOOTSTRAPS - start)
        drawn = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)


def _t975(degrees: int) -> float:
    """The 97.5 % point of Student's t: 12.7 for 2 clusters, 1.98 for 100, 1.96 in the limit."""
    from scipy.special import stdtrit  # not scipy.stats, which takes half a second to import

    return float(stdtrit(degrees, 0.975))
