"""Self-evolution of a batch of questions: boxes -> attempts -> answers -> critics (docs/method.md d1-d5).

All boxes of a question come from one prefill, each answer goes on from it, critics are asked about each different answer
once, and about a box only where its score can still change the outcome (selection.py). All randomness hangs on (seed,
question, attempt and role), so that batches, interruptions and retries change nothing.

Departures from generate.py: 1. the diversity controller works before any answer is asked for. 2. the crop is in the frame
of the box. 3. nothing is computed twice. 4. two chains of equal box and answer are one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from visrl.train.data.rows import Chain
from visrl.train.pairs.critics import Critic, Judged, Question, without_repeats
from visrl.train.pairs.diversity import Attempt, Controller, Look, Source, control
from visrl.train.pairs.selection import Decision, Rule, Scored, decide

Stage = Literal["boxes", "answers", "answer_critic", "box_critic"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How chains are made: everything besides models and questions that changes a pair.

    exhaustive: score all boxes, for analysis; the pairs are the same. spares: further boxes for ``resample`` to choose from.
    """

    protocol: ProtocolName
    crop: CropName = "tight"
    attempts: int = 3
    spares: int = 0
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
        return 2 * self.attempts + self.spares

    def sampling(self, n: int) -> Sampling:
        return Sampling(n, self.temperature, self.top_p, self.top_k, self.max_tokens, self.seed)


@dataclass(slots=True)
class Trial:
    """One chain. role 0 and 1 are the boxes of an attempt. box_score None: not asked for, nothing hung on it."""

    attempt: int
    role: int
    look: Look
    answer: str = ""
    answer_score: Score | None = None
    box_score: Score | None = None

    @property
    def chain(self) -> Chain:
        return Chain(box=self.look.box.xyxy, box_text=self.look.text, answer=self.answer)


@dataclass(slots=True)
class Work:
    """One question on its way. error: why it failed; it will be tried again."""

    sample: CoTSample
    item: Opened | None = None
    attempts: list[Attempt] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    repeats: int = 0
    tokens: dict[Stage, Tokens | None] = field(default_factory=dict)
    error: str | None = None

    def spend(self, stage: Stage, tokens: Tokens | None) -> None:
        self.tokens[stage] = total([self.tokens.get(stage, Tokens()), tokens])

    def decision(self, rule: Rule) -> Decision:
        return decide([Scored(t.answer_score or Score(None, "not scored"), t.box_score) for t in self.trials], rule)


