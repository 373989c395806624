"""One forward of a batch of prompts with n completions each -> log-probabilities of the completions' tokens, in TRL's order:
pairs for DPO (n = 2), groups for GRPO.

TRL's ``DPOTrainer._compute_loss`` wants a model that maps ids [2B, S] to per-token values [2B, S - 1].
:class:`BranchScorer` is such a model for a *compact* batch, completions alone behind one dummy column (S = 1 + C), so
that every loss and metric of TRL works on it unchanged; the real forward runs in the layout the batch was collated in
(prefix_sharing.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from visrl.train.common.branch_attention import flex_mask, wants_flex_mask
from visrl.train.common.prefix_sharing import Layout, additive, block_mask, branch_positions, join
from visrl.train.common.vision_cache import FeatureStore, picture_kwargs

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

    from visrl.policies.families.base import Family


@dataclass(slots=True)
class TokenScores:
    """Per-token values [2B, C] of the completions, 0 where there is none; the fields TRL reads from its fused head."""

    log_probs: Tensor
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    aux_loss: Tensor | None = None


def trl_order(values: Tensor) -> Tensor:
    """[R, n, ...] -> [n R, ...]: chosen rows first, then rejected rows, in both layouts (plain rows are already so ordered)."""
    return values.transpose(0, 1).reshape(-1, *values.shape[2:])


def compact(batch: dict[str, Any]) -> dict[str, Tensor]:
    """TRL's inputs for a collated batch: ``input_ids``, ``attention_mask``, ``completion_mask`` [2B, 1 + C]."""
    ids, mask = trl_order(batch["completions"]), trl_order(batch["completion_mask"])
    first = torch.zeros_like(ids[:, :1])
    seen = trl_order(batch["prompt_mask"].sum(1).view(-1, 1, 1).expand(-1, batch["completions"].shape[1], 1))
    attention = torch.cat([seen, mask], dim=1)  # its sum is what TRL counts as tokens seen
    return {
        "input_ids": torch.cat([first, ids], 1),
        "attention_mask": attention,
        "completion_mask": torch.cat([first, mask], 1),
    }


@dataclass(frozen=True, slots=True)
class Replies:
    """Completions [R, n, C] with their mask, and the projected columns that predict their tokens: [n, C], or [R, n, C] where rows
    differ. rows: which of a batch's rows these are, where not all.
    """

    columns: Tensor
    completions: Tensor
    mask: Tensor
    rows: Tensor | None = None


def at(values: Tensor, columns: Tensor) -> Tensor:
    """[R, n, C] from values per column [R, kept]; columns: [n, C] or [R, n, C]."""
    if columns.dim() == 2:
        return values[:, columns]
    return values[torch.arange(len(columns), device=columns.device)[:, None, None], columns]


@dataclass(frozen=True, slots=True)
class Projected:
    """Logits [R, kept, V] of a forward pass, and the logarithm of their summed exponentials [R, kept]."""

    logits: Tensor
    total: Tensor

    def scores(self, replies: Replies, *, detail: bool) -> TokenScores:
        """Of completions, in TRL's order. detail: also what only metrics need."""
        if replies.rows is not None:
            some = Projected(self.logits[replies.rows], self.total[replies.rows])
            return some.scores(replace(replies, rows=None), detail=detail)
        columns, mask = replies.columns, trl_order(replies.mask).bool()
        rows = torch.arange(self.logits.shape[0], device=self.logits.device)[:, None, None]
        picked = self.logits[rows, columns if columns.dim() == 3 else columns[None], replies.completions]  # [R, n, C]
        log_probs = trl_order(picked - at(self.total, columns)).masked_fill(~mask, 0.0)
        return self._detailed(log_probs, replies) if detail else TokenScores(log_probs)

    def _detailed(self, log_probs: Tensor, replies: Replies) -> TokenScores:
        logits, total = self.logits.detach(), self.total.detach()
        per_column = {
            "entropy": _entropy(logits, total),
            "mean_logits": logits.mean(-1),
            "log_sum_sq_probs": (2 * (logits - total[..., None])).exp().sum(-1).log(),
        }
        top1 = at(logits.argmax(-1), replies.columns) == replies.completions
        spread = {name: trl_order(at(value, replies.columns)) for name, value in per_column.items()}
        return TokenScores(log_probs, is_top1=trl_order(top1), **spread)


