"""Printed matter: forms with marked fields, and bar charts. The same :class:`Scene` as everything else."""

from __future__ import annotations

from visrl.core.boxes import Size
from visrl.world.rng import Dice
from visrl.world.scenes import COLOURS, SHAPES, Scene, Thing, a_hand, a_shade, a_sign

PAGES: tuple[Size, ...] = ((448, 448), (384, 448))
PANELS: tuple[Size, ...] = ((448, 448), (448, 384))
FIELD: Size = (136, 72)
ICON = 58
BAR_WIDTH = 68
FLOOR = 28  # pixels between a chart's base line and the lower edge


def lay_out_form(key: str, unseen: bool = False) -> Scene:
    """A page with three to five fields: an icon of its own colour, and what was entered beside it. Read in rows."""
    dice = Dice("form", key)
    size = dice.one(PAGES)
    rows = (size[1] - 68) // (FIELD[1] + 14)
    cells = [(column, row) for row in range(rows) for column in range(2)]
    chosen = sorted(dice.some(cells, dice.between(3, 5)), key=lambda cell: (cell[1], cell[0]))
    colours = dice.some(list(COLOURS), len(chosen))
    things = []
    for (column, row), colour in zip(chosen, colours, strict=True):
        x = 8 + column * (size[0] // 2) + dice.between(0, size[0] // 2 - FIELD[0] - 14)
        y = 60 + row * (FIELD[1] + 14) + dice.between(0, 8)
        sign = a_sign(dice)
        hand = a_hand(sign, dice.between(0, 10_000), unseen)
        things.append(Thing(colour, dice.one(SHAPES), "field", (x, y, x + FIELD[0], y + FIELD[1]), sign, hand))
    return Scene(key, "form", size, tuple(things))


def lay_out_chart(key: str, unseen: bool = False) -> Scene:
    """Three to five bars of different colours and clearly different heights, each with its sign near the top."""
    dice = Dice("chart", key)
    size = dice.one(PANELS)
    n = dice.between(3, 5)
    pitch = (size[0] - 40) // n
    heights = [int(76 + step * (156 - 76) / (n - 1)) for step in range(n)]
    floor = size[1] - FLOOR - dice.between(0, size[1] - 220)
    things = []
    for i, (height, colour) in enumerate(zip(dice.shuffled(heights), dice.some(list(COLOURS), n), strict=True)):
        x = 30 + i * pitch + dice.between(0, pitch - BAR_WIDTH - 6)
        sign = a_sign(dice)
        hand = a_hand(sign, dice.between(0, 10_000), unseen)
        box = (x, floor - height, x + BAR_WIDTH, floor)
        things.append(Thing(colour, "bar", "bar", box, sign, hand, a_shade(dice)))
    return Scene(key, "chart", size, tuple(things))
