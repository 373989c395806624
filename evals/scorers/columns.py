"""What scoring keeps of a sample: its id, its picture, its group and a number per metric, side by side in columns.

Some hundred bytes a sample, whatever its question and its outputs are: neither samples nor episodes are held.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from visrl.core.types import CoTSample, Score
from visrl.evals.stats import Floats, Part

ZERO, ONE = Score(0.0), Score(1.0)
Rows = Sequence[int] | NDArray[np.intp]


def cluster_of(sample: CoTSample) -> str:
    """The picture; a sample that names none is its own cluster."""
    return sample.cluster or sample.id


class SampleScores(Mapping[str, Mapping[str, Score]]):
    """sample id -> metric -> Score. A sample may have no score of a metric: another subtask's.

    A *row* is a sample's number here, from 0. clusters, groups [n]: see :func:`cluster_of` and CoTSample. first: rows that
    stand before the others in files (REC's unscored ones always have).
    """

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.clusters: list[str] = []
        self.groups: list[str] = []
        self.first: list[int] = []
        self._values: dict[str, array[float]] = {}  # metric -> [n, or fewer], NaN without a value
        self._reasons: dict[str, dict[int, str]] = {}  # metric -> row -> why it has none
        self._texts: dict[str, str] = {}  # names and reasons, each held once
        self._numbers: dict[str, int] = {}  # id -> row, made when somebody looks up an id

    def add(self, sample: CoTSample) -> int:
        """A row for ``sample``, without scores yet."""
        self.ids.append(sample.id)
        self.clusters.append(self._once(sample.cluster) if sample.cluster else sample.id)
        self.groups.append(self._once(sample.group))
        return len(self.ids) - 1

    def _once(self, text: str) -> str:
        return self._texts.setdefault(text, text)

    def put(self, row: int, metric: str, score: Score) -> None:
        """The score of one row, in place of the one it has."""
        if score.value is None:
            self._reasons.setdefault(metric, {})[row] = self._once(score.reason)
        elif metric in self._reasons:
            self._reasons[metric].pop(row, None)
        self._open(metric)[row] = np.nan if score.value is None else score.value

    def fill(self, metric: str, rows: Iterable[int], values: Floats) -> None:
        """The values of many rows that have none yet."""
        column = self._open(metric)
        for row, value in zip(rows, values.tolist(), strict=True):
            column[row] = value

    def metrics(self) -> list[str]:
        """The metrics that any sample has a score of."""
        return list(self._values)

    def drop(self, metric: str) -> None:
        """Forget a metric."""
        self._values.pop(metric, None)
        self._reasons.pop(metric, None)

    def _open(self, metric: str) -> array[float]:
        column = self._values.setdefault(metric, array("d"))
        column.extend([np.nan] * (len(self.ids) - len(column)))
        return column

    def column(self, metric: str) -> Floats:
        """[n], NaN where there is no value."""
        return np.array(self._open(metric), dtype=np.float64)

    def unscored_rows(self, metric: str) -> list[int]:
        """The rows that have a reason for having no value."""
        return sorted(self._reasons.get(metric, ()))

    def unscored(self, metric: str) -> Counter[str]:
        """How many samples have no value, by reason."""
        return Counter(self._reasons.get(metric, {}).values())

    def part(self, values: Floats, rows: Rows) -> Part:
        """Values [n] or [n, k] of ``rows``, clustered by picture."""
        whole = len(rows) == len(self.ids)
        return Part(values, self.clusters if whole else [self.clusters[row] for row in rows])

    def rows(self) -> Iterator[int]:
        """The rows in the order of files."""
        early = set(self.first)
        return chain(self.first, (row for row in range(len(self.ids)) if row not in early))

    def of_row(self, row: int) -> dict[str, Score]:
        """metric -> Score of one row."""
        found = {}
        for metric, column in self._values.items():
            value = column[row] if row < len(column) else np.nan
            if value == value:
                found[metric] = ZERO if value == 0.0 else ONE if value == 1.0 else Score(value)
            elif reason := self._reasons.get(metric, {}).get(row):
                found[metric] = Score(None, reason)
        return found

    def __getitem__(self, sample_id: str) -> dict[str, Score]:
        if len(self._numbers) != len(self.ids):
            self._numbers = {sample_id: row for row, sample_id in enumerate(self.ids)}
        return self.of_row(self._numbers[sample_id])

    def __iter__(self) -> Iterator[str]:
        return (self.ids[row] for row in self.rows())

    def __len__(self) -> int:
        return len(self.ids)
