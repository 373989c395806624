"""What lies under everything: stone, wood, bricks, a landscape, lights out of focus, paper. Integer arithmetic throughout.

Grounds are made at half the picture's width and height, which takes a quarter of the time; grain is added pixel by pixel.

No colour of a ground is one that a thing has: its channels differ by :data:`MUTED` at most, those of a thing by more
(tests/world/test_textured.py does the sums).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from visrl.core.boxes import Size
from visrl.world.rendering import Canvas, Colour
from visrl.world.rng import Dice
from visrl.world.scenes import Kind

MUTED = 60
"""The most that two channels of a pixel differ by: the greyer half of colours."""
Levels = NDArray[np.int32]  # [H, W], 0 to 255
_TINT = 26
_GRAIN = 12  # levels of grey, from pixel to pixel, at most
_FIELD = 1024  # pixels of a side
Octaves = tuple[tuple[int, int, int], ...]
"""(height of a cell, its width, weight)"""
CLOUDS: Octaves = ((64, 64, 4), (32, 32, 2), (8, 8, 1))
ROUGH: Octaves = ((32, 32, 3), (8, 8, 3), (2, 2, 2))
FIBRES: Octaves = ((4, 128, 3), (2, 32, 2), (64, 64, 2))


def ground(kind: Kind, size: Size, dice: Dice) -> Canvas:
    """A ground of ``size`` for a picture of ``kind``, [H, W, 3]: paper under a form, whose signs stand on it."""
    make = paper if kind == "form" else dice.one(GROUNDS)
    half = (size[0] + 1) // 2, (size[1] + 1) // 2
    large = np.repeat(np.repeat(_lit(make(half, dice), dice), 2, axis=0), 2, axis=1)[: size[1], : size[0]]
    left, top = dice.between(0, _FIELD - size[0]), dice.between(0, _FIELD - size[1])
    return np.asarray(large + _grain()[top : top + size[1], left : left + size[0], None])


def muted(dice: Dice, low: int, high: int, tint: int = _TINT) -> Colour:
    """A greyish colour between two levels of grey."""
    grey = dice.between(low, high)
    r, g, b = (min(max(grey + dice.between(-tint, tint), 0), 255) for _ in range(3))
    return r, g, b


def noise(size: Size, octaves: Octaves, dice: Dice) -> Levels:
    """Smooth noise, [H, W]: octaves of random lattices, joined by cubic ramps and added by their weights; 0 to 255."""
    total = np.zeros((size[1], size[0]), dtype=np.int32)
    for high, wide, weight in octaves:
        lattice = _hashed((size[1] // high + 2) * (size[0] // wide + 2), dice).reshape(size[1] // high + 2, -1)
        total += weight * _joined(_joined(lattice.T, size[0], wide).T, size[1], high)
    return np.asarray(total // sum(weight for _, _, weight in octaves))


def _hashed(n: int, dice: Dice) -> Levels:
    """``n`` random levels of one draw: the finaliser of MurmurHash3 over a count, whose bits no version of NumPy changes."""
    x = np.arange(n, dtype=np.uint32) * np.uint32(2654435761) + np.uint32(dice.between(0, 2**31 - 1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return np.asarray((x ^ (x >> np.uint32(16))) >> np.uint32(24), dtype=np.int32)


def _joined(rows: Levels, length: int, cell: int) -> Levels:
    """Rows ``cell`` apart, with what lies between them, [length, width]."""
    first, ramp = _ramp(length, cell)
    return np.asarray((rows[first] * (256 - ramp) + rows[first + 1] * ramp) >> 8)


@cache
def _ramp(length: int, cell: int) -> tuple[NDArray[np.int64], Levels]:
    """For each of ``length`` places the row before it, [length], and the next row's share in 256ths, [length, 1]."""
    place = np.arange(length, dtype=np.int64)
    f = place % cell
    return place // cell, (256 * f * f * (3 * cell - 2 * f) // cell**3).astype(np.int32)[:, None]


def _toned(levels: Levels, colours: tuple[Colour, ...]) -> Canvas:
    """Levels as colours, from the first for 0 to the last for 255."""
    at = np.arange(256) * (len(colours) - 1)
    stops = np.array([*colours, colours[-1]], dtype=np.int64)
    low, share = at // 255, (at % 255)[:, None]
    table = (stops[low] * (255 - share) + stops[low + 1] * share) // 255
    return np.asarray(np.take(table.astype(np.uint8), levels, axis=0))


def _stretched(levels: Levels) -> Levels:
    """Twice the contrast: noise of several octaves keeps to the middle."""
    return np.clip(2 * levels - 128, 0, 255)


