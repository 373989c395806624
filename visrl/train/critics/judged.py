"""What critics are asked and what they say: the types that critics and those who ask them share (critics.py: the critics)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Picture, Score
from visrl.evals.judge import JudgeItem, make_judge
from visrl.policies.protocol import Tokens

Inner = Literal["best", "own"]
"""How a look before the last is scored: by the best of the look and of all that followed, or by its own crop."""
DECIMALS = 6
"""Of a likelihood's score: what another batch rounds differently in the last bits is the same score."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a critic is asked. key: the sample's id. One of ``crop`` (with its ``box``, pixels) and ``answer`` is given.

    sampled: beside a crop, what the policy answered to this question, chain by chain.
    """

    sample: CoTSample
    picture: Picture
    crop: Picture | None = None
    box: Box | None = None
    answer: str = ""
    sampled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judged:
    """A score (its value None: the reply could not be read), or ``error``: the request failed and may succeed again."""

    score: Score | None = None
    error: str = ""
    tokens: Tokens | None = None


class Critic(Protocol):
    """name: as manifests print it. needs_pictures: False where it reads no pixels."""

    @property
    def name(self) -> str: ...
    @property
    def needs_pictures(self) -> bool: ...

    def boxes(self, questions: Sequence[Question]) -> list[Judged]:
        """s^b of each question's crop, in order."""
        ...

    def answers(self, questions: Sequence[Question]) -> list[Judged]:
        """s^r of each question's answer, in order."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """For the manifest: kind, prompts' version, the model; JSON values."""
        ...


def agreement(questions: Sequence[Question], judge: str) -> list[Judged]:
    """s^r by an offline judge of the evaluation: reward is metric."""
    items = [JudgeItem(q.sample.id, q.sample.question, q.sample.answers, q.answer) for q in questions]
    return [Judged(score, tokens=Tokens()) for score in make_judge(judge).judge_many(items)]


def without_repeats(questions: Sequence[Question]) -> tuple[list[Question], list[int]]:
    """The different ones of several questions, and which of them each is. Equal crops, or equal answers, of one sample."""
    found: dict[tuple[str, str, str], int] = {}
    for q in questions:
        found.setdefault(_identity(q), len(found))
    firsts: dict[int, Question] = {}
    for q in questions:
        firsts.setdefault(found[_identity(q)], q)
    return [firsts[i] for i in range(len(found))], [found[_identity(q)] for q in questions]


def _identity(question: Question) -> tuple[str, str, str]:
    return question.sample.id, "" if question.crop is None else question.crop.ref, question.answer
