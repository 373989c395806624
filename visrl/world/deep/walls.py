"""What is where on a wall: posters, each of its own colour, and the things on them. Knows nothing of pixels or words.

Sizes are chosen for a model that sees any picture at 64 pixels (its high side; tests/world/test_deep.py does the sums):

=============  ===========  ===============  ============
a sign is      on the wall  in its poster    in its thing
=============  ===========  ===============  ============
small poster   1.8, 2.0 px   9.9 to 13.7 px
large poster   1.2, 1.3 px   2.3 to 3.2 px    11 to 16 px
=============  ===========  ===============  ============

So a sign on a small poster is readable after one look, one on a large poster after two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from visrl.core.boxes import Box, Size
from visrl.world.rng import Dice
from visrl.world.scenes import COLOURS, SHAPES, Thing, a_hand, a_shade, a_sign, box_of
from visrl.world.splits import SPLITS

WALLS: tuple[Size, ...] = ((768, 768), (768, 640), (640, 768))
PREFIX = "deep:"
"""Before a wall's key, ``deep:split:index``: a wall is no picture of the small world's other tasks."""
_MARGIN, _GAP, _INNER, _BETWEEN = 10, 14, 8, 4

Region = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Make:
    """A sort of poster. looks: that its signs take. cell: pixels of a sign's smallest mark, as glyphs.ink has it. things: how
    many. side, thing: the sides of the poster and of its things, from the least to the most, in pixels.
    """

    looks: int
    cell: int
    things: tuple[int, int]
    side: tuple[int, int]
    thing: tuple[int, int]


MAKES: dict[str, Make] = {
    "small": Make(1, 3, (1, 1), (112, 136), (66, 84)),
    "large": Make(2, 2, (3, 5), (320, 384), (64, 80)),
}


@dataclass(frozen=True, slots=True)
class Poster:
    """colour: also its name; no other of the wall has it. size: small or large (MAKES). box: x1, y1, x2, y2 in pixels of the
    wall, as are those of its things; things: no two of one colour and shape, none of the poster's colour.
    """

    colour: str
    size: str
    box: Region
    things: tuple[Thing, ...]
    shade: tuple[int, int, int] = (0, 0, 0)

    @property
    def make(self) -> Make:
        return MAKES[self.size]

    def as_box(self) -> Box:
        return box_of(self.box)


@dataclass(frozen=True, slots=True)
class Wall:
    """A picture before it is drawn. key: ``deep:split:index``; it seeds what has no meaning, too (clutter)."""

    key: str
    size: Size
    posters: tuple[Poster, ...]


@lru_cache(maxsize=2048)
def wall(split: str, index: int) -> Wall:
    """Wall ``index`` of ``split``. Raises IndexError beyond the split's end."""
    if not 0 <= index < SPLITS[split].pictures:
        raise IndexError(f"split {split} has {SPLITS[split].pictures} walls, not {index}")
    return lay_out(f"{PREFIX}{split}:{index}", SPLITS[split].unseen)


def rewall(key: str) -> Wall:
    """The wall of a document's key, ``deep:split:index``."""
    split, _, index = key.removeprefix(PREFIX).partition(":")
    return wall(split, int(index))


def lay_out(key: str, unseen: bool = False) -> Wall:
    """The wall of a key: one or two large posters, one to three small ones. ``unseen``: handwriting that training never shows."""
    dice = Dice("wall", key)
    size = dice.one(WALLS)
    wanted = ["large"] * dice.between(1, 2) + ["small"] * dice.between(1, 3)
    colours = dice.some(list(COLOURS), len(wanted))
    posters: list[Poster] = []
    for name, colour in zip(wanted, colours, strict=True):
        make = MAKES[name]
        sides = dice.between(*make.side), dice.between(*make.side)
        if (box := _place(dice, size, sides, [p.box for p in posters], _MARGIN, _GAP)) is not None:
            things = _things(dice, box, make, colour, posters, unseen)
            posters.append(Poster(colour, name, box, things, a_shade(dice)))
    return Wall(key, size, tuple(posters))


def _place(dice: Dice, size: Size, sides: Size, taken: list[Region], margin: int, gap: int) -> Region | None:
    """Where something of ``sides`` (width, height) fits beside what is ``taken``, or None where 40 tries found no place."""
    for _ in range(40):
        x = dice.between(margin, size[0] - margin - sides[0])
        y = dice.between(margin, size[1] - margin - sides[1])
        box = (x, y, x + sides[0], y + sides[1])
        if all(box[2] + gap < o[0] or o[2] + gap < box[0] or box[3] + gap < o[1] or o[3] + gap < box[1] for o in taken):
            return box
    return None


def _things(
    dice: Dice, poster: Region, make: Make, colour: str, others: list[Poster], unseen: bool
) -> tuple[Thing, ...]:
    """What is on a poster. The first is often of the colour and shape of one on another poster: which poster is asked
    about then decides the answer."""
    x, y, inner = *poster[:2], (poster[2] - poster[0], poster[3] - poster[1])
    twins = [(t.colour, t.shape) for other in others for t in other.things if t.colour != colour]
    taken: list[Region] = []  # in pixels of the poster
    things: list[Thing] = []
    for _ in range(dice.between(*make.things)):
        own = (dice.one([c for c in COLOURS if c != colour]), dice.one(SHAPES))
        named = dice.one(twins) if twins and not things and dice.chance(0.6) else own
        width = dice.between(*make.thing)
        height = min(max(width + dice.between(-6, 6), make.thing[0]), make.thing[1])
        sign, hand, shade = a_sign(dice), dice.between(0, 10_000), a_shade(dice)
        place = _place(dice, inner, (width, height), taken, _INNER, _BETWEEN)
        if place is None or named in [(t.colour, t.shape) for t in things]:
            continue
        taken.append(place)
        box = (place[0] + x, place[1] + y, place[2] + x, place[3] + y)
        things.append(Thing(*named, "", box, sign, a_hand(sign, hand, unseen), shade))
    return tuple(things)
