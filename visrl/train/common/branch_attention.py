"""Attention of rows with branches by FlexAttention: the block mask of prefix_sharing.py is a rule that the kernel asks, block
by block, instead of a dense [B, 1, T, T] tensor; blocks that nobody sees are skipped.

Only the language model is given it, and only its branched rows take the kernel: plain rows, vision towers and cross attention
go on as they would. That also serves the families whose transformers class says no to ``flex_attention``. On a CPU, where
FlexAttention has no backward pass, branched rows go on with the dense mask.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from visrl.train.common.prefix_sharing import Layout, who_sees_whom

if TYPE_CHECKING:
    from torch import Tensor

BRANCHES = "visrl_branches_"
"""Before ``sdpa`` or ``eager``: the names under which transformers knows the attention functions below."""


def _attend(plainly: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any) -> Any:
    """transformers' attention interface: query [B, heads, T, width], keys and values [B, kv heads, T, width] -> [B, T, heads,
    width]. plainly: what attends where the mask is no BlockMask. more: ``scaling``, ``softcap`` (Gemma2), ``dropout`` …
    """
    if not isinstance(mask, BlockMask):
        return plainly(module, query, key, value, mask, **more)
    attend = _compiled() if query.is_cuda else flex_attention
    out: Any = attend(
        query,
        key,
        value,
        score_mod=_capped(more.get("softcap")),
        block_mask=mask,
        scale=more.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2).contiguous(), None


def _eager(module: Any, *parts: Any, **more: Any) -> Any:
    """The eager attention of the file in transformers that a layer is from: each has its own."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *parts, **more)


@functools.cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


@functools.cache
def _capped(softcap: float | None) -> Any:
    if softcap is None:
        return None

    def cap(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return cap


def use_branch_attention(model: Any) -> None:
    """Let branched rows of a transformers model's language model attend by FlexAttention; others attend as before."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    plainly, mask = {"sdpa": (sdpa_attention_forward, sdpa_mask), "eager": (_eager, eager_mask)}[before]
    AttentionInterface.register(BRANCHES + before, functools.partial(_attend, plainly))
    AttentionMaskInterface.register(BRANCHES + before, mask)
    config._attn_implementation = BRANCHES + before


def wants_flex_mask(model: Any) -> bool:
    """Whether branched rows of this model are given a BlockMask."""
    used: str = model.config.get_text_config()._attn_implementation
    return used.startswith(BRANCHES) and model.device.type == "cuda"


def flex_mask(
    prompt_mask: Tensor, layout: Layout, *, both_ways: Tensor | None = None, anchors: Tensor | None = None
) -> BlockMask:
    """prefix_sharing.block_mask as a FlexAttention mask. A column sees itself even in padding, whose rows would be empty."""
    rule = who_sees_whom(prompt_mask, layout, both_ways, anchors)

    def with_itself(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(row, head, query, key) | (query == key)

    size = layout.length
    mask: BlockMask = create_block_mask(
        with_itself, len(prompt_mask), None, size, size, device=prompt_mask.device, _compile=prompt_mask.is_cuda
    )
    return mask
