"""Estimates of ``kind: grpo``: drawing groups of chains, rewarding them, and learning from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from visrl.errors import UsageError
from visrl.estimate.generating import answers_read
from visrl.estimate.lengths import Batches, Lengths, lengths_of, spread, typical
from visrl.estimate.memory import Memory
from visrl.estimate.phase import LOOKED_AT, ROWS, EstimateRequest, Phase, encoder_of
from visrl.estimate.shape import BYTES, Described
from visrl.estimate.training import batches_of, training_phase
from visrl.estimate.work import Work, seconds

SAID = 8
"""Tokens a critic says that judges in words."""


def grpo_phases(recipe: Any, model: Described, request: EstimateRequest) -> list[Phase]:
    """One phase. No two crops of a group are taken to be alike, so that every answer has a row of its own: at most."""
    questions, n, notes = _questions(recipe, request)
    encoder = encoder_of(model, recipe.model.box_format)
    most = int(recipe.trainer.get("max_completion_length", 256))
    protocol: Any = recipe.grpo.protocol or model.family.default_protocol
    found = [
        lengths_of(
            encoder, q, protocol, recipe.grpo.crop, answer=request.answer, max_tokens=most, critics=_critics(recipe) > 0
        )
        for q in questions
    ]
    learnt = group_batches(recipe, found)
    phase = training_phase("grpo", model, learnt, n, request, recipe=recipe, reference=False)
    read = answers_read(recipe.critic, questions, int(recipe.trainer["num_generations"]))
    work = _with_drawing(
        recipe,
        [replace(x, crop=round(read * x.crop)) for x in found],
        phase.work,
        n * float(recipe.trainer["num_train_epochs"]),
    )
    size = BYTES[recipe.model.dtype]
    checkpointing = bool(recipe.trainer.get("gradient_checkpointing", True))
    time = seconds(model.shape, work, request.gpu, gpus=request.gpus, size=size, checkpointing=checkpointing)
    notes = [*phase.notes, *notes, "no two crops of a group are taken to be alike; the cache of drawing is not counted"]
    return [replace(phase, work=work, seconds=time, memory=_memory(recipe, model, phase.memory, size), notes=notes)]


def group_batches(recipe: Any, found: Sequence[Lengths]) -> list[Batches]:
    """What the two turns' batches look like; ``per_row``: tokens of one question."""
    k = int(recipe.trainer["num_generations"])
    groups = max(1, int(recipe.trainer["per_device_train_batch_size"]) // k)
    shared = recipe.grpo.prefix_sharing and recipe.model.shares_rows
    turns: list[Batches] = []
    if boxed := [x for x in found if x.box]:
        branches = k if shared else 1
        rows = [(x.box, branches * max(x.box_said - 1, 0), x.pictures // 2, x.patches) for x in boxed]
        turns.append(_of_questions(rows, groups, k // branches))
    if answered := [x for x in found if x.answer]:
        rows = [(x.answer, max(x.answer_said - 1, 0), x.pictures, 0) for x in answered]
        turns.append(_of_questions(rows, groups, k))
    return turns


def _of_questions(rows: Sequence[tuple[int, int, int, int]], groups: int, each: int) -> Batches:
    """Batches of ``groups`` questions that make ``each`` rows."""
    one = batches_of(rows, groups)
    return replace(one, rows=one.rows * each, per_row=one.per_row * each, at_once=one.at_once * each)


def _critics(recipe: Any) -> int:
    """How many rewards ask a critic."""
    return len({**recipe.grpo.box, **recipe.grpo.answer}.keys() & {"box_critic", "answer_critic"})


def _with_drawing(recipe: Any, found: Sequence[Lengths], learnt: Work, drawn: float) -> Work:
    """Learning passes, and in front of them the chains and their critics, and what is read again without a gradient."""
    trainer, k = recipe.trainer, int(recipe.trainer["num_generations"])
    accumulated = int(trainer.get("gradient_accumulation_steps", 1))
    every = int(trainer.get("steps_per_generation") or accumulated) * int(trainer.get("num_iterations", 1))
    again = (1 if accumulated % every else 0) + (1 if trainer.get("beta") else 0)  # the old policy, the reference
    names = {**recipe.grpo.box, **recipe.grpo.answer}
    worded = recipe.critic is not None and recipe.critic.kind == "score"
    asked = fmean(
        (k * x.crop if "box_critic" in names else 0)
        + (x.judge + (k - 1) * 32 if worded and "answer_critic" in names else 0)
        for x in found
    )
    said = SAID * k * _critics(recipe) if worded else 0
    decode = fmean(k * x.decode for x in found) + said
    steps = fmean(x.box_said + k * x.answer_said for x in found) + said  # boxes of one prompt are one step together
    return replace(
        learnt,
        prefill=drawn * (fmean(x.box + k * (x.answer - x.shared) for x in found) + asked) + again * learnt.trained,
        decode=drawn * decode,
        steps=drawn * steps / ROWS,
        patches=learnt.patches + drawn * fmean(x.patches / 2 * k for x in found),
    )


def _memory(recipe: Any, model: Described, learnt: Memory, size: int) -> Memory:
    """Of learning, with the critic's weights (as large as the policy) and the reference's copy of what is trained."""
    critic = size * model.shape.total if _critics(recipe) and recipe.critic and recipe.critic.kind != "oracle" else 0
    kept = (4 if model.shape.adapters else size) * model.shape.trained if recipe.trainer.get("beta") else 0
    return replace(learnt, weights=learnt.weights + critic + kept)


def _questions(recipe: Any, request: EstimateRequest) -> tuple[list[Any], int, list[str]]:
    from visrl.train.data.questions import load_questions

    try:
        questions = load_questions(recipe.data)
    except UsageError as error:
        if request.samples is None:
            raise UsageError(
                error.message, "--samples N estimates without the data, from a typical question"
            ) from error
        return typical(1), request.samples, [f"one typical question and a picture of 640 x 480 ({error.message})"]
    return spread(questions, LOOKED_AT), request.samples or len(questions), []
