"""The signs that things carry: six letters drawn here, six digits as people wrote them (scikit-learn's load_digits).

Few and unlike each other on purpose: reading is the slow half of what a small model learns (no I/1, O/0, Z/2, 4/9).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_ROWS = {
    "E": "##### #.... #.... ####. #.... #.... #####",
    "H": "#...# #...# #...# ##### #...# #...# #...#",
    "L": "#.... #.... #.... #.... #.... #.... #####",
    "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "U": "#...# #...# #...# #...# #...# #...# .###.",
    "X": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
}
LETTERS: tuple[str, ...] = tuple(_ROWS)
DIGITS: tuple[str, ...] = ("0", "2", "3", "4", "6", "7")
SIGNS: tuple[str, ...] = LETTERS + DIGITS

_SEEN_SHARE = 5  # every fifth writer's digit is kept for val, test and heldout: reading is tested on unseen handwriting


@cache
def _handwriting() -> dict[str, NDArray[np.uint8]]:
    """Digit -> its pictures, [N, 8, 8], ink 0..16. UCI ML hand-written digits, shipped inside scikit-learn."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return {digit: data.images[data.target == int(digit)].astype(np.uint8) for digit in DIGITS}


def hands(sign: str, unseen: bool) -> range:
    """Which pictures of ``sign`` a split may use: ``unseen`` writers are for val, test and heldout only."""
    if sign in LETTERS:
        return range(1)
    n = len(_handwriting()[sign])
    return range(0, n, _SEEN_SHARE) if unseen else range(1, n, _SEEN_SHARE)


def ink(sign: str, hand: int, cell: int) -> NDArray[np.uint8]:
    """How much ink lies on each pixel, 0..16: [7 * cell, 5 * cell] for a letter, [8 * cell, 8 * cell] for a digit."""
    if sign in LETTERS:
        rows = _ROWS[sign].split()
        small = np.array([[16 if mark == "#" else 0 for mark in row] for row in rows], dtype=np.uint8)
    else:
        small = _handwriting()[sign][hand]
    return np.repeat(np.repeat(small, cell, axis=0), cell, axis=1)
