"""Idefics3 and SmolVLM: pictures cut into rows and columns of tiles, each framed by its own tokens. No boxes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from visrl.core.chat_format import Layout
from visrl.policies.families.base import Family, Features

_LAYOUT = Layout(
    picture="<image>",
    user="User:",
    user_end="<end_of_utterance>\n",
    assistant="Assistant: ",
    assistant_end="<end_of_utterance>\n",
    generation_prompt="Assistant:",
    system="System: ",
    system_end="<end_of_utterance>\n",
)


class _Tiled(Family):
    """Features as [tiles, tokens of a tile, hidden], the one shape that every release of transformers takes."""

    def vision_kwargs(self, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        kwargs = super().vision_kwargs(features)
        if kwargs:
            output = kwargs["mm_encoder_outputs"]["image"]
            joined = torch.cat(output.pooler_output)
            output.pooler_output = joined.reshape(-1, self.processor.image_seq_len, joined.shape[-1])
        return kwargs


class Idefics3(_Tiled):
    """Idefics3. "User:" has no blank behind it when a picture follows, as it does in every protocol."""

    name: ClassVar[str] = "idefics3"
    pixel_limits: ClassVar[Mapping[str, str]] = {"max_edge": "size.longest_edge"}
    model_types: ClassVar[tuple[str, ...]] = ("idefics3",)
    layout = replace(_LAYOUT, before="<|begin_of_text|>")


class SmolVLM(_Tiled):
    """SmolVLM and SmolVLM2. Their processor needs the package num2words."""

    name: ClassVar[str] = "smolvlm"
    pixel_limits: ClassVar[Mapping[str, str]] = {"max_edge": "size.longest_edge"}
    model_types: ClassVar[tuple[str, ...]] = ("smolvlm",)
    layout = replace(_LAYOUT, before="<|im_start|>")
