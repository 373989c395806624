"""What a protocol of several looks came to, besides the benchmark's own scores: how often was looked, and what was it worth.

looks            looks per sample that were carried out, on average; a control's count, too. Its notes say why episodes ended
faulty_calls     share of all calls that could not be carried out, in percent; absent where nobody called. Its notes count
                 them by kind
METRIC/looks=K   the benchmark's first metric of single samples over those that looked K times. These are other samples for every
                 K, which the model chose: what looking is worth is said by ``--max-looks 0..3``, not by these

Runs under the paper's protocols have none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from visrl.core.types import Ended, Episode
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.scorers.columns import SampleScores
from visrl.evals.scorers.measure import Estimand, among, average
from visrl.evals.stats import Floats, Part

FAULTY = "faulty_calls"
LOOKS = "looks"


@dataclass(frozen=True, slots=True)
class Counted:
    """Of one sample: looks that were carried out, calls of the model's own, and the faulty ones of these."""

    looks: int
    calls: int
    faulty: int


@dataclass(slots=True)
class Tally(Mapping[str, Episode]):
    """Episodes that count looks as a scorer reads them; of the paper's protocols nothing is counted."""

    episodes: Mapping[str, Episode]
    counted: dict[str, Counted] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, sample_id: str) -> Episode:
        episode = self.episodes[sample_id]
        if episode.error is not None:
            self.failed[sample_id] = episode.error or "failed without a reason"
        elif episode.ended is not None and sample_id not in self.counted:
            self._count(sample_id, episode, episode.ended)
        return episode

    def _count(self, sample_id: str, episode: Episode, ended: Ended) -> None:
        kinds = [look.fault for look in episode.looks if look.fault] + ["over_the_limit"] * (ended == "call")
        own = sum(look.step is not None for look in episode.looks) + (ended == "call")
        done = sum(not look.fault for look in episode.looks)
        self.counted[sample_id] = Counted(done, own, len(kinds))
        self.faults.update(kinds)
        self.ended[ended] += 1

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self.episodes

    def __iter__(self) -> Iterator[str]:
        return iter(self.episodes)

    def __len__(self) -> int:
        return len(self.episodes)


def estimands(tally: Tally, spec: TaskSpec, scores: SampleScores, found: Sequence[Estimand]) -> list[Estimand]:
    """The metrics above, after the benchmark's own ``found``; none where no episode had several looks allowed."""
    rows = [row for row, name in enumerate(scores.ids) if name in tally.counted]
    if not rows:
        return []
    counted = [tally.counted[scores.ids[row]] for row in rows]
    looks = np.array([one.looks for one in counted], dtype=np.float64)
    calls = np.array([(one.faulty, one.calls) for one in counted], dtype=np.float64)
    failed = Counter(tally.failed.values())
    return [
        Estimand(LOOKS, (scores.part(looks, rows),), unscored=failed, unit="looks", notes=(_told(tally.ended),)),
        *([_faulty(scores, rows, calls, tally)] if calls[:, 1].any() else []),
        *_by_looks(spec, scores, rows, looks, found),
    ]


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()) if count)


def _faulty(scores: SampleScores, rows: Sequence[int], values: Floats, tally: Tally) -> Estimand:
    notes = (told,) if (told := _told(tally.faults)) else ()
    part = Part(values, [scores.clusters[row] for row in rows])
    failed = Counter(tally.failed.values())
    return Estimand(FAULTY, (part,), _share, 1.0, 100.0, failed, unit="percent", notes=notes)


def _share(sums: Floats) -> Floats:
    """Faulty over all, of sums [..., 2]."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full_like(sums[..., 0], np.nan), where=sums[..., 1] > 0)


def _by_looks(
    spec: TaskSpec, scores: SampleScores, rows: Sequence[int], looks: Floats, found: Sequence[Estimand]
) -> Iterator[Estimand]:
    """The first metric by the number of looks: the benchmark's own, else the one that most samples have a score of (MME's are of
    a subtask each, but for one)."""
    per_sample = [what for what in found if what.metric in scores.metrics()]
    scored = {what.metric: np.count_nonzero(~np.isnan(scores.column(what.metric))) for what in per_sample}
    if not per_sample:
        return
    first = max(per_sample, key=lambda what: (what.metric == spec.primary, scored[what.metric]))
    scale = 100.0 if spec.unit == "percent" else 1.0
    whole = average(first.metric, scores, scale, judge=first.judge)
    whole = replace(whole, top=first.top, unit=spec.unit_of(first.metric))
    for k in sorted(set(looks.astype(int).tolist())):
        mine = [row for row, n in zip(rows, looks, strict=True) if n == k]
        yield among(whole, f"{first.metric}/looks={k}", scores, mine, scale)
