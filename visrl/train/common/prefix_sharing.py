"""Where tokens stand in a batch of preference pairs, and what may look at what.

A row is ``[pad | prompt | branch 1 | branch 2 | ...]`` [T = P + n (C - 1)]: prompts are padded on the left, so that
in every row the last prompt token is column P - 1 and branch k occupies columns P + k (C-1) .. P + (k+1)(C-1) - 1. A
branch holds a completion without its last token (whose successor nobody asks for), padded on the right to C - 1.

* plain:  n = 1, two rows per pair, chosen rows first and then rejected rows, as TRL has them. An ordinary causal batch.
* shared: n = 2, one row per pair. Picture, question and everything before the completion are computed once. A token
  of branch k sees the prompt and the earlier tokens of its own branch; its position goes on from the last prompt
  token. That is what it sees in a row of its own, so values and gradients are those of the plain layout.
* joint:  n = the terms of a pair, one row per pair, of conversations that go on from look to look. The "prompt" is the whole
  chosen chain (P tokens, its last one not fed), and branch k is what was rejected at its turn k: it hangs at its *anchor*,
  the last token before that turn, sees the chain up to there, and its positions go on from there. The chosen turns'
  log-probabilities are read off the chain itself, so all pictures and turns of a pair are computed once for all its terms.

The logits that matter are the last 1 + n (C-1) columns: column P-1 predicts the first token of *every* branch, branch
column j predicts token j + 1. Nothing else is projected to the vocabulary. The limit of the gain is 2 (P + C) / (P +
2 C).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

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


def branch_positions(prompt_positions: Tensor, layout: Layout, anchors: Tensor | None = None) -> Tensor:
    """Positions [..., B, T] of whole rows from those of the prompts [..., B, P]: every branch goes on from the last
    prompt token, or from its own of ``anchors`` [B, n].

    Works for one axis ([B, P]) and for multi-axis rotary positions ([3, B, P]): the last prompt token is text, whose
    axes agree, and so do those of the text after it.
    """
    steps = torch.arange(1, layout.width, device=prompt_positions.device).repeat(layout.branches)
    last = prompt_positions[..., -1:]
    if anchors is not None:
        rows = torch.arange(len(anchors), device=anchors.device)[:, None]
        last = prompt_positions[..., rows, anchors].repeat_interleave(layout.width - 1, dim=-1)
    return torch.cat([prompt_positions, last + steps], dim=-1)


Rule = Callable[["Tensor", "Tensor", "Tensor", "Tensor"], "Tensor"]
"""(row of the batch, head, query column, key column) -> whether the key is seen: FlexAttention's ``mask_mod``."""


def who_sees_whom(
    prompt_mask: Tensor, layout: Layout, both_ways: Tensor | None = None, anchors: Tensor | None = None
) -> Rule:
    """The rule of the shared layout, of tensors that broadcast.

    prompt_mask: [B, P], 0 for padding. both_ways: [B, P], prompt tokens that see each other whatever their order
    (PaliGemma's prefix). anchors: [B, n], the last prompt column that each branch sees; None: all of them see all.
    Only tensors are closed over, no sizes: a compiled kernel serves every layout.
    """
    rest = layout.length - layout.prompt
    owner = torch.arange(rest, device=prompt_mask.device) // max(layout.width - 1, 1)
    owner = pad(owner, (layout.prompt, 0), value=-1)  # [T]: a column's branch, -1 in the prompt
    seen = pad(prompt_mask.bool(), (0, rest), value=True)
    mutual = None if both_ways is None else pad(both_ways, (0, rest), value=False)
    # [B, T]: the last prompt column that a column sees
    upto = (
        None
        if anchors is None
        else pad(anchors.repeat_interleave(layout.width - 1, 1), (layout.prompt, 0), value=layout.prompt)
    )

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        prompt = owner[key] < 0 if upto is None else (owner[key] < 0) & (key <= upto[row, query])
        found = (key <= query) & (prompt | (owner[key] == owner[query]))
        if mutual is not None:
            found = found | (mutual[row, query] & mutual[row, key])
        return found & seen[row, key]

    return rule


def block_mask(
    prompt_mask: Tensor, layout: Layout, *, both_ways: Tensor | None = None, anchors: Tensor | None = None
) -> Tensor:
    """:func:`who_sees_whom` written out: bool [B, 1, T, T], rows query, columns key."""
    rule = who_sees_whom(prompt_mask, layout, both_ways, anchors)
    column = torch.arange(layout.length, device=prompt_mask.device)
    row = torch.arange(len(prompt_mask), device=prompt_mask.device)[:, None, None, None]
    return rule(row, row, column[:, None], column[None, :])


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask for attention implementations: 0 where allowed, the dtype's lowest number elsewhere (finite: no NaN in
    padding rows).
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
