"""``kind: grpo``: policy gradients on groups of chains (GRPO, RLOO and TRL's other losses). Beyond the paper: docs/method.md h.

    visrl-train recipes/world-grpo.yaml

``trainer`` passes straight to TRL's GRPOConfig: ``num_generations`` is k, ``per_device_train_batch_size`` counts chains,
``max_completion_length`` holds for each turn. The same command resumes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from trl import GRPOConfig

from visrl.core.crops import CropName
from visrl.core.prompts import PROTOCOLS, ProtocolName
from visrl.errors import EXIT_DONE, UsageError
from visrl.policies.protocol import Sampling
from visrl.train.common.critics import CriticSection, load_critic
from visrl.train.common.models import TrainableModel, load_trainable, own_forward, sliding_window, why_not_shared
from visrl.train.common.phase_folder import claim, finished, train
from visrl.train.common.trainer_args import OWN, trainer_config
from visrl.train.config.recipe import Kind, LoraSection, ModelSection, Recipe, Section, check_trainer_section
from visrl.train.data.questions import QuestionSection, load_questions
from visrl.train.grpo.advantages import Baseline
from visrl.train.grpo.batches import GroupEncoder
from visrl.train.grpo.rewards import RewardTools, check_rewards
from visrl.train.grpo.rollouts import RolloutPlan
from visrl.train.grpo.trainer import Credit, GroupTrainer, RewardPlan

DEFAULTS: dict[str, Any] = {
    "num_generations": 8,
    "per_device_train_batch_size": 8,
    "logging_steps": 10,
    "save_steps": 200,
}
RESERVED = OWN | {
    "reward_weights": "grpo.box and grpo.answer",
    "scale_rewards": "grpo.baseline",
    "multi_objective_aggregation": "grpo.baseline",
    "precompute_ref_log_probs": "visrl: the reference is the start of the phase",
    "log_completions": "grpo.keep",
    **dict.fromkeys(
        ("use_vllm", "use_transformers_continuous_batching", "generation_kwargs", "cache_implementation", "min_p",
         "repetition_penalty", "chat_template_kwargs", "mask_truncated_completions", "num_generations_eval"),
        "nothing: chains are drawn by visrl's own steps (docs/training-grpo.md)",
    ),
}  # fmt: skip


class GRPOSection(Section):
    """What is rewarded, and how groups are drawn and compared."""

    credit: Credit = Field(
        default="step", description="step: box and answer tokens have their own rewards' advantage; chain: all of all"
    )
    box: dict[str, float] = Field(default={"box_critic": 1.0}, description="rewards of the box and their weights")
    answer: dict[str, float] = Field(default={"answer": 1.0}, description="rewards of the answer and their weights")
    baseline: Baseline = Field(default="mean_std", description="of a group; leave_one_out is RLOO's")
    judge: str = Field(default="exact", description="of the reward `answer`: an offline rule")
    protocol: ProtocolName | None = Field(default=None, description="default: the family's own")
    crop: CropName = "tight"
    prefix_sharing: bool = Field(default=True, description="one row per group; exact, and several times as fast")
    vision_cache_gb: float = Field(default=4.0, ge=0, description="memory for features of a frozen vision tower")
    max_tokens: int | None = Field(default=None, ge=1, description="stop at a longer sequence, naming it")
    keep: int = Field(default=2, ge=0, description="groups of each logging step that are kept in rollouts/")


class GRPORecipe(Recipe):
    """``trainer`` passes straight to TRL's GRPOConfig."""

    kind: Literal["grpo"]
    model: ModelSection
    data: QuestionSection
    critic: CriticSection | None = Field(default=None, description="of the rewards box_critic and answer_critic")
    lora: LoraSection | None = None
    grpo: GRPOSection = GRPOSection()
    trainer: dict[str, Any] = Field(default_factory=dict, validate_default=True)

    @field_validator("trainer")
    @classmethod
    def _known(cls, section: dict[str, Any]) -> dict[str, Any]:
        return DEFAULTS | check_trainer_section(section, GRPOConfig, RESERVED)

    @model_validator(mode="after")
    def _rewarded(self) -> GRPORecipe:
        try:
            check_rewards({**self.grpo.box, **self.grpo.answer}, self.critic is not None, self.grpo.judge)
        except UsageError as error:
            raise ValueError(f"{error.message} ({error.hint})") from error
        if not any((*self.grpo.box.values(), *self.grpo.answer.values())):
            raise ValueError("grpo.box and grpo.answer name no reward")
        return self


def run(recipe: GRPORecipe) -> int:
    """Train what is not finished. Raises UsageError."""
    claim(recipe.output, recipe.model_dump(mode="json", exclude={"output"}))
    if not finished(recipe.output):
        questions = load_questions(recipe.data)
        trainable = load_trainable(recipe.model, recipe.lora, recipe.seed)
        run_phase(recipe, trainable, questions, reward_plan(recipe))
    return EXIT_DONE


def reward_plan(recipe: GRPORecipe) -> RewardPlan:
    """The recipe's rewards, with the critic's model loaded where one is asked."""
    section = recipe.grpo
    asked = {**section.box, **section.answer}.keys() & {"box_critic", "answer_critic"}
    critic = load_critic(recipe.critic) if asked and recipe.critic is not None else None
    most = GRPOConfig(output_dir=str(recipe.output), use_cpu=True, bf16=False, **_lengths(recipe)).max_completion_length
    tools = RewardTools(critic, section.judge, most)
    return RewardPlan(section.box, section.answer, section.credit, section.baseline, tools)


def _lengths(recipe: GRPORecipe) -> dict[str, Any]:
    return {k: v for k, v in recipe.trainer.items() if k == "max_completion_length"}


def run_phase(recipe: GRPORecipe, trainable: TrainableModel, questions: list[Any], rewards: RewardPlan) -> GroupTrainer:
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
        trainer = GroupTrainer(trainable, questions, plans, args, folder, keep=section.keep, title=title)
        train(trainer, trainable, folder)
    return trainer


def rollout_plan(section: GRPOSection, trainable: TrainableModel, args: GRPOConfig, seed: int) -> RolloutPlan:
    """How the recipe draws chains. Raises UsageError where a protocol without a look is to be rewarded for boxes."""
    protocol = PROTOCOLS[section.protocol or trainable.family.default_protocol]
    if not protocol.looks and section.credit == "step" and not section.answer:
        raise UsageError(f"protocol {protocol.name} asks for no box, and only boxes are rewarded", "name grpo.answer")
    sampling = Sampling(
        args.num_generations, args.temperature, args.top_p, args.top_k or 0, args.max_completion_length, seed
    )
    return RolloutPlan(protocol, sampling, section.crop)


KIND = Kind(GRPORecipe, run)
