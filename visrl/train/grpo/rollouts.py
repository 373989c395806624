"""Groups of chains: the policy in training looks and answers k times per question, by evaluation's own steps (rollout/steps.py;
several looks: rollout/several_looks.py).

The first turns of a question come from one prefill. A chain whose box cannot be read goes on from the whole picture, or is
told why, as evaluation has it. Randomness hangs on (seed, question, ``stream``, place in the group, turn) and on nothing else; a
trainer's stream is its step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from visrl.core.boxes import Box
from visrl.core.crops import CropName, whole
from visrl.core.final_answer import final_answer
from visrl.core.looking.calls import Fault, FaultKind
from visrl.core.prompts import Protocol, answer_turns
from visrl.core.types import CoTSample, Picture, Step, Turn, Unparsed
from visrl.errors import UsageError
from visrl.policies.protocol import Output, Policy, Request, Sampling, StepName, Tokens
from visrl.rollout.config import RolloutConfig
from visrl.rollout.dialogue import Dialogue, shown_crop
from visrl.rollout.retry import ask, total
from visrl.rollout.several_looks import dialogue_of, take, until_read
from visrl.rollout.steps import ask_where, crop_picture, parse_box, region_of
from visrl.train.common.conversations import Opened, box_prompt, opened
from visrl.train.data.candidates import Candidate

TurnName = str
"""``box`` (the one look; of a referring expression what says its box), ``look1``, ``look2`` … (of several), ``answer``."""


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How chains are drawn. sampling: ``n`` is k, the chains of a group. crop: of the paper's protocols; one of several looks
    says itself what comes back.
    """

    protocol: Protocol
    sampling: Sampling
    crop: CropName = "tight"

    @property
    def turns(self) -> tuple[TurnName, ...]:
        """All that a chain may have, in order."""
        rules = self.protocol.several
        looks = 0 if rules is None else rules.limits.looks
        return (*(f"look{k}" for k in range(1, looks + 1)), "box", "answer")


@dataclass(frozen=True, slots=True)
class Reply:
    """One turn of a chain: the conversation that asked, and the tokens sampled, with the one that ended them."""

    turns: tuple[Turn, ...]
    ids: tuple[int, ...]


@dataclass(slots=True)
class Chain:
    """One way of answering. unparsed: why its box could not be read. crop: the second picture, where it was shown one.

    looks: under a protocol of several looks each of its looks, as a chain whose only turn is ``box`` and which knows what was
    answered in the end; the chain itself then has a box only where that is the answer.
    """

    candidate: Candidate
    unparsed: str = ""
    crop: Picture | None = None
    replies: dict[TurnName, Reply] = field(default_factory=dict)
    looks: list[Chain] = field(default_factory=list)

    @property
    def unread(self) -> float:
        """The share of its boxes that could not be read."""
        boxes = [one for one in (*self.looks, self) if "box" in one.replies]
        return sum(bool(one.unparsed) for one in boxes) / max(1, len(boxes))

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

    def at_look(self, look: int) -> Group:
        """The chains that took look number ``look``, from 0, with the true box of that look: what rewards see."""
        sample = self.sample
        if sample.boxes:
            sample = replace(sample, box=sample.boxes[min(look, len(sample.boxes) - 1)])
        chains = [chain.looks[look] for chain in self.chains if look < len(chain.looks)]
        return Group(replace(self.item, sample=sample), chains, None)


def draw_groups(policy: Policy, samples: Sequence[CoTSample], plan: RolloutPlan, stream: str) -> list[Group]:
    """A group of ``plan.sampling.n`` chains per sample, in order.

    Raises UsageError naming the sample whose picture does not open, or that the policy failed on.
    """
    groups = [
        Group(opened(s, plan.protocol.name), [Chain(Candidate(attempt=i)) for i in range(plan.sampling.n)])
        for s in samples
    ]
    if plan.protocol.several is not None:
        _look_and_answer(groups, policy, plan, stream)
        return groups
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