@dataclass(frozen=True, slots=True)
class Evolution:
    """The policy (M_SFT, or M_RL of the iteration before), the critic (M_org) and how they are used."""

    policy: Policy
    critic: Critic
    plan: Plan

    def batch(self, samples: Sequence[CoTSample]) -> list[Work]:
        """Each sample's chains with their scores, or its error, in order. Never raises for one sample."""
        work = self.draw(samples)
        self.judge(work)
        return work

    def draw(self, samples: Sequence[CoTSample]) -> list[Work]:
        """Each sample's chains, not yet scored: what the policy does. Never raises for one sample."""
        work = [self._open(sample) for sample in samples]
        self._boxes(_alive(work))
        self._answers(_alive(work))
        return work

    def judge(self, work: Sequence[Work]) -> None:
        """Score chains, drawn here or elsewhere: what the critic does."""
        for w in _alive(work):
            if w.item is None:
                w.item, w.error = self._opened_or_error(w.sample)
        self._answer_scores(_alive(work))
        self._box_scores(_alive(work))

    def _open(self, sample: CoTSample) -> Work:
        work = Work(sample)
        if sample.kind != "qa" or not sample.answers:
            work.error = "no standard answer: nothing to judge by"
            return work
        work.item, work.error = self._opened_or_error(sample)
        return work

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

    def _boxes(self, work: Sequence[Work]) -> None:
        asked = [(w, _request(w, "box", box_prompt(_item(w)))) for w in work]
        for w, output in self._ask(ask_where, asked, self.plan.sampling(self.plan.boxes)):
            w.spend("boxes", Tokens.of(output))
            size = _item(w).size
            looks: list[Look | Unparsed] = []
            for text in output.texts:
                box = parse_box(self.policy.box_format, text, size)
                looks.append(Look(box, text) if isinstance(box, Box) else box)
            rngs = [random.Random(f"{self.plan.seed}:{w.sample.id}:{i}:apart") for i in range(self.plan.attempts)]
            w.attempts = control(looks, self.plan.attempts, size, self.plan.controller, rngs)
            w.trials = [Trial(i, r, look) for i, a in enumerate(w.attempts) for r, look in enumerate(a.looks)]

    def _answers(self, work: Sequence[Work]) -> None:
        asked = [(w, trial) for w in work for trial in w.trials]
        requests = [(w, _request(w, "answer", self._answer_prompt(w, t), f":{t.attempt}.{t.role}")) for w, t in asked]
        done = self._ask(ask, requests, self.plan.sampling(1), keep_failed=True)
        for (w, trial), (_, output) in zip(asked, done, strict=True):
            if output.error is None:
                w.spend("answers", Tokens.of(output))
                trial.answer = output.texts[0]
        for w in work:
            _drop_repeats(w)

    def _answer_prompt(self, work: Work, trial: Trial) -> tuple[Turn, ...]:
        return answer_prompt(_item(work), trial.chain, self.plan.crop, self.policy.box_format)

    def _ask(
        self,
        how: Callable[[Policy, Sequence[Request], Sampling], list[Output]],
        asked: Sequence[tuple[Work, Request]],
        sampling: Sampling,
        *,
        keep_failed: bool = False,
    ) -> list[tuple[Work, Output]]:
        """Outputs with their question. A failed request fails its question; its output is left out unless kept."""
        outputs = how(self.policy, [request for _, request in asked], sampling)
        for (w, _), output in zip(asked, outputs, strict=True):
            if output.error is not None and w.error is None:
                w.error = output.error
        pairs = [(w, output) for (w, _), output in zip(asked, outputs, strict=True)]
        return pairs if keep_failed else [(w, output) for w, output in pairs if output.error is None]

    def _answer_scores(self, work: Sequence[Work]) -> None:
        asked = [(w, t) for w in work for t in w.trials]
        questions = [Question(w.sample, _item(w).picture, answer=t.answer) for w, t in asked]
        self._judge("answer_critic", [w for w, _ in asked], questions, self.critic.answers, [t for _, t in asked])

    def _box_scores(self, work: Sequence[Work]) -> None:
        """In rounds: each question still open asks for the one score it needs next; all that are left, if exhaustive."""
        if not self.plan.rule.box_critic:
            return
        while True:
            wanted = [(w, place) for w in _alive(work) if (place := w.decision(self.plan.rule).wanted) is not None]
            if not wanted:
                break
            self._score_boxes([(w, w.trials[place]) for w, place in wanted])
        if self.plan.exhaustive:
            self._score_boxes([(w, t) for w in _alive(work) for t in w.trials if t.box_score is None])

    def _score_boxes(self, asked: Sequence[tuple[Work, Trial]]) -> None:
        questions = [self._about_box(w, t) for w, t in asked]
        self._judge("box_critic", [w for w, _ in asked], questions, self.critic.boxes, [t for _, t in asked])
        for w, trial in asked:
            _same_crop(self._crop_ref, w, trial)

    def _crop_ref(self, work: Work, trial: Trial) -> str:
        return crop_of(_item(work), trial.chain, self.plan.crop).ref

    def _about_box(self, work: Work, trial: Trial) -> Question:
        item = _item(work)
        return Question(work.sample, item.picture, crop_of(item, trial.chain, self.plan.crop), trial.look.box)

    def _judge(
        self,
        stage: Stage,
        work: Sequence[Work],
        questions: Sequence[Question],
        judge: Callable[[Sequence[Question]], list[Judged]],
        trials: Sequence[Trial],
    ) -> None:
        different, which = without_repeats(questions)
        judged = judge(different)
        paid: set[int] = set()
        for w, trial, place in zip(work, trials, which, strict=True):
            verdict = judged[place]
            if verdict.error:
                w.error = w.error or f"critic: {verdict.error}"
                continue
            if place not in paid:
                w.spend(stage, verdict.tokens)
                paid.add(place)
            if stage == "answer_critic":
                trial.answer_score = verdict.score
            else:
                trial.box_score = verdict.score


