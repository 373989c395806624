"""Candidates of a batch of questions, scored (the paper's self-evolution): boxes -> attempts -> answers -> critics
(docs/method.md d1-d5).

All boxes of a question come from one prefill, each answer goes on from it, critics are asked about each different answer
once, and about a box only where its score can still change the outcome (selection.py). All randomness hangs on (seed,
question, attempt and role), so that batches, interruptions and retries change nothing.

Departures from generate.py: 1. the diversity controller works before any answer is asked for. 2. the crop is in the frame
of the box. 3. nothing is computed twice. 4. two chains of equal box and answer are one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from visrl.core.boxes import Box
from visrl.core.crops import CropName
from visrl.core.prompts import ProtocolName
from visrl.core.types import CoTSample, Picture, Score, Turn, Unparsed
from visrl.errors import UsageError
from visrl.policies.protocol import Output, Policy, Request, Sampling, Tokens
from visrl.rollout.retry import ask, total
from visrl.rollout.steps import ask_where, parse_box
from visrl.train.common.conversations import Opened, answer_prompt, box_prompt, crop_of, opened
from visrl.train.common.critics import Critic, Judged, Question, without_repeats
from visrl.train.data.candidates import Candidate
from visrl.train.pairs.diversity import Attempt, BoxProposal, Controller, control
from visrl.train.pairs.selection import Decision, Rule, decide

Stage = Literal["boxes", "answers", "answer_critic", "box_critic"]


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How chains are made: everything besides models and questions that changes a pair.

    exhaustive: score all boxes, for analysis; the pairs are the same. extra_samples: further boxes for ``resample`` to choose
    from.
    """

    protocol: ProtocolName
    crop: CropName = "tight"
    attempts: int = 3
    extra_samples: int = 0
    controller: Controller = "paper"
    rule: Rule = Rule()  # noqa: RUF009 - frozen
    temperature: float = 2.0
    top_p: float = 0.7
    top_k: int = 50
    max_tokens: int = 128
    seed: int = 0
    exhaustive: bool = False

    @property
    def boxes(self) -> int:
        return 2 * self.attempts + self.extra_samples

    def sampling(self, n: int) -> Sampling:
        return Sampling(n, self.temperature, self.top_p, self.top_k, self.max_tokens, self.seed)


@dataclass(slots=True)
class QuestionState:
    """One question on its way to a pair. error: why it failed; it will be tried again."""

    sample: CoTSample
    item: Opened | None = None
    attempts: list[Attempt] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    repeats: int = 0
    tokens: dict[Stage, Tokens | None] = field(default_factory=dict)
    error: str | None = None

    def spend(self, stage: Stage, tokens: Tokens | None) -> None:
        self.tokens[stage] = total([self.tokens.get(stage, Tokens()), tokens])

    def decision(self, rule: Rule) -> Decision:
        return decide(self.candidates, rule)


