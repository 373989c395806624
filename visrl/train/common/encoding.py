"""Conversations -> tokens and batches, as both trainers need them (visrl/train/sft/collator.py, visrl/train/dpo/collator.py).

Nothing is ever truncated: a sequence longer than ``max_tokens`` stops the run and names its sample, because what a
cut removes may be a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from visrl.core.box_formats import BoxFormat
from visrl.core.types import Picture, Turn
from visrl.errors import UsageError
from visrl.policies.families.base import Chat, EncodedImage, Family, padded

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ConversationEncoder:
    """A family with the box format that is trained, turning conversations into tokens exactly as evaluation does."""

    family: Family
    box_format: BoxFormat

    def chat(
        self,
        turns: Sequence[Turn],
        *,
        sample: str,
        add_generation_prompt: bool = True,
        seen: dict[str, EncodedImage] | None = None,
    ) -> Chat:
        """The tokens of a conversation; with ``add_generation_prompt`` up to where the model goes on, else with its replies in
        the loss mask. seen: pictures by name that were prepared before; new ones are added. Raises UsageError naming
        ``sample`` for a picture or crop that the image processor does not take.
        """
        rendered = self.family.render(turns, add_generation_prompt=add_generation_prompt)
        return self.family.chat(rendered, [self._known(picture, sample, seen) for picture in rendered.pictures])

    def _known(self, picture: Picture, sample: str, seen: dict[str, EncodedImage] | None) -> EncodedImage:
        if seen is None:
            return self._encoded(picture, sample)
        if picture.ref not in seen:
            seen[picture.ref] = self._encoded(picture, sample)
        return seen[picture.ref]

    def _encoded(self, picture: Picture, sample: str) -> EncodedImage:
        image = picture.open()
        try:
            return self.family.encode_image(image)
        except Exception as error:
            raise UsageError(
                f"sample {sample}: {picture.ref}, {image.width} x {image.height} pixels: the image processor says: {error}",
                "remove the row, or widen its box: what is cut out there is a picture of its own",
            ) from error

    def reply(self, turns: Sequence[Turn], prompt: Chat, text: str) -> Tensor:
        """[C] ids of ``text`` as the reply to ``prompt``, with the token that ends a turn.

        They are what follows the prompt in the whole conversation's tokens. Where a tokenizer would merge across that
        boundary, which generation cannot, the reply is tokenised on its own.
        """
        rendered = self.family.render((*turns, Turn("assistant", (text,))), add_generation_prompt=False)
        whole = self.family.chat(rendered, prompt.pictures)
        if whole.ids[: len(prompt.ids)] == prompt.ids:
            return torch.tensor(whole.ids[len(prompt.ids) :])
        start, end = rendered.replies[-1]
        return torch.tensor(self.family.tokenizer(rendered.text[start:end], add_special_tokens=False)["input_ids"])


def check_length(tokens: int, limit: int | None, sample_id: str) -> None:
    """Raises UsageError naming the sample whose sequence is longer than ``limit``."""
    if limit is not None and tokens > limit:
        hint = "raise max_tokens, or give the model smaller pictures; nothing is cut, because a cut may hit a picture"
        raise UsageError(f"sample {sample_id} needs {tokens} tokens, max_tokens is {limit}", hint)


def stack(family: Family, rows: Sequence[tuple[Chat, tuple[Tensor, ...]]]) -> dict[str, Any]:
    """Rows of (prompt, completions) -> a batch: prompts padded left, completions right. Padding ids are 0 and masked."""
    chats = [chat for chat, _ in rows]
    prompt = max(len(chat.ids) for chat in chats)
    width = max(len(c) for _, completions in rows for c in completions)
    ids = [torch.tensor(chat.ids) for chat in chats]
    fed = len(rows[0][1]) * (width - 1)  # a completion's last token is asked for, never fed
    ahead, behind = family.token_kwargs(chats, prompt, "left"), family.step_kwargs(chats, fed)
    if "token_type_ids" in ahead:  # what is generated belongs to the causal suffix, type 1
        behind = {"token_type_ids": torch.ones(len(rows), fed, dtype=torch.long), **behind}
    return {
        "prompt_ids": padded(ids, prompt, 0, "left"),
        "prompt_mask": padded([torch.ones_like(row) for row in ids], prompt, 0, "left"),
        "positions": padded([family.positions(chat) for chat in chats], prompt, 0, "left"),
        "completions": torch.stack([padded(completions, width, 0, "right") for _, completions in rows]),
        "completion_mask": torch.stack([padded([torch.ones_like(c) for c in cs], width, 0, "right") for _, cs in rows]),
        # what has no value for generated tokens is only needed where the model works out positions itself
        "tokens": {name: torch.cat([ahead[name], behind[name]], dim=1) for name in ahead if name in behind},
        "chats": chats,
    }
