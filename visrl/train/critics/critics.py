"""Who scores a box and an answer, each 0..1 (docs/method.md d5). True boxes are never used, but by the oracle.

``score``       M_org is asked, at temperature 0, for ``{"score": x}``: s^b from the crop alone, s^r from the whole picture
``likelihood``  for models too small to judge in words: s^b is the probability that the critic, shown the crop alone, gives
                the standard answer (and ends there); s^r is whether the answer says the same as the standard answer
``margin``      for answers that are likely given any crop, as yes and no are: s^b is by how much the standard answer is likelier
                than the other answers the question admits, calibrated where the recipe says so (margin_critic.py); s^r likewise
``oracle``      s^b is the IoU with the true box; for analysis only

A reply is read strictly, then leniently; what cannot be read is a missing score, counted, never 0. A request that *failed*
is no score either: its question is tried again, so that a bad network changes no pair.

Departures: 1. the prompts are written anew from the key texts of d5, not quoted, and put what changes (the answer) last.
2. scores are cut to [0, 1]; the official code does not look. 3. an answer (or crop) that occurs twice is asked about once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from visrl.core.box_formats import unfenced
from visrl.core.boxes import iou
from visrl.core.plugins import Registry
from visrl.core.prompts import PROTOCOLS, answer_turns
from visrl.core.types import Picture, Score, Turn
from visrl.errors import UsageError
from visrl.evals.judge import make_judge
from visrl.policies.protocol import Policy, Request, Sampling, Tokens
from visrl.policies.registry import fitting, load_policy
from visrl.rollout.retry import ask
from visrl.train.config.section import Section
from visrl.train.critics.calibration import Calibration, Target
from visrl.train.critics.judged import DECIMALS, Critic, Judged, Question, agreement, without_repeats
from visrl.train.critics.margin_critic import MarginCritic, OpenAnswers
from visrl.train.data.questions import QuestionSection

__all__ = ["CRITICS", "Critic", "CriticSection", "Judged", "Question", "load_critic", "make_critic", "without_repeats"]

PROMPTS_VERSION = "critics/v1"  # a byte changed below needs a new version
P_ANSWER_CRITIC = (
    "\nYou proofread answers. Score the given answer by referring to the standard answer, based on the question and the image:"
    " 1 is the full score, 0 the lowest, and the closer the given answer is to the standard answer, the higher the score."
    ' Directly provide the score in JSON format, for example, {{"score": 0.8}}, without showing the intermediate process.'
    "\nquestion: {question}\nstandard answer: {standard}\ngiven answer: {answer}"
)
P_BOX_CRITIC = (
    "\nYou verify whether an image is relevant. The score is higher if the image effectively encompasses the information that"
    " the standard answer provides to the question: 1 is the full score, 0 the lowest."
    ' Directly provide the score in JSON format, for example, {{"score": 0.8}}, without showing the intermediate process.'
    "\nquestion: {question}\nstandard answer: {standard}"
)
CRITIC_MAX_TOKENS = 64  # {"score": 0.8} in a fence, and a few words from those who do not obey


def _as_texts(args: Any) -> Any:
    """YAML's numbers, booleans, lists and mappings as ``--model-args`` would have them; null takes an argument away."""
    if not isinstance(args, dict):
        return args
    return {k: json.dumps(v) if isinstance(v, bool | list | dict) else str(v) for k, v in args.items() if v is not None}


ModelArgs = Annotated[dict[str, str], BeforeValidator(_as_texts)]


def take_away_unfit(model: str, args: dict[str, str]) -> None:
    """Leave out, in place, the arguments of another kind of model: a recipe's for weights where ``--set`` names a server."""
    try:
        fits, _ = fitting(model, args)
    except UsageError:
        return  # said when the model is looked for
    for name in args.keys() - fits.keys():
        del args[name]


class CalibrationSection(Section):
    """What a margin critic's scores are fitted on: questions with true boxes that no phase trains on (calibration.py)."""

    target: Target = Field(
        default="answer",
        description="answer: a temperature, by how often the standard answer is the likelier one given the true crop; box: per"
        " kind of answer, by how often a box of the policy is right",
    )
    data: QuestionSection = Field(description="as the questions of pairs; of the small world, split: val")


