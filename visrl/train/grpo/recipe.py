"""The recipe of ``kind: grpo``: its sections, checked before anything heavy is loaded."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from visrl.core.crops import CropName
from visrl.errors import UsageError
from visrl.train.common.trainer_args import OWN
from visrl.train.config.protocols import ProtocolChoice
from visrl.train.config.recipe import LoraSection, ModelSection, Recipe, check_trainer_section
from visrl.train.config.section import Section
from visrl.train.critics.critics import CriticSection, ModelArgs
from visrl.train.critics.judged import Inner
from visrl.train.data.questions import QuestionSection
from visrl.train.grpo.advantages import Baseline, Credit
from visrl.train.grpo.rewards import check_rewards

DEFAULTS: dict[str, Any] = {
    "num_generations": 8,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "logging_steps": 10,
    "save_steps": 200,
}
LOSSES = ("dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo", "luspo")
"""TRL's; it takes any other name, and fails at the first step."""
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


class EngineSection(Section):
    """Draws chains in place of the model in training, and is handed its adapter; with ``lora`` only."""

    model: str | None = Field(default=None, description="default: vllm: and the model that is trained")
    args: ModelArgs = Field(default_factory=dict, description="as --model-args, e.g. gpu_memory_utilization")
    every: int = Field(default=1, ge=1, description="optimiser steps between two hand-overs of the adapter")


class GRPOSection(Section):
    """What is rewarded, and how groups are drawn and compared."""

    credit: Credit = Field(
        default="step", description="step: box and answer tokens have their own rewards' advantage; chain: all of all"
    )
    box: dict[str, float] = Field(default={"box_critic": 1.0}, description="rewards of the box and their weights")
    answer: dict[str, float] = Field(default={"answer": 1.0}, description="rewards of the answer and their weights")
    baseline: Baseline = Field(default="mean_std", description="of a group; leave_one_out is RLOO's")
    judge: str = Field(default="exact", description="of the reward `answer`: an offline rule")
    protocol: ProtocolChoice | None = Field(default=None, description="default: the family's own")
    crop: CropName = "tight"
    inner: Inner = Field(
        default="best", description="box_critic of a look, of several: the best of it and of what followed, or its own"
    )
    prefix_sharing: bool = Field(default=True, description="one row per group; exact, and several times as fast")
    vision_cache_gb: float = Field(default=4.0, ge=0, description="memory for features of a frozen vision tower")
    max_tokens: int | None = Field(default=None, ge=1, description="stop at a longer sequence, naming it")
    engine: EngineSection | None = Field(default=None, description="draws chains; default: the model in training")
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
        from trl import GRPOConfig

        if (loss := section.get("loss_type", LOSSES[0])) not in LOSSES:
            raise ValueError(f"loss_type: unknown {loss!r}; one of {', '.join(LOSSES)}")
        return DEFAULTS | check_trainer_section(section, GRPOConfig, RESERVED)

    @model_validator(mode="after")
    def _calibrated_before(self) -> GRPORecipe:
        if self.critic is not None and self.critic.calibration is not None:
            raise ValueError("critic.calibration is fitted in pairs; name a critic.temperature here")
        return self

    @model_validator(mode="after")
    def _adapter_to_hand_over(self) -> GRPORecipe:
        if self.grpo.engine is not None and self.lora is None:
            raise ValueError("grpo.engine is handed an adapter at each step: it needs the section lora")
        if self.grpo.engine is not None and self.model.bits:
            raise ValueError(
                "grpo.engine would sample from the base without its rounding: leave load_in_4bit and load_in_8bit out"
            )
        return self

    @model_validator(mode="after")
    def _rewarded(self) -> GRPORecipe:
        try:
            check_rewards({**self.grpo.box, **self.grpo.answer}, self.critic is not None, self.grpo.judge)
        except UsageError as error:
            raise ValueError(f"{error.message} ({error.hint})") from error
        if not any((*self.grpo.box.values(), *self.grpo.answer.values())):
            raise ValueError("grpo.box and grpo.answer name no reward")
        return self
