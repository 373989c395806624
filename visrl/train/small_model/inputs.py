"""Pictures as the small model sees them, and which of its patches show what."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from visrl.core.boxes import SQUARE, Box, Size
from visrl.world import IMAGE_SIZE
from visrl.world.glyphs import ink
from visrl.world.model import PATCH
from visrl.world.rendering import ink_on
from visrl.world.rng import Dice
from visrl.world.samples import drawn
from visrl.world.scenes import COLOURS, SHAPES, Scene, Thing, a_hand, a_shade, a_sign

IGNORE = -100
GRID = IMAGE_SIZE // PATCH
View = NDArray[np.uint8]  # [64, 64, 3]


@dataclass(frozen=True, slots=True)
class Example:
    """ids, labels: [T], labels IGNORE where nothing is learned. views: the pictures in order, [64, 64, 3] each."""

    ids: list[int]
    labels: list[int]
    views: list[View]

    def digest(self) -> bytes:
        """SHA-256 of everything in it."""
        text = repr((self.ids, self.labels)).encode()
        return hashlib.sha256(text + b"".join(view.tobytes() for view in self.views)).digest()


def view(image: Image.Image) -> View:
    """A picture as the model sees it, [64, 64, 3]: what the processor makes of it, before normalisation."""
    side, square = max(image.size), image
    if image.width != image.height:
        square = Image.new("RGB", (side, side), (127, 127, 127))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))


def patches_in(box: Box, size: Size) -> NDArray[np.bool_]:
    """Which patches' centres lie in ``box`` (pixels of a picture of ``size``), [PICTURE_TOKENS], row by row."""
    x1, y1, x2, y2 = box.to(SQUARE, size).xyxy
    centre = (np.arange(GRID) + 0.5) / GRID
    inside = ((centre >= y1) & (centre <= y2))[:, None] & ((centre >= x1) & (centre <= x2))[None, :]
    return np.asarray(inside.flatten())


def alphabet_page(dice: Dice) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """A 64-pixel page of three by three or four by four tiles, and each sign with its box in pixels of the page."""
    side = dice.one((3, 4, 4))
    tile = IMAGE_SIZE // side
    page = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (127, 127, 127))
    where = []
    for row in range(side):
        for column in range(side):
            r, g, b = (
                min(max(v + dice.between(-30, 30), 0), 255) for v in dice.one([*COLOURS.values(), (250, 250, 250)])
            )
            sign = a_sign(dice)
            small = ink(sign, a_hand(sign, dice.between(0, 10_000), unseen=False), 3)
            high = dice.between(9, min(16, tile - 3))
            wide = max(4, round(small.shape[1] * high / small.shape[0]))
            mask = Image.fromarray((small.astype(np.uint16) * 255 // 16).astype(np.uint8)).resize((wide, high), 2)
            x, y = column * tile, row * tile
            page.paste((r, g, b), (x, y, x + tile, y + tile))
            x, y = x + dice.between(1, max(1, tile - wide - 1)), y + dice.between(1, max(1, tile - high - 1))
            page.paste(ink_on((r, g, b)), (x, y), mask)
            where.append((sign, Box(float(x), float(y), float(x + wide), float(y + high))))
    return page, where


def jittered(box: Box, size: Size, dice: Dice, share: float = 0.08) -> Box:
    """The box with each edge moved by a few per cent of its side: crops of a model's own boxes are never exact."""
    width, height = box.x2 - box.x1, box.y2 - box.y1
    dx1, dy1, dx2, dy2 = (share * dice.normal() for _ in range(4))
    moved = Box(box.x1 + dx1 * width, box.y1 + dy1 * height, box.x2 + dx2 * width, box.y2 + dy2 * height).clipped(size)
    return box if moved.is_empty else moved


def crowded_page(dice: Dice) -> Scene:
    """Nine things in a grid on one canvas: a page of a picture book, not a scene anybody is asked about."""
    things = []
    for place in range(9):
        side = dice.between(84, 140)
        x = 149 * (place % 3) + dice.between(0, 147 - side)
        y = 149 * (place // 3) + dice.between(0, 147 - side)
        colour, shape, sign = dice.one(list(COLOURS)), dice.one(SHAPES), a_sign(dice)
        hand = a_hand(sign, dice.between(0, 10_000), unseen=False)
        things.append(Thing(colour, shape, "", (x, y, x + side, y + side), sign, hand, a_shade(dice)))
    return Scene(f"page:{dice.between(0, 10**9)}", "scene", (448, 448), tuple(things), clutter=6)


@lru_cache(maxsize=10_000)
def seen(key: str) -> View:
    """A whole picture as the model sees it; a labelled split's fit into 110 MB, and each is asked about twenty times."""
    return view(drawn(key))


def collate(examples: list[Example], pad: int) -> dict[str, torch.Tensor]:
    """input_ids, labels, attention_mask [B, T], padded on the right; pixel_values [pictures, 3, 64, 64] in -2..2."""
    length = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), IGNORE)
    mask = torch.zeros((len(examples), length), dtype=torch.long)
    for row, example in enumerate(examples):
        n = len(example.ids)
        ids[row, :n], labels[row, :n], mask[row, :n] = torch.tensor(example.ids), torch.tensor(example.labels), 1
    views = np.stack([view for example in examples for view in example.views])
    pixels = (torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": pixels}