# --- several looks


@dataclass(slots=True)
class _Held:
    """A chain with the conversation that it is held in."""

    chain: Chain
    dialogue: Dialogue


def _look_and_answer(groups: Sequence[Group], policy: Policy, plan: RolloutPlan, stream: str) -> None:
    """Turn by turn, to the end of every conversation. The first turn is one request per group: its chains part only then."""
    sampling = replace(plan.sampling, n=1)
    assert plan.protocol.several is not None, "draw_groups() asks"
    config = RolloutConfig(plan.protocol, crop=plan.protocol.several.shown.crop, sampling=sampling)
    asked = [(g, [_Held(chain, _begun(policy, g, config)) for chain in g.chains]) for g in groups]
    turn = 1
    while asked:
        for tokens in sorted({held[0].dialogue.unused(sampling.max_tokens) for _, held in asked}):
            alike = [(g, held) for g, held in asked if held[0].dialogue.unused(sampling.max_tokens) == tokens]
            texts = _next_turns(alike, policy, replace(sampling, max_tokens=tokens), stream, turn)
            for held, text, reply in texts:
                take(policy, held.dialogue, Step("", text), config)
                _note(held.chain, held.dialogue, text, reply)
        asked = [(g, [one]) for g, held in asked for one in held if one.dialogue.open]
        turn += 1


def _begun(policy: Policy, group: Group, config: RolloutConfig) -> Dialogue:
    dialogue = dialogue_of(policy, group.sample, group.item.picture, group.item.size, config)
    if dialogue.error is not None:
        raise UsageError(f"sample {dialogue.sample.id}: {dialogue.error}", "remove the row")
    return dialogue


def _next_turns(
    asked: Sequence[tuple[Group, list[_Held]]], policy: Policy, sampling: Sampling, stream: str, turn: int
) -> Iterator[tuple[_Held, str, Reply]]:
    """What conversations that may write equally much say next; chains that stand together have said nothing yet."""
    rules, prompts = asked[0][1][0].dialogue.rules, [tuple(held[0].dialogue.turns) for _, held in asked]
    sampling = replace(until_read(policy.box_format, rules, sampling), n=len(asked[0][1]))
    requests = [
        _request(g, "look", turns, stream if turn == 1 else f"{stream}:{held[0].chain.candidate.attempt}:{turn}")
        for (g, held), turns in zip(asked, prompts, strict=True)
    ]
    outputs = ask(policy, requests, sampling)
    for (group, held), turns, output in zip(asked, prompts, outputs, strict=True):
        for one, text, ids in zip(held, *_sampled(group, output), strict=True):
            one.dialogue.spent += len(ids)
            yield one, text, Reply(turns, ids)


def _note(chain: Chain, dialogue: Dialogue, text: str, reply: Reply) -> None:
    """What a turn was: one more look, or the end."""
    if dialogue.answer is None:
        look, view = dialogue.looks[-1], dialogue.views[-1]
        box = Candidate(look.box, text, attempt=chain.candidate.attempt)
        if look.fault:
            chain.looks.append(Chain(box, Fault(cast("FaultKind", look.fault)).text, None, {"box": reply}))
        else:
            chain.looks.append(Chain(box, "", shown_crop(dialogue.picture, view.region, view.size), {"box": reply}))
        chain.replies[f"look{len(chain.looks)}"] = reply
        return
    if dialogue.sample.kind == "rec":
        chain.replies["box"] = reply
        chain.candidate.box_text = text
        if isinstance(dialogue.box, Box):
            chain.candidate.box = dialogue.box
        elif dialogue.box is not None:
            chain.unparsed = dialogue.box.reason
        return
    chain.replies["answer"] = reply
    found = final_answer(text)
    answer = text if isinstance(found, Unparsed) else found
    for one in (chain, *chain.looks):
        one.candidate.answer = answer
