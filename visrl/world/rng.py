"""Randomness that is the same on every machine, Python and NumPy."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Seeded draws, all made from ``random.random()``: the only method whose stream Python promises never to change.

    The key is hashed, so neighbouring indices are unrelated and ``("train", 1)`` is not ``("test", 1)``.
    """

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
        self._random = random.Random(int.from_bytes(digest[:8], "big"))

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def between(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def one(self, items: Sequence[T]) -> T:
        return items[int(self._random.random() * len(items))]

    def some(self, items: Sequence[T], n: int) -> list[T]:
        """``n`` different items in random order (all of them if there are fewer): the head of a Fisher-Yates shuffle."""
        pool = list(items)
        for i in range(min(n, len(pool))):
            j = self.between(i, len(pool) - 1)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:n]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return self.some(items, len(items))

    def normal(self) -> float:
        """Mean 0, variance 1: the sum of twelve uniforms minus six (Irwin-Hall), free of platform-dependent logarithms."""
        return sum(self._random.random() for _ in range(12)) - 6.0