@dataclass(frozen=True, slots=True)
class PairSampler:
    """The policy (M_SFT, or M_RL of the iteration before), the critic (M_org) and how they are used. models: to be closed."""

    policy: Policy
    critic: Critic
    plan: SamplingPlan
    models: tuple[Policy, ...] = ()

    def close(self) -> None:
        """Let go of the models: the next phase needs their memory."""
        for model in self.models:
            model.close()

    def batch(self, samples: Sequence[CoTSample]) -> list[QuestionState]:
        """Each sample's chains with their scores, or its error, in order. Never raises for one sample."""
        states = self.draw(samples)
        self.judge(states)
        return states

    def draw(self, samples: Sequence[CoTSample]) -> list[QuestionState]:
        """Each sample's chains, not yet scored: what the policy does. Never raises for one sample."""
        states = [self._open(sample) for sample in samples]
        self._boxes(_alive(states))
        self._answers(_alive(states))
        return states

    def judge(self, states: Sequence[QuestionState]) -> None:
        """Score chains, drawn here or elsewhere: what the critic does."""
        for state in _alive(states):
            if state.item is None:
                state.item, state.error = self._opened_or_error(state.sample)
        self._answer_scores(_alive(states))
        self._box_scores(_alive(states))

    def _open(self, sample: CoTSample) -> QuestionState:
        state = QuestionState(sample)
        if sample.kind != "qa" or not sample.answers:
            state.error = "no standard answer: nothing to judge by"
            return state
        state.item, state.error = self._opened_or_error(sample)
        return state

    def _opened_or_error(self, sample: CoTSample) -> tuple[Opened | None, str | None]:
        try:
            return self._opened(sample), None
        except UsageError as error:
            return None, error.message

    def _opened(self, sample: CoTSample) -> Opened:
        if self.policy.needs_pictures or self.critic.needs_pictures:
            return opened(sample, self.plan.protocol)
        if sample.size is None:
            raise UsageError(
                f"sample {sample.id}: the picture's size is unknown", "give the row its size, or its picture"
            )
        return Opened(sample, self.plan.protocol, sample.picture or Picture("", _no_picture), sample.size)

    def _boxes(self, states: Sequence[QuestionState]) -> None:
        asked = [(state, _request(state, "box", box_prompt(_item(state)))) for state in states]
        for state, output in self._ask(ask_where, asked, self.plan.sampling(self.plan.boxes)):
            state.spend("boxes", Tokens.of(output))
            size = _item(state).size
            proposals: list[BoxProposal | Unparsed] = []
            for text in output.texts:
                box = parse_box(self.policy.box_format, text, size)
                proposals.append(BoxProposal(box, text) if isinstance(box, Box) else box)
            rngs = [random.Random(f"{self.plan.seed}:{state.sample.id}:{i}:apart") for i in range(self.plan.attempts)]
            state.attempts = control(proposals, self.plan.attempts, size, self.plan.controller, rngs)
            state.candidates = [
                Candidate(p.box, p.text, attempt=i, role=r, source=p.source)
                for i, a in enumerate(state.attempts)
                for r, p in enumerate(a.boxes)
            ]

    def _answers(self, states: Sequence[QuestionState]) -> None:
        asked = [(state, candidate) for state in states for candidate in state.candidates]
        requests = [
            (state, _request(state, "answer", self._answer_prompt(state, c), f":{c.attempt}.{c.role}"))
            for state, c in asked
        ]
        done = self._ask(ask, requests, self.plan.sampling(1), keep_failed=True)
        for (state, candidate), (_, output) in zip(asked, done, strict=True):
            if output.error is None:
                state.spend("answers", Tokens.of(output))
                candidate.answer = output.texts[0]
        for state in states:
            _drop_repeats(state)

    def _answer_prompt(self, state: QuestionState, candidate: Candidate) -> tuple[Turn, ...]:
        return answer_prompt(_item(state), candidate, self.plan.crop, self.policy.box_format)

    def _ask(
        self,
        how: Callable[[Policy, Sequence[Request], Sampling], list[Output]],
        asked: Sequence[tuple[QuestionState, Request]],
        sampling: Sampling,
        *,
        keep_failed: bool = False,
    ) -> list[tuple[QuestionState, Output]]:
        """Outputs with their question. A failed request fails its question; its output is left out unless kept."""
        outputs = how(self.policy, [request for _, request in asked], sampling)
        for (state, _), output in zip(asked, outputs, strict=True):
            if output.error is not None and state.error is None:
                state.error = output.error
        pairs = [(state, output) for (state, _), output in zip(asked, outputs, strict=True)]
        return pairs if keep_failed else [(state, output) for state, output in pairs if output.error is None]

    def _answer_scores(self, states: Sequence[QuestionState]) -> None:
        asked = [(state, c) for state in states for c in state.candidates]
        questions = [Question(state.sample, _item(state).picture, answer=c.answer) for state, c in asked]
        self._judge(
            "answer_critic", [state for state, _ in asked], questions, self.critic.answers, [c for _, c in asked]
        )

    def _box_scores(self, states: Sequence[QuestionState]) -> None:
        """In rounds: each question still open asks for the one score it needs next; all that are left, if exhaustive."""
        if not self.plan.rule.box_critic:
            return
        while True:
            wanted = [
                (state, place)
                for state in _alive(states)
                if (place := state.decision(self.plan.rule).wanted) is not None
            ]
            if not wanted:
                break
            self._score_boxes([(state, state.candidates[place]) for state, place in wanted])
        if self.plan.exhaustive:
            self._score_boxes([(state, c) for state in _alive(states) for c in state.candidates if c.box_score is None])

    def _score_boxes(self, asked: Sequence[tuple[QuestionState, Candidate]]) -> None:
        questions = [self._about_box(state, c) for state, c in asked]
        self._judge("box_critic", [state for state, _ in asked], questions, self.critic.boxes, [c for _, c in asked])
        for state, candidate in asked:
            _same_crop(self._crop_ref, state, candidate)

    def _crop_ref(self, state: QuestionState, candidate: Candidate) -> str:
        return crop_of(_item(state), candidate, self.plan.crop).ref

    def _about_box(self, state: QuestionState, candidate: Candidate) -> Question:
        item = _item(state)
        return Question(state.sample, item.picture, crop_of(item, candidate, self.plan.crop), candidate.box)

    def _judge(
        self,
        stage: Stage,
        states: Sequence[QuestionState],
        questions: Sequence[Question],
        judge: Callable[[Sequence[Question]], list[Judged]],
        candidates: Sequence[Candidate],
    ) -> None:
        different, which = without_repeats(questions)
        judged = judge(different)
        paid: set[int] = set()
        for state, candidate, place in zip(states, candidates, which, strict=True):
            verdict = judged[place]
            if verdict.error:
                state.error = state.error or f"critic: {verdict.error}"
                continue
            if place not in paid:
                state.spend(stage, verdict.tokens)
                paid.add(place)
            if stage == "answer_critic":
                candidate.answer_score = verdict.score
            else:
                candidate.box_score = verdict.score


