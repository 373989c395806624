"""Where tokens stand in a batch of preference pairs, and what may look at what.

A row is ``[pad | prompt | branch 1 | branch 2 | ...]`` [T = P + n (C - 1)]: prompts are padded on the left, so that
in every row the last prompt token is column P - 1 and branch k occupies columns P + k (C-1) .. P + (k+1)(C-1) - 1. A
branch holds a completion without its last token (whose successor nobody asks for), padded on the right to C - 1.

* plain:  n = 1, two rows per pair, chosen rows first and then rejected rows, as TRL has them. An ordinary causal batch.
* shared: n = 2, one row per pair. Picture, question and everything before the completion are computed once. A token
  of branch k sees the prompt and the earlier tokens of its own branch; its position goes on from the last prompt
  token. That is what it sees in a row of its own, so values and gradients are those of the plain layout.

The logits that matter are the last 1 + n (C-1) columns: column P-1 predicts the first token of *every* branch, branch
column j predicts token j + 1. Nothing else is projected to the vocabulary. The limit of the gain is 2 (P + C) / (P +
2 C).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """prompt: P, padded prompt tokens. width: C, tokens of the longest completion. branches: n, completions in a row."""

    prompt: int
    width: int
    branches: int

    @property
    def kept(self) -> int:
        """How many last columns are projected to the vocabulary."""
        return 1 + self.branches * (self.width - 1)

    @property
    def length(self) -> int:
        return self.prompt + self.branches * (self.width - 1)

    def columns(self) -> Tensor:
        """[n, C]: among the kept columns, the one that predicts token j of branch k."""
        first = torch.zeros(self.branches, 1, dtype=torch.long)
        rest = 1 + torch.arange(self.branches * (self.width - 1)).view(self.branches, self.width - 1)
        return torch.cat([first, rest], dim=1)


def join(prompt: Tensor, completions: Tensor) -> Tensor:
    """``[prompt | branches]`` [B, T, ...] from prompt [B, P, ...] and completions [B, n, C, ...]: last tokens dropped."""
    fed = completions[:, :, :-1]
    return torch.cat([prompt, fed.reshape(fed.shape[0], -1, *fed.shape[3:])], dim=1)


def branch_positions(prompt_positions: Tensor, layout: Layout) -> Tensor:
    """Positions [..., B, T] of whole rows from those of the prompts [..., B, P]: every branch goes on from the last
    prompt token.

    Works for one axis ([B, P]) and for multi-axis rotary positions ([3, B, P]): the last prompt token is text, whose
    axes agree, and so do those of the text after it.
    """
    steps = torch.arange(1, layout.width, device=prompt_positions.device).repeat(layout.branches)
    return torch.cat([prompt_positions, prompt_positions[..., -1:] + steps], dim=-1)


def block_mask(prompt_mask: Tensor, layout: Layout, *, both_ways: Tensor | None = None) -> Tensor:
    """Who sees whom in the shared layout: bool [B, 1, T, T], rows query, columns key.

    prompt_mask: [B, P], 0 for padding. both_ways: [B, P], prompt tokens that see each other whatever their order
    (PaliGemma's prefix).
    """
    batch, device = prompt_mask.shape[0], prompt_mask.device
    prompt, branch = layout.prompt, layout.width - 1
    causal = torch.ones(layout.length, layout.length, dtype=torch.bool, device=device).tril()
    owner = torch.arange(layout.length - prompt, device=device) // max(branch, 1)
    causal[prompt:, prompt:] &= owner[:, None] == owner[None, :]
    allowed = causal.repeat(batch, 1, 1)
    if both_ways is not None:
        allowed[:, :prompt, :prompt] |= both_ways[:, :, None] & both_ways[:, None, :]
    allowed[:, :, :prompt] &= prompt_mask.bool()[:, None, :]
    return allowed[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask for attention implementations: 0 where allowed, the dtype's lowest number elsewhere (finite: no NaN in
    padding rows).
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
