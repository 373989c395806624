"""Idefics3 and SmolVLM: pictures cut into rows and columns of tiles, each framed by its own tokens. No boxes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from visrl.core.chat_format import Layout
from visrl.policies.families.base import Family

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


class Idefics3(Family):
    """Idefics3. "User:" has no blank behind it when a picture follows, as it does in every protocol."""

    name: ClassVar[str] = "idefics3"
    pixel_limits: ClassVar[Mapping[str, str]] = {"max_edge": "size.longest_edge"}
    model_types: ClassVar[tuple[str, ...]] = ("idefics3",)
    layout = replace(_LAYOUT, before="<|begin_of_text|>")


class SmolVLM(Family):
    """SmolVLM and SmolVLM2. Their processor needs the package num2words."""

    name: ClassVar[str] = "smolvlm"
    pixel_limits: ClassVar[Mapping[str, str]] = {"max_edge": "size.longest_edge"}
    model_types: ClassVar[tuple[str, ...]] = ("smolvlm",)
    layout = replace(_LAYOUT, before="<|im_start|>")
