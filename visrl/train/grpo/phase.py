"""``kind: grpo``: policy gradients on groups of chains (GRPO, RLOO and TRL's other losses). Beyond the paper: docs/method.md h.

    visrl-train recipes/world-grpo.yaml

``trainer`` passes straight to TRL's GRPOConfig: ``num_generations`` is k, ``per_device_train_batch_size`` counts chains,
``max_completion_length`` holds for each turn. The same command resumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import GRPOConfig

from visrl.core.types import CoTSample
from visrl.errors import EXIT_DONE, UsageError
from visrl.policies.before import check_policy
from visrl.policies.hf.decoding import sliding_window
from visrl.policies.protocol import Sampling
from visrl.rollout.config import require_room
from visrl.runs.distributed import rank, world_size
from visrl.train.common.models import (
    TrainableModel,
    check_model,
    load_trainable,
    own_forward,
    starting_weights,
    why_not_shared,
)
from visrl.train.common.phase_folder import check_or_renew, claim, finished, say_where, train
from visrl.train.common.trainer_args import trainer_config
from visrl.train.config.protocols import check_crop, check_pictures, crop_under, protocol_of
from visrl.train.config.recipe import Kind
from visrl.train.critics.critics import load_critic
from visrl.train.data.fingerprint import questions_hash
from visrl.train.data.questions import check_questions, load_questions
from visrl.train.grpo.batches import GroupEncoder
from visrl.train.grpo.credit import RewardPlan
from visrl.train.grpo.engine import Engine, engine_policy, load_engine
from visrl.train.grpo.recipe import GRPORecipe, GRPOSection
from visrl.train.grpo.rewards import RewardTools, check_scored
from visrl.train.grpo.rollouts import RolloutPlan
from visrl.train.grpo.trainer import GroupTrainer


def run(recipe: GRPORecipe) -> int:
    """Train what is not finished. Raises UsageError."""
    questions = load_questions(recipe.data)
    check_rewards_of(recipe, questions)
    asked, data = recipe.model_dump(mode="json", exclude={"output"}), questions_hash(questions)
    weights = starting_weights(recipe.model)
    check_or_renew(recipe.output, asked, data, weights)
    if not finished(recipe.output):
        engine = load_engine(recipe)
        try:
            trainable = load_trainable(recipe.model, recipe.lora, recipe.seed)
            rewards = reward_plan(recipe)
            claim(recipe.output, asked, data, weights or starting_weights(recipe.model))
            run_phase(recipe, trainable, questions, rewards, engine)
        finally:
            if engine is not None:
                engine.policy.close()
        if rank() == 0:
            protocol = recipe.grpo.protocol or trainable.family.default_protocol
            say_where(recipe.output / "final", recipe.model, {protocol}, crop_under(protocol, recipe.grpo.crop))
    return EXIT_DONE


def check(recipe: GRPORecipe) -> None:
    """Raises UsageError for a model, a critic or questions that are not there, unless the phase is finished."""
    if not finished(recipe.output):
        check_model(recipe.model, recipe.lora)
        if recipe.critic is not None and recipe.critic.model is not None:
            check_policy(recipe.critic.model, recipe.critic.args)
        check_rewards_of(recipe, check_questions(recipe.data))
        if recipe.grpo.engine is not None:
            if world_size() > 1:
                raise UsageError("grpo.engine runs in one process", "without a launcher, or without the engine")
            check_policy(*engine_policy(recipe))


def check_rewards_of(recipe: GRPORecipe, questions: Sequence[CoTSample]) -> None:
    """Raises UsageError for a reward of the recipe that none of its questions can have."""
    section = recipe.grpo
    weights = {
        name: section.box.get(name) or section.answer.get(name, 0.0) for name in {**section.box, **section.answer}
    }
    check_scored(weights, questions, section.protocol is None or bool(protocol_of(section.protocol).looks))


def reward_plan(recipe: GRPORecipe) -> RewardPlan:
    """The recipe's rewards, with the critic's model loaded where one is asked."""
    section = recipe.grpo
    asked = {**section.box, **section.answer}.keys() & {"box_critic", "answer_critic"}
    critic = load_critic(recipe.critic) if asked and recipe.critic is not None else None
    most = GRPOConfig(output_dir=str(recipe.output), use_cpu=True, bf16=False, **_lengths(recipe)).max_completion_length
    tools = RewardTools(critic, section.judge, most)
    return RewardPlan(section.box, section.answer, section.credit, section.baseline, tools, section.inner)


def _lengths(recipe: GRPORecipe) -> dict[str, Any]:
    return {k: v for k, v in recipe.trainer.items() if k == "max_completion_length"}


def run_phase(
    recipe: GRPORecipe,
    trainable: TrainableModel,
    questions: list[CoTSample],
    rewards: RewardPlan,
    engine: Engine | None = None,
) -> GroupTrainer:
    """From the model in memory to ``final/``."""
    folder, section = recipe.output, recipe.grpo
    reason = why_not_shared(trainable.base)
    encoder = GroupEncoder(
        trainable.encoder,
        shared=section.prefix_sharing and reason is None,
        window=sliding_window(trainable.base),
        max_tokens=section.max_tokens,
        store=trainable.feature_store(section.vision_cache_gb),
    )
    args = trainer_config(GRPOConfig, recipe.trainer, folder, recipe.seed, trainable.base)
    plan = rollout_plan(section, trainable, args, recipe.seed)
    title = "grpo" + (f" (plain rows: {reason})" if section.prefix_sharing and reason else "")
    with own_forward(trainable.model):
        plans = (encoder, plan, rewards)
        trainer = GroupTrainer(trainable, questions, plans, args, folder, keep=section.keep, engine=engine, title=title)
        train(trainer, trainable, folder)
    return trainer


def rollout_plan(section: GRPOSection, trainable: TrainableModel, args: GRPOConfig, seed: int) -> RolloutPlan:
    """How the recipe draws chains. Raises UsageError where a protocol without a look is to be rewarded for boxes, for a crop that
    it does not show, and where the family's pictures or its limit of tokens leave out looks.
    """
    name = section.protocol or trainable.family.default_protocol
    check_crop(name, section.crop, "crop" in section.model_fields_set)
    check_pictures(name, trainable.family.max_pictures, trainable.family.name)
    protocol = protocol_of(name)
    require_room(protocol, args.max_completion_length)
    if not protocol.looks and section.credit == "step" and not section.answer:
        raise UsageError(f"protocol {protocol.name} asks for no box, and only boxes are rewarded", "name grpo.answer")
    sampling = Sampling(
        args.num_generations, args.temperature, args.top_p, args.top_k or 0, args.max_completion_length, seed
    )
    return RolloutPlan(protocol, sampling, section.crop)


KIND = Kind(GRPORecipe, run, check)
