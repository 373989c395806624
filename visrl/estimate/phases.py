"""A recipe -> its phases."""

from __future__ import annotations

from typing import Any

from visrl.errors import UsageError
from visrl.estimate.generating import pairs_phases
from visrl.estimate.loops import loop_phases
from visrl.estimate.phase import Asked, Phase
from visrl.estimate.shape import describe_model
from visrl.estimate.training import dpo_phases, sft_phases


def recipe_phases(recipe: Any, asked: Asked) -> list[Phase]:
    """The phases of a recipe. Raises UsageError for a kind that has no plan."""
    if recipe.kind == "pairs":
        return pairs_phases(recipe, asked)
    if recipe.kind == "loop":
        return loop_phases(recipe, asked, recipe_phases)
    plans = {"sft": sft_phases, "dpo": dpo_phases}
    if recipe.kind not in plans:
        raise UsageError(f"no plan for recipes of kind {recipe.kind}", "sft, dpo, pairs and loop have one")
    section = recipe.model
    model = describe_model(
        section.path,
        revision=section.revision,
        lora=recipe.lora,
        adapter=section.adapter is not None,
        frozen=section.freeze_vision,
    )
    return plans[recipe.kind](recipe, model, asked)
