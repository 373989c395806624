"""Groups of chains: the policy in training looks and answers k times per question, by evaluation's own steps (rollout/steps.py).

All boxes of a question come from one prefill. A chain whose box cannot be read goes on from the whole picture, as evaluation
has it. Randomness hangs on (seed, question, ``stream``, place in the group) and on nothing else; a trainer's stream is its step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from visrl.core.boxes import Box
from visrl.core.crops import CropName, whole
from visrl.core.prompts import Protocol, answer_turns
from visrl.core.types import CoTSample, Picture, Turn
from visrl.errors import UsageError
from visrl.policies.protocol import Output, Policy, Request, Sampling, StepName, Tokens
from visrl.rollout.retry import ask, total
from visrl.rollout.steps import ask_where, crop_picture, parse_box, region_of
from visrl.train.common.conversations import Opened, box_prompt, opened
from visrl.train.data.candidates import Candidate

STEPS: tuple[StepName, ...] = ("box", "answer")


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How chains are drawn. sampling: ``n`` is k, the chains of a group."""

    protocol: Protocol
    sampling: Sampling
    crop: CropName = "tight"


@dataclass(frozen=True, slots=True)
class Reply:
    """One turn of a chain: the conversation that asked, and the tokens sampled, with the one that ended them."""

    turns: tuple[Turn, ...]
    ids: tuple[int, ...]


@dataclass(slots=True)
class Chain:
    """One way of answering. unparsed: why its box could not be read. crop: the second picture, where it was shown one."""

    candidate: Candidate
    unparsed: str = ""
    crop: Picture | None = None
    replies: dict[StepName, Reply] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens sampled, of all turns."""
        return sum(len(reply.ids) for reply in self.replies.values())


@dataclass(slots=True)
class Group:
    """A question with its k chains. tokens: what the policy computed for them; None where it does not count."""

    item: Opened
    chains: list[Chain]
    tokens: Tokens | None = field(default_factory=Tokens)

    @property
    def sample(self) -> CoTSample:
        return self.item.sample


def draw_groups(policy: Policy, samples: Sequence[CoTSample], plan: RolloutPlan, stream: str) -> list[Group]:
    """A group of ``plan.sampling.n`` chains per sample, in order.

    Raises UsageError naming the sample whose picture does not open, or that the policy failed on.
    """
    groups = [
        Group(opened(s, plan.protocol.name), [Chain(Candidate(attempt=i)) for i in range(plan.sampling.n)])
        for s in samples
    ]
    _look([g for g in groups if plan.protocol.looks or g.sample.kind == "rec"], policy, plan, stream)
    _answer([g for g in groups if g.sample.kind == "qa"], policy, plan, stream)
    return groups


def _look(groups: Sequence[Group], policy: Policy, plan: RolloutPlan, stream: str) -> None:
    prompts = [box_prompt(group.item) for group in groups]
    requests = [_request(g, "box", turns, stream) for g, turns in zip(groups, prompts, strict=True)]
    for group, turns, output in zip(groups, prompts, ask_where(policy, requests, plan.sampling), strict=True):
        for chain, text, ids in zip(group.chains, *_sampled(group, output), strict=True):
            box = parse_box(policy.box_format, text, group.item.size)
            chain.candidate.box_text = text
            chain.replies["box"] = Reply(turns, ids)
            if isinstance(box, Box):
                chain.candidate.box = box
            else:
                chain.unparsed = box.reason
            if plan.protocol.looks:
                chain.crop = _crop(group, chain, plan.crop)


def _crop(group: Group, chain: Chain, crop: CropName) -> Picture:
    box = chain.candidate.box or whole(group.item.size)
    return crop_picture(group.item.picture, region_of(box, group.item.size, crop))


def _answer(groups: Sequence[Group], policy: Policy, plan: RolloutPlan, stream: str) -> None:
    asked = [(group, chain, _answer_prompt(group, chain, plan.protocol)) for group in groups for chain in group.chains]
    requests = [_request(g, "answer", turns, f"{stream}:{c.candidate.attempt}") for g, c, turns in asked]
    sampling = Sampling(
        1, plan.sampling.temperature, plan.sampling.top_p, plan.sampling.top_k, plan.sampling.max_tokens,
        plan.sampling.seed,
    )  # fmt: skip
    for (group, chain, turns), output in zip(asked, ask(policy, requests, sampling), strict=True):
        (text,), (ids,) = _sampled(group, output)
        chain.candidate.answer = text
        chain.replies["answer"] = Reply(turns, ids)


def _answer_prompt(group: Group, chain: Chain, protocol: Protocol) -> tuple[Turn, ...]:
    return answer_turns(protocol, group.sample, group.item.picture, chain.crop, chain.candidate.box_text or "")


def _request(group: Group, step: StepName, turns: tuple[Turn, ...], stream: str) -> Request:
    return Request(group.sample.id, step, turns, group.item.size, stream)


def _sampled(group: Group, output: Output) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Texts and token ids of an output; its tokens are counted. Raises UsageError where there are none."""
    if output.error is not None:
        raise UsageError(
            f"sample {group.sample.id}: {output.error}", "remove the row, or see why the model fails on it"
        )
    if output.token_ids is None:
        raise UsageError(
            "this policy does not report the tokens it sampled", "policy gradients need a model in this process"
        )
    group.tokens = total([group.tokens, Tokens.of(output)])
    return output.texts, output.token_ids
