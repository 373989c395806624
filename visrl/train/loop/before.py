"""Whether a loop can run to its end: models, data, pictures, servers and the launcher of every phase that is not done.

The last phase of a loop begins hours after the first; what it lacks is said before anything is loaded.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Collection

from visrl.errors import UsageError
from visrl.evaluation.evaluate import check_before, check_pictures
from visrl.policies.before import box_format_names, check_policy
from visrl.policies.registry import fitting
from visrl.train.config.recipe import Recipe, Resolved
from visrl.train.data.load import load_demonstrations
from visrl.train.data.questions import check_questions
from visrl.train.dpo.stages import DPORecipe
from visrl.train.grpo.phase import check_rewards_of
from visrl.train.grpo.recipe import GRPORecipe
from visrl.train.loop.looks import Formats, Look, check_looks, look_of, scored
from visrl.train.loop.phase_state import is_finished
from visrl.train.loop.phases import Phase, Weights, own_recipe, phases
from visrl.train.loop.recipe import LoopRecipe
from visrl.train.pairs.command import check_critic
from visrl.train.pairs.recipe import PairsRecipe
from visrl.train.sft.sft import SFTRecipe


def check_scoring(recipe: LoopRecipe) -> None:
    """Scoring comes after hours of training; its errors come first. Raises UsageError."""
    if recipe.score.data is not None and not recipe.score.data.is_dir():
        raise UsageError(f"score.data: {recipe.score.data}: no such folder", "docs/data.md describes its layout")
    check_before([recipe.score.tasks], judge=recipe.score.judge)


def check(recipe: LoopRecipe) -> None:
    """Raises UsageError for the first thing that a phase to come will lack, or where phases look in different ways."""
    check_scoring(recipe)
    check_launcher(recipe.launch)
    todo = [phase for phase in phases(recipe) if not is_finished(recipe.output / phase.name / _end_of(phase))]
    if not todo:
        return
    formats = box_format_names(recipe.base, recipe.score.args)
    for model in (recipe.base, recipe.sft.model if recipe.sft is not None else None):
        if model is not None:
            spec = Weights(model).spec(recipe.policy)
            check_policy(spec, fitting(spec, recipe.score.args)[0])
    looks = own_looks(recipe, todo, formats)
    said = check_looks(recipe, looks)
    if len({look.boxes for look in looks}) > 1:  # meant; what differs besides is said when the loop begins
        print(said, file=sys.stderr)
    check_pictures([recipe.score.tasks], recipe.score.data, recipe.score.limit)


def _end_of(phase: Phase) -> str:
    """Where the end of a phase is noted: of one that is scored, with its scoring."""
    return "" if phase.what == "pairs" else "score"


def check_launcher(launch: str | None) -> None:
    """Raises UsageError for a launcher that is no command of this machine."""
    if launch is not None and (not shlex.split(launch) or shutil.which(shlex.split(launch)[0]) is None):
        raise UsageError(f"launch: no command {launch!r} on this machine", "for example: accelerate launch --no_python")


def own_looks(recipe: LoopRecipe, read: Collection[Phase] = (), formats: Formats | None = None) -> list[Look]:
    """How each phase of a recipe looks, and scoring; the data of those to ``read`` are read: it tells what their rows teach.

    formats: of the base; without it nothing is said of how boxes are written.
    """
    looks = []
    for phase in phases(recipe):
        resolved = own_recipe(recipe, phase) if phase.iteration <= 1 else None
        if resolved is not None:
            taught = _checked(recipe, phase, resolved) if phase in read else ()
            among = () if recipe.protocol is None else (recipe.protocol,)
            look = look_of(phase.name, resolved, taught, formats, among)
            looks += [look] if look is not None else []
    return [*looks, scored(recipe, formats)]


def _checked(recipe: LoopRecipe, phase: Phase, resolved: Resolved) -> set[str]:
    """The protocols of a phase's rows. Raises UsageError for data, or a critic, that are not there."""
    found: Recipe = resolved.recipe
    if isinstance(found, SFTRecipe):
        return {str(row.protocol) for row in load_demonstrations(found.data)}
    if isinstance(found, PairsRecipe):
        check_critic(found if _names_its_critic(recipe) else _without_critic(found))
        check_questions(found.data)
    elif isinstance(found, GRPORecipe):
        check_rewards_of(found, check_questions(found.data))  # its model and its critic are the loop's
    elif not isinstance(found, DPORecipe):
        resolved.kind.check(found.model_copy(update={"start": None}))  # it starts from the loop's base
    return set()


def _names_its_critic(recipe: LoopRecipe) -> bool:
    return recipe.pairs is not None and "critic.model" in recipe.pairs.set


def _without_critic(found: PairsRecipe) -> PairsRecipe:
    """The loop's own critic is the base, which has been looked at."""
    return found.model_copy(update={"critic": found.critic.model_copy(update={"model": None})})
