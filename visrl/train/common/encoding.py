"""Rows -> batches: preference pairs for step-level DPO, chains for SFT.

Nothing is ever truncated: a sequence longer than ``max_tokens`` stops the run and names its sample, because what a
cut removes may be a picture. Token ids of a row are kept after its first use, and its pixels are not prepared again
once its features are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from visrl.core.box_formats import BoxFormat
from visrl.core.crops import CropName
from visrl.core.types import Picture, Turn
from visrl.errors import UsageError
from visrl.policies.families.base import Chat, Family, Seen, padded
from visrl.train.common.conversations import answer_prompt, box_prompt, box_text, conversations, opened
from visrl.train.common.vision_cache import FeatureStore, without_pixels
from visrl.train.data.rows import Demonstration, Preference
from visrl.train.dpo.losses import TermName

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Speaker:
    """A family with the box format that is trained, turning conversations into tokens exactly as evaluation does."""

    family: Family
    box_format: BoxFormat

    def chat(self, turns: Sequence[Turn], *, sample: str, cue: bool = True) -> Chat:
        """The tokens of a conversation; with ``cue`` up to where the model goes on, else with its replies marked as
        trained. Raises UsageError naming ``sample`` for a picture or crop that the image processor does not take.
        """
        rendered = self.family.render(turns, cue=cue)
        return self.family.chat(rendered, [self._seen(picture, sample) for picture in rendered.pictures])

    def _seen(self, picture: Picture, sample: str) -> Seen:
        image = picture.open()
        try:
            return self.family.see(image)
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
        rendered = self.family.render((*turns, Turn("assistant", (text,))), cue=False)
        whole = self.family.chat(rendered, prompt.pictures)
        if whole.ids[: len(prompt.ids)] == prompt.ids:
            return torch.tensor(whole.ids[len(prompt.ids) :])
        start, end = rendered.replies[-1]
        return torch.tensor(self.family.tokenizer(rendered.text[start:end], add_special_tokens=False)["input_ids"])


@dataclass(frozen=True, slots=True)
class Choice:
    """One term of one pair: the prompts (two only under ``own_crop``) and the two completions [C_win], [C_lose]."""

    prompts: tuple[Chat, ...]
    win: Tensor
    lose: Tensor

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two sequences."""
        return max(len(prompt.ids) for prompt in self.prompts) + max(len(self.win), len(self.lose))

    @property
    def pictures(self) -> list[Seen]:
        return [picture for prompt in self.prompts for picture in prompt.pictures]


