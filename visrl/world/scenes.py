"""What is where: things on a canvas, no two touching. Knows nothing of pixels (rendering.py) or words (expressions.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from visrl.core.boxes import Box, Size
from visrl.world.glyphs import DIGITS, LETTERS, hands
from visrl.world.rng import Dice

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 75, 225),
    "yellow": (235, 215, 50),
    "purple": (145, 45, 185),
    "orange": (245, 140, 30),
    "cyan": (50, 205, 220),
    "pink": (245, 130, 190),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
CANVASES: tuple[Size, ...] = ((448, 448), (448, 448), (448, 336), (336, 448))
SIDES: dict[str, tuple[int, int]] = {"small": (84, 100), "large": (120, 148)}
_MARGIN, _GAP = 8, 10

Kind = Literal["scene", "form", "chart"]


def box_of(region: tuple[int, int, int, int]) -> Box:
    """Whole pixels x1 y1 x2 y2 as a box in pixels."""
    x1, y1, x2, y2 = map(float, region)
    return Box(x1, y1, x2, y2)


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: a shape in a scene, a field of a form (its icon is shape and colour), a bar of a chart.

    box: x1, y1, x2, y2 in pixels of the canvas. sign, hand: what is written on it, and in whose handwriting.
    shade: added to the colour's channels, so that one red is not the next.
    """

    colour: str
    shape: str
    size: str
    box: tuple[int, int, int, int]
    sign: str
    hand: int = 0
    shade: tuple[int, int, int] = (0, 0, 0)

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def as_box(self) -> Box:
        return box_of(self.box)


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture before it is drawn. ``key`` names it: split and index, and seeds what has no meaning (clutter)."""

    key: str
    kind: Kind
    size: Size
    things: tuple[Thing, ...]
    clutter: int = 0


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The knob: how many things, how often one is a near-duplicate of another, how many meaningless strokes."""

    things: tuple[int, int] = (3, 5)
    near_duplicates: float = 0.3
    clutter: int = 6


EASY = Difficulty((2, 3), 0.0, 0)
NORMAL = Difficulty()
HARD = Difficulty((5, 7), 0.5, 16)


def lay_out(key: str, difficulty: Difficulty = NORMAL, unseen: bool = False) -> Scene:
    """The scene of a key. ``unseen``: signs in handwriting that training never shows."""
    dice = Dice("scene", key)
    size = dice.one(CANVASES)
    wanted = dice.between(*difficulty.things)
    things: list[Thing] = []
    for _ in range(80):
        if len(things) == wanted:
            break
        thing = _thing(dice, size, things, difficulty, unseen)
        if thing is not None:
            things.append(thing)
    return Scene(key, "scene", size, tuple(things), difficulty.clutter)


def _thing(dice: Dice, size: Size, others: list[Thing], difficulty: Difficulty, unseen: bool) -> Thing | None:
    """One more thing, or None if it would touch another or repeat one of the same colour, shape and size."""
    colour, shape = dice.one(list(COLOURS)), dice.one(SHAPES)
    bigness = dice.one(list(SIDES))
    if others and dice.chance(difficulty.near_duplicates):
        twin = dice.one(others)
        change = dice.between(0, 2)
        colour = colour if change == 0 else twin.colour
        shape = shape if change == 1 else twin.shape
        bigness = {"small": "large", "large": "small"}[twin.size] if change == 2 else bigness
    width = dice.between(*SIDES[bigness])
    height = min(max(width + dice.between(-8, 8), SIDES[bigness][0]), SIDES[bigness][1])
    x = dice.between(_MARGIN, size[0] - _MARGIN - width)
    y = dice.between(_MARGIN, size[1] - _MARGIN - height)
    sign, hand, shade = a_sign(dice), dice.between(0, 10_000), a_shade(dice)
    box = (x, y, x + width, y + height)
    if any(_touch(box, other.box) for other in others):
        return None
    if any((colour, shape, bigness) == (other.colour, other.shape, other.size) for other in others):
        return None
    return Thing(colour, shape, bigness, box, sign, a_hand(sign, hand, unseen), shade)


def a_sign(dice: Dice) -> str:
    return dice.one(LETTERS if dice.chance(0.5) else DIGITS)


def a_hand(sign: str, draw: int, unseen: bool) -> int:
    allowed = hands(sign, unseen)
    return allowed[draw % len(allowed)]


def a_shade(dice: Dice) -> tuple[int, int, int]:
    return dice.between(-14, 14), dice.between(-14, 14), dice.between(-14, 14)


def _touch(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return not (a[2] + _GAP < b[0] or b[2] + _GAP < a[0] or a[3] + _GAP < b[1] or b[3] + _GAP < a[1])


def related(thing: Thing, relation: str, anchor: Thing) -> bool:
    """Whether ``thing`` lies on that side of ``anchor``, centre against centre."""
    dx, dy = thing.centre[0] - anchor.centre[0], thing.centre[1] - anchor.centre[1]
    return {"left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}[relation]
