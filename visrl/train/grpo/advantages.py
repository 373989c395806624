"""Rewards of groups -> advantages: how much better a chain did than its group.

    mean           r_i - mean(r)                         without the standard deviation, as Dr. GRPO has it
    mean_std       (r_i - mean(r)) / (std(r) + 1e-4)     GRPO; std with Bessel's correction, epsilon as TRL has it
    leave_one_out  r_i - mean(r of the others)           RLOO: equals n / (n - 1) times ``mean``

A chain without a score is in no mean and has advantage 0; so has the only scored one of its group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["mean", "mean_std", "leave_one_out"]
Credit = Literal["step", "chain"]
"""Whose rewards a token's advantage comes from: its turn's, or all of the chain's."""
EPSILON = 1e-4
NO_SPREAD = 1e-8
"""A group whose rewards differ by less teaches nothing."""


def weighted(rewards: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum [G, k] of several rewards [G, k], NaN where unscored.

    A reward that no chain of a group has does not apply to that question, and is left out of its sum. One that some have and
    some lack leaves those unscored: it is not 0.
    """
    stacked = torch.stack([rewards[name] * weight for name, weight in weights.items()])  # [rewards, G, k]
    applies = ~stacked.isnan().all(-1, keepdim=True)
    total = torch.where(applies, stacked, torch.zeros_like(stacked)).sum(0)
    return total.masked_fill(~applies.any(0), torch.nan)


def advantages(rewards: Tensor, baseline: Baseline) -> Tensor:
    """[G, k] from rewards [G, k], NaN where unscored."""
    scored = ~rewards.isnan()
    n = scored.sum(-1, keepdim=True)
    centred = rewards - rewards.nanmean(-1, keepdim=True)
    if baseline == "leave_one_out":
        centred = centred * n / (n - 1).clamp(min=1)
    elif baseline == "mean_std":
        variance = centred.square().nansum(-1, keepdim=True) / (n - 1).clamp(min=1)
        centred = centred / (variance.sqrt() + EPSILON)
    return torch.where(scored & (n > 1), centred, torch.zeros_like(centred))


def without_spread(rewards: Tensor) -> Tensor:
    """[G]: whether a group's scored chains all have the same reward, or fewer than two are scored."""
    high = rewards.nan_to_num(nan=-torch.inf).amax(-1)
    low = rewards.nan_to_num(nan=torch.inf).amin(-1)
    return (high - low) < NO_SPREAD
