"""Pairs on a Ray cluster: ``--set ray=N``. Questions -> chains by a pool of N policies -> scores by a pool of N critics; this
process selects and writes. One pool does both where the critic has no model of its own, or the policy's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.evaluation.on_ray import uses_gpu
from visrl.policies.registry import load_policy
from visrl.runs.distributed import init
from visrl.runs.ray_pool import Pool, Stage, connect
from visrl.train.critics.calibration import Calibration
from visrl.train.critics.critics import make_critic, uncalibrated
from visrl.train.critics.margin_critic import MarginCritic
from visrl.train.data.questions import load_questions
from visrl.train.pairs.calibration import begun
from visrl.train.pairs.recipe import PairsRecipe
from visrl.train.pairs.run import Line, describe, load_sampler, make_pairs_by
from visrl.train.pairs.sampling import PairSampler, QuestionState, SamplingPlan, from_json, to_json


def generate_on_ray(recipe: PairsRecipe) -> dict[str, Any]:
    """The recipe's pairs, by ``recipe.ray`` workers per model. Returns the manifest. Raises UsageError."""
    if init().world_size > 1:
        raise UsageError(
            "`ray:` was set, and a launcher started several processes",
            "start one process: Ray starts the workers itself",
        )
    pool = _pool(recipe)
    before = begun(recipe.output)
    request, plan = pool.ask(lambda: _described(recipe, before))

    def engine(parts: Sequence[Sequence[CoTSample]]) -> Iterator[list[Line]]:
        items = [json.dumps([sample.id for sample in part]) for part in parts]
        return (json.loads(made) for made in pool.pipe(_stages(recipe, plan, request), items))

    return make_pairs_by(engine, request, plan, load_questions(recipe.data), recipe)


def _pool(recipe: PairsRecipe) -> Pool:
    models = [(recipe.policy.model, recipe.policy.args)]
    if _critic_apart(recipe):
        models.append((str(recipe.critic.model), recipe.critic.args))
    return connect(
        recipe.ray or 1,
        len(models),
        uses_gpu=any(uses_gpu(model) for model, _ in models),
        whole_gpus=any("device_map" in args for _, args in models),
    )


def _critic_apart(recipe: PairsRecipe) -> bool:
    policy, critic = recipe.policy, recipe.critic
    return critic.model is not None and (critic.model, critic.args) != (policy.model, policy.args)


def _described(recipe: PairsRecipe, before: Mapping[str, Any] | None) -> tuple[dict[str, Any], SamplingPlan]:
    """What is asked, said by a worker, which has the models and fits the critic once for all."""
    sampler = load_sampler(recipe, before)
    return describe(sampler, load_questions(recipe.data), recipe), sampler.plan


def _stages(recipe: PairsRecipe, plan: SamplingPlan, request: Mapping[str, Any]) -> list[Stage]:
    """Ids of a batch -> its lines, in one stage or by way of unscored lines in two."""
    if not _critic_apart(recipe):
        return [lambda: _by_id(recipe, lambda: load_sampler(recipe, request), _all_of_it)]
    return [
        lambda: _by_id(recipe, lambda: _drawing(recipe, plan), _draw),
        lambda: _by_id(recipe, lambda: _judging(recipe, plan, request), _judge),
    ]


def _by_id(
    recipe: PairsRecipe,
    load: Callable[[], PairSampler],
    step: Callable[[PairSampler, Any, dict[str, CoTSample]], Sequence[QuestionState]],
) -> Callable[[str], str]:
    known = {sample.id: sample for sample in load_questions(recipe.data)}
    sampler = load()
    return lambda item: json.dumps([to_json(state) for state in step(sampler, json.loads(item), known)])


def _all_of_it(sampler: PairSampler, ids: list[str], known: dict[str, CoTSample]) -> list[QuestionState]:
    return sampler.batch([known[i] for i in ids])


def _draw(sampler: PairSampler, ids: list[str], known: dict[str, CoTSample]) -> list[QuestionState]:
    return sampler.draw([known[i] for i in ids])


def _judge(sampler: PairSampler, lines: list[Line], known: dict[str, CoTSample]) -> list[QuestionState]:
    states = [from_json(line, known[line["id"]]) for line in lines]
    sampler.judge(states)
    return states


def _drawing(recipe: PairsRecipe, plan: SamplingPlan) -> PairSampler:
    """A policy that is never judged here."""
    policy = load_policy(recipe.policy.model, recipe.policy.args)
    return PairSampler(policy, make_critic("oracle", None, recipe.critic.judge), plan)


def _judging(recipe: PairsRecipe, plan: SamplingPlan, request: Mapping[str, Any]) -> PairSampler:
    """A critic whose chains were drawn elsewhere: as policy it is only asked whether it needs pictures. request: what it was
    fitted to, by the worker that was asked first.
    """
    section = recipe.critic
    model = load_policy(str(section.model), section.args)
    critic = uncalibrated(section, model)
    if section.calibration is not None and isinstance(critic, MarginCritic):
        critic = replace(critic, calibration=Calibration.from_json(request["critic"]["calibration"]))
    return PairSampler(model, critic, plan)