def _tones(dice: Dice) -> tuple[Colour, Colour, Colour]:
    dark = dice.chance(0.5)
    low, high = (20, 110) if dark else (130, 235)
    return muted(dice, low, high), muted(dice, low, high), muted(dice, low, high)


def paper(size: Size, dice: Dice) -> Canvas:
    """Light enough for black ink, with fibres and stains."""
    return _toned(noise(size, ROUGH, dice), (muted(dice, 216, 226, 8), muted(dice, 236, 246, 8)))


def stone(size: Size, dice: Dice) -> Canvas:
    return _toned(_stretched(noise(size, ROUGH, dice)), _tones(dice))


def wood(size: Size, dice: Dice) -> Canvas:
    """Boards across, each with a grain of its own."""
    canvas = _toned(_stretched(noise(size, FIBRES, dice)), _tones(dice))
    pitch = dice.between(24, 45)
    for y in range(dice.between(0, pitch - 1), size[1], pitch):
        canvas[y : y + 2] //= 2
    return canvas


def bricks(size: Size, dice: Dice) -> Canvas:
    """Courses of bricks in a bond, no two of one tone."""
    high, wide = dice.between(11, 17), dice.between(26, 40)
    y, x = np.arange(size[1])[:, None], np.arange(size[0])[None, :]
    course = y // high
    along = x + (course % 2) * (wide // 2)
    tones = _hashed(64 * 64, dice).reshape(64, 64)[course % 64, along // wide % 64]
    canvas = _toned((2 * tones + noise(size, ROUGH, dice)) // 3, _tones(dice))
    canvas[(y % high < 2) | (along % wide < 2)] = muted(dice, 90, 170, 10)
    return canvas


def landscape(size: Size, dice: Dice) -> Canvas:
    """Clouds, two ridges, and a meadow that grows coarser toward the viewer."""
    width, height = size
    canvas = _toned(_stretched(noise(size, CLOUDS, dice)), (muted(dice, 150, 190), muted(dice, 215, 245)))
    rough = noise(size, ROUGH, dice)
    y, top = np.arange(height)[:, None], dice.between(height // 5, height // 2)
    for depth, octaves in enumerate((((1, 48, 1),), ((1, 32, 1),), ((1, 12, 1),))):
        ridge = top + depth * height // 6 + noise((width, 1), octaves, dice)[0] // 8
        below = y > ridge[None, :]
        tones = muted(dice, 100 - 30 * depth, 130 - 30 * depth), muted(dice, 130 - 20 * depth, 160 - 20 * depth)
        canvas[below] = _toned(rough, tones)[below]
    return canvas


def lights(size: Size, dice: Dice) -> Canvas:
    """A room out of focus: large soft patches, and discs where lamps are."""
    canvas = _toned(_stretched(noise(size, CLOUDS, dice)), (muted(dice, 15, 60), muted(dice, 60, 120)))
    y, x = np.arange(size[1])[:, None], np.arange(size[0])[None, :]
    for _ in range(dice.between(8, 14)):
        radius = dice.between(7, 22)
        disc = (x - dice.between(0, size[0])) ** 2 + (y - dice.between(0, size[1])) ** 2 <= radius**2
        lamp = np.array(muted(dice, 150, 220), dtype=np.int32)
        canvas[disc] = (2 * canvas[disc].astype(np.int32) + lamp) // 3
    return canvas


GROUNDS: tuple[Callable[[Size, Dice], Canvas], ...] = (stone, wood, bricks, landscape, lights)


def _lit(canvas: Canvas, dice: Dice) -> Canvas:
    """Lit from one side and darker in the corners, with room for the grain: one factor for all three channels of a pixel."""
    height, width, _ = canvas.shape
    x, y = np.arange(width)[None, :] - width // 2, np.arange(height)[:, None] - height // 2
    slope = dice.between(-24, 24) * x // width + dice.between(-24, 24) * y // height
    light = 240 + slope - 40 * (x * x + y * y) // (width * width + height * height)
    light = np.minimum(light, 256).astype(np.uint16)  # so 255 times that is still 16 bits
    return np.asarray(np.minimum((canvas * light[:, :, None]) >> 8, 255 - _GRAIN).astype(np.uint8))


@cache
def _grain() -> NDArray[np.uint8]:
    """One field of grain for all pictures, of which each takes a part: hashed once, not for every picture."""
    return (_hashed(_FIELD * _FIELD, Dice("grain")).reshape(_FIELD, _FIELD) % (_GRAIN + 1)).astype(np.uint8)
