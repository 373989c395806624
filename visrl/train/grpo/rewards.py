"""Rewards by name: the functions that evaluation scores with, of the critics, or a third party's.

``iou``, ``acc@0.5``   of the box with the true one (evals/scorers/rec.py: strictly above 0.5); questions without a box: none
``box_critic``         s^b: whether the crop holds what the question asks for (visrl/train/critics/critics.py); no true box
``answer_critic``      s^r, likewise of the answer
``answer``             whether the answer agrees with the standard answers, by an offline judge of the evaluation
``format``             1 where the box could be read and an answer was given, else 0
``length``             1 - tokens sampled / tokens allowed: what is said shortly is worth more

A box that could not be read is wrong, 0, and no critic is asked about it. What cannot be scored is None, never 0: the chain
then has no advantage. Under a protocol of several looks box rewards see groups of looks, one look number at a time (credit.py).
Third parties' rewards are entry points of the group ``visrl.rewards``: a callable with the signature of :data:`Reward`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visrl.core.boxes import iou
from visrl.core.plugins import Registry
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.evals.judge import JudgeItem, make_judge
from visrl.rollout.retry import total
from visrl.train.critics.critics import check_offline
from visrl.train.critics.judged import Critic, Judged, Question, without_repeats
from visrl.train.grpo.rollouts import Chain, Group

Values = list[list[float | None]]
"""Per group, per chain."""


@dataclass(frozen=True, slots=True)
class RewardTools:
    """What rewards work with. critic: M_org, where one is asked. judge: an offline rule's name. max_tokens: of one turn."""

    critic: Critic | None = None
    judge: str = "exact"
    max_tokens: int = 128


Reward = Callable[[Sequence[Group], RewardTools], Values]


class CountedCritic:
    """A critic that remembers how many model tokens its verdicts took; None once one of them does not say."""

    def __init__(self, critic: Critic) -> None:
        self.critic = critic
        self.tokens: int | None = 0
        self.name, self.needs_pictures = critic.name, critic.needs_pictures

    def boxes(self, questions: Sequence[Question]) -> list[Judged]:
        return self._counted(self.critic.boxes(questions))

    def answers(self, questions: Sequence[Question]) -> list[Judged]:
        return self._counted(self.critic.answers(questions))

    def describe(self) -> Mapping[str, Any]:
        return self.critic.describe()

    def _counted(self, judged: list[Judged]) -> list[Judged]:
        said = total(one.tokens for one in judged if not one.error)
        self.tokens = None if said is None or self.tokens is None else self.tokens + said.computed
        return judged


def reward_named(name: str) -> Reward:
    """Ours, or an entry point's. Raises UsageError naming the nearest for one that is unknown."""
    return REWARDS.named(name)


def check_rewards(weights: Mapping[str, float], critic: bool, judge: str) -> None:
    """Before anything is loaded. Raises UsageError for an unknown name or judge, and for a critic's reward without a critic."""
    for name in weights:
        reward_named(name)
        if name in ("box_critic", "answer_critic") and not critic:
            raise UsageError(f"the reward {name} needs a critic", "add the section critic, with kind and model")
    check_offline(judge, "grpo.judge")


def check_scored(weights: Mapping[str, float], questions: Sequence[CoTSample], looks: bool) -> None:
    """Before a model is loaded. Raises UsageError for a reward with a weight that no question can have: nothing would be learned
    from it. looks: whether the protocol does, or may.
    """
    for name, weight in weights.items():
        can, lacks = _NEEDS.get(name, (None, ""))
        if weight and can is not None and not any(can(question, looks) for question in questions):
            raise UsageError(
                f"none of the {len(questions):,} questions can have the reward {name}: {lacks}",
                "name other rewards in grpo.box and grpo.answer (docs/training-grpo.md), or other questions in data",
            )


def _has_box(question: CoTSample, looks: bool) -> bool:
    return (question.box is not None or bool(question.boxes)) and _says_box(question, looks)


def _says_box(question: CoTSample, looks: bool) -> bool:
    return looks or question.kind == "rec"


def _has_answer(question: CoTSample, looks: bool) -> bool:
    return question.kind == "qa" and bool(question.answers)


