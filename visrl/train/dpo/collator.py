"""Preference pairs -> batches for step-level DPO. Token ids of a pair are kept after its first use, and its pixels are not
prepared again once its features are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from visrl.core.crops import CropName
from visrl.policies.families.base import Chat, EncodedImage
from visrl.train.common.conversations import answer_prompt, box_prompt, box_text, opened
from visrl.train.common.encoding import ConversationEncoder, check_length, stack
from visrl.train.common.vision_cache import FeatureStore, without_pixels
from visrl.train.data.candidates import Preference
from visrl.train.dpo.losses import TermName

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """One term of one pair: the prompts (two only under ``own_crop``) and the two completions [C_chosen], [C_rejected]."""

    prompts: tuple[Chat, ...]
    chosen: Tensor
    rejected: Tensor

    @property
    def longest(self) -> int:
        """Tokens of the longer of the two sequences."""
        return max(len(prompt.ids) for prompt in self.prompts) + max(len(self.chosen), len(self.rejected))

    @property
    def pictures(self) -> list[EncodedImage]:
        return [picture for prompt in self.prompts for picture in prompt.pictures]


@dataclass(slots=True)
class PairCollator:
    """Rows ``{"row": i}`` of pairs -> ``{"index": [B], term: batch, ...}``; see logprobs.BranchScorer for a batch's parts.

    context: the answer follows the chosen crop for both answers (the official way), or each its own.
    shared: put chosen and rejected into one row where that is exact. window: rows longer than this are not shared (sliding
    attention, whose window the block mask does not have). references: term -> [N, 2] log-probabilities of chosen and
    rejected, once known.
    """

    pairs: Sequence[Preference]
    encoder: ConversationEncoder
    terms: tuple[TermName, ...]
    crop: CropName = "tight"
    context: Literal["win_crop", "own_crop"] = "win_crop"
    shared: bool = True
    window: int | None = None
    max_tokens: int | None = None
    store: FeatureStore | None = None
    references: dict[TermName, Tensor] = field(default_factory=dict)
    _memo: dict[tuple[int, TermName], EncodedPair] = field(default_factory=dict)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        index = [row["row"] for row in rows]
        batch: dict[str, Any] = {"index": torch.tensor(index)}
        for term in self.terms:
            part = self._batch([self.encoded(i, term) for i in index])
            if term in self.references:
                part["reference"] = self.references[term][index]
            batch[term] = part
        return batch

    def encoded(self, index: int, term: TermName) -> EncodedPair:
        """The term's prompts and completions of a pair, without pixels once the features of its pictures are stored."""
        held = self._memo.get((index, term))
        if held is not None and self.store is not None and all(p.digest in self.store for p in held.pictures):
            return held
        fresh = self._encode(self.pairs[index], term)
        self._memo[index, term] = replace(fresh, prompts=tuple(map(without_pixels, fresh.prompts)))
        return fresh

    def _encode(self, pair: Preference, term: TermName) -> EncodedPair:
        item, encoder = opened(pair.sample, pair.protocol), self.encoder
        if term == "box":
            turns = [box_prompt(item)]
            chosen, rejected = (
                box_text(encoder.box_format, chain, item.size, pair.sample.id) for chain in (pair.chosen, pair.rejected)
            )
        else:
            turns = [answer_prompt(item, chain, self.crop, encoder.box_format) for chain in self._contexts(pair)]
            chosen, rejected = pair.chosen.answer, pair.rejected.answer
        prompts = tuple(encoder.chat(conversation, sample=pair.sample.id) for conversation in turns)
        encoded = EncodedPair(
            prompts, encoder.reply(turns[0], prompts[0], chosen), encoder.reply(turns[-1], prompts[-1], rejected)
        )
        check_length(encoded.longest, self.max_tokens, pair.sample.id)
        return encoded

    def _contexts(self, pair: Preference) -> tuple[Any, ...]:
        return (pair.chosen,) if self.context == "win_crop" else (pair.chosen, pair.rejected)

    def _batch(self, pairs: Sequence[EncodedPair]) -> dict[str, Any]:
        if self._shares(pairs):
            return stack(self.encoder.family, [(p.prompts[0], (p.chosen, p.rejected)) for p in pairs])
        chosen = [(p.prompts[0], (p.chosen,)) for p in pairs]
        return stack(self.encoder.family, chosen + [(p.prompts[-1], (p.rejected,)) for p in pairs])

    def _shares(self, pairs: Sequence[EncodedPair]) -> bool:
        fits = self.window is None or max(p.longest for p in pairs) <= self.window
        return self.shared and fits and all(len(p.prompts) == 1 for p in pairs)