def _same_crop(ref: Callable[[QuestionState, Candidate], str], state: QuestionState, scored: Candidate) -> None:
    """Boxes that cut the same crop have the same score: none of them is asked about again."""
    if scored.box_score is None:
        return
    wanted = ref(state, scored)
    for candidate in state.candidates:
        if candidate.box_score is None and ref(state, candidate) == wanted:
            candidate.box_score = scored.box_score


def _drop_repeats(state: QuestionState) -> None:
    kept: dict[tuple[Box | None, str], Candidate] = {}
    for candidate in state.candidates:
        kept.setdefault((candidate.box, candidate.answer), candidate)
    state.repeats = len(state.candidates) - len(kept)
    state.candidates = list(kept.values())


def _alive(states: Sequence[QuestionState]) -> list[QuestionState]:
    return [state for state in states if state.error is None]


def _item(state: QuestionState) -> Opened:
    assert state.item is not None, "opened before anything is asked"
    return state.item


def _request(
    state: QuestionState, step: Literal["box", "answer"], turns: tuple[Turn, ...], stream: str = ""
) -> Request:
    return Request(state.sample.id, step, turns, _item(state).size, stream)


def _no_picture() -> Any:
    raise UsageError("no picture was loaded for this sample")


# --- on disk


def to_json(state: QuestionState) -> dict[str, Any]:
    """A question's line in chains.jsonl."""
    line: dict[str, Any] = {"id": state.sample.id}
    if state.error is not None:
        return {**line, "error": state.error}
    line["attempts"] = [attempt.dropped for attempt in state.attempts]
    line["repeats"] = state.repeats
    line["trials"] = [_candidate_json(c) for c in state.candidates]
    line["tokens"] = {
        stage: None if tokens is None else [tokens.prompt, tokens.cached, tokens.output]
        for stage, tokens in state.tokens.items()
    }
    return line


def _candidate_json(candidate: Candidate) -> dict[str, Any]:
    assert candidate.box is not None, "a protocol that looks"
    value: dict[str, Any] = {
        "attempt": candidate.attempt,
        "role": candidate.role,
        "source": candidate.source,
        "box": list(candidate.box.xyxy),
        "answer": candidate.answer,
    }
    if candidate.box_text is not None:
        value["box_text"] = candidate.box_text
    for name, score in (("answer_score", candidate.answer_score), ("box_score", candidate.box_score)):
        if score is not None:
            value[name] = {"value": score.value, **({"reason": score.reason} if score.reason else {})}
    return value


def from_json(value: Mapping[str, Any], sample: CoTSample) -> QuestionState:
    """The inverse of :func:`to_json`, without what was only needed on the way."""
    state = QuestionState(sample, error=value.get("error"))
    if state.error is None:
        state.attempts = [Attempt(dropped=reason) for reason in value["attempts"]]
        state.repeats = value["repeats"]
        state.candidates = [_candidate(c) for c in value["trials"]]
        state.tokens = {stage: None if t is None else Tokens(*t) for stage, t in value["tokens"].items()}
    return state


def _candidate(value: Mapping[str, Any]) -> Candidate:
    return Candidate(
        Box(*value["box"]),
        value.get("box_text"),
        value["answer"],
        _score(value.get("answer_score")),
        _score(value.get("box_score")),
        value["attempt"],
        value["role"],
        value["source"],
    )


def _score(value: Mapping[str, Any] | None) -> Score | None:
    return None if value is None else Score(value["value"], value.get("reason", ""))
