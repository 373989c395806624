"""Estimates of phases that only generate: evaluation, and preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from visrl.core.prompts import PROTOCOLS
from visrl.errors import UsageError
from visrl.estimate.lengths import ANSWER, Lengths, lengths_of, spread, typical
from visrl.estimate.memory import Memory, Turns, generation_memory
from visrl.estimate.phase import LINE, LOOKED_AT, ROWS, EstimateRequest, Phase, encoder_of
from visrl.estimate.shape import BYTES, Described, describe_model
from visrl.estimate.work import Work, seconds

if TYPE_CHECKING:
    from visrl.core.types import CoTSample


def evaluation_phase(
    name: str, model: Described, samples: Sequence[CoTSample], n: int, request: EstimateRequest, **how: Any
) -> Phase:
    """Two turns of ``n`` samples, of which ``samples`` are looked at. how: box_format, protocol, crop, dtype, rows,
    max_tokens."""
    family = model.family
    encoder = encoder_of(model, how.get("box_format"))
    protocol: Any = how.get("protocol") or family.default_protocol
    if protocol not in PROTOCOLS:
        raise UsageError(
            f"protocol {protocol}: how often a model will look is not known beforehand",
            f"one of {', '.join(PROTOCOLS)}",
        )
    crop: Any = how.get("crop") or family.default_crop
    limit = how.get("max_tokens", 128)
    found = [lengths_of(encoder, s, protocol, crop, answer=request.answer, max_tokens=limit) for s in samples]
    rows, size = how.get("rows") or ROWS, BYTES[how.get("dtype", "bfloat16")]
    requests = min(how.get("requests") or 4 * rows, n)
    memory = generation_memory(
        model.shape, turns_of(found), rows=min(rows, n), requests=requests, size=size, keeps=family.keeps_prefix
    )
    work = generating(found, n, rows)
    time = seconds(model.shape, work, request.gpu, gpus=request.gpus, size=size, cache=memory.cache)
    return Phase(name, n, work, memory, time, LINE["episode"] * n, [f"an answer of {request.answer} tokens is assumed"])


def turns_of(found: Sequence[Lengths]) -> Turns:
    """What memory depends on, of some questions."""
    return Turns(
        first=fmean(x.box + x.box_said for x in found),
        second=fmean(x.answer + x.answer_said for x in found),
        longest=max(max(x.box + x.box_said, x.answer + x.answer_said) for x in found),
        read=max(x.box or x.answer for x in found),
        reread=max(x.answer - x.shared for x in found),
        pictures=fmean(x.pictures for x in found),
        values=fmean(x.values for x in found),
    )


def generating(found: Sequence[Lengths], n: int, rows: int) -> Work:
    """Both turns: prompts without what a cache holds, replies, and the steps that write them ``rows`` at once."""
    decode = n * fmean(x.decode for x in found)
    return Work(
        prefill=n * fmean(x.prefill for x in found),
        decode=decode,
        steps=decode / min(rows, n),
        patches=n * fmean(x.patches for x in found),
        context=fmean(max(x.box, x.answer) for x in found) / 2,
    )


def pairs_work(
    found: Sequence[Lengths], n: int, rows: int, *, attempts: int, extra: int, worded: bool, read: float = 1.0
) -> Work:
    """Sampling 2k boxes and extra samples of one prompt, an answer each, and the critics: at most, were no two chains alike.

    A likelihood critic judges answers without a model, and a box by its prompt alone, ``read`` times where it is held against
    other answers; one that judges in words says about 8 tokens.
    """
    chains = 2 * attempts
    judged = [
        x.judge + (chains - 1) * 32 if worded else 0 for x in found
    ]  # what changes stands last: 32 tokens with the cue
    prefill = fmean(
        x.box + chains * (x.answer - x.shared) + j + chains * read * x.crop for x, j in zip(found, judged, strict=True)
    )
    said = 2 * chains * ANSWER if worded else 0
    decode = fmean((chains + extra) * x.box_said + chains * x.answer_said + said for x in found)
    steps = fmean(
        x.box_said + (chains * x.answer_said + said) for x in found
    )  # boxes of one prompt are one step together
    return Work(
        prefill=n * prefill,
        decode=n * decode,
        steps=n * steps / min(rows, n),
        patches=n * fmean(x.patches * (1 + chains) / 2 for x in found),
        context=fmean(max(x.box, x.answer) for x in found) / 2,
    )


def answers_read(critic: Any, questions: Sequence[CoTSample], chains: int) -> float:
    """Answers of a question that its critic, or None, reads after each crop: for a margin the standard answer and its rivals, of
    an open question those of all chains, were no two of them alike.
    """
    from visrl.train.critics.rivals import MOST, rivals_of

    if critic is None or critic.kind != "margin":
        return 1.0
    most = 0 if critic.open_answers == "likelihood" else min(MOST, chains)
    found = [rivals_of(sample) for sample in questions if sample.answers]
    return 1.0 + fmean([most if rivals.kind == "open" else len(rivals.texts) for rivals in found] or [most])


def _calibration_questions(critic: Any, notes: list[str]) -> int:
    """How many further questions the policy answers so that the critic can be fitted; said in ``notes``."""
    from visrl.train.data.questions import load_questions

    if critic.calibration is None:
        return 0
    try:
        more = len(load_questions(critic.calibration.data))
    except UsageError as error:
        more = critic.calibration.data.limit or 0
        notes.append(f"questions of critic.calibration: {error.message}")
    notes.append(f"{more:,} further questions that the critic is calibrated on")
    return more


def task_samples(task: str, data: Path | None) -> tuple[list[CoTSample], int, list[str]]:
    """The first samples of a task without their pictures, its published size, and a note where its data cannot be read."""
    from visrl.evals.benchmarks import TASKS
    from visrl.tasks import load

    n = TASKS[task].n
    try:
        return list(islice(load(task, data, with_pictures=False), LOOKED_AT)), n, []
    except UsageError as error:
        kind = "rec" if TASKS[task].box_is_the_answer else "qa"
        made = [type(s)(s.id, task, kind, s.question, size=s.size) for s in typical()]  # type: ignore[arg-type]
        return made, n, [f"{task}: typical questions and pictures of 640 x 480 ({error.message})"]


def pairs_phases(recipe: Any, request: EstimateRequest) -> list[Phase]:
    """``kind: pairs``: chains of the policy, and its critic, taken to be of the policy's size where it is another."""
    from visrl.train.data.questions import load_questions

    path = recipe.policy.model.removeprefix("hf:")
    model = describe_model(path)
    notes = ["at most: no two boxes or answers of a question alike, every box judged"]
    try:
        questions = load_questions(recipe.data)
        n = len(questions)
    except UsageError as error:
        if request.samples is None:
            raise UsageError(
                error.message, "--samples N estimates without the data, from a typical question"
            ) from error
        questions, n = typical(1), request.samples
        notes.append(f"one typical question and a picture of 640 x 480 ({error.message})")
    args = recipe.policy.args
    encoder = encoder_of(model, args.get("box_format"))
    limit, rows = recipe.sampling.max_tokens, int(args.get("rows", ROWS))
    how: dict[str, Any] = {"answer": min(request.answer, limit), "max_tokens": limit, "critics": True}
    protocol: Any = recipe.protocol or model.family.default_protocol
    found = [lengths_of(encoder, q, protocol, recipe.crop, **how) for q in spread(questions, LOOKED_AT)]
    more = _calibration_questions(recipe.critic, notes)
    work = pairs_work(
        found, n + more, rows, attempts=recipe.sampling.attempts,
        extra=recipe.sampling.extra_samples if recipe.diversity == "resample" else 0, worded=recipe.critic.kind == "score",
        read=answers_read(recipe.critic, spread(questions, LOOKED_AT), 2 * recipe.sampling.attempts),
    )  # fmt: skip
    size = BYTES.get(args.get("dtype", "bfloat16"), 2)
    boxes = 2 * recipe.sampling.attempts
    turns = turns_of(found)
    crops = (boxes + 1) / 2  # pictures of a question, to the two of an evaluation
    turns = replace(turns, longest=turns.longest + boxes, pictures=crops * turns.pictures, values=crops * turns.values)
    memory = generation_memory(
        model.shape, turns, rows=rows, requests=recipe.batch_size, size=size, keeps=model.family.keeps_prefix
    )
    if recipe.critic.model is not None and recipe.critic.model != recipe.policy.model:
        memory = Memory(
            2 * memory.weights,
            activations=memory.activations,
            logits=memory.logits,
            cache=memory.cache,
            features=memory.features,
        )
        notes.append(f"the critic {recipe.critic.model} is taken to be as large as the policy")
    time = seconds(model.shape, work, request.gpu, gpus=request.gpus, size=size, cache=memory.cache)
    return [Phase("pairs", n, work, memory, time, LINE["question"] * n, notes)]
