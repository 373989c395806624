"""Groups -> batches. One row per different prompt, its completions as branches (visrl/train/common/prefix_sharing.py).

The first turn of a group is one row of k branches. Later turns that were shown the same crops after the same words are one row,
too; the others have rows of their own, padded with empty branches to the widest. A reply is the very tokens that were sampled.

What TRL sees of a batch of N chains is compact: the tokens of a chain's turns side by side, [N, W], turn after turn, each turn
padded to its longest, with masks and advantages of the same shape. A chain is TRL's sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visrl.policies.families.base import Chat, EncodedImage
from visrl.train.common.encoding import ConversationEncoder, check_length, stack
from visrl.train.common.logprobs import trl_order
from visrl.train.common.vision_cache import FeatureStore
from visrl.train.grpo.rollouts import Group, TurnName

Placed = tuple[int, Chat, Tensor]
"""A reply: its chain's place among N, the prompt, and the sampled tokens [C]."""


@dataclass(frozen=True, slots=True)
class GroupEncoder:
    """Chains -> tokens. shared: one row per prompt where that is exact. window: rows longer than this are not shared (sliding
    attention, whose window the block mask does not have). max_tokens: of a row; None: no limit.
    """

    encoder: ConversationEncoder
    shared: bool = True
    window: int | None = None
    max_tokens: int | None = None
    store: FeatureStore | None = None

    def turns(self, groups: Sequence[Group], names: Sequence[TurnName]) -> dict[TurnName, dict[str, Any]]:
        """For each of these turns that any chain took its batch (encoding.stack), with where a chain's reply stands in it:
        ``where`` [N], in TRL's order, and ``taken`` [N, C], the mask of its tokens. A turn that needs several batches has them as
        ``look2/2``, ``look2/3``, …: after so many pictures.
        """
        seen: list[dict[str, EncodedImage]] = [{} for _ in groups]
        found: dict[TurnName, dict[str, Any]] = {}
        total = sum(len(group.chains) for group in groups)
        for name in names:
            parts = self._apart(list(self._replies(groups, name, seen)))
            for pictures, replies in sorted(parts.items()):
                found[name if len(parts) == 1 else f"{name}/{pictures}"] = self._batch(replies, total)
        return found

    def _apart(self, replies: Sequence[Placed]) -> dict[int, list[Placed]]:
        """Those that may stand in one batch. Where all pictures stand first, by their number: Mllama's text before them attends
        to every picture state of a batch, padding included.
        """
        parts: dict[int, list[Placed]] = {}
        for reply in replies:
            pictures = len(reply[1].pictures) if self.encoder.family.layout.place == "first" else 0
            parts.setdefault(pictures, []).append(reply)
        return parts

    def _replies(
        self, groups: Sequence[Group], name: TurnName, seen: Sequence[dict[str, EncodedImage]]
    ) -> list[Placed]:
        out: list[Placed] = []
        place = 0
        for group, pictures in zip(groups, seen, strict=True):
            chats: dict[int, Chat] = {}
            for chain in group.chains:
                if reply := chain.replies.get(name):
                    key = id(reply.turns)
                    if key not in chats:
                        chats[key] = self.encoder.chat(reply.turns, sample=group.sample.id, seen=pictures)
                        check_length(len(chats[key].ids) + len(reply.ids), self.max_tokens, group.sample.id)
                    out.append((place, chats[key], torch.tensor(reply.ids)))
                place += 1
        return out

    def _batch(self, replies: Sequence[Placed], total: int) -> dict[str, Any]:
        rows = self._rows(replies)
        branches = max(len(row) for row in rows)
        nothing = torch.zeros(0, dtype=torch.long)
        batch = stack(
            self.encoder.family,
            [(row[0][1], tuple([ids for *_, ids in row] + [nothing] * (branches - len(row)))) for row in rows],
        )
        where = torch.zeros(total, dtype=torch.long)
        taken = torch.zeros(total, batch["completions"].shape[-1], dtype=torch.long)
        mask = trl_order(batch["completion_mask"])
        for r, row in enumerate(rows):
            for branch, (place, *_) in enumerate(row):
                where[place] = branch * len(rows) + r
                taken[place] = mask[where[place]]
        return {**batch, "where": where, "taken": taken}

    def _rows(self, replies: Sequence[Placed]) -> list[list[Placed]]:
        longest = max(len(chat.ids) for _, chat, _ in replies) + max(len(ids) for *_, ids in replies)
        if not self.shared or (self.window is not None and longest > self.window):
            return [[reply] for reply in replies]
        rows: dict[tuple[int | str, ...], list[Placed]] = {}
        for reply in replies:
            rows.setdefault(reply[1].signature, []).append(reply)
        return list(rows.values())


def of_chains(values: Tensor, turn: Mapping[str, Any]) -> Tensor:
    """Per-token values of a turn's completions [n R, C], in TRL's order, as the chains' [N, C]; 0 where there is no token."""
    return values[turn["where"]].masked_fill(~turn["taken"].bool(), 0.0)


def compact_inputs(
    turns: Mapping[TurnName, Mapping[str, Any]], advantages: Mapping[TurnName, Tensor]
) -> dict[str, Tensor]:
    """What TRL reads: one dummy prompt token, completions, mask and advantages [N, W]. advantages: of each turn [N]."""
    parts = list(turns.values())
    ids = torch.cat([of_chains(trl_order(turn["completions"]).double(), turn) for turn in parts], dim=1).long()
    mask = torch.cat([turn["taken"] for turn in parts], dim=1)
    spread = [
        advantages[key.partition("/")[0]][:, None].expand(-1, turn["taken"].shape[1]) for key, turn in turns.items()
    ]
    return {
        "prompt_ids": torch.zeros(len(ids), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(ids), 1, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.cat(spread, dim=1),
    }


def trained_tokens(turns: Mapping[TurnName, Mapping[str, Any]]) -> int:
    """Tokens that a forward pass of the batch runs over, without padding."""
    return int(sum(turn["prompt_mask"].sum() + turn["taken"].sum() for turn in turns.values()))
