"""How probable a text is after a conversation: one forward pass per batch, left-padded so that replies end together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visrl.core.chat_format import LayoutError
from visrl.errors import PictureError
from visrl.policies.families.base import Chat, Family, Features, padded
from visrl.policies.protocol import LogLikelihood, Request, Tokens


class TextScorer:
    """Log-likelihoods under a loaded model, ``rows`` conversations per forward pass."""

    def __init__(self, model: Any, family: Family, rows: int) -> None:
        self.model, self.family, self.rows = model, family, rows

    def loglikelihood(self, requests: Sequence[Request], completions: Sequence[str]) -> list[LogLikelihood]:
        found: list[LogLikelihood] = [LogLikelihood(error="not scored")] * len(requests)
        chats: list[tuple[int, Chat]] = []
        for index, (request, text) in enumerate(zip(requests, completions, strict=True)):
            try:
                chats.append((index, self._chat(request, text)))
            except (PictureError, LayoutError) as error:
                found[index] = LogLikelihood(error=f"{type(error).__name__}: {error}")
        chats.sort(key=lambda item: (len(item[1].ids), item[0]), reverse=True)
        for at in range(0, len(chats), self.rows):
            batch = chats[at : at + self.rows]
            values = self._batch([chat for _, chat in batch])
            for (index, chat), value in zip(batch, values, strict=True):
                found[index] = LogLikelihood(value, tokens=Tokens(prompt=len(chat.ids)))
        return found

    def _chat(self, request: Request, text: str) -> Chat:
        rendered = self.family.render(request.turns)
        prompt = self.family.chat(rendered, [self.family.see(picture.open()) for picture in rendered.pictures])
        ids = self.family.tokenizer(text, add_special_tokens=False)["input_ids"]
        return prompt.continued((*ids, *self.family.end_of_reply()))

    def _batch(self, chats: Sequence[Chat]) -> list[float]:
        with torch.inference_mode():
            replies = [sum(chat.trained) for chat in chats]
            kept = max(replies) + 1
            logits = self._forward(chats, self._features(chats), kept)
            logs = logits.double().log_softmax(-1)  # [B, kept, V]
            values = []
            for row, (chat, n) in enumerate(zip(chats, replies, strict=True)):
                ids = torch.tensor(chat.ids[len(chat.ids) - n :], device=logs.device)
                values.append(float(logs[row, kept - 1 - n : kept - 1].gather(1, ids[:, None]).sum()))
        return values

    def _features(self, chats: Sequence[Chat]) -> list[list[Features]]:
        """Each picture through the vision tower once per batch."""
        pictures = {picture.digest: picture for chat in chats for picture in chat.pictures}
        known = (
            dict(zip(pictures, self.family.encode(self.model, list(pictures.values())), strict=True))
            if pictures
            else {}
        )
        return [[known[picture.digest] for picture in chat.pictures] for chat in chats]

    def _forward(self, chats: Sequence[Chat], features: list[list[Features]], kept: int) -> Tensor:
        """Logits of the last ``kept`` places, [B, kept, V]."""
        width = max(len(chat.ids) for chat in chats)
        device = self.model.device
        pad = self.family.tokenizer.pad_token_id or 0
        positions = padded([self.family.positions(chat) for chat in chats], width, 0, "left")
        extra: dict[str, Any] = self.family.token_kwargs(chats, width, "left")
        output = self.model(
            input_ids=padded([torch.tensor(c.ids) for c in chats], width, pad, "left").to(device),
            attention_mask=padded([torch.ones(len(c.ids), dtype=torch.long) for c in chats], width, 0, "left").to(
                device
            ),
            position_ids=(positions.transpose(0, 1) if positions.dim() == 3 else positions).to(device),
            use_cache=False,
            logits_to_keep=kept,
            **self.family.vision_kwargs(features),
            **{key: value.to(device) for key, value in extra.items()},
        )
        logits: Tensor = output.logits
        return logits
