"""InternVL (2.5, 3, 3.5 in the transformers format): tiles, ChatML, boxes 0..1000 in nested brackets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from visrl.core.box_formats import FORMATS, BoxFormat
from visrl.core.chat_format import CHATML
from visrl.policies.families.base import Family


class InternVL(Family):
    """InternVL."""

    name: ClassVar[str] = "internvl"
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    packs: ClassVar[bool] = False
    pixel_limits: ClassVar[Mapping[str, str]] = {"min_tiles": "min_patches", "max_tiles": "max_patches"}
    layout = replace(CHATML, picture="<IMG_CONTEXT>")

    @property
    def native(self) -> BoxFormat:
        return FORMATS["box_tag_nested_1000"]
