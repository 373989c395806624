"""The joint layout (visrl/train/common/prefix_sharing.py): all terms of a pair of several looks in one row.

The chosen chain is one conversation, so that every term's prompt and chosen turn are parts of it; what was rejected hangs at
its turn as a branch. Exact, value and gradient, where a token sees only what stands before it: not for families whose prompts
look both ways (PaliGemma) or whose pictures stand first (Mllama), which have a row per term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from visrl.policies.families.base import Chat, Family, padded
from visrl.train.common.encoding import stack
from visrl.train.common.logprobs import BranchScorer, Projected, Replies, TokenScores
from visrl.train.common.prefix_sharing import Layout
from visrl.train.dpo.losses import TermName

if TYPE_CHECKING:
    from torch import Tensor


class OneTerm(Protocol):
    """A term of a pair: its prompt, and the two replies' ids."""

    @property
    def prompts(self) -> tuple[Chat, ...]: ...
    @property
    def chosen(self) -> Tensor: ...
    @property
    def rejected(self) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class JointPair:
    """chain: the whole chosen conversation without its last token, which is never fed. terms: those that the pair has."""

    chain: Chat
    terms: Mapping[TermName, OneTerm]

    @property
    def longest(self) -> int:
        return len(self.chain.ids) + sum(len(term.rejected) for term in self.terms.values())


def joined(terms: Mapping[TermName, OneTerm]) -> JointPair | None:
    """The terms of a pair, in order, as one row; None where they are no parts of one conversation's tokens (a tokenizer that
    merges across the end of a prompt), or one of them is two prompts.
    """
    if not terms or any(len(term.prompts) != 1 for term in terms.values()):
        return None
    last = list(terms.values())[-1]
    whole = last.prompts[0].continued(last.chosen.tolist())
    signature = whole.signature
    for term in terms.values():
        prompt = term.prompts[0].signature
        said = (*prompt, *term.chosen.tolist())
        if signature[: len(said)] != said:
            return None
    return JointPair(_without_last(whole), terms)


def _without_last(chat: Chat) -> Chat:
    return Chat(chat.ids[:-1], chat.loss_mask[:-1], chat.pictures, chat.starts)


def joint_batch(family: Family, pairs: Sequence[JointPair], names: Sequence[TermName]) -> dict[str, Any]:
    """One row per pair, as logprobs.BranchScorer takes it, and ``places``: term -> the :class:`Replies` (chosen, rejected) of the
    pairs that have it, as a mapping of tensors, which a trainer moves to its device.
    """
    nothing = torch.zeros(0, dtype=torch.long)
    branches = [tuple(p.terms[n].rejected if n in p.terms else nothing for n in names) for p in pairs]
    batch = stack(family, [(pair.chain, said) for pair, said in zip(pairs, branches, strict=True)])
    layout = Layout(batch["prompt_ids"].shape[1], batch["completions"].shape[2], len(names))
    anchors = torch.tensor([[_anchor(pair, name, layout.prompt) for name in names] for pair in pairs])
    wanted = {
        name: _columns(pairs, name, layout.prompt + k * (layout.width - 1), anchors[:, k])
        for k, name in enumerate(names)
        if any(name in pair.terms for pair in pairs)
    }
    kept = torch.cat([place["columns"].flatten() for place in wanted.values()]).unique()
    for place in wanted.values():
        place["columns"] = torch.searchsorted(kept, place["columns"])
    return {**batch, "anchors": anchors, "kept": kept, "places": wanted}


def _anchor(pair: JointPair, name: TermName, width: int) -> int:
    """The column of the last token before a term's turn; chains are padded on the left."""
    before = len(pair.terms[name].prompts[0].ids) if name in pair.terms else len(pair.chain.ids)
    return width - len(pair.chain.ids) + before - 1


def _columns(pairs: Sequence[JointPair], name: TermName, branch: int, anchors: Tensor) -> dict[str, Tensor]:
    """The columns of the whole row that predict a term's tokens. branch: where its rejected tokens begin."""
    rows = [row for row, pair in enumerate(pairs) if name in pair.terms]
    said = [(pairs[row].terms[name].chosen, pairs[row].terms[name].rejected) for row in rows]
    width = max(len(ids) for both in said for ids in both)
    steps = torch.arange(width)
    chosen = anchors[rows][:, None] + steps
    rejected = torch.where(steps == 0, anchors[rows][:, None], branch - 1 + steps)
    mask = torch.stack([padded([torch.ones_like(ids) for ids in both], width, 0, "right") for both in said])
    columns = torch.stack([chosen, rejected], dim=1)
    # behind a reply's end nothing is asked for: any column that is projected will do
    columns = torch.where(mask.bool(), columns, anchors[rows][:, None, None])
    completions = torch.stack([padded(both, width, 0, "right") for both in said])
    return {"columns": columns, "completions": completions, "mask": mask, "rows": torch.tensor(rows)}


@dataclass(slots=True)
class JointScorer:
    """One forward pass, asked for by the first term: call what :meth:`of` gives as TRL calls a model (logprobs.BranchScorer)."""

    scorer: BranchScorer
    found: Projected | None = None

    def of(self, name: TermName) -> TermScorer:
        return TermScorer(self, Replies(**self.scorer.batch["places"][name]))

    def forward(self) -> Projected:
        if self.found is None:
            self.found = self.scorer.forward()
        return self.found


@dataclass(frozen=True, slots=True)
class TermScorer:
    """A term of the joint rows."""

    joint: JointScorer
    replies: Replies

    def __call__(self, *, detail: bool = True, **_: Any) -> TokenScores:
        """The term's scores; TRL's compact inputs are the same batch and are not read again."""
        return self.joint.forward().scores(self.replies, detail=detail)
