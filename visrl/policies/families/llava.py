"""LLaVA-1.5 and VisCoT: pictures padded to a square, boxes as text on that square (docs/method.md a1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from visrl.core.chat_format import VICUNA
from visrl.policies.families.base import Family

if TYPE_CHECKING:
    from PIL.Image import Image


def expand2square(image: Image, colour: tuple[int, int, int]) -> Image:
    """The picture centred on a square of its longer side: llava/mm_utils.py, the pad that ``SQUARE`` boxes count."""
    from PIL import Image as images

    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = images.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


class Llava(Family):
    """LLaVA-1.5. Checkpoints of llava-hf cut pictures to their central square in the processor; the model was trained on
    padded ones, so pictures are padded here first, which leaves the processor nothing to cut."""

    name: ClassVar[str] = "llava"
    model_types: ClassVar[tuple[str, ...]] = ("llava",)
    adds_bos: ClassVar[bool] = True
    layout = VICUNA

    def prepare(self, image: Image) -> Image:
        red, green, blue = (int(255 * mean) for mean in self.processor.image_processor.image_mean)
        return expand2square(image, (red, green, blue))
