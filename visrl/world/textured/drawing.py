"""Scenes -> pixels over a textured ground, with the hand that draws the plain ones (visrl/world/rendering.py)."""

from __future__ import annotations

from PIL import Image

from visrl.world.rendering import Canvas, draw_thing, printed, silhouette
from visrl.world.rng import Dice
from visrl.world.scenes import Scene, Thing
from visrl.world.textured.grounds import ground
from visrl.world.textured.marks import scatter
from visrl.world.textured.occlusion import Mask, cover

_SHADOW = (4, 5)  # pixels to the right, and down


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of ``scene.size``."""
    return Image.fromarray(painted(scene)[0])


def painted(scene: Scene) -> tuple[Canvas, Mask]:
    """The picture's pixels, [H, W, 3], and which of them cover something, [H, W]."""
    dice = Dice("textured", scene.key)
    canvas = ground(scene.kind, scene.size, dice)
    printed(canvas, scene, dice)
    scatter(canvas, scene, dice)
    for thing in scene.things:
        _shadow(canvas, thing, scene.kind)
    for thing in scene.things:
        draw_thing(canvas, thing, scene.kind)
    return canvas, cover(canvas, scene, dice)


def _shadow(canvas: Canvas, thing: Thing, kind: str) -> None:
    """A thing's shadow on what lies under it."""
    (x1, y1, x2, y2), mask = silhouette(thing, kind)
    under = canvas[y1 + _SHADOW[1] : y2 + _SHADOW[1], x1 + _SHADOW[0] : x2 + _SHADOW[0]]
    under -= (under >> 2) * mask[: under.shape[0], : under.shape[1], None]
