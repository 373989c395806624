"""A recipe -> its phases."""

from __future__ import annotations

from typing import Any

from visrl.errors import UsageError
from visrl.estimate.generating import pairs_phases
from visrl.estimate.loops import loop_phases
from visrl.estimate.phase import EstimateRequest, Phase
from visrl.estimate.policy_gradient import grpo_phases
from visrl.estimate.shape import describe_model
from visrl.estimate.training import dpo_phases, sft_phases


def recipe_phases(recipe: Any, request: EstimateRequest) -> list[Phase]:
    """The phases of a recipe. Raises UsageError for a kind that cannot be estimated."""
    if recipe.kind == "pairs":
        return pairs_phases(recipe, request)
    if recipe.kind == "loop":
        return loop_phases(recipe, request, recipe_phases)
    estimators = {"sft": sft_phases, "dpo": dpo_phases, "grpo": grpo_phases}
    if recipe.kind not in estimators:
        raise UsageError(
            f"recipes of kind {recipe.kind} cannot be estimated", "those of kind sft, dpo, grpo, pairs and loop can"
        )
    section = recipe.model
    model = describe_model(
        section.path,
        revision=section.revision,
        lora=recipe.lora,
        adapter=section.adapter is not None,
        frozen=section.freeze_vision,
    )
    return estimators[recipe.kind](recipe, model, request)