def _same_crop(ref: Callable[[Work, Trial], str], work: Work, scored: Trial) -> None:
    """Boxes that cut the same crop have the same score: none of them is asked about again."""
    if scored.box_score is None:
        return
    wanted = ref(work, scored)
    for trial in work.trials:
        if trial.box_score is None and ref(work, trial) == wanted:
            trial.box_score = scored.box_score


def _drop_repeats(work: Work) -> None:
    kept: dict[tuple[tuple[float, ...], str], Trial] = {}
    for trial in work.trials:
        kept.setdefault((trial.look.box.xyxy, trial.answer), trial)
    work.repeats = len(work.trials) - len(kept)
    work.trials = list(kept.values())


def _alive(work: Sequence[Work]) -> list[Work]:
    return [w for w in work if w.error is None]


def _item(work: Work) -> Opened:
    assert work.item is not None, "opened before anything is asked"
    return work.item


def _request(work: Work, step: Literal["box", "answer"], turns: tuple[Turn, ...], stream: str = "") -> Request:
    return Request(work.sample.id, step, turns, _item(work).size, stream)


def _no_picture() -> Any:
    raise UsageError("no picture was loaded for this sample")


# --- on disk


def to_json(work: Work) -> dict[str, Any]:
    """A question's line in chains.jsonl."""
    line: dict[str, Any] = {"id": work.sample.id}
    if work.error is not None:
        return {**line, "error": work.error}
    line["attempts"] = [attempt.dropped for attempt in work.attempts]
    line["repeats"] = work.repeats
    line["trials"] = [_trial_json(trial) for trial in work.trials]
    line["tokens"] = {
        stage: None if tokens is None else [tokens.prompt, tokens.cached, tokens.output]
        for stage, tokens in work.tokens.items()
    }
    return line


def _trial_json(trial: Trial) -> dict[str, Any]:
    value: dict[str, Any] = {
        "attempt": trial.attempt,
        "role": trial.role,
        "source": trial.look.source,
        "box": list(trial.look.box.xyxy),
        "answer": trial.answer,
    }
    if trial.look.text is not None:
        value["box_text"] = trial.look.text
    for name, score in (("answer_score", trial.answer_score), ("box_score", trial.box_score)):
        if score is not None:
            value[name] = {"value": score.value, **({"reason": score.reason} if score.reason else {})}
    return value


def from_json(value: Mapping[str, Any], sample: CoTSample) -> Work:
    """The inverse of :func:`to_json`, without what was only needed on the way."""
    work = Work(sample, error=value.get("error"))
    if work.error is None:
        work.attempts = [Attempt(dropped=reason) for reason in value["attempts"]]
        work.repeats = value["repeats"]
        work.trials = [_trial(trial) for trial in value["trials"]]
        work.tokens = {stage: None if t is None else Tokens(*t) for stage, t in value["tokens"].items()}
    return work


def _trial(value: Mapping[str, Any]) -> Trial:
    source: Source = value["source"]
    trial = Trial(
        value["attempt"], value["role"], Look(Box(*value["box"]), value.get("box_text"), source), value["answer"]
    )
    return replace(trial, answer_score=_score(value.get("answer_score")), box_score=_score(value.get("box_score")))


def _score(value: Mapping[str, Any] | None) -> Score | None:
    return None if value is None else Score(value["value"], value.get("reason", ""))
