"""Models of published shapes with random weights, built where they run: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tiny_models as tiny
import torch
import transformers as hf

from visrl.core.chat_format import VICUNA, template

_CLIP_L = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336,
    "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
_VICUNA_7B = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
}  # fmt: skip
_MISTRAL_7B = {**_VICUNA_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 32768}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of a real model is built: layers of the language model, and widths divided by ``shrink``."""

    layers: int = 32
    shrink: int = 1
    dtype: torch.dtype = torch.bfloat16
    device: str = "cuda"


def _tokenizer() -> Any:
    """A tokenizer of a real one's size: what a random model says can be read back."""
    tok = tiny.tokenizer(["<image>"], "<pad>", "<s>", "</s>")
    tok.add_tokens([f"<t{i}>" for i in range(32000 - len(tok))])
    return tok


def _language(base: dict[str, int], scale: Scale, tok: Any) -> Any:
    sizes = dict(base)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads"):
        sizes[name] //= scale.shrink
    sizes["num_key_value_heads"] = max(1, sizes["num_key_value_heads"] // scale.shrink)
    sizes["num_hidden_layers"] = scale.layers
    ids = {"pad_token_id": tok.pad_token_id, "bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id}
    return hf.LlamaConfig(**sizes, **ids)


def _vision(scale: Scale) -> Any:
    sizes = dict(_CLIP_L)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads"):
        sizes[name] //= scale.shrink
    return hf.CLIPVisionConfig(**{**sizes, "num_hidden_layers": min(24, scale.layers)})


def llava(scale: Scale) -> tuple[Any, Any]:
    """LLaVA-1.5-7B: CLIP ViT-L/336 and Vicuna-7B, 576 tokens a picture."""
    tok = _tokenizer()
    eyes = hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    processor = hf.LlavaProcessor(
        eyes, tok, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template(VICUNA),
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=_vision(scale),
        text_config=_language(_VICUNA_7B, scale, tok),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )
    return _built(hf.LlavaForConditionalGeneration, config, processor, scale)


def llava_next(scale: Scale) -> tuple[Any, Any]:
    """LLaVA-NeXT-7B (Mistral's shape): a square picture is five tiles, about 2,900 tokens."""
    tok = _tokenizer()
    pins = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    eyes = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=pins
    )
    processor = hf.LlavaNextProcessor(
        eyes, tok, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template(VICUNA),
    )  # fmt: skip
    config = hf.LlavaNextConfig(
        vision_config=_vision(scale),
        text_config=_language(_MISTRAL_7B, scale, tok),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pins,
    )
    return _built(hf.LlavaNextForConditionalGeneration, config, processor, scale)


def _built(cls: Any, config: Any, processor: Any, scale: Scale) -> tuple[Any, Any]:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(scale.dtype)
    try:
        with torch.device(scale.device):
            model = cls(config)
    finally:
        torch.set_default_dtype(before)
    for name, parameter in model.named_parameters():
        if parameter.dtype != scale.dtype:
            raise AssertionError(f"{name} is {parameter.dtype}")
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = None
    return model.eval(), processor


SHAPES = {"llava-1.5-7b": llava, "llava-next-7b": llava_next}
