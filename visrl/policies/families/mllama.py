"""Llama-3.2-Vision (Mllama): pictures reach the text by cross-attention, not as tokens among the text.

A token attends to the pictures since the last picture token that does not touch another one, so in a conversation with the
crop in a later turn the answer would see the crop alone. All pictures are therefore put side by side where the first stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from visrl.core.chat_format import Layout
from visrl.policies.families.base import Chat, EncodedImage, Family, Features, padded


class Mllama(Family):
    """Llama-3.2-Vision."""

    name: ClassVar[str] = "mllama"
    model_types: ClassVar[tuple[str, ...]] = ("mllama",)
    keeps_prefix: ClassVar[bool] = False
    why_not: ClassVar[str] = "the second picture stands beside the first, so every text token attends to both"
    layout = Layout(
        picture="<|image|>",
        before="<|begin_of_text|>",
        system="<|start_header_id|>system<|end_header_id|>\n\n",
        system_end="<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n",
        user_end="<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        assistant_end="<|eot_id|>",
        generation_prompt="<|start_header_id|>assistant<|end_header_id|>\n\n",
        place="first",
    )

    def _picture_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        return (self.image_token_id,)

    def encode(self, model: Any, pictures: Sequence[EncodedImage]) -> list[Features]:
        """{"states": [tiles * patches, hidden]} per picture, padding tiles included: a mask hides them."""
        output = model.model.vision_model(**self._vision_inputs(model, pictures))
        states = model.model.multi_modal_projector(output.last_hidden_state)  # [pictures, 1, tiles, patches, hidden]
        return [{"states": state.reshape(-1, state.shape[-1])} for state in states]

    def vision_kwargs(self, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """[rows, most pictures * tiles * patches, hidden]; rows with fewer pictures get zeros, which no token attends to."""
        most = max(map(len, features))
        if not most:
            return {}
        blank = torch.zeros_like(next(f["states"] for row in features for f in row))
        rows = [torch.cat([f["states"] for f in row] + [blank] * (most - len(row))) for row in features]
        return {"cross_attention_states": torch.stack(rows)}

    def token_kwargs(self, chats: Sequence[Chat], width: int, side: str) -> dict[str, Tensor]:
        """cross_attention_mask [B, width, most pictures, tiles]: 1 from each picture's own token to the end of the text."""
        most = max(len(chat.pictures) for chat in chats)
        if not most:
            return {}
        rows = []
        for chat in chats:
            row = self._sight(chat, most)[:, :, None].repeat(1, 1, len(chat.ids))
            for i, start in enumerate(chat.starts):
                row[i, :, :start] = 0
            rows.append(row)
        return {"cross_attention_mask": padded(rows, width, 0, side).permute(0, 3, 1, 2).contiguous()}

    def step_kwargs(self, chats: Sequence[Chat], width: int) -> dict[str, Tensor]:
        most = max(len(chat.pictures) for chat in chats)
        if not most:
            return {}
        return {"cross_attention_mask": torch.stack([self._sight(c, most).expand(width, -1, -1) for c in chats])}

    def _sight(self, chat: Chat, most: int) -> Tensor:
        """[most, tiles]: which tiles of which picture exist. All pictures stand side by side, so all text sees all."""
        tiles = [seen.pixels["aspect_ratio_mask"][0, 0] for seen in chat.pictures]
        blank = torch.zeros(int(self.processor.image_processor.max_image_tiles), dtype=torch.long)
        return torch.stack([*(t.to(torch.long) for t in tiles), *([blank] * (most - len(tiles)))])

    def pixel_kwargs(self, chats: Sequence[Chat]) -> dict[str, Tensor]:
        """Each key [rows, most pictures, …]; rows with fewer pictures get zeros."""
        most = max(len(chat.pictures) for chat in chats)
        if not most:
            return {}
        first = next(chat.pictures[0] for chat in chats if chat.pictures)
        blank = {key: torch.zeros_like(value) for key, value in first.pixels.items()}
        return {
            key: torch.cat(
                [
                    torch.cat([*(p.pixels[key] for p in c.pictures), *([blank[key]] * (most - len(c.pictures)))], 1)
                    for c in chats
                ]
            )
            for key in first.pixels
        }
