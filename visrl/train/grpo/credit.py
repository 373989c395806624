"""Which rewards a turn's tokens are credited with: its own or its chain's, under one look or several.

Under one look box tokens are credited with the box rewards, answer tokens with the answer rewards. Under several, each look is
rewarded as a box of its own, and compared with the same look (the first, the second, …) of the group's other chains: one that
did not take it is in no mean. Whether to look again or to answer is part of the turn that decides, and has no reward of its own.

The box critic's score of a look is, with ``inner: best``, the highest of the look and of all that followed it, as in the choice
of pairs of several looks: what is too small to read in the first crop may be read in the second. A call that could not be
carried out is worth 0 whatever followed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from visrl.train.critics.judged import Inner
from visrl.train.grpo.advantages import Baseline, Credit, weighted
from visrl.train.grpo.rewards import RewardTools, reward_named
from visrl.train.grpo.rollouts import Group, TurnName

TurnValues = Mapping[TurnName, Mapping[str, Tensor]]
"""turn -> reward -> [G, k], NaN where a chain is not scored. Those of ``box`` and ``answer`` are of the chain as a whole."""


@dataclass(frozen=True, slots=True)
class RewardPlan:
    """Which rewards, with which weights, make whose advantage.

    credit: ``step``: box tokens have the advantage of the box rewards, answer tokens that of the answer rewards; ``chain``:
    all tokens that of all rewards together, a box reward of several looks being their mean.
    """

    box: Mapping[str, float]
    answer: Mapping[str, float]
    credit: Credit = "step"
    baseline: Baseline = "mean_std"
    tools: RewardTools = RewardTools()  # noqa: RUF009 - frozen
    inner: Inner = "best"

    @property
    def names(self) -> list[str]:
        return list({**self.box, **self.answer})

    def total(self, turn: TurnName, values: TurnValues) -> Tensor | None:
        """[G, k]: the weighted sum that a turn's tokens are credited with; None where nothing is rewarded."""
        if self.credit == "chain":
            weights = {name: self.box.get(name, 0.0) + self.answer.get(name, 0.0) for name in self.names}
            return weighted({name: self.of_chain(name, values) for name in weights}, weights)
        weights = dict(self.answer if turn == "answer" else self.box)
        return weighted({name: values[turn][name] for name in weights}, weights) if weights else None

    def of_chain(self, name: str, values: TurnValues) -> Tensor:
        """[G, k]: a reward of whole chains; of one that looks alone are rewarded with, its mean over them."""
        scored = [by_name[name] for turn, by_name in values.items() if turn != "answer" and name in by_name]
        return values["answer"][name] if name in self.answer else torch.stack(scored).nanmean(0)


def turn_values(groups: Sequence[Group], plan: RewardPlan, turns: Sequence[TurnName], tools: RewardTools) -> TurnValues:
    """The rewards of all turns. tools: the plan's, with a critic that may be counted."""
    whole = {name: _tensor(reward_named(name)(groups, tools)) for name in plan.names}
    looks = [turn for turn in turns if turn not in ("box", "answer")]
    found = {turn: _of_look(groups, number, plan, tools) for number, turn in enumerate(looks)}
    if plan.inner == "best" and "box_critic" in plan.box:
        for number, (turn, following) in reversed(list(enumerate(pairwise(looks)))):
            own, later = found[turn]["box_critic"], found[following]["box_critic"]
            found[turn]["box_critic"] = torch.where(_readable(groups, number), torch.fmax(own, later), own)
    return {**found, "box": whole, "answer": whole}


def taken(groups: Sequence[Group], turn: TurnName) -> Tensor:
    """[G, k]: whether a chain had this turn."""
    return torch.tensor([[turn in chain.replies for chain in group.chains] for group in groups])


def _of_look(groups: Sequence[Group], number: int, plan: RewardPlan, tools: RewardTools) -> dict[str, Tensor]:
    """reward -> [G, k] of look ``number``, from 0."""
    there = torch.tensor([[len(chain.looks) > number for chain in group.chains] for group in groups])
    seen = [found for group in groups if (found := group.at_look(number)).chains]
    values = {}
    for name in plan.box:
        values[name] = torch.full(there.shape, torch.nan)
        scored = [one for row in (reward_named(name)(seen, tools) if seen else []) for one in row]
        values[name][there] = torch.tensor([torch.nan if value is None else float(value) for value in scored])
    return values


def _readable(groups: Sequence[Group], number: int) -> Tensor:
    """[G, k]: whether a chain took look ``number`` and could be shown something."""
    return torch.tensor(
        [[len(c.looks) > number and c.looks[number].crop is not None for c in g.chains] for g in groups]
    )


def _tensor(values: Sequence[Sequence[float | None]]) -> Tensor:
    return torch.tensor([[torch.nan if v is None else v for v in row] for row in values])
