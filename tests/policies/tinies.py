"""What the tests of policies share: the families, drawn pictures, and the processor as everybody else calls it."""

import importlib.util

import pytest
import torch
from PIL import Image, ImageDraw

from visrl.policies import tiny
from visrl.types import Picture

FAMILIES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "smolvlm" and importlib.util.find_spec("num2words") is None, reason="SmolVLM needs num2words"
        ),
    )
    for name in tiny.TINY
]


def draw(width: int, height: int, seed: int = 0) -> Image.Image:
    """A gradient with two rectangles: different for every size and seed."""
    image = Image.linear_gradient("L").resize((width, height)).rotate(90 * (seed % 4)).convert("RGB")
    pen = ImageDraw.Draw(image)
    pen.rectangle((width // 8, height // 7, width // 2, height // 3), fill=(200, 37 * seed % 256, 90))
    pen.rectangle((width // 2, height // 2, width - 3, height - 5), fill=(11 * seed % 256, 180, 61 * seed % 256))
    return image


def picture(width: int, height: int, seed: int = 0) -> Picture:
    image = draw(width, height, seed)
    return Picture(f"{width}x{height}-{seed}", lambda: image)


def by_processor(family, turns, dtype=torch.float32):
    """The same conversation through ``processor(text, images)``, as everybody else calls it."""
    rendered = family.render(turns)
    text = rendered.text
    if family.name == "paligemma":  # its processor writes <bos> and the last newline itself
        text = text.replace("<bos>", "").removesuffix("\n")
    extra = {} if family.adds_bos else {"add_special_tokens": False}
    images = [family.prepare(p.open()) for p in rendered.pictures]
    batch = family.processor(text=[text], images=[images], return_tensors="pt", **extra)
    batch.pop("labels", None)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
