"""What the tests of policies share: the families, drawn pictures, and the processor as everybody else calls it."""

import importlib.util
import json

import pytest
import tiny_models as tiny
import torch
from PIL import Image, ImageDraw

from visrl.core.prompts import P_BOX
from visrl.core.types import Picture

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


REC_FILES = [
    *(f"REC_{f}_unc_{s}" for f in ("refcoco", "refcoco+") for s in ("val", "testA", "testB")),
    *(f"REC_refcocog_umd_{s}" for s in ("val", "test")),
]
VISCOT_SETS = [
    "docvqa",
    "textcap",
    "textvqa",
    "dude",
    "sroie",
    "infographicsvqa",
    "flickr30k",
    "gqa",
    "openimages",
    "vsr",
    "cub",
]


def benchmark_folder(root, n):
    """A data folder with ``n`` rows for every REC split and VisCoT set, all about five drawn pictures."""
    sizes = [(90, 50), (40, 44), (30, 77), (120, 100), (64, 64)]
    for part in ("rec", "viscot_benchmark", "images"):
        (root / part).mkdir(parents=True)
    for i, size in enumerate(sizes):
        draw(*size, i).save(root / "images" / f"{i}.png")
    rows = [(i, f"{i % 5}.png", *sizes[i % 5]) for i in range(n)]
    for name in REC_FILES:
        text = [
            {
                "img_path": p,
                "expression": "the red square",
                "bbox": [3, 4, 20, 30],
                "width": w,
                "height": h,
                "image_id": i,
                "sent_id": i,
            }
            for i, p, w, h in rows
        ]
        (root / "rec" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, text)))
    for name in VISCOT_SETS:
        chains, boxes = [], []
        for i, p, w, h in rows:
            turns = [f"<image>\nWhat colour is it?{P_BOX}", "[0.1, 0.2, 0.3, 0.4]", "<image>", "red"]
            talk = [{"from": ("human", "gpt")[j % 2], "value": v} for j, v in enumerate(turns)]
            chains.append({"question_id": i, "image": [p, f"{p}###[3, 4, 20, 30]"], "conversations": talk})
            boxes.append({"question_id": i, "img_path": p, "bbox": [3, 4, 20, 30], "width": w, "height": h})
        (root / "viscot_benchmark" / f"{name}.json").write_text(json.dumps(chains))
        (root / "viscot_benchmark" / f"det_{name}.jsonl").write_text("\n".join(map(json.dumps, boxes)))
    return root
