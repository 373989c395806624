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
        print(f"{failed} questions failed ({why_failed(counts)}); the same command tries them again", file=sys.stderr)
    if not counts["pairs"]:
        raise Incomplete(f"{recipe.output}: no question gave a pair: {why_none(counts)}", what_helps(counts))
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


_LOST_AT = {
    "answered": "every request failed",
    "parsed": "no attempt had two boxes that could be read",
    "distinct": "all chains of a question were the same",
    "scored": "the critic's replies held no score",
    "above_and_below_by_answer": "no question had both a right and a wrong answer",
    "paired": "no box of a right answer scored high, and of a wrong one low",
}
_HELPS = {
    "answered": "a server that answers; the reasons are in manifest.json",
    "parsed": "a longer warm-up, a lower sampling.temperature, more sampling.max_tokens",
    "distinct": "a higher sampling.temperature, more sampling.attempts",
    "scored": "a larger critic, or critic.kind=likelihood",
    "above_and_below_by_answer": "more questions, more sampling.attempts, select.win_answer lower and select.lose_answer higher",
    "paired": "more questions, select.win_box lower, select.lose_box higher, select.min_difference, or select.box_critic=false",
}


def why_none(funnel: Mapping[str, Any]) -> str:
    """Where the last question was lost, and why attempts were dropped."""
    questions, dropped = funnel["questions"], funnel.get("attempts", {}).get("dropped", {})
    step = _lost_at(funnel)
    first = _LOST_AT[step] if step else "none was asked"
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return f"of {questions.get('asked', 0)}, {first}" + (f" (attempts dropped: {reasons})" if reasons else "")


def what_helps(funnel: Mapping[str, Any]) -> str:
    """The keys that change where the last question was lost."""
    step = _lost_at(funnel)
    helps = _HELPS[step] if step else "more questions"
    return f"{helps}, with another output (in a loop: pairs.set.KEY, with redo=true; docs/pairs.md, the funnel)"


def _lost_at(funnel: Mapping[str, Any]) -> str | None:
    questions = funnel["questions"]
    return next((step for step in _LOST_AT if not questions.get(step)), None) if questions.get("asked") else None


def why_failed(funnel: Mapping[str, Any]) -> str:
    """The most frequent reason first."""
    return ", ".join(
        f"{n} {why}" for why, n in sorted(funnel["failed"].items(), key=lambda item: (-item[1], item[0]))[:3]
    )


def check(recipe: PairsRecipe) -> None:
    """Raises UsageError for questions, a policy or a critic that are not there, unless the pairs are."""
    if (recipe.output / "manifest.json").is_file():
        return
    check_critic(recipe)
    check_policy(recipe.policy.model, recipe.policy.args)
    check_questions(recipe.data)


def check_critic(recipe: PairsRecipe) -> None:
    """Raises UsageError for a critic, or questions of its calibration, that are not there, and for Ray that is not installed."""
    if recipe.ray is not None and importlib.util.find_spec("ray") is None:
        raise UsageError("`ray:` was set, and Ray is not installed", "pip install 'visrl[ray]'")
    if recipe.critic.model is not None:
        check_policy(recipe.critic.model, recipe.critic.args)
    if recipe.critic.calibration is not None:
        check_questions(recipe.critic.calibration.data)


KIND = Kind(PairsRecipe, run, check, renamed={"sampling.spares": "sampling.extra_samples"})