_NEEDS: Mapping[str, tuple[Callable[[CoTSample, bool], bool], str]] = {
    **dict.fromkeys(("iou", "acc@0.5"), (_has_box, "it needs a true box (`box`), and a protocol that asks for one")),
    "box_critic": (_says_box, "it needs a protocol that asks for a box"),
    **dict.fromkeys(("answer", "answer_critic"), (_has_answer, "it needs standard answers (`answers`)")),
}


def each(value: Callable[[Group, Chain], float | None]) -> Reward:
    """A reward that looks at one chain at a time."""

    def reward(groups: Sequence[Group], tools: RewardTools) -> Values:
        return [[value(group, chain) for chain in group.chains] for group in groups]

    return reward


def _iou(group: Group, chain: Chain) -> float | None:
    if group.sample.box is None or "box" not in chain.replies:
        return None
    return 0.0 if chain.candidate.box is None else iou(chain.candidate.box, group.sample.box)


def _accuracy(group: Group, chain: Chain) -> float | None:
    overlap = _iou(group, chain)
    return None if overlap is None else float(overlap > 0.5)


def _format(group: Group, chain: Chain) -> float:
    said = "answer" not in chain.replies or bool(chain.candidate.answer.strip())
    return float(said and not chain.unparsed)


def _length(groups: Sequence[Group], tools: RewardTools) -> Values:
    return [[1.0 - c.length / (len(c.replies) * tools.max_tokens) for c in group.chains] for group in groups]


def _answer(groups: Sequence[Group], tools: RewardTools) -> Values:
    judge = make_judge(tools.judge)

    def judged(group: Group) -> list[float | None]:
        sample = group.sample
        if sample.kind != "qa" or not sample.answers:
            return [None] * len(group.chains)
        items = [JudgeItem(sample.id, sample.question, sample.answers, c.candidate.answer) for c in group.chains]
        return [score.value for score in judge.judge_many(items)]

    return [judged(group) for group in groups]


def _box_critic(groups: Sequence[Group], tools: RewardTools) -> Values:
    assert tools.critic is not None, "check_rewards() refuses this"

    def question(group: Group, chain: Chain) -> Question | float | None:
        if chain.candidate.box is None:
            return 0.0 if chain.unparsed else None
        if chain.crop is None:
            return None
        said = tuple(c.candidate.answer for c in group.chains)
        return Question(group.sample, group.item.picture, chain.crop, chain.candidate.box, sampled=said)

    return _judged(groups, question, tools.critic.boxes)


def _answer_critic(groups: Sequence[Group], tools: RewardTools) -> Values:
    assert tools.critic is not None, "check_rewards() refuses this"

    def question(group: Group, chain: Chain) -> Question | float | None:
        return (
            Question(group.sample, group.item.picture, answer=chain.candidate.answer)
            if "answer" in chain.replies and group.sample.answers
            else None
        )

    return _judged(groups, question, tools.critic.answers)


def _judged(
    groups: Sequence[Group],
    question: Callable[[Group, Chain], Question | float | None],
    judge: Callable[[Sequence[Question]], list[Judged]],
) -> Values:
    """Each different question put to the critic once; what needs no critic has its value already."""
    asked = [question(group, chain) for group in groups for chain in group.chains]
    different, which = without_repeats([q for q in asked if isinstance(q, Question)])
    verdicts = judge(different)
    said = iter(which)
    values = iter([_value(verdicts[next(said)]) if isinstance(q, Question) else q for q in asked])
    return [[next(values) for _ in group.chains] for group in groups]


def _value(verdict: Judged) -> float | None:
    return None if verdict.error or verdict.score is None else verdict.score.value


def _third_party(name: str, found: Any) -> Reward:
    if not callable(found):
        raise ValueError(f"not a function of (groups, tools) but a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


REWARDS: Registry[Reward] = Registry(
    "reward",
    {
        "iou": each(_iou),
        "acc@0.5": each(_accuracy),
        "box_critic": _box_critic,
        "answer_critic": _answer_critic,
        "answer": _answer,
        "format": each(_format),
        "length": _length,
    },
    _third_party,
)
