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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from visrl.core.boxes import Box
from visrl.core.crops import CropName
from visrl.core.prompts import ProtocolName
from visrl.core.types import CoTSample, Picture, Score, Unparsed
from visrl.errors import UsageError
from visrl.policies.protocol import Output, Policy, Request, Sampling, Tokens
from visrl.train.common.conversations import Opened, crop_of, opened
from visrl.train.config.protocols import protocol_of
from visrl.train.critics.judged import Critic, Judged, Question, without_repeats
from visrl.train.data.candidates import Candidate, CandidateLook
from visrl.train.pairs.diversity import Attempt, BoxProposal, Controller, control, control_again
from visrl.train.pairs.look_turns import Answered, LookTurns, path_of
from visrl.train.pairs.question_state import QuestionState, Stage, drop_repeats, from_json, to_json
from visrl.train.pairs.selection import Rule

__all__ = ["PairSampler", "QuestionState", "SamplingPlan", "Stage", "from_json", "to_json", "true_box"]


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """How chains are made: everything besides models and questions that changes a pair.

    exhaustive: score all boxes, for analysis; the pairs are the same. extra_samples: further boxes for ``resample`` to choose
    from. later_attempts: of a look after the first, from each look before it.
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
    later_attempts: int = 1

    @property
    def boxes(self) -> int:
        return 2 * self.attempts + self.extra_samples

    @property
    def later_boxes(self) -> int:
        return 2 * self.later_attempts + self.extra_samples

    def sampling(self, n: int) -> Sampling:
        return Sampling(n, self.temperature, self.top_p, self.top_k, self.max_tokens, self.seed)


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
        for _ in range(1, self._turns.most):
            self._look_again(_alive(states))
        self._answers(_alive(states))
        return states

    @property
    def _turns(self) -> LookTurns:
        return LookTurns(self.policy, protocol_of(self.plan.protocol).several, self.plan.crop)

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
        """The first look of every chain."""
        turns = self._turns
        asked = [(state, turns.request(_item(state), (), last=False)) for state in states]
        for state, output in self._ask(turns.ask_looks, asked, self.plan.sampling(self.plan.boxes)):
            state.spend("boxes", Tokens.of(output))
            item = _item(state)
            read = [turns.read(item, (), text) for text in output.texts]
            proposals = [found for found in read if not isinstance(found, Answered)]
            rngs = [random.Random(f"{self.plan.seed}:{state.sample.id}:{i}:apart") for i in range(self.plan.attempts)]
            attempts = control(proposals, self.plan.attempts, item.size, self.plan.controller, rngs)
            state.attempts, state.candidates = self._chains(item, (), attempts)

    def _look_again(self, states: Sequence[QuestionState]) -> None:
        """One more look of every chain that may: it becomes as many as there are looks drawn after it, and one that answers."""
        turns = self._turns
        asked = [(state, c) for state in states for c in state.candidates if turns.open(c)]
        requests = [(state, turns.request(_item(state), c.all_looks, last=False)) for state, c in asked]
        done = self._ask(turns.ask_looks, requests, self.plan.sampling(self.plan.later_boxes), keep_failed=True)
        grown: dict[int, list[Candidate]] = {}
        for (state, candidate), (_, output) in zip(asked, done, strict=True):
            if output.error is None:
                state.spend("boxes", Tokens.of(output))
                grown[id(candidate)] = self._grown(state, candidate, output.texts)
        for state in states:
            state.candidates = [child for c in state.candidates for child in grown.get(id(c), [c])]

    def _grown(self, state: QuestionState, candidate: Candidate, texts: Sequence[str]) -> list[Candidate]:
        turns, plan, item, looks = self._turns, self.plan, _item(state), candidate.all_looks
        read = [turns.read(item, looks, text) for text in texts]
        boxes = [found for found in read if isinstance(found, BoxProposal)]
        path = f"{plan.seed}:{state.sample.id}:{path_of(looks)}"
        rngs = [random.Random(f"{path}/{i}:apart") for i in range(plan.later_attempts)]
        attempts = control_again(boxes, plan.later_attempts, turns.area(item, looks), plan.controller, rngs)
        lost = [Attempt(dropped=f"later box unparsed: {f.reason}") for f in read if isinstance(f, Unparsed)]
        made, chains = self._chains(item, looks, attempts)
        state.attempts += [*lost, *made]
        answered = next((found for found in read if isinstance(found, Answered)), None)
        if answered is not None:
            turns.answer(candidate, answered.text)
            chains.insert(0, candidate)
        return chains

    def _chains(
        self, item: Opened, looks: Sequence[CandidateLook], attempts: Sequence[Attempt]
    ) -> tuple[list[Attempt], list[Candidate]]:
        """The attempts, and the chains that go on from ``looks`` with what they hold."""
        turns, kept, chains = self._turns, list[Attempt](), list[Candidate]()
        for i, attempt in enumerate(attempts):
            found = [(p, turns.sayable(item, looks, p)) for p in attempt.boxes]
            said = [replace(proposal, box=box) for proposal, box in found if box is not None]
            if len(said) < len(found):
                kept.append(Attempt(dropped="a random box that the protocol cannot say"))
                continue
            kept.append(attempt)
            chains += [turns.chain(looks, proposal, (i, role)) for role, proposal in enumerate(said)]
        return kept, chains

    def _answers(self, states: Sequence[QuestionState]) -> None:
        """The answer of every chain that has none yet."""
        turns = self._turns
        asked = [(state, c) for state in states for c in state.candidates if c.answer_text is None]
        requests = [(state, turns.request(_item(state), c.all_looks, last=True)) for state, c in asked]
        done = self._ask(turns.ask_answers, requests, self.plan.sampling(1), keep_failed=True)
        for (state, candidate), (_, output) in zip(asked, done, strict=True):
            if output.error is None:
                state.spend("answers", Tokens.of(output))
                turns.answer(candidate, output.texts[0])
        for state in states:
            drop_repeats(state)

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

        def note(number: int, score: Score | None) -> None:
            asked[number][1].answer_score = score

        self._judge("answer_critic", [state for state, _ in asked], questions, self.critic.answers, note)

    def _box_scores(self, states: Sequence[QuestionState]) -> None:
        """In rounds: each question still open asks for the one score it needs next; all that are left, if exhaustive."""
        if not self.plan.rule.box_critic:
            return
        while True:
            decisions = [(state, state.decision(self.plan.rule)) for state in _alive(states)]
            wanted = [(state, state.candidates[d.wanted], d.look) for state, d in decisions if d.wanted is not None]
            if not wanted:
                break
            self._score_looks(wanted)
        if self.plan.exhaustive:
            every = [(state, c, k) for state in _alive(states) for c in state.candidates for k in range(c.depth)]
            self._score_looks([(state, c, k) for state, c, k in every if c.look_score(k) is None])

    def _score_looks(self, asked: Sequence[tuple[QuestionState, Candidate, int]]) -> None:
        questions = [self.about_box(state, c, look) for state, c, look in asked]

        def note(number: int, score: Score | None) -> None:
            _, candidate, look = asked[number]
            candidate.score_look(look, score)

        self._judge("box_critic", [state for state, *_ in asked], questions, self.critic.boxes, note)
        for state, candidate, look in asked:
            self._same_crop(state, candidate.look_score(look), self._crop(state, candidate, look).ref)

    def _same_crop(self, state: QuestionState, score: Score | None, ref: str) -> None:
        """Looks that cut the same crop have the same score: none of them is asked about again."""
        if score is None:
            return
        for candidate in state.candidates:
            for look in range(candidate.depth):
                if candidate.look_score(look) is None and self._crop(state, candidate, look).ref == ref:
                    candidate.score_look(look, score)

    def _crop(self, state: QuestionState, candidate: Candidate, look: int) -> Picture:
        return crop_of(_item(state), candidate.all_looks[look], self.plan.crop)

    def about_box(self, state: QuestionState, candidate: Candidate, look: int) -> Question:
        """What a critic is asked of look number ``look``, from 0, of a chain that was drawn here, or judged."""
        sample, item = state.sample, _item(state)
        if sample.boxes and candidate.looks is not None:  # of the oracle: each look has a true box of its own
            sample = replace(sample, box=true_box(sample, look))
        said = tuple(c.answer for c in state.candidates)
        return Question(
            sample, item.picture, self._crop(state, candidate, look), candidate.all_looks[look].box, sampled=said
        )

    def _judge(
        self,
        stage: Stage,
        states: Sequence[QuestionState],
        questions: Sequence[Question],
        judge: Callable[[Sequence[Question]], list[Judged]],
        note: Callable[[int, Score | None], None],
    ) -> None:
        different, which = without_repeats(questions)
        judged = judge(different)
        paid: set[int] = set()
        for number, (state, place) in enumerate(zip(states, which, strict=True)):
            verdict = judged[place]
            if verdict.error:
                state.error = state.error or f"critic: {verdict.error}"
                continue
            if place not in paid:
                state.spend(stage, verdict.tokens)
                paid.add(place)
            note(number, verdict.score)


def true_box(sample: CoTSample, look: int) -> Box | None:
    """The true box of look number ``look``, from 0; after the last one, the last."""
    return sample.boxes[min(look, len(sample.boxes) - 1)] if sample.boxes else sample.box


def _alive(states: Sequence[QuestionState]) -> list[QuestionState]:
    return [state for state in states if state.error is None]


def _item(state: QuestionState) -> Opened:
    assert state.item is not None, "opened before anything is asked"
    return state.item


def _no_picture() -> Any:
    raise UsageError("no picture was loaded for this sample")
