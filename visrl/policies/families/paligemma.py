"""PaliGemma and PaliGemma2: one prefix that attends to itself in both directions, then a causal reply.

Boxes: four location tokens, y first, 1024 bins over the picture (big_vision). A conversation becomes one prefix, all pictures
first: there are no turns in its pre-training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from visrl.core.box_formats import FORMATS, BoxFormat
from visrl.core.chat_format import Layout
from visrl.policies.families.base import Chat, Family, padded


class PaliGemma(Family):
    """PaliGemma(2)."""

    name: ClassVar[str] = "paligemma"
    model_types: ClassVar[tuple[str, ...]] = ("paligemma",)
    keeps_prefix: ClassVar[bool] = False
    why_not: ClassVar[str] = "prefix tokens attend in both directions, so a longer prompt changes all of them"
    engines_differ: ClassVar[str] = (
        "PaliGemma's whole prompt attends in both directions; vLLM lets its picture tokens alone do so"
    )
    packs: ClassVar[bool] = False
    layout = Layout(
        picture="<image>",
        user="",
        user_end="\n",
        assistant="",
        assistant_end="<eos>",
        generation_prompt="",
        place="first",
        after_pictures="<bos>",
    )

    @property
    def native(self) -> BoxFormat:
        return FORMATS["loc_1024"]

    def _picture_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(i for i in ids if i == self.image_token_id)

    def positions(self, chat: Chat) -> Tensor:
        """Positions start at 1 (modeling_paligemma.py)."""
        return torch.arange(len(chat.ids)) + 1

    def token_kwargs(self, chats: Sequence[Chat], width: int, side: str) -> dict[str, Tensor]:
        """token_type_ids [B, width]: 0 up to the last reply, which is 1. Earlier replies are part of the prefix."""
        kinds = []
        for chat in chats:
            untrained = [i for i, t in enumerate(chat.loss_mask) if not t]
            prefix = untrained[-1] + 1 if untrained else 0
            kinds.append(torch.tensor([0] * prefix + [1] * (len(chat.ids) - prefix)))
        return {"token_type_ids": padded(kinds, width, 0, side)}
