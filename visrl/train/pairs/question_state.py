"""One question on its way to a pair, and its line in chains.jsonl (chain_lines.py: the shape)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Score
from visrl.policies.protocol import Tokens
from visrl.rollout.retry import total
from visrl.train.common.conversations import Opened
from visrl.train.data.candidates import Candidate, CandidateLook
from visrl.train.pairs.diversity import Attempt
from visrl.train.pairs.selection import Decision, Rule, decide

Stage = Literal["boxes", "answers", "answer_critic", "box_critic"]


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


def drop_repeats(state: QuestionState) -> None:
    """Candidates that looked and said the same are one."""
    kept: dict[tuple[tuple[Box | None, ...], str], Candidate] = {}
    for candidate in state.candidates:
        kept.setdefault((tuple(look.box for look in candidate.all_looks), candidate.answer), candidate)
    state.repeats = len(state.candidates) - len(kept)
    state.candidates = list(kept.values())


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
    value: dict[str, Any] = {"attempt": candidate.attempt, "role": candidate.role, "source": candidate.source}
    if candidate.looks is None:
        assert candidate.box is not None, "a protocol that looks"
        value["box"] = list(candidate.box.xyxy)
    else:
        value["looks"] = [_look_json(look) for look in candidate.looks]
    value["answer"] = candidate.answer
    texts = {"box_text": candidate.box_text, "answer_text": candidate.answer_text}
    scores = {"answer_score": candidate.answer_score, "box_score": candidate.box_score}
    value |= {name: text for name, text in texts.items() if text is not None}
    return value | {name: _score_json(score) for name, score in scores.items() if score is not None}


def _look_json(look: CandidateLook) -> dict[str, Any]:
    assert look.box is not None, "of a chain that was drawn"
    value: dict[str, Any] = {"place": list(look.place), "source": look.source, "box": list(look.box.xyxy)}
    value |= {"text": look.text} if look.text is not None else {}
    return value | ({"score": _score_json(look.score)} if look.score is not None else {})


def _score_json(score: Score) -> dict[str, Any]:
    return {"value": score.value, **({"reason": score.reason} if score.reason else {})}


def from_json(value: Mapping[str, Any], sample: CoTSample) -> QuestionState:
    """The inverse of :func:`to_json`, without what was only needed on the way."""
    state = QuestionState(sample, error=value.get("error"))
    if state.error is None:
        state.attempts = [Attempt(dropped=reason) for reason in value["attempts"]]
        state.repeats = value["repeats"]
        shared: dict[tuple[Any, ...], CandidateLook] = {}
        state.candidates = [_candidate(c, shared) for c in value["trials"]]
        state.tokens = {stage: None if t is None else Tokens(*t) for stage, t in value["tokens"].items()}
    return state


def _candidate(value: Mapping[str, Any], shared: dict[tuple[Any, ...], CandidateLook]) -> Candidate:
    """shared: looks by the places that lead to them, so that candidates share again what they shared when they were drawn."""
    return Candidate(
        Box(*value["box"]) if "box" in value else None,
        value.get("box_text"),
        value["answer"],
        _score(value.get("answer_score")),
        _score(value.get("box_score")),
        value["attempt"],
        value["role"],
        value["source"],
        tuple(_looks(value["looks"], shared)) if "looks" in value else None,
        value.get("answer_text"),
    )


def _looks(found: Sequence[Mapping[str, Any]], shared: dict[tuple[Any, ...], CandidateLook]) -> Iterator[CandidateLook]:
    path: tuple[Any, ...] = ()
    for look in found:
        attempt, role = look["place"]
        path = (*path, (attempt, role))
        fresh = CandidateLook(
            Box(*look["box"]), look.get("text"), _score(look.get("score")), look["source"], (attempt, role)
        )
        yield shared.setdefault(path, fresh)


def _score(value: Mapping[str, Any] | None) -> Score | None:
    return None if value is None else Score(value["value"], value.get("reason", ""))
