"""What a margin critic's scores are fitted on: questions with true boxes that nobody trains on, answered by the policy.

Drawn as the pairs' own chains are, by the same plan and seed, so that scores mean what they say of the looks they are used on.
Departure from d5, which needs no true box at all: those of these questions are read, those of the pairs' questions never.
A run that goes on takes what it began with from its run.json: another machine's last digits would make it another request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl.core.boxes import iou
from visrl.core.types import CoTSample
from visrl.errors import Incomplete
from visrl.policies.protocol import Tokens
from visrl.rollout.retry import total
from visrl.runs.meta import read_meta
from visrl.train.common.conversations import crop_of
from visrl.train.critics.calibration import Calibration, Look, Target, fit
from visrl.train.critics.critics import CalibrationSection
from visrl.train.critics.judged import Question
from visrl.train.critics.margin_critic import MarginCritic
from visrl.train.data.candidates import CandidateLook
from visrl.train.data.questions import load_questions
from visrl.train.pairs.question_state import QuestionState

if TYPE_CHECKING:
    from visrl.train.pairs.sampling import PairSampler

Request = Mapping[str, Any]
RIGHT = 0.5
"""IoU with the true box above which a box is right, strictly (docs/method.md b4)."""
FITTED = ("lines", "temperature", "tokens")
"""Of a manifest's ``critic.calibration``: what came out. The rest is what was asked."""


def begun(folder: Path) -> Request | None:
    """The request of the run in ``folder``; None where none was begun. Raises UsageError for a damaged run.json."""
    return dict(read_meta(folder)["request"]) if (folder / "run.json").is_file() else None


def calibrated(
    sampler: PairSampler, section: CalibrationSection, batch_size: int, asked: Request, before: Request | None
) -> PairSampler:
    """The sampler with its critic fitted, or with what ``before``, a request like ``asked`` but for that, was fitted.

    Raises UsageError where there is too little to fit on, Incomplete where a question failed.
    """
    critic = sampler.critic
    assert isinstance(critic, MarginCritic), "the recipe refuses a calibration of others"
    samples = load_questions(section.data)
    about = {"target": section.target, "data": section.data.model_dump(mode="json"), "sha256": _digest(samples)}
    known = None if before is None else _known(before, asked, about)
    if known is not None:
        found, tokens = Calibration.from_json(known), known["tokens"]
    else:
        looks, spent = looks_read(sampler, samples, section.target, batch_size)
        found, tokens = fit(looks, section.target), None if spent is None else spent.computed
    fitted = {"data": about["data"], "sha256": about["sha256"], "tokens": tokens}
    return replace(sampler, critic=replace(critic, calibration=found, calibrated_by=fitted))


def _known(before: Request, asked: Request, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an earlier request's critic was fitted to, if all that decides it is the same."""
    critic = dict(before.get("critic") or {})
    fitted = critic.pop("calibration", None)
    if not isinstance(fitted, dict) or any(key not in fitted for key in ("lines", "tokens")):
        return None
    ours = {key: value for key, value in asked["critic"].items() if key != "calibration"}
    keys = ("policy", "protocol", "crop", "seed", "sampling", "diversity")
    same = critic == ours and all(before.get(key) == asked[key] for key in keys)
    return fitted if same and {k: v for k, v in fitted.items() if k not in FITTED} == about else None


def looks_read(
    sampler: PairSampler, samples: Sequence[CoTSample], target: Target, batch_size: int
) -> tuple[list[Look], Tokens | None]:
    """Every different look of the policy at these questions (for ``answer``: the true crop), with the critic's margin; and what
    policy and critic computed for them, None where that is not counted. Questions without a true box give none, nor do those
    whose scores are likelihoods anyway.
    """
    critic = sampler.critic
    assert isinstance(critic, MarginCritic), "nothing else has margins"
    found: list[Look] = []
    spent: list[Tokens | None] = []
    for at in range(0, len(samples), batch_size):
        states = sampler.draw(samples[at : at + batch_size])
        if failed := next((state for state in states if state.error is not None), None):
            raise Incomplete(f"critic.calibration: {failed.sample.id}: {failed.error}", "the same command tries again")
        spent += [tokens for state in states for tokens in state.tokens.values()]
        asked = _true_crop if target == "answer" else _drawn
        questions = [question for state in states for question in asked(sampler, state)]
        for question, margin in zip(questions, critic.margins(questions), strict=True):
            if margin.error:
                message = f"critic.calibration: {question.sample.id}: {margin.error}"
                raise Incomplete(message, "the same command tries again")
            if not critic.is_likelihood(margin.kind):
                found.append(Look(margin.kind, margin.value, _right(question)))
            spent.append(margin.tokens)
    return found, total(spent)


def _true_crop(sampler: PairSampler, state: QuestionState) -> Iterator[Question]:
    """About the crop of the true box, the last where there are several."""
    sample, item = state.sample, state.item
    box = sample.boxes[-1] if sample.boxes else sample.box
    if box is not None and item is not None:
        crop = crop_of(item, CandidateLook(box), sampler.plan.crop)
        said = tuple(candidate.answer for candidate in state.candidates)
        yield Question(replace(sample, box=box), item.picture, crop, box, sampled=said)


def _drawn(sampler: PairSampler, state: QuestionState) -> Iterator[Question]:
    """About each different crop of a question's chains, in order."""
    seen: set[str] = set()
    for candidate in state.candidates:
        for look in range(candidate.depth):
            question = sampler.about_box(state, candidate, look)
            assert question.crop is not None, "it is about a crop"
            if question.crop.ref not in seen and question.sample.box is not None:
                seen.add(question.crop.ref)
                yield question


def _right(question: Question) -> bool:
    truth, box = question.sample.box, question.box
    assert truth is not None and box is not None, "others are left out"
    return iou(box, truth) > RIGHT


def _digest(samples: Sequence[CoTSample]) -> str:
    """sha256 over what is asked and what is true, in order."""
    digest = hashlib.sha256()
    for s in samples:
        true = [box.xyxy for box in (s.boxes or ((s.box,) if s.box else ()))]
        digest.update(repr((s.id, s.question, s.instruction, s.answers, s.picture and s.picture.ref, true)).encode())
    return digest.hexdigest()
