"""Scenes -> pixels, in integer arithmetic of our own.

Not PIL's ellipse and not its fonts: both have changed between releases, and a picture must have the same hash everywhere.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visrl.world.forms_and_charts import ICON
from visrl.world.glyphs import ink
from visrl.world.rng import Dice
from visrl.world.scenes import COLOURS, Scene, Thing

Canvas = NDArray[np.uint8]  # [H, W, 3]
Colour = tuple[int, int, int]
CELL = 3  # a letter is 21 px high: 3 px in a 64-px view of 448, 9 px and more in a crop


class Coloured(Protocol):
    """What has a colour by name, and a shade of it: a thing, a poster."""

    @property
    def colour(self) -> str: ...

    @property
    def shade(self) -> tuple[int, int, int]: ...


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of ``scene.size``."""
    dice = Dice("drawing", scene.key)
    canvas = np.empty((scene.size[1], scene.size[0], 3), dtype=np.uint8)
    canvas[:] = _background(scene, dice)
    if scene.kind == "scene":
        clutter(canvas, scene.clutter, dice)
    printed(canvas, scene, dice)
    for thing in scene.things:
        draw_thing(canvas, thing, scene.kind)
    return Image.fromarray(canvas)


def sign_box(thing: Thing, kind: str, cell: int = CELL) -> tuple[int, int, int, int]:
    """Where the sign's ink lies, xyxy in pixels of the canvas. cell: pixels of a sign's smallest mark."""
    height, width = ink(thing.sign, thing.hand, cell).shape
    cx, cy = _sign_centre(thing, kind)
    return cx - width // 2, cy - height // 2, cx - width // 2 + width, cy - height // 2 + height


def _background(scene: Scene, dice: Dice) -> Colour:
    low, high = (0, 60) if scene.kind == "scene" and dice.chance(0.5) else (200, 252)
    if scene.kind != "scene":
        low = high = dice.between(240, 254)
    return dice.between(low, high), dice.between(low, high), dice.between(low, high)


def clutter(canvas: Canvas, strokes: int, dice: Dice) -> None:
    """Thin strokes a little lighter or darker than the ground, under everything that means something."""
    height, width, _ = canvas.shape
    for _ in range(strokes):
        x, y, length = dice.between(0, width - 1), dice.between(0, height - 1), dice.between(20, 120)
        step = 28 if int(canvas[0, 0].sum()) < 380 else -28
        stroke = canvas[y : y + 3, x : x + length] if dice.chance(0.5) else canvas[y : y + length, x : x + 3]
        stroke[:] = np.clip(canvas[0, 0].astype(int) + step, 0, 255)


def printed(canvas: Canvas, scene: Scene, dice: Dice) -> None:
    """What a form or a chart has besides its things, in place; nothing in a scene."""
    if scene.kind == "form":
        _page(canvas, dice)
    elif scene.kind == "chart":
        _axes(canvas, scene)


def _page(canvas: Canvas, dice: Dice) -> None:
    """A printed page: a head bar, and grey dashes for the words nobody asks about."""
    canvas[14:34, 16 : canvas.shape[1] // 2] = (90, 90, 100)
    x = 16
    while x < canvas.shape[1] - 40:
        length = dice.between(10, 36)
        canvas[44:48, x : x + length] = (190, 190, 195)
        x += length + 8


def _axes(canvas: Canvas, scene: Scene) -> None:
    floor = scene.things[0].box[3]
    for y in range(floor - 176, floor, 44):
        if y > 0:
            canvas[y : y + 2, 20:-10] = (222, 222, 226)
    canvas[floor : floor + 4, 20:-10] = (70, 70, 80)
    canvas[max(floor - 184, 4) : floor, 20:23] = (70, 70, 80)


def draw_thing(canvas: Canvas, thing: Thing, kind: str, cell: int = CELL) -> None:
    """Draw one thing where its box lies, in place, with its sign."""
    fill = paper = shaded(thing)
    if kind == "form":
        x1, _, x2, y2 = thing.box
        canvas[y2 - 4 : y2, x1:x2] = (120, 120, 130)
        paper = (255, 255, 255)
    (x1, y1, x2, y2), mask = silhouette(thing, kind)
    canvas[y1:y2, x1:x2][mask] = fill
    _write(canvas, thing, kind, ink_on(paper), cell)


def silhouette(thing: Thing, kind: str) -> tuple[tuple[int, int, int, int], NDArray[np.bool_]]:
    """Where a thing's colour lies (of a field, its icon): xyxy in pixels of the canvas, and its pixels there, [height, width]."""
    x1, y1, x2, y2 = thing.box
    if kind == "form":
        pad = (y2 - 4 - y1 - ICON) // 2
        return (x1 + 4, y1 + pad, x1 + 4 + ICON, y1 + pad + ICON), _mask(thing.shape, ICON, ICON)
    return thing.box, _mask("square" if kind == "chart" else thing.shape, x2 - x1, y2 - y1)


def ink_on(paper: Colour) -> Colour:
    """Black on what is light, white on what is dark (luma, ITU-R BT.601 in integers)."""
    return (0, 0, 0) if 299 * paper[0] + 587 * paper[1] + 114 * paper[2] > 140_000 else (255, 255, 255)


def shaded(coloured: Coloured) -> Colour:
    """A thing's colour in its shade."""
    r, g, b = (min(max(v + d, 0), 255) for v, d in zip(COLOURS[coloured.colour], coloured.shade, strict=True))
    return r, g, b


@cache
def _mask(shape: str, width: int, height: int) -> NDArray[np.bool_]:
    """Pixels of the shape inside its box, [height, width]. ``u``, ``v``: pixel centres in half-pixels from the middle."""
    u = np.abs(2 * np.arange(width) + 1 - width)[None, :]
    v = (2 * np.arange(height) + 1 - height)[:, None]
    if shape == "circle":
        return np.asarray(u**2 * height**2 + v**2 * width**2 <= width**2 * height**2)
    if shape == "triangle":  # apex at the top: half the width at row r is proportional to r
        return np.asarray(2 * u * height <= width * (v + height))
    if shape == "diamond":
        return np.asarray(u * height + np.abs(v) * width <= width * height)
    return np.ones((height, width), dtype=bool)


def _sign_centre(thing: Thing, kind: str) -> tuple[int, int]:
    x1, y1, x2, y2 = thing.box
    if kind == "form":
        return x2 - 34, (y1 + y2) // 2 - 2
    if kind == "chart":
        return (x1 + x2) // 2, y1 + 28
    return (x1 + x2) // 2, (y1 + y2) // 2 + ((y2 - y1) // 7 if thing.shape == "triangle" else 0)


def _write(canvas: Canvas, thing: Thing, kind: str, colour: Colour, cell: int) -> None:
    x1, y1, x2, y2 = sign_box(thing, kind, cell)
    amount = ink(thing.sign, thing.hand, cell).astype(np.int32)[:, :, None]
    under = canvas[y1:y2, x1:x2].astype(np.int32)
    canvas[y1:y2, x1:x2] = ((16 - amount) * under + amount * np.array(colour)) // 16
