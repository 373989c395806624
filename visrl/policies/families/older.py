"""transformers 5.16 and 5.17, which machines with an engine still have: what the adapters use of later releases, added to its
classes.

1. ``mm_encoder_outputs``, the argument for features computed before. Older classes swallow it unseen, and answer blind.
2. Gemma2 (PaliGemma 2) computes with sdpa, which leaves out that its scores are capped, and says nothing; later ones take eager.
3. Mllama's cross-attention mask for the new tokens alone; older ones index it from the first token of the cache.

Where a class has what is needed, nothing is touched.
"""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

import torch
from torch.nn import functional as F


def complete(model: Any) -> None:
    """Give a loaded model's class what it lacks. model: with its multimodal part in ``model.model``."""
    inner: Any = type(model.model)
    if "mm_encoder_outputs" in inspect.signature(inner.forward, follow_wrapped=False).parameters:
        return
    if model.config.model_type == "mllama":
        if _indexes_from_the_start(inner):
            inner.forward = _with_new_tokens_mask(inner.forward)
    elif "get_image_features" in dir(inner) and not _takes_features(inner):
        inner.forward = _with_features(inner.forward)


def cap(model: Any) -> None:
    """Where a loaded model caps its attention's scores, have it computed by eager attention in place of sdpa."""
    text = model.config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None) is not None and text._attn_implementation == "sdpa":
        text._attn_implementation = "eager"


def _takes_features(inner: Any) -> bool:
    return "mm_encoder_outputs" in inspect.signature(inner.forward).parameters  # behind transformers' decorators


def _indexes_from_the_start(inner: Any) -> bool:
    return "current_pos" in inspect.getsource(inspect.unwrap(inner.forward))


def _with_features(plain: Any) -> Any:
    @wraps(plain)
    def forward(self: Any, *args: Any, mm_encoder_outputs: Any = None, **kwargs: Any) -> Any:
        if mm_encoder_outputs is None:
            return plain(self, *args, **kwargs)
        found = _joined(mm_encoder_outputs["image"])
        self.get_image_features = lambda *_, **__: found  # asked for because there are pixels
        try:
            return plain(self, *args, **{**kwargs, "pixel_values": torch.zeros(1, device=self.device)})
        finally:
            del self.get_image_features

    return forward


def _joined(output: Any) -> Any:
    """Deepstack features (Qwen3-VL) as older classes return them: of all pictures in one tensor a layer, not in a list."""
    if not isinstance(output.get("deepstack_features"), list):
        return output
    deep = [
        feature if isinstance(feature, torch.Tensor) else torch.cat(feature) for feature in output.deepstack_features
    ]
    return type(output)(pooler_output=output.pooler_output, deepstack_features=deep)


def _with_new_tokens_mask(plain: Any) -> Any:
    @wraps(plain)
    def forward(self: Any, *args: Any, mm_encoder_outputs: Any = None, **kwargs: Any) -> Any:
        mask, cache = kwargs.get("cross_attention_mask"), kwargs.get("past_key_values")
        new = next(kwargs[name] for name in ("input_ids", "inputs_embeds") if kwargs.get(name) is not None).shape[1]
        if mask is not None and cache is not None and mask.shape[1] == new:  # generate() gives the whole one
            kwargs["cross_attention_mask"] = F.pad(mask, (0, 0, 0, 0, cache.get_seq_length(), 0))
        return plain(self, *args, **kwargs)

    return forward
