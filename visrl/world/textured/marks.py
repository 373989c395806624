"""Clutter: marks in greyish colours and of forms that no question names, on no thing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from visrl.world.rendering import Canvas
from visrl.world.rng import Dice
from visrl.world.scenes import Scene
from visrl.world.textured.grounds import muted

MARKS = ("cross", "crescent", "chevron", "zigzag")
"""None is a circle, square, triangle or diamond, and none a letter or digit that signs have."""
SIDES = (16, 44)
_AWAY = 3  # pixels from any thing's box


def scatter(canvas: Canvas, scene: Scene, dice: Dice) -> None:
    """Six to twelve marks, in place; those that would lie on a thing are left out."""
    for _ in range(dice.between(6, 12)):
        side = dice.between(*SIDES)
        x, y = dice.between(0, scene.size[0] - side), dice.between(0, scene.size[1] - side)
        mask, tone = mark(dice.one(MARKS), side), muted(dice, *dice.one(((10, 60), (190, 240))))
        if all(_apart((x, y, x + side, y + side), thing.box) for thing in scene.things):
            canvas[y : y + side, x : x + side][mask] = tone


def mark(name: str, side: int) -> NDArray[np.bool_]:
    """The mark's pixels, [side, side]."""
    u = 2 * np.arange(side)[None, :] + 1 - side
    v = 2 * np.arange(side)[:, None] + 1 - side
    thick = side // 4
    if name == "cross":
        return np.asarray((np.abs(u) < thick) | (np.abs(v) < thick))
    if name == "crescent":
        return np.asarray((u**2 + v**2 <= side**2) & ((u - side // 2) ** 2 + v**2 > side**2))
    if name == "chevron":
        return np.asarray(np.abs(v - np.abs(u) + side // 2) < thick)
    wave = np.abs((u + side) % side - side // 2) - side // 4
    return np.asarray(np.abs(v - wave) < thick)


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[2] + _AWAY < b[0] or b[2] + _AWAY < a[0] or a[3] + _AWAY < b[1] or b[3] + _AWAY < a[1]