class CriticSection(Section):
    """M_org. Name another model here to have it criticise instead: M_SFT, or a larger one (poster, table 4)."""

    kind: str = Field(default="score", description="score, likelihood, margin, oracle, or a third party's")
    model: str | None = Field(default=None, description="none for the oracle")
    args: ModelArgs = Field(default_factory=dict)
    name: str | None = Field(default=None, description="what records call it; default: as it is named here")
    judge: str = Field(
        default="exact", description="of likelihood, margin and oracle: which offline rule compares answers"
    )
    temperature: float | None = Field(default=None, gt=0, le=100, description="of margin: divides it; none: 1")
    open_answers: OpenAnswers | None = Field(
        default=None,
        description="of margin, where a question names no answers: held against the policy's own wrong ones (`policy`, where left"
        " out), or scored as `likelihood` scores them",
    )
    calibration: CalibrationSection | None = Field(
        default=None, description="of margin, in pairs: fits what turns it to scores"
    )

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in CRITICS:
            raise ValueError(f"unknown critic {kind!r}, there are {', '.join(CRITICS.names())}")
        return kind

    @model_validator(mode="after")
    def _of_margin(self) -> CriticSection:
        values = {"temperature": self.temperature, "calibration": self.calibration, "open_answers": self.open_answers}
        given = [name for name, value in values.items() if value is not None]
        if given and self.kind != "margin":
            raise ValueError(f"{given[0]} is of critic.kind margin, and this is {self.kind}")
        if {"temperature", "calibration"} <= set(given):
            raise ValueError("temperature and calibration: one of them; a calibration fits the temperature")
        return self

    @model_validator(mode="after")
    def _fitting(self) -> CriticSection:
        if self.model is not None:
            take_away_unfit(self.model, self.args)
            if self.model.startswith(("endpoint:", "openai:")):
                self.args.setdefault("box_format", "paper")  # a critic says no boxes
        return self


# --- reading a score

_NAMED = re.compile(r"[\"']?score[\"']?\s*[:=]\s*[\"']?(-?\d+(?:\.\d*)?|-?\.\d+)(?![\deE]|\.\d)", re.IGNORECASE)


def read_score(text: str) -> Score:
    """The score of a critic's reply: ``{"score": x}`` and nothing else; second, fenced, bare, or named once in other text.

    value None with a reason where there is none. reason "lenient" or "cut from …" where one was read with reservations.
    """
    value = _number(_json(text))
    lenient = value is None
    if value is None:
        value = _leniently(text)
    if value is None:
        return Score(None, f"no score in {text[:60]!r}" if text.strip() else "empty reply")
    if not 0.0 <= value <= 1.0:
        return Score(min(max(value, 0.0), 1.0), f"cut from {value:g}")
    return Score(value, "lenient" if lenient else "")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _number(value: Any) -> float | None:
    """The number under ``score``, if that is all there is."""
    if isinstance(value, dict) and list(value) == ["score"]:
        return _finite(value["score"])
    return None


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def _leniently(text: str) -> float | None:
    inner = _json(unfenced(text))
    found = _number(inner) if isinstance(inner, dict) else _finite(inner)  # the official code takes a bare number too
    named = _NAMED.findall(text)
    return float(named[0]) if found is None and len(named) == 1 else found


# --- the critics


@dataclass(frozen=True, slots=True)
class ScoreCritic:
    """A model that judges in words."""

    policy: Policy

    @property
    def name(self) -> str:
        return f"score:{self.policy.name}"

    @property
    def needs_pictures(self) -> bool:
        return self.policy.needs_pictures

    def boxes(self, questions: Sequence[Question]) -> list[Judged]:
        asked = [_request(q, (q.crop or q.picture, _wording(P_BOX_CRITIC, q)), first=False) for q in questions]
        return self._judged(asked)

    def answers(self, questions: Sequence[Question]) -> list[Judged]:
        """A question's first answer goes ahead and its cache is kept: all else of the question is shared."""
        seen: set[str] = set()
        first = [q.sample.id not in seen and not seen.add(q.sample.id) for q in questions]  # type: ignore[func-returns-value]
        asked = [
            _request(q, (q.picture, _wording(P_ANSWER_CRITIC, q)), first=f)
            for q, f in zip(questions, first, strict=True)
        ]
        ahead = iter(self._judged([r for r, f in zip(asked, first, strict=True) if f]))
        behind = iter(self._judged([r for r, f in zip(asked, first, strict=True) if not f]))
        return [next(ahead) if f else next(behind) for f in first]

    def _judged(self, requests: Sequence[Request]) -> list[Judged]:
        outputs = ask(self.policy, requests, Sampling(max_tokens=CRITIC_MAX_TOKENS))
        return [
            Judged(error=o.error) if o.error is not None else Judged(read_score(o.texts[0]), tokens=Tokens.of(o))
            for o in outputs
        ]

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "score", "prompts": PROMPTS_VERSION, "model": self.policy.name, **_about(self.policy)}


def _wording(prompt: str, question: Question) -> str:
    sample = question.sample
    return prompt.format(question=sample.question, standard=sample.answers[0], answer=question.answer)


def _request(question: Question, parts: tuple[str | Picture, ...], *, first: bool) -> Request:
    sample = question.sample
    return Request(sample.id, "answer", (Turn("user", parts),), sample.size, keep_cache=first)


