"""Preference pairs -> batches for step-level DPO. Token ids of a pair are kept after its first use, and its pixels are not
prepared again once its features are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from visrl.core.crops import CropName
from visrl.errors import UsageError
from visrl.policies.families.base import Chat, EncodedImage
from visrl.train.common.conversations import answer_prompt, answer_said, look_text, opened, prompt_after
from visrl.train.common.encoding import ConversationEncoder, check_length, stack
from visrl.train.common.vision_cache import FeatureStore, without_pixels
from visrl.train.config.protocols import several
from visrl.train.data.candidates import Preference
from visrl.train.dpo.joint_rows import JointPair, joined, joint_batch
from visrl.train.dpo.losses import TermName, look_of

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


def has_term(pair: Preference, term: TermName) -> bool:
    """Whether a pair has a term: one of fewer looks, or with nothing rejected at a look, has none there."""
    look = look_of(term)
    if look is None or not several(pair.protocol):
        return not look
    rejected = pair.rejected.all_looks
    return look < len(rejected) and rejected[look].box is not None


@dataclass(slots=True)
class PairCollator:
    """Rows ``{"row": i}`` of pairs -> ``{"index": [B], term: batch, ...}``; see logprobs.BranchScorer for a batch's parts. A term
    that no pair has is left out, and ``joint`` is the same batch with all terms of a pair in one row (joint_rows.py).

    context: the answer follows the chosen crop for both answers (the official way), or each its own.
    shared: put chosen and rejected into one row where that is exact. window: rows longer than this are not shared (sliding
    attention, whose window the block mask does not have). references: term -> [N, 2] log-probabilities of chosen and
    rejected, once known. joint: all terms of a pair of several looks in one row, where that is exact and rows are shared.
    stand_in: every batch has every term, though no pair of it does, and rows of its own for each: several processes of a sharded
    model must go forward equally often.
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
    stand_in: bool = False
    joint: bool = True
    _memo: dict[tuple[int, TermName], EncodedPair] = field(default_factory=dict)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        index = [row["row"] for row in rows]
        batch: dict[str, Any] = {"index": torch.tensor(index)}
        encoded = [{term: self.encoded(i, term) for term in self.terms if has_term(self.pairs[i], term)} for i in index]
        for term in self.terms:
            having = [place for place, pair in enumerate(encoded) if term in pair]
            if having or self.stand_in:
                batch[term] = self._part(term, index, having, encoded)
        if (pairs := self._joint(index, encoded)) is not None:
            batch["joint"] = joint_batch(self.encoder.family, pairs, self.terms)
        return batch

    def _part(
        self,
        term: TermName,
        index: Sequence[int],
        having: Sequence[int],
        encoded: Sequence[Mapping[TermName, EncodedPair]],
    ) -> dict[str, Any]:
        """A term's batch of the pairs that have it; ``having``: their places, where that is not all. Where none has it, another
        pair stands in, and the trainer counts it with weight 0."""
        rows, found = [index[place] for place in having], [encoded[place][term] for place in having]
        if not having:
            rows = [next(i for i in range(len(self.pairs)) if has_term(self.pairs[i], term))]
            found = [self.encoded(rows[0], term)]
        part = self._batch(found)
        if len(having) < len(index):
            part["having"] = torch.tensor(having, dtype=torch.long)
        if term in self.references:
            part["reference"] = self.references[term][rows]
        return part

    def _joint(self, index: Sequence[int], encoded: Sequence[Mapping[TermName, EncodedPair]]) -> list[JointPair] | None:
        """The batch's pairs as a row each, where that is exact for all of them; None where terms have rows of their own."""
        if (
            not (self.joint and self.shared and self.encoder.family.keeps_prefix)
            or self.stand_in
            or len(self.terms) < 2
        ):
            return None
        if not all(several(self.pairs[i].protocol) for i in index):
            return None
        pairs = [joined(terms) for terms in encoded]
        found = [pair for pair in pairs if pair is not None]
        fits = len(found) == len(pairs) and (self.window is None or max(p.longest for p in found) <= self.window)
        return found if fits else None

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
        look = look_of(term)
        if look is None:
            turns = [answer_prompt(item, chain, self.crop, encoder.box_format) for chain in self._contexts(pair)]
            chosen, rejected = (answer_said(item, chain, encoder.box_format) for chain in (pair.chosen, pair.rejected))
        else:
            before = pair.chosen.all_looks[:look]
            turns = [prompt_after(item, before, self.crop, encoder.box_format)]
            chosen, rejected = (
                look_text(item, before, chain.all_looks[look], encoder.box_format)
                for chain in (pair.chosen, pair.rejected)
            )
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
            batch = stack(self.encoder.family, [(p.prompts[0], (p.chosen, p.rejected)) for p in pairs])
        else:
            chosen = [(p.prompts[0], (p.chosen,)) for p in pairs]
            batch = stack(self.encoder.family, chosen + [(p.prompts[-1], (p.rejected,)) for p in pairs])
        if "cross_attention_mask" in batch["tokens"] and len({len(chat.pictures) for chat in batch["chats"]}) > 1:
            # Mllama: text before the first picture attends to every picture state of the row, padding included
            raise UsageError(
                f"{self.encoder.family.name}: pairs of different numbers of looks in one batch",
                "set trainer.per_device_train_batch_size to 1",
            )
        return batch

    def _shares(self, pairs: Sequence[EncodedPair]) -> bool:
        fits = self.window is None or max(p.longest for p in pairs) <= self.window
        return self.shared and fits and all(len(p.prompts) == 1 for p in pairs)
