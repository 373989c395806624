"""``kind: pairs``: questions and answers without boxes -> preference pairs (the paper's self-evolution).

``run.json``       what was asked, its hash; started, resumed (never part of what is compared)
``chains.jsonl``   a line per finished question: every chain, score and reason; append-only, fsynced
``pairs.jsonl``    the trainer's rows          } derived from chains.jsonl at the end: byte-identical for equal requests,
``manifest.json``  seeds, models, funnel, cost } whatever the batch size and however often the run was interrupted
``records/``       WP-LP, WP-LN, WN-LP and WN-LN for ``visrl-eval tables --paper datagen``, where true boxes are known

The same command finishes what is missing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from typing import Any

from visrl.errors import EXIT_DONE, EXIT_INCOMPLETE, Incomplete, UsageError
from visrl.policies.before import check_policy
from visrl.runs.distributed import init
from visrl.train.config.recipe import Kind
from visrl.train.data.questions import check_questions, load_questions
from visrl.train.pairs.on_ray import generate_on_ray
from visrl.train.pairs.recipe import PairsRecipe
from visrl.train.pairs.run import load_sampler, make_pairs


def run(recipe: PairsRecipe) -> int:
    """Make what is missing and say what came out. Returns the exit code: 3 where questions failed. Raises UsageError."""
    first = init().is_main
    manifest = generate_pairs(recipe)
    if not first:
        return EXIT_DONE
    counts = manifest["funnel"]
    print(f"{recipe.output}: {counts['pairs']} pairs of {counts['questions']['asked']} questions", file=sys.stderr)
    if failed := sum(counts["failed"].values()):
        print(f"{failed} questions failed; the same command tries them again", file=sys.stderr)
    if not counts["pairs"]:
        raise Incomplete(f"{recipe.output}: no question gave a pair: {why_none(counts)}", NO_PAIRS)
    place = recipe.output / "pairs.jsonl"
    print(
        f"train on them, in a recipe of kind dpo: --set data.path={place} --set data.pictures={recipe.data.pictures}",
        file=sys.stderr,
    )
    return EXIT_INCOMPLETE if failed else EXIT_DONE


def generate_pairs(recipe: PairsRecipe) -> dict[str, Any]:
    """Load the models, make the pairs that are missing, write pairs and manifest. Returns the manifest; of several processes
    only the first has one. Raises UsageError.
    """
    if recipe.ray is not None:
        return generate_on_ray(recipe)
    sampler = load_sampler(recipe)
    try:
        return make_pairs(sampler, load_questions(recipe.data), recipe)
    finally:
        sampler.close()


NO_PAIRS = "a policy that writes readable, differing boxes, a critic that can judge, more questions (docs/pairs.md, the funnel)"
_LOST_AT = {
    "answered": "every request failed",
    "parsed": "no attempt had two boxes that could be read",
    "distinct": "all chains of a question were the same",
    "scored": "the critic's replies held no score",
    "above_and_below_by_answer": "no question had both a right and a wrong answer",
    "paired": "no box of a right answer scored high, and of a wrong one low",
}


def why_none(funnel: Mapping[str, Any]) -> str:
    """Where the last question was lost, and why attempts were dropped."""
    questions, dropped = funnel["questions"], funnel.get("attempts", {}).get("dropped", {})
    first = next((why for step, why in _LOST_AT.items() if not questions.get(step)), "none was asked")
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return f"of {questions.get('asked', 0)}, {first}" + (f" (attempts dropped: {reasons})" if reasons else "")


def check(recipe: PairsRecipe) -> None:
    """Raises UsageError for questions, a policy or a critic that are not there, unless the pairs are."""
    if (recipe.output / "manifest.json").is_file():
        return
    check_critic(recipe)
    check_policy(recipe.policy.model, recipe.policy.args)
    check_questions(recipe.data)


def check_critic(recipe: PairsRecipe) -> None:
    """Raises UsageError for a critic that is not there, and for Ray that is not installed."""
    if recipe.ray is not None and importlib.util.find_spec("ray") is None:
        raise UsageError("`ray:` was set, and Ray is not installed", "pip install 'visrl[ray]'")
    if recipe.critic.model is not None:
        check_policy(recipe.critic.model, recipe.critic.args)


KIND = Kind(PairsRecipe, run, check, renamed={"sampling.spares": "sampling.extra_samples"})
