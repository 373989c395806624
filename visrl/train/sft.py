"""``kind: sft``: supervised fine-tuning on two-turn chains with TRL's ``SFTTrainer`` (visrl-method.md f), loss on box and answer only.

Departure from TRL's own path for pictures: conversations are laid out and masked by the family adapter, which has a layout for every
family and the right token types for PaliGemma (TRL's collator trains it with a mask that is shifted: training.md, trap 6).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from datasets import Dataset
from pydantic import Field, field_validator
from trl import SFTConfig, SFTTrainer

from visrl.errors import UsageError
from visrl.focus import CropName
from visrl.train.chains import count
from visrl.train.collate import ChainCollator
from visrl.train.data import load_demonstrations
from visrl.train.files import Demonstration
from visrl.train.machine import OWN, trainer_config
from visrl.train.models import Trainee, load_trainee
from visrl.train.phase import PhaseTrainer, claim, finished, train
from visrl.train.recipe import DataSection, LoraSection, ModelSection, Recipe, Section, check_trainer_section
from visrl.train.vision import picture_kwargs

if TYPE_CHECKING:
    from torch import Tensor

OFFICIAL: dict[str, Any] = {  # configs/train_sft.yaml, visrl-method.md f
    "learning_rate": 1e-4,
    "num_train_epochs": 3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "save_steps": 200,
    "logging_steps": 10,
}


class ChainSection(Section):
    """How chains are laid out."""

    crop: CropName = "tight"
    vision_cache_gb: float = Field(default=4.0, ge=0, description="memory for features of a frozen vision tower")
    max_tokens: int | None = Field(
        default=None, description="stop at a longer sequence, naming it; nothing is ever cut"
    )


class SFTRecipe(Recipe):
    """``trainer`` passes straight to TRL's SFTConfig."""

    kind: Literal["sft"]
    model: ModelSection
    data: DataSection
    lora: LoraSection | None = None
    chain: ChainSection = ChainSection()
    trainer: dict[str, Any] = Field(default_factory=dict, validate_default=True)

    @field_validator("trainer")
    @classmethod
    def _known(cls, section: dict[str, Any]) -> dict[str, Any]:
        reserved = OWN | {key: "visrl: pictures allow neither" for key in ("packing", "padding_free")}
        return OFFICIAL | check_trainer_section(section, SFTConfig, reserved)


RECIPE = SFTRecipe


class ChainTrainer(PhaseTrainer, SFTTrainer):  # type: ignore[misc]  # TRL is untyped
    """SFT on conversations of the family's layout. Raises UsageError naming the samples where a loss is not finite."""

    def __init__(self, trainee: Trainee, collator: ChainCollator, args: SFTConfig, **more: Any) -> None:
        self.trainee, self.collator = trainee, collator
        rows = Dataset.from_dict({"row": list(range(len(collator.rows)))})
        super().__init__(
            model=trainee.model,
            args=args,
            data_collator=collator,
            train_dataset=rows,
            processing_class=trainee.processor,
            **more,
        )

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # rows are numbers; the collator makes the tokens

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """TRL's loss on the batch with its pictures in place."""
        index: Tensor = inputs.pop("index")
        inputs |= picture_kwargs(self.trainee.family, self.trainee.base, inputs.pop("chats"), self.collator.store)
        out = super().compute_loss(model, inputs, *args, **kwargs)
        loss = out[0] if isinstance(out, tuple) else out
        if not torch.isfinite(loss):
            names = ", ".join(self.collator.rows[row][0].sample.id for row in index.tolist())
            raise UsageError(
                f"loss is {loss.item()}: one of samples {names}", "the newest checkpoint is from before; look at them"
            )
        return out


def run(recipe: SFTRecipe) -> None:
    """Train, unless ``output`` holds the finished phase. Raises UsageError."""
    claim(recipe.output, recipe.model_dump(mode="json", exclude={"output"}))
    if finished(recipe.output):
        return
    run_sft(recipe, load_trainee(recipe.model, recipe.lora), load_demonstrations(recipe.data))


def run_sft(recipe: SFTRecipe, trainee: Trainee, chains: list[Demonstration]) -> ChainTrainer:
    """From the model in memory to ``final/``."""
    folder: Path = recipe.output
    joined = trainee.family.keeps_prefix
    rows = [(chain, part) for chain in chains for part in range(count(chain.sample, chain.protocol, joined=joined))]
    collator = ChainCollator(
        rows,
        trainee.speaker,
        crop=recipe.chain.crop,
        max_tokens=recipe.chain.max_tokens,
        store=trainee.feature_store(recipe.chain.vision_cache_gb),
    )
    args = trainer_config(SFTConfig, recipe.trainer, folder, recipe.seed, trainee.base)
    trainer = ChainTrainer(trainee, collator, args, title="sft")
    train(trainer, trainee, folder)
    return trainer
