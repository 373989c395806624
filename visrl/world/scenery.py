"""What a scene is drawn over: the one choice in which the two small worlds differ. Layouts and questions are the same in both.

A picture's key is ``split:index``, and ``textured:split:index`` where the scenery is textured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from PIL.Image import Image

from visrl.world import rendering
from visrl.world.scenes import Scene
from visrl.world.textured import drawing

Scenery = Literal["plain", "textured"]
PLAIN: Scenery = "plain"
_DRAW: dict[Scenery, Callable[[Scene], Image]] = {PLAIN: rendering.draw, "textured": drawing.draw}


def draw(scene: Scene, scenery: Scenery = PLAIN) -> Image:
    """The scene as an RGB picture of ``scene.size``, over that scenery."""
    return _DRAW[scenery](scene)


def dressed(key: str, scenery: Scenery) -> str:
    """A picture's key in a scenery, from its key in the plain one."""
    return key if scenery == PLAIN else f"{scenery}:{key}"


def undressed(key: str) -> tuple[Scenery, str]:
    """The scenery of a picture's key, and its key in the plain one."""
    for scenery in _DRAW:
        if scenery != PLAIN and key.startswith(f"{scenery}:"):
            return scenery, key.removeprefix(f"{scenery}:")
    return PLAIN, key
