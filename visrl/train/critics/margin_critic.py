"""``margin``: the standard answer's log-likelihood, given the crop alone, against the best of the other answers (rivals.py).

m = log p(standard) - max over rivals of log p(rival), in nats; each with the end of the reply, as the critic ``likelihood`` asks.
s^b = σ(slope · m + offset) (calibration.py); uncalibrated σ(m), which for a question of two answers is p(standard) / (p(standard)
+ p(rival)). Where an open question has no rival, all else that might be said is: m = log p - log(1 - p), σ(m) = p, the
likelihood; such scores say so, and manifests count them. With ``open_answers: likelihood`` every open question is scored so,
whatever the calibration: its answer is seldom likely by chance. s^r is as of ``likelihood``: no model is asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from visrl.core.prompts import PROTOCOLS, answer_turns
from visrl.core.types import Score
from visrl.policies.protocol import LogLikelihood, Policy, Request, Tokens
from visrl.rollout.retry import total
from visrl.train.critics.calibration import Calibration
from visrl.train.critics.judged import DECIMALS, Judged, Question, agreement
from visrl.train.critics.rivals import AnswerKind, Rivals, rivals_of

OpenAnswers = Literal["policy", "likelihood"]
NO_RIVAL = "no other answer"
"""Reason of a score that is the likelihood's."""
_CERTAIN = -1e-12  # log p of an answer that is as good as certain: nothing is left for others


@dataclass(frozen=True, slots=True)
class Margin:
    """value: nats. alone: without a rival. error: why there is none; the request may succeed again."""

    kind: AnswerKind
    value: float = 0.0
    alone: bool = False
    error: str = ""
    tokens: Tokens | None = None


@dataclass(frozen=True, slots=True)
class MarginCritic:
    """A model that reads crops, asked for every answer that a question admits. calibrated_by: for the manifest, what
    ``calibration`` was fitted on. open_answers: what open questions are held against, the policy's wrong answers or all else.
    """

    policy: Policy
    judge: str = "exact"
    calibration: Calibration = Calibration()  # noqa: RUF009 - frozen
    calibrated_by: Mapping[str, Any] | None = None
    open_answers: OpenAnswers = "policy"

    @property
    def name(self) -> str:
        return f"margin:{self.policy.name}"

    @property
    def needs_pictures(self) -> bool:
        return self.policy.needs_pictures

    def boxes(self, questions: Sequence[Question]) -> list[Judged]:
        return [self._judged(margin) for margin in self.margins(questions)]

    def _judged(self, margin: Margin) -> Judged:
        if margin.error:
            return Judged(error=margin.error)
        likelihood = self.is_likelihood(margin.kind)
        calibration = Calibration() if likelihood else self.calibration
        score = round(calibration.score(margin.kind, margin.value), DECIMALS)
        return Judged(Score(score, NO_RIVAL if margin.alone and not likelihood else ""), tokens=margin.tokens)

    def is_likelihood(self, kind: AnswerKind) -> bool:
        """Whether such questions are scored as the critic ``likelihood`` scores them."""
        return kind == "open" and self.open_answers == "likelihood"

    def margins(self, questions: Sequence[Question]) -> list[Margin]:
        """Of each question's crop, in order; all answers of all questions are one call."""
        said_before = [q.sampled if self.open_answers == "policy" else () for q in questions]
        rivals = [rivals_of(q.sample, s, self.judge) for q, s in zip(questions, said_before, strict=True)]
        texts = [(q.sample.answers[0], *found.texts) for q, found in zip(questions, rivals, strict=True)]
        asked = [(_request(q), text) for q, several in zip(questions, texts, strict=True) for text in several]
        said = iter(self.policy.loglikelihood([request for request, _ in asked], [text for _, text in asked]))
        return [_margin(found, [next(said) for _ in several]) for found, several in zip(rivals, texts, strict=True)]

    def answers(self, questions: Sequence[Question]) -> list[Judged]:
        return agreement(questions, self.judge)

    def describe(self) -> Mapping[str, Any]:
        fitted = {**self.calibration.to_json(), **(self.calibrated_by or {})}
        about = {"model": self.policy.name, "model_info": dict(self.policy.describe())}
        return {
            "kind": "margin",
            "judge": self.judge,
            "open_answers": self.open_answers,
            "calibration": fitted,
            **about,
        }


def _request(question: Question) -> Request:
    sample, crop = question.sample, question.crop or question.picture
    return Request(sample.id, "answer", answer_turns(PROTOCOLS["direct"], sample, crop, None, ""), sample.size)


def _margin(rivals: Rivals, said: Sequence[LogLikelihood]) -> Margin:
    """said: of the standard answer, then of each rival."""
    if error := next((one.error for one in said if one.error), ""):
        return Margin(rivals.kind, error=error)
    standard, *others = (min(one.value, 0.0) for one in said)
    ours = min(standard, _CERTAIN)
    rest = max(others) if others else math.log(-math.expm1(ours))
    return Margin(
        rivals.kind, (standard if others else ours) - rest, not others, tokens=total(one.tokens for one in said)
    )
