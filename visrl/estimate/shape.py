"""The sizes of a model from its config alone: built without weights (meta tensors), so that every count is exact."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from visrl.policies.families import family_class
from visrl.policies.families.base import Family
from visrl.train.config.recipe import LoraSection

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Shape:
    """total, trained, adapters: numbers of parameters; trained are those with gradients, adapters LoRA's (float32 in PEFT).

    language: parameters a token meets (decoder without embeddings, and the output head). vision: of the tower and projector.
    layers L, hidden d, heads h, kv_heads, head_dim, inner f, vocab V: of the language model. norms: of a layer (2, Gemma2 4).
    qk_norm: norms of queries and keys. soft_scores, soft_logits: capped by tanh (Gemma2), attention scores then kept.
    crossing: layers that attend to the pictures' states in place of picture tokens (Mllama). states: of a picture, with padding.
    """

    total: int
    trained: int
    adapters: int
    language: int
    vision: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    norms: int = 2
    qk_norm: bool = False
    soft_scores: bool = False
    soft_logits: bool = False
    crossing: int = 0
    states: int = 0

    @property
    def width(self) -> int:
        """a: what all heads of a token are wide."""
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Described:
    """A model's shape, and its family with the processor that lays conversations out."""

    shape: Shape
    family: Family


def describe_model(
    path: str,
    *,
    revision: str | None = None,
    lora: LoraSection | None = None,
    adapter: bool = False,
    frozen: bool = True,
) -> Described:
    """The sizes of ``path`` (folder, hub id, or the bare name of a shipped checkpoint). frozen: the vision tower is.

    adapter: it goes on training one, of LoRA's default rank where ``lora`` says none. Raises UsageError for a model that is
    not there; no weights are read.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForImageTextToText

    from visrl.policies.hf.adapters import base_and_adapter
    from visrl.policies.hf.loading import load_config
    from visrl.train.common.models import shipped
    from visrl.train.common.vision_cache import freeze_vision

    base, found = base_and_adapter(shipped(path), "")
    config, processor = load_config(base, {"revision": revision} if revision else {})
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(config)
    model.tie_weights()  # placing parameters on meta undid it
    section = lora or (LoraSection() if adapter or found else None)
    if section is None and frozen:
        freeze_vision(model)
    return Described(shape_of(model, section), family_class(config)(config, processor))


def shape_of(model: Any, lora: LoraSection | None) -> Shape:
    """The sizes of a built model. With ``lora`` nothing but its adapters is trained."""
    text = model.config.get_text_config()
    inside = {id(p): p.numel() for p in model.get_decoder().parameters()}
    head = model.get_output_embeddings()
    inside |= {} if head is None else {id(p): p.numel() for p in head.parameters()}
    table = model.get_input_embeddings().weight
    tied = head is not None and head.weight is table
    total = sum(p.numel() for p in model.parameters())
    adapters = adapter_size(model, lora) if lora else 0
    trained = 0 if lora else sum(p.numel() for p in model.parameters() if p.requires_grad)
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    return Shape(
        total=total + adapters,
        trained=adapters or trained,
        adapters=adapters,
        language=sum(inside.values()) - (0 if tied else table.numel()),
        vision=total - sum(inside.values()),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        inner=text.intermediate_size,
        vocab=text.vocab_size,
        norms=4 if text.model_type.startswith(("gemma2", "gemma3")) else 2,
        qk_norm=text.model_type.startswith(("qwen3", "gemma3")),
        soft_scores=capped,
        soft_logits=getattr(text, "final_logit_softcapping", None) is not None,
        **_crossing(model.config),
    )


def _crossing(config: Any) -> dict[str, int]:
    """Of a model whose text attends to pictures across: each picture is tiles of so many patches and a class token."""
    layers = getattr(config.get_text_config(), "cross_attention_layers", None)
    if not layers:
        return {}
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    return {"crossing": len(layers), "states": vision.max_num_tiles * (side * side + 1)}


def adapter_size(model: Any, lora: LoraSection) -> int:
    """Parameters of LoRA: rank times (inputs + outputs) of every linear layer it is put on."""
    from visrl.train.common.models import lora_target

    wanted = re.compile(lora.target or lora_target(model))
    return sum(
        lora.r * (module.in_features + module.out_features)
        for name, module in model.named_modules()
        if hasattr(module, "in_features") and wanted.fullmatch(name)
    )
