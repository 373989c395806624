"""Demonstrations -> batches for SFT. Token ids of a row are kept after its first use, and its pixels are not prepared again
once its features are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from visrl.core.crops import CropName
from visrl.policies.families.base import Chat
from visrl.train.common.conversations import conversations, opened
from visrl.train.common.encoding import ConversationEncoder, check_length
from visrl.train.common.vision_cache import FeatureStore, without_pixels
from visrl.train.data.candidates import Demonstration


@dataclass(slots=True)
class SFTCollator:
    """Rows ``{"row": i}`` of SFT conversations -> right-padded batches with labels on the replies only; ``chats`` and
    ``index`` beside.

    Rows are conversations, not demonstrations: a chain of a protocol with two conversations is two rows
    (visrl/train/common/conversations.py).
    """

    rows: Sequence[tuple[Demonstration, int]]
    encoder: ConversationEncoder
    crop: CropName = "tight"
    max_tokens: int | None = None
    store: FeatureStore | None = None
    _memo: dict[int, Chat] = field(default_factory=dict)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        index = [row["row"] for row in rows]
        chats = [self.chat(i) for i in index]
        batch = self.encoder.family.collate([replace(c, pictures=(), starts=()) for c in chats])
        width = batch["input_ids"].shape[1]
        return (
            batch
            | self.encoder.family.token_kwargs(chats, width, "right")
            | {"index": torch.tensor(index), "chats": chats}
        )

    def chat(self, index: int) -> Chat:
        """The conversation's tokens, without pixels once the features of its pictures are stored."""
        held = self._memo.get(index)
        if held is not None and self.store is not None and all(p.digest in self.store for p in held.pictures):
            return held
        demonstration, number = self.rows[index]
        item = opened(demonstration.sample, demonstration.protocol)
        joined = self.encoder.family.keeps_prefix
        talks = conversations(item, demonstration.chain, self.crop, self.encoder.box_format, joined=joined)
        chat = self.encoder.chat(talks[number].turns, sample=demonstration.sample.id, add_generation_prompt=False)
        chat = chat if talks[number].every_reply else last_reply_only(chat)
        check_length(len(chat.ids), self.max_tokens, demonstration.sample.id)
        self._memo[index] = without_pixels(chat)
        return chat


def last_reply_only(chat: Chat) -> Chat:
    """The conversation with only what follows its last untrained token marked as trained."""
    last = max((i for i, trained in enumerate(chat.loss_mask) if not trained), default=-1)
    return replace(chat, loss_mask=tuple(trained and i > last for i, trained in enumerate(chat.loss_mask)))
