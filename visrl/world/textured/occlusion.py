"""What lies in front of things, and the rule that keeps every answer readable by a person.

A thing may be covered so far (:func:`readable`):

1. its sign not at all, nor the :data:`CLEAR` pixels around it;
2. of its own pixels a fifth at most;
3. at three of its four sides at least half of the outermost :data:`EDGE` pixels still show: where it lies and how large it is
   can be seen. A bar's top is always one of them, since bars are compared by it.

So its colour, shape, place, size and sign are all to be seen. Boxes are of the whole thing, covered parts included.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from visrl.world.rendering import Canvas, sign_box, silhouette
from visrl.world.rng import Dice
from visrl.world.scenes import Kind, Scene, Thing
from visrl.world.textured.grounds import muted

SHARE = 5
"""One part in so many of a thing may be covered."""
CLEAR = 5
EDGE = 4
SIDES_SHOWN = 3
Mask = NDArray[np.bool_]
_CHANCE, _TRIES, _LEAST = 0.6, 10, 25
_REACH = 100  # pixels from a piece's middle to its end, at most


def cover(canvas: Canvas, scene: Scene, dice: Dice) -> Mask:
    """Leaves, cards and sticks over the edges of some things, in place. Returns what is covered, [H, W]."""
    covered = np.zeros(canvas.shape[:2], dtype=bool)
    for thing in scene.things:
        for _ in range(_TRIES if dice.chance(_CHANCE) else 0):
            place, piece = _piece(scene, thing, dice)
            both = covered.copy()
            both[place] |= piece
            if _matters(thing, scene.kind, both) and all(readable(t, scene.kind, both) for t in scene.things):
                covered = both
                _lay(canvas[place], piece, dice)
                break
    return covered


def readable(thing: Thing, kind: Kind, covered: Mask) -> bool:
    """Whether a person can still tell all that is asked about a thing. covered: [H, W] of the picture."""
    x1, y1, x2, y2 = sign_box(thing, kind)
    if covered[max(y1 - CLEAR, 0) : y2 + CLEAR, max(x1 - CLEAR, 0) : x2 + CLEAR].any():
        return False
    (x1, y1, x2, y2), own = silhouette(thing, kind)
    hidden = covered[y1:y2, x1:x2] & own
    if SHARE * int(hidden.sum()) > int(own.sum()):
        return False
    ends = np.s_[:EDGE], np.s_[-EDGE:], np.s_[:, :EDGE], np.s_[:, -EDGE:]  # top, bottom, left, right
    shown = [_shown(own[end], hidden[end]) for end in ends]
    return sum(shown) >= SIDES_SHOWN and (kind != "chart" or shown[0])


def _shown(edge: Mask, hidden: Mask) -> bool:
    """Whether at least half of a thing's pixels near a side is to be seen. edge, hidden: those pixels, and which are covered."""
    return 2 * int(hidden.sum()) <= int(edge.sum())


def _matters(thing: Thing, kind: Kind, covered: Mask) -> bool:
    """Whether enough of a thing is covered to be seen, one pixel in 25."""
    (x1, y1, x2, y2), own = silhouette(thing, kind)
    return _LEAST * int((covered[y1:y2, x1:x2] & own).sum()) >= int(own.sum())


def _piece(scene: Scene, thing: Thing, dice: Dice) -> tuple[tuple[slice, slice], Mask]:
    """Something across the edge of a thing: the part of the picture that holds it, and its pixels there."""
    x1, y1, x2, y2 = silhouette(thing, scene.kind)[0]
    edges = (x1, dice.between(y1, y2)), (x2, dice.between(y1, y2)), (dice.between(x1, x2), dice.one((y1, y2)))
    cx, cy = dice.one(edges)
    left, top = max(cx - _REACH, 0), max(cy - _REACH, 0)
    right, bottom = min(cx + _REACH, scene.size[0]), min(cy + _REACH, scene.size[1])
    x, y = np.arange(left, right)[None, :] - cx, np.arange(top, bottom)[:, None] - cy
    return (slice(top, bottom), slice(left, right)), _form(x, y, dice)


def _form(x: NDArray[np.int64], y: NDArray[np.int64], dice: Dice) -> Mask:
    """A leaf, a card or a stick. x: [1, W], y: [H, 1], pixels from its middle."""
    form, lean = dice.between(0, 2), dice.between(-2, 2)
    if form == 0:
        a, b = dice.between(14, 40), dice.between(14, 40)
        return np.asarray((4 * x + lean * y) ** 2 * b**2 + 16 * y**2 * a**2 <= 16 * a**2 * b**2)
    if form == 1:
        return np.asarray((np.abs(x) <= dice.between(12, 36)) & (np.abs(y) <= dice.between(12, 36)))
    across, along = dice.between(5, 9), dice.between(40, 90)
    x, y = (x, y) if dice.chance(0.5) else (y, x)
    return np.asarray((np.abs(4 * x + lean * y) <= 4 * across) & (np.abs(y) <= along))


def _lay(canvas: Canvas, piece: Mask, dice: Dice) -> None:
    """Draw a piece with a darker rim, in a greyish colour, in place."""
    inner = piece.copy()
    for axis in (0, 1):
        for step in (-2, 2):
            inner &= np.roll(piece, step, axis)
    tone = np.array(muted(dice, *dice.one(((30, 90), (110, 170), (180, 235)))), dtype=np.int32)
    canvas[piece] = tone * 5 // 8
    canvas[inner] = tone