@dataclass(slots=True)
class PairCollator:
    """Rows ``{"row": i}`` of pairs -> ``{"index": [B], term: batch, ...}``; see score.PairScorer for a batch's parts.

    context: the answer follows the win crop for both answers (the official way), or each its own.
    shared: put win and lose into one row where that is exact. window: rows longer than this are not shared (sliding
    attention, whose window the block mask does not have). references: term -> [N, 2] log-probabilities of win and
    lose, once known.
    """

    pairs: Sequence[Preference]
    speaker: Speaker
    terms: tuple[TermName, ...]
    crop: CropName = "tight"
    context: Literal["win_crop", "own_crop"] = "win_crop"
    shared: bool = True
    window: int | None = None
    max_tokens: int | None = None
    store: FeatureStore | None = None
    references: dict[TermName, Tensor] = field(default_factory=dict)
    _memo: dict[tuple[int, TermName], Choice] = field(default_factory=dict)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        index = [row["row"] for row in rows]
        batch: dict[str, Any] = {"index": torch.tensor(index)}
        for term in self.terms:
            part = self._batch([self.choice(i, term) for i in index])
            if term in self.references:
                part["reference"] = self.references[term][index]
            batch[term] = part
        return batch

    def choice(self, index: int, term: TermName) -> Choice:
        """The term's prompts and completions of a pair, without pixels once the features of its pictures are stored."""
        held = self._memo.get((index, term))
        if held is not None and self.store is not None and all(p.digest in self.store for p in held.pictures):
            return held
        fresh = self._encode(self.pairs[index], term)
        self._memo[index, term] = replace(fresh, prompts=tuple(map(without_pixels, fresh.prompts)))
        return fresh

    def _encode(self, pair: Preference, term: TermName) -> Choice:
        item, speaker = opened(pair.sample, pair.protocol), self.speaker
        if term == "box":
            turns = [box_prompt(item)]
            win, lose = (
                box_text(speaker.box_format, chain, item.size, pair.sample.id) for chain in (pair.win, pair.lose)
            )
        else:
            turns = [answer_prompt(item, chain, self.crop, speaker.box_format) for chain in self._contexts(pair)]
            win, lose = pair.win.answer, pair.lose.answer
        prompts = tuple(speaker.chat(conversation, sample=pair.sample.id) for conversation in turns)
        choice = Choice(prompts, speaker.reply(turns[0], prompts[0], win), speaker.reply(turns[-1], prompts[-1], lose))
        check_length(choice.longest, self.max_tokens, pair.sample.id)
        return choice

    def _contexts(self, pair: Preference) -> tuple[Any, ...]:
        return (pair.win,) if self.context == "win_crop" else (pair.win, pair.lose)

    def _batch(self, choices: Sequence[Choice]) -> dict[str, Any]:
        if self._shares(choices):
            return stack(self.speaker.family, [(c.prompts[0], (c.win, c.lose)) for c in choices])
        wins = [(c.prompts[0], (c.win,)) for c in choices]
        return stack(self.speaker.family, wins + [(c.prompts[-1], (c.lose,)) for c in choices])

    def _shares(self, choices: Sequence[Choice]) -> bool:
        fits = self.window is None or max(c.longest for c in choices) <= self.window
        return self.shared and fits and all(len(c.prompts) == 1 for c in choices)


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


@dataclass(slots=True)
class ChainCollator:
    """Rows ``{"row": i}`` of SFT conversations -> right-padded batches with labels on the replies only; ``chats`` and
    ``index`` beside.

    Rows are conversations, not demonstrations: a chain of a protocol with two conversations is two rows (conversations.py).
    """

    rows: Sequence[tuple[Demonstration, int]]
    speaker: Speaker
    crop: CropName = "tight"
    max_tokens: int | None = None
    store: FeatureStore | None = None
    _memo: dict[int, Chat] = field(default_factory=dict)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        index = [row["row"] for row in rows]
        chats = [self.chat(i) for i in index]
        batch = self.speaker.family.collate([replace(c, pictures=(), starts=()) for c in chats])
        width = batch["input_ids"].shape[1]
        return (
            batch
            | self.speaker.family.token_kwargs(chats, width, "right")
            | {"index": torch.tensor(index), "chats": chats}
        )

    def chat(self, index: int) -> Chat:
        """The conversation's tokens, without pixels once the features of its pictures are stored."""
        held = self._memo.get(index)
        if held is not None and self.store is not None and all(p.digest in self.store for p in held.pictures):
            return held
        demonstration, number = self.rows[index]
        item = opened(demonstration.sample, demonstration.protocol)
        joined = self.speaker.family.keeps_prefix
        talks = conversations(item, demonstration.chain, self.crop, self.speaker.box_format, joined=joined)
        chat = self.speaker.chat(talks[number].turns, sample=demonstration.sample.id, cue=False)
        chat = chat if talks[number].every_reply else last_reply_only(chat)
        check_length(len(chat.ids), self.max_tokens, demonstration.sample.id)
        self._memo[index] = without_pixels(chat)
        return chat


def last_reply_only(chat: Chat) -> Chat:
    """The conversation with only what follows its last untrained token marked as trained."""
    last = max((i for i, trained in enumerate(chat.trained) if not trained), default=-1)
    return replace(chat, trained=tuple(trained and i > last for i, trained in enumerate(chat.trained)))