class BranchScorer:
    """A model, a collated batch and its family: call it as TRL calls a model with a fused head.

    model: as wrapped by DDP, FSDP, DeepSpeed or PEFT. base: the bare transformers model inside.
    Batch (R rows of n branches, see prefix_sharing.py and encoding.stack): ``prompt_ids``, ``prompt_mask`` [R, P],
    ``positions`` [R, P] or [R, 3, P], ``completions``, ``completion_mask`` [R, n, C], ``tokens`` name -> [R, T, ...],
    ``chats`` the R prompts; of the joint layout also ``anchors`` [R, n] and ``kept`` [K],
    the columns that are projected. A call with ``detail`` also computes what only metrics need. temperature: logits are divided
    by it, as they were where the completions were sampled.
    """

    def __init__(
        self,
        model: Any,
        base: Any,
        family: Family,
        batch: dict[str, Any],
        store: FeatureStore | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.model, self.base, self.family, self.batch, self.store = model, base, family, batch, store
        self.temperature = temperature
        prompt, (_, branches, width) = batch["prompt_ids"].shape[1], batch["completions"].shape
        self.layout = Layout(prompt, width, branches)

    def __call__(self, *, detail: bool = True, **_: Any) -> TokenScores:
        """The scores of the batch; TRL's compact inputs are the same batch and are not read again."""
        return self.forward().scores(self.replies(), detail=detail)

    def with_entropy(self, *, gradient: bool) -> TokenScores:
        """The scores with the entropy of each token's distribution, through which the gradient may flow."""
        found, replies = self.forward(), self.replies()
        logits, total = found.logits, found.total
        if not gradient:
            logits, total = logits.detach(), total.detach()
        entropy = trl_order(at(_entropy(logits, total), replies.columns))
        return TokenScores(found.scores(replies, detail=False).log_probs, entropy)

    def forward(self) -> Projected:
        """The model's one forward pass over the batch."""
        logits = self.model(**self.inputs()).logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature != 1.0:
            logits = logits / self.temperature
        return Projected(logits, logits.logsumexp(-1))

    def replies(self) -> Replies:
        """Where the batch's completions stand among the projected columns."""
        columns = self.layout.columns().to(self.batch["completions"].device)
        return Replies(columns, self.batch["completions"], self.batch["completion_mask"])

    def inputs(self) -> dict[str, Any]:
        """What the model is called with: ids [R, T], mask, positions, pictures, and how many last columns to project."""
        batch, layout = self.batch, self.layout
        prompt_positions = batch["positions"].movedim(-2, 0) if batch["positions"].dim() == 3 else batch["positions"]
        return {
            "input_ids": join(batch["prompt_ids"], batch["completions"]),
            "attention_mask": self._mask(),
            "position_ids": branch_positions(prompt_positions, layout, batch.get("anchors")),
            "use_cache": False,
            "logits_to_keep": batch.get("kept", layout.kept),
            **({k: v for k, v in batch["tokens"].items() if k != "token_type_ids" or layout.branches == 1}),
            **picture_kwargs(self.family, self.base, batch["chats"], self.store),
        }

    def _mask(self) -> Tensor | BlockMask:
        batch = self.batch
        if self.layout.branches == 1 and "anchors" not in batch:
            return join(batch["prompt_mask"][:, :, None], batch["completion_mask"][..., None]).squeeze(-1)
        kinds = batch["tokens"].get("token_type_ids")  # PaliGemma: tokens of type 0 see each other both ways
        both_ways = None if kinds is None else kinds[:, : self.layout.prompt] == 0
        if wants_flex_mask(self.base):
            return flex_mask(batch["prompt_mask"], self.layout, both_ways=both_ways, anchors=batch.get("anchors"))
        mask = block_mask(batch["prompt_mask"], self.layout, both_ways=both_ways, anchors=batch.get("anchors"))
        return additive(mask, self.base.dtype)


def _entropy(logits: Tensor, total: Tensor) -> Tensor:
    """[R, kept] of distributions given by logits [R, kept, V] and their log-sum-exp, in nats."""
    return total - ((logits - total[..., None]).exp() * logits).sum(-1)
