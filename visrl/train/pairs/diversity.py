"""The diversity controller: keeps the two boxes of an attempt apart (docs/method.md d3). Geometry only, in pixels.

``none``      the second box stays whatever it is
``paper``     IoU above .05: the second is replaced by a random box, about as large as the first and touching it nowhere
``resample``  the same, but first another box the policy itself drew for this question is looked for that lies apart:
              a rejected box it may really say teaches more than one it never would

Departures: 1. the first box counts as cut at the picture's edges: a replacement of the size of what lies outside would
hardly ever fit. 2. an extra sample serves one attempt only.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from visrl.core.boxes import Box, Size, iou
from visrl.core.crops import Region
from visrl.core.types import Unparsed
from visrl.train.data.candidates import Source

MAX_IOU = 0.05
TRIES = 100
Controller = Literal["paper", "none", "resample"]


@dataclass(frozen=True, slots=True)
class BoxProposal:
    """A box in pixels and the words it was said in; ``text`` None: nobody said it, it was drawn at random."""

    box: Box
    text: str | None = None
    source: Source = "sampled"


@dataclass(frozen=True, slots=True)
class Attempt:
    """Two boxes kept apart, or why the attempt was dropped."""

    boxes: tuple[BoxProposal, ...] = ()
    dropped: str = ""


def spread(number: int) -> float:
    """By what share sides may differ at try ``number``, from 0: .3, plus .1 at tries 0, 20, 40, 60 and 80."""
    return 0.3 + 0.1 * (number // 20 + 1)


def disjoint_like(box: Box, size: Size, rng: random.Random) -> Box | None:
    """A random box inside a picture of ``size`` that shares no area with ``box`` (pixels); None after 100 tries.

    Its sides are those of ``box`` times 1 + U(-d, d), d from :func:`spread`; its place is uniform.
    """
    like = box.clipped(size)
    if like.is_empty:
        return None
    for number in range(TRIES):
        d = spread(number)
        width = (like.x2 - like.x1) * (1 + rng.uniform(-d, d))
        height = (like.y2 - like.y1) * (1 + rng.uniform(-d, d))
        x, y = rng.random() * (size[0] - width), rng.random() * (size[1] - height)
        if x < 0 or y < 0:  # larger than the picture
            continue
        drawn = Box(x, y, x + width, y + height)
        if iou(drawn, like) == 0.0:
            return drawn
    return None


def control_again(
    boxes: Sequence[BoxProposal], attempts: int, area: Region, controller: Controller, rngs: Sequence[random.Random]
) -> list[Attempt]:
    """The attempts at a look after the first, of the proposals that could be read: two by two, in order, and a last one alone;
    what is left is spare. area: x1, y1, x2, y2 of the original, where a random box may lie; rngs: one per attempt.
    """
    x, y, width, height = area[0], area[1], area[2] - area[0], area[3] - area[1]
    inside = [replace(p, box=_moved(p.box, -x, -y)) for p in boxes]
    firsts, extra = inside[: 2 * attempts], inside[2 * attempts :]
    made = []
    for i in range(0, len(firsts), 2):
        both = firsts[i : i + 2]
        one = Attempt(tuple(both))
        if len(both) == 2:
            one = _attempt(both[0], both[1], extra, (width, height), controller, rngs[i // 2])
        made.append(replace(one, boxes=tuple(replace(p, box=_moved(p.box, x, y)) for p in one.boxes)))
    return made


def _moved(box: Box, x: float, y: float) -> Box:
    return Box(box.x1 + x, box.y1 + y, box.x2 + x, box.y2 + y)


def control(
    boxes: Sequence[BoxProposal | Unparsed],
    attempts: int,
    size: Size,
    controller: Controller,
    rngs: Sequence[random.Random],
) -> list[Attempt]:
    """The attempts of one question. ``boxes``: two per attempt, in order, then extra samples; ``rngs``: one per attempt."""
    extra = [box for box in boxes[2 * attempts :] if isinstance(box, BoxProposal)]
    return [_attempt(boxes[2 * i], boxes[2 * i + 1], extra, size, controller, rngs[i]) for i in range(attempts)]


def _attempt(
    first: BoxProposal | Unparsed,
    second: BoxProposal | Unparsed,
    extra: list[BoxProposal],
    size: Size,
    controller: Controller,
    rng: random.Random,
) -> Attempt:
    for which, box in (("first", first), ("second", second)):
        if isinstance(box, Unparsed):
            return Attempt(dropped=f"{which} box unparsed: {box.reason}")
    assert isinstance(first, BoxProposal) and isinstance(second, BoxProposal)
    if controller == "none" or iou(first.box, second.box) <= MAX_IOU:
        return Attempt((first, second))
    apart = _apart(first, extra) if controller == "resample" else None
    if apart is None:
        drawn = disjoint_like(first.box, size, rng)
        apart = None if drawn is None else BoxProposal(drawn, None, "random")
    return Attempt(dropped="no room for a second box") if apart is None else Attempt((first, apart))


def _apart(first: BoxProposal, extra: list[BoxProposal]) -> BoxProposal | None:
    """The first extra sample apart from ``first``, taken out of the list."""
    for place, other in enumerate(extra):
        if iou(first.box, other.box) <= MAX_IOU:
            del extra[place]
            return BoxProposal(other.box, other.text, "spare")
    return None
