"""The phases of a loop, and the scoring of each one's end.

Every model of a loop is as large as its base, and none but the base is there yet: sizes are the base's throughout. Training
runs on all GPUs (``launch``), pairs on as many as ``ray`` says, scoring on one GPU: a loop runs in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from visrl.errors import UsageError
from visrl.estimate.generating import evaluation_phase, pairs_phases, task_samples
from visrl.estimate.phase import EstimateRequest, Phase
from visrl.estimate.shape import describe_model
from visrl.estimate.work import Work
from visrl.train.loop.phases import Phase as LoopPhase
from visrl.train.loop.phases import State, Weights, phase_recipe, phases
from visrl.train.loop.recipe import LoopRecipe

PAIRED = 0.55
"""Of the questions: what the small world's warm-up gives (docs/pairs.md)."""


def loop_phases(recipe: LoopRecipe, request: EstimateRequest, estimate: Any) -> list[Phase]:
    """All of them, in order. estimate: of one recipe (``recipe_phases``). Raises UsageError."""
    base = Weights(recipe.base)
    state = State(base, base, base, pairs=Path("pairs.jsonl"))
    scoring = _scoring(recipe, replace(request, gpus=1))
    found: list[Phase] = []
    for phase in phases(recipe):
        if phase.what != "ready":
            found += _work(recipe, phase, state, request, found, estimate)
        if phase.what != "pairs":
            small = phase.what != "ready" and found[-1].name != phase.name
            notes = [
                *scoring.notes,
                *(
                    [f"training {phase.name} (kind small_model) is left out: it takes minutes on one CPU core"]
                    if small
                    else []
                ),
            ]
            found.append(replace(scoring, name=f"{phase.name}: scoring", notes=notes))
    return found


def _work(
    recipe: LoopRecipe, phase: LoopPhase, state: State, request: EstimateRequest, before: Sequence[Phase], estimate: Any
) -> list[Phase]:
    own: Any = phase_recipe(recipe, phase, state)[0].recipe
    if own.kind == "base":  # the small world's: a minute or two on a core, and no GPU
        return []
    if phase.what == "pairs":
        made = pairs_phases(own, replace(request, gpus=own.ray or 1, samples=own.data.limit or request.samples))
    elif phase.what == "rl":
        asks = next(p.samples for p in reversed(before) if p.name.endswith("/pairs"))
        made = estimate(own, replace(request, samples=own.data.limit or round(PAIRED * asks)))
        made = [replace(p, notes=[f"{PAIRED:.0%} of the questions are taken to give a pair", *p.notes]) for p in made]
    else:
        made = estimate(own, replace(request, samples=own.data.limit or request.samples))
    return [replace(p, name=phase.name) for p in made]


def _scoring(recipe: LoopRecipe, request: EstimateRequest) -> Phase:
    """All tasks of the recipe's suite as one phase."""
    from visrl.evals.benchmarks import resolve

    section, model, parts = recipe.score, describe_model(recipe.base), []
    dtype = section.args.get("dtype", "bfloat16")
    how: dict[str, Any] = {
        "box_format": section.args.get("box_format"),
        "dtype": "bfloat16" if dtype == "auto" else dtype,
        "protocol": section.protocol,
        "crop": section.crop,
        "max_tokens": section.max_tokens,
    }
    for spec in resolve([section.tasks]):
        samples, n, notes = task_samples(spec.name, section.data)
        part = evaluation_phase(spec.name, model, samples, min(n, section.limit or n), request, **how)
        part.notes.extend(notes)
        parts.append(part)
    if not parts:
        raise UsageError("score.tasks names no task to score", "for example score.tasks: world")
    return Phase(
        "scoring",
        sum(p.samples for p in parts),
        _sum([p.work for p in parts]),
        max((p.memory for p in parts), key=lambda memory: memory.total),
        sum(p.seconds for p in parts),
        sum(p.disk for p in parts),
        list(dict.fromkeys(note for p in parts for note in p.notes)),
    )


def _sum(works: Sequence[Work]) -> Work:
    """Tokens and steps added up; what is looked back at is the mean, by tokens."""
    tokens = [work.tokens for work in works]
    added = {f.name: sum(getattr(w, f.name) for w in works) for f in fields(Work) if f.name != "context"}
    return Work(**added, context=sum(w.context * n for w, n in zip(works, tokens, strict=True)) / max(sum(tokens), 1))