def _about(policy: Policy) -> dict[str, Any]:
    return {"model_info": dict(policy.describe())}


@dataclass(frozen=True, slots=True)
class LikelihoodCritic:
    """A model that reads crops. Its s^r asks no model at all."""

    policy: Policy
    judge: str = "exact"

    @property
    def name(self) -> str:
        return f"likelihood:{self.policy.name}"

    @property
    def needs_pictures(self) -> bool:
        return self.policy.needs_pictures

    def boxes(self, questions: Sequence[Question]) -> list[Judged]:
        requests = [
            Request(
                q.sample.id,
                "answer",
                answer_turns(PROTOCOLS["direct"], q.sample, q.crop or q.picture, None, ""),
                q.sample.size,
            )
            for q in questions
        ]
        found = self.policy.loglikelihood(requests, [q.sample.answers[0] for q in questions])
        return [
            Judged(error=one.error)
            if one.error
            else Judged(Score(round(math.exp(min(one.value, 0.0)), DECIMALS)), tokens=one.tokens)
            for one in found
        ]

    def answers(self, questions: Sequence[Question]) -> list[Judged]:
        return agreement(questions, self.judge)

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "likelihood", "judge": self.judge, "model": self.policy.name, **_about(self.policy)}


@dataclass(frozen=True, slots=True)
class OracleCritic:
    """Knows the true box. Never part of the method."""

    judge: str = "exact"
    name: str = "oracle"
    needs_pictures: bool = False

    def boxes(self, questions: Sequence[Question]) -> list[Judged]:
        return [Judged(_true_iou(q), tokens=Tokens()) for q in questions]

    def answers(self, questions: Sequence[Question]) -> list[Judged]:
        return agreement(questions, self.judge)

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "oracle", "judge": self.judge}


def _true_iou(question: Question) -> Score:
    if question.sample.box is None or question.box is None:
        return Score(None, "no true box")
    return Score(iou(question.box, question.sample.box))


def load_critic(section: CriticSection) -> Critic:
    """The critic of a recipe with the model it names, loaded. Raises UsageError."""
    policy = load_policy(section.model, section.args) if section.model and section.kind != "oracle" else None
    if policy is not None and section.name is not None:
        policy.rename(section.name)
    return uncalibrated(section, policy)


def uncalibrated(section: CriticSection, policy: Policy | None) -> Critic:
    """The critic of a recipe, with what it sets of a margin; not yet fitted. Raises UsageError as :func:`make_critic` does."""
    critic = make_critic(section.kind, policy, section.judge)
    if not isinstance(critic, MarginCritic):
        return critic
    calibration = Calibration() if section.temperature is None else Calibration.of_temperature(section.temperature)
    return replace(critic, calibration=calibration, open_answers=section.open_answers or "policy")


def make_critic(kind: str, policy: Policy | None, judge: str) -> Critic:
    """The critic of a recipe. Raises UsageError where it needs a model it was not given, or one that cannot score texts."""
    check_offline(judge, "critic.judge")
    return CRITICS.named(kind, "critic.kind: unknown critic")(policy, judge)


def check_offline(judge: str, key: str) -> None:
    """Raises UsageError for a judge that is unknown, or asks a model: what is trained on must not depend on a service."""
    if judge.startswith("openai:") or make_judge(judge).kind != "rule":
        raise UsageError(f"{key} {judge!r} is not an offline rule", "use exact, contains or anls")


def _needed(kind: str, policy: Policy | None) -> Policy:
    if policy is None:
        raise UsageError(
            f"critic.kind {kind} needs critic.model", "name the model before the warm-up (M_org), for example base"
        )
    return policy


def _score(policy: Policy | None, judge: str) -> Critic:
    return ScoreCritic(_needed("score", policy))


def _scorer(kind: str, policy: Policy | None) -> Policy:
    policy = _needed(kind, policy)
    if not policy.scores_texts:
        raise UsageError(
            f"{policy.name} does not report log-probabilities of texts",
            "use critic.kind: score, which prompts for a score",
        )
    return policy


MakeCritic = Callable[[Policy | None, str], Critic]


def _third_party(name: str, found: Any) -> MakeCritic:
    if not callable(found):
        raise ValueError(f"not a function of (policy, judge) which returns a critic, but a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


CRITICS: Registry[MakeCritic] = Registry(
    "critic",
    {
        "score": _score,
        "likelihood": lambda policy, judge: LikelihoodCritic(_scorer("likelihood", policy), judge),
        "margin": lambda policy, judge: MarginCritic(_scorer("margin", policy), judge),
        "oracle": lambda policy, judge: OracleCritic(judge),
    },
    _third_party,
)
"""Given the model that the recipe names, or None, and the offline judge's name, each returns a :class:`Critic`."""
