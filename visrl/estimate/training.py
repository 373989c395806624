"""Estimates of phases that train: SFT, and the stages of step-level DPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from visrl.errors import UsageError
from visrl.estimate.lengths import Batches, blank_preference, spread, typical
from visrl.estimate.memory import Memory, Step, training_memory
from visrl.estimate.phase import LOOKED_AT, EstimateRequest, Phase, encoder_of
from visrl.estimate.shape import BYTES, Described
from visrl.estimate.work import Work, seconds


def batches_of(rows: Sequence[tuple[int, int, int, int]], size: int) -> Batches:
    """Rows (tokens before, tokens after, pictures' tokens, patches) in batches of ``size``, in order, padded as collators do."""
    groups = [rows[i : i + size] for i in range(0, max(len(rows) - size + 1, 1), size)]
    padded = [(max(r[0] for r in g), max(r[1] for r in g)) for g in groups]
    longest, most = max(sum(p) for p in padded), max(r[2] for r in rows)
    return Batches(
        rows=min(size, len(rows)),
        tokens=longest,
        kept=1 + max(after for _, after in padded),
        per_row=fmean(before + after for before, after in padded),
        pictures=fmean(r[2] for r in rows),
        patches=fmean(r[3] for r in rows),
        at_once=most * min(size, sum(r[2] == most for r in rows)),
    )


def training_phase(
    name: str,
    model: Described,
    batches: Sequence[Batches],
    n: int,
    request: EstimateRequest,
    *,
    recipe: Any,
    reference: bool,
) -> Phase:
    """One phase of training on ``n`` rows; ``batches``: one for each term of its loss. reference: log-probabilities first."""
    trainer, size = recipe.trainer, BYTES[recipe.model.dtype]
    checkpointing = bool(trainer.get("gradient_checkpointing", True))
    accumulate = int(trainer.get("gradient_accumulation_steps", 1))
    epochs, batch = float(trainer["num_train_epochs"]), int(trainer["per_device_train_batch_size"])
    parts = [
        training_memory(
            model.shape,
            Step(b.rows, b.tokens, b.kept, fused=recipe.kind == "sft", pictures=b.at_once),
            size=size,
            checkpointing=checkpointing,
            accumulates=accumulate > 1,
        )
        for b in batches
    ]
    memory = parts[0]
    if len(parts) > 1:  # both terms' graphs live until the sum's backward pass
        together = {k: sum(getattr(p, k) for p in parts) for k in ("activations", "logits")}
        memory = Memory(parts[0].weights, max(p.gradients for p in parts), parts[0].optimiser, **together)
    per_row = sum(b.per_row for b in batches)
    work = Work(
        prefill=n * per_row if reference else 0,
        trained=epochs * n * per_row,
        patches=n * sum(b.patches for b in batches) * (1 if recipe.model.freeze_vision else epochs),
        context=fmean(b.tokens for b in batches) / 2,
    )
    full = model.shape.adapters == 0
    time = seconds(model.shape, work, request.gpu, gpus=request.gpus, size=size, checkpointing=checkpointing)
    steps = epochs * n / (batch * accumulate * request.gpus)
    notes = (
        []
        if (full and recipe.model.freeze_vision) or not full
        else ["activations of the trained vision tower are not counted"]
    )
    disk = _disk(model, trainer, size, steps) + (8 * n * len(batches) if reference else 0)
    return Phase(name, n, work, memory.sharded(request.sharding, request.gpus), time, disk, notes)


def _disk(model: Described, trainer: Any, size: int, steps: float) -> float:
    """The final weights, and checkpoints with the optimiser's two moments: every ``save_steps``, as many as are kept."""
    shape = model.shape
    weights = 4 * shape.adapters if shape.adapters else size * shape.total
    moments = 2 * (4 if shape.adapters else size) * shape.trained
    made = steps // float(trainer.get("save_steps", 500))
    kept = min(made, trainer.get("save_total_limit") or made)
    return weights + kept * (weights + moments)


def sft_phases(recipe: Any, model: Described, request: EstimateRequest) -> list[Phase]:
    """``kind: sft``: one phase over the conversations of the chains."""
    from visrl.train.data.candidates import Demonstration
    from visrl.train.data.load import load_demonstrations
    from visrl.train.sft.collator import SFTCollator
    from visrl.train.sft.sft import conversations_of

    found, n, notes = _rows(recipe, load_demonstrations, request)
    if not found:
        found = [Demonstration(p.sample, p.protocol, p.chosen) for p in map(blank_preference, typical(1))]
    joined = model.family.keeps_prefix
    talks = [(d, part) for d in found for part in range(conversations_of(d, joined=joined))]
    collator = SFTCollator(talks, encoder_of(model, recipe.model.box_format), crop=recipe.chain.crop)
    rows = []
    for i in range(len(talks)):
        chat = collator.chat(i)
        rows.append((0, len(chat.ids), sum(len(p.ids) for p in chat.pictures), 0))
    said = max(sum(collator.chat(i).loss_mask) for i in range(len(talks)))
    batches = replace(batches_of(rows, int(recipe.trainer["per_device_train_batch_size"])), kept=said)
    total = round(n * len(talks) / len(found))
    phase = training_phase("sft", model, [batches], total, request, recipe=recipe, reference=False)
    phase.notes.extend(notes)
    return [phase]


def dpo_phases(recipe: Any, model: Described, request: EstimateRequest) -> list[Phase]:
    """``kind: dpo``: a phase for every stage."""
    from visrl.train.data.load import load_preferences

    found, n, notes = _rows(recipe, load_preferences, request)
    found = found or [blank_preference(sample) for sample in typical(1)]
    phases = []
    for stage in recipe.step.stages:
        looks = max(len(pair.chosen.all_looks) for pair in found)
        terms = tuple(term.name for term in recipe.step.terms(stage, looks))
        batches = preference_batches(recipe, model, found, terms)
        phase = training_phase(f"dpo stage {stage}", model, batches, n, request, recipe=recipe, reference=True)
        phase.notes.extend(notes)
        phases.append(phase)
    return phases


def preference_batches(recipe: Any, model: Described, pairs: Sequence[Any], terms: Sequence[Any]) -> list[Batches]:
    """For each term, what its batches of ``pairs`` look like: one row a pair where chosen and rejected share it, else two.

    Of several looks all terms may be one row: these are then more than it takes.
    """
    from visrl.train.dpo.collator import PairCollator, has_term

    step = recipe.step
    collator = PairCollator(
        pairs, encoder_of(model, recipe.model.box_format), tuple(terms), crop=step.crop, context=step.context
    )
    shared = step.prefix_sharing and recipe.model.shares_rows
    size = int(recipe.trainer["per_device_train_batch_size"])
    out = []
    for term in terms:
        encoded = [collator.encoded(i, term) for i, pair in enumerate(pairs) if has_term(pair, term)]
        if not encoded:
            continue
        one = shared and all(len(c.prompts) == 1 for c in encoded)
        rows = []
        for pair in encoded:
            width = max(len(pair.chosen), len(pair.rejected)) - 1
            pictures = sum(len(p.ids) for p in pair.pictures)
            prompt = max(len(p.ids) for p in pair.prompts)
            rows.append((prompt if one else 2 * prompt, 2 * width, pictures, 0))
        out.append(_two_rows(batches_of(rows, size), one=one))
    return out


def _two_rows(batches: Batches, *, one: bool) -> Batches:
    """Where chosen and rejected are rows of their own: twice the rows of half the tokens."""
    if one:
        return batches
    return Batches(
        2 * batches.rows,
        batches.tokens // 2,
        1 + (batches.kept - 1) // 2,
        batches.per_row,
        batches.pictures,
        batches.patches,
        2 * batches.at_once,
    )


def _rows(recipe: Any, load: Any, request: EstimateRequest) -> tuple[list[Any], int, list[str]]:
    """Some rows of a recipe's data and their number; none, and ``--samples``, where the data are not there yet."""
    try:
        rows = load(recipe.data)
    except UsageError as error:
        if request.samples is None:
            raise UsageError(
                error.message, "--samples N estimates without the data, from a typical question"
            ) from error
        return [], request.samples, [f"one typical question and a picture of 640 x 480 ({error.message})"]
    return spread(rows, LOOKED_AT), request.samples or len(rows), []
