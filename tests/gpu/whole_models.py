"""The models of tests/shapes/real_shapes.py with all their layers and random weights, built where they run: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import real_shapes
import torch
from transformers import AutoModelForImageTextToText

SHAPES = {"llava-1.5-7b": real_shapes.llava, "llava-next-7b": real_shapes.llava_next}
VISION_LAYERS = 24  # CLIP ViT-L
WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of a real model is built: layers of the language model, widths divided by ``shrink``, and words."""

    layers: int = 32
    shrink: int = 1
    words: int = 32_000
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"


def built(name: str, scale: Scale) -> tuple[Any, Any]:
    """(model in eval mode, processor) of a shape. The tokenizer has a real one's size, so that what a random model says can be read."""
    processor, config = SHAPES[name]()
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([f"<t{i}>" for i in range(scale.words - len(tokenizer))])
    for part in (config.text_config, config.vision_config):
        for width in WIDTHS:
            if width in part.to_dict():
                setattr(part, width, getattr(part, width) // scale.shrink)
    config.text_config.num_hidden_layers = scale.layers
    config.text_config.vocab_size = scale.words + 64  # of LLaVA
    config.vision_config.num_hidden_layers = min(VISION_LAYERS, scale.layers + 1)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(scale.dtype)
    try:
        with torch.device(scale.device):
            model = AutoModelForImageTextToText.from_config(config, dtype=scale.dtype)
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for p in model.parameters()} == {scale.dtype}
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = None
    return model.eval(), processor
