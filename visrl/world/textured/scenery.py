"""What a scene is drawn over: the one choice in which the two small worlds differ. Layouts and questions are the same in both.

A picture's key is ``split:index``, and ``textured:split:index`` where the scenery is textured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

    from visrl.world.scenes import Scene

Scenery = Literal["plain", "textured"]
PLAIN: Scenery = "plain"
TEXTURED: Scenery = "textured"
_PREFIX = f"{TEXTURED}:"


def draw(scene: Scene, scenery: Scenery = PLAIN) -> Image:
    """The scene as an RGB picture of ``scene.size``, over that scenery."""
    from visrl.world import rendering
    from visrl.world.textured import drawing

    return drawing.draw(scene) if scenery == TEXTURED else rendering.draw(scene)


def dressed(key: str, scenery: Scenery) -> str:
    """A picture's key in a scenery, from its key in the plain one."""
    return f"{_PREFIX}{key}" if scenery == TEXTURED else key


def undressed(key: str) -> tuple[Scenery, str]:
    """The scenery of a picture's key, and its key in the plain one."""
    return (TEXTURED, key.removeprefix(_PREFIX)) if key.startswith(_PREFIX) else (PLAIN, key)
