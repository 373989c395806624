"""``kind: sft``: supervised fine-tuning on two-turn chains with TRL's ``SFTTrainer`` (docs/method.md f), loss on box
and answer only.

Departure from TRL's own path for pictures: conversations are laid out and masked by the family adapter, which has a
layout for every family and the right token types for PaliGemma (TRL's collator trains it with a mask that is shifted).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from datasets import Dataset
from pydantic import Field, field_validator, model_validator
from trl import SFTConfig, SFTTrainer

from visrl.core.crops import CropName
from visrl.errors import EXIT_DONE, UsageError
from visrl.runs.distributed import rank
from visrl.train.common.conversations import count, taken
from visrl.train.common.exclusive import exclusive
from visrl.train.common.models import TrainableModel, check_model, load_trainable, own_forward, starting_weights
from visrl.train.common.phase_folder import PhaseTrainer, check_or_renew, claim, finished, say_where, train
from visrl.train.common.trainer_args import OWN, trainer_config
from visrl.train.common.vision_cache import picture_kwargs
from visrl.train.config.protocols import check_crop
from visrl.train.config.recipe import (
    DataSection,
    Kind,
    LoraSection,
    ModelSection,
    Recipe,
    check_trainer_section,
)
from visrl.train.config.section import Section
from visrl.train.data.candidates import Demonstration
from visrl.train.data.fingerprint import demonstrations_hash
from visrl.train.data.load import load_demonstrations
from visrl.train.sft.collator import SFTCollator

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # labels off the replies

OFFICIAL: dict[str, Any] = {  # configs/train_sft.yaml, docs/method.md f
    "learning_rate": 1e-4,
    "num_train_epochs": 3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "save_steps": 200,
    "logging_steps": 10,
}


MEASURED: dict[str, Any] = {"eval_strategy": "epoch", "prediction_loss_only": True, "per_device_eval_batch_size": 2}
"""How the loss of held-out chains is measured, unless the recipe says otherwise."""


class ChainSection(Section):
    """How chains are laid out."""

    crop: CropName = "tight"
    held_out: float | None = Field(
        default=None,
        gt=0,
        description="the last pictures of the file, a number or a share below 1, are not trained on: their loss is measured",
    )
    vision_cache_gb: float = Field(default=4.0, ge=0, description="memory for features of a frozen vision tower")
    max_tokens: int | None = Field(
        default=None, ge=1, description="stop at a longer sequence, naming it; nothing is ever cut"
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
        reserved = OWN | dict.fromkeys(("packing", "padding_free"), "visrl: pictures allow neither")
        return OFFICIAL | check_trainer_section(section, SFTConfig, reserved)

    @model_validator(mode="after")
    def _measured(self) -> SFTRecipe:
        if self.trainer.get("eval_strategy", "no") not in ("no", False) and self.chain.held_out is None:
            raise ValueError("trainer.eval_strategy needs rows to measure: set chain.held_out")
        return self


class MaskedSFTTrainer(PhaseTrainer, SFTTrainer):
    """SFT on conversations of the family's layout. Raises UsageError naming the samples where a loss is not finite."""

    def __init__(
        self, trainable: TrainableModel, collator: SFTCollator, args: SFTConfig, held_out: int = 0, **more: Any
    ) -> None:
        """held_out: how many of the collator's rows, its last, are not trained on."""
        self.trainable, self.collator = trainable, collator
        n, first = len(collator.rows), len(collator.rows) - held_out
        super().__init__(
            model=trainable.model,
            args=args,
            data_collator=collator,
            train_dataset=Dataset.from_dict({"row": list(range(first))}),
            eval_dataset=Dataset.from_dict({"row": list(range(first, n))}) if held_out else None,
            processing_class=trainable.processor,
            **more,
        )

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # rows are numbers; the collator makes the tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss on the batch with its pictures in place: the mean over the trained tokens of all rows."""
        index: Tensor = inputs.pop("index")
        tokens = (inputs["labels"][:, 1:] != IGNORED).sum()
        total: Any = 0.0
        for part in self._parts(inputs):
            chats = part.pop("chats")
            part |= picture_kwargs(self.trainable.family, self.trainable.base, chats, self.collator.store)
            share = 1.0 if num_items_in_batch is not None else (part["labels"][:, 1:] != IGNORED).sum() / tokens
            total = total + share * super().compute_loss(model, part, num_items_in_batch=num_items_in_batch)
        if not torch.isfinite(total):
            names = ", ".join(self.collator.rows[row][0].sample.id for row in index.tolist())
            hint = "the newest checkpoint is from before; look at them"
            raise UsageError(f"loss is {total.item()}: one of samples {names}", hint)
        return (total, None) if return_outputs else total

    def _parts(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The batch, or for cross-attention (Mllama) its rows by number of pictures.

        Text before the first picture attends to *all* picture states there, padding included (transformers'
        full_text_row_masked_out_mask), so a row of one picture beside a row of two would not be what it is alone.
        """
        counts = [len(chat.pictures) for chat in inputs["chats"]]
        if "cross_attention_mask" not in inputs or len(set(counts)) == 1:
            return [inputs]
        parts = []
        for n in sorted(set(counts)):
            rows = [i for i, found in enumerate(counts) if found == n]
            part = {k: v[rows] for k, v in inputs.items() if k != "chats"}
            part["cross_attention_mask"] = part["cross_attention_mask"][:, :, :n]
            parts.append(part | {"chats": [inputs["chats"][i] for i in rows]})
        return parts


def run(recipe: SFTRecipe) -> int:
    """Train, unless ``output`` holds the finished phase. Raises UsageError."""
    chains = load_demonstrations(recipe.data)  # before the model: it takes longer
    with exclusive(recipe.output, "training here"):
        _run(recipe, chains)
    return EXIT_DONE


def check_crops(recipe: SFTRecipe, chains: Sequence[Demonstration]) -> None:
    """Raises UsageError where the recipe gives a crop that a protocol of its rows does not show."""
    for protocol in dict.fromkeys(row.protocol for row in chains):
        check_crop(protocol, recipe.chain.crop, "crop" in recipe.chain.model_fields_set)


def _run(recipe: SFTRecipe, chains: list[Demonstration]) -> None:
    check_crops(recipe, chains)
    asked, data = recipe.model_dump(mode="json", exclude={"output"}), demonstrations_hash(chains)
    weights = starting_weights(recipe.model)
    check_or_renew(recipe.output, asked, data, weights)
    if not finished(recipe.output):
        trainable = load_trainable(recipe.model, recipe.lora, recipe.seed)
        claim(recipe.output, asked, data, weights or starting_weights(recipe.model))
        run_sft(recipe, trainable, chains)
        if rank() == 0:
            protocols = {str(chain.protocol) for chain in chains}
            say_where(recipe.output / "final", recipe.model, protocols, recipe.chain.crop)


def check(recipe: SFTRecipe) -> None:
    """Raises UsageError for a model or for data that are not there, unless the phase is finished."""
    if not finished(recipe.output):
        check_model(recipe.model, recipe.lora)
        check_crops(recipe, load_demonstrations(recipe.data))


def run_sft(recipe: SFTRecipe, trainable: TrainableModel, chains: list[Demonstration]) -> MaskedSFTTrainer:
    """From the model in memory to ``final/``."""
    folder: Path = recipe.output
    kept, held_out = split(chains, recipe.chain.held_out)
    joined = trainable.family.keeps_prefix
    taught, measured = (
        [(chain, i) for chain in part for i in range(conversations_of(chain, joined=joined))]
        for part in (kept, held_out)
    )
    collator = SFTCollator(
        [*taught, *measured],
        trainable.encoder,
        crop=recipe.chain.crop,
        max_tokens=recipe.chain.max_tokens,
        store=trainable.feature_store(recipe.chain.vision_cache_gb),
    )
    section = {**MEASURED, **recipe.trainer} if measured else recipe.trainer
    args = trainer_config(SFTConfig, section, folder, recipe.seed, trainable.base)
    with own_forward(trainable.model):
        trainer = MaskedSFTTrainer(trainable, collator, args, len(measured), title="sft")
        train(trainer, trainable, folder)
    return trainer


def conversations_of(row: Demonstration, *, joined: bool) -> int:
    """How many conversations a demonstration becomes."""
    looks = taken(row.sample, row.protocol, row.chain)
    return count(row.sample, row.protocol, joined=joined, looks=len(looks))


def split(
    chains: Sequence[Demonstration], held_out: float | None
) -> tuple[Sequence[Demonstration], Sequence[Demonstration]]:
    """Those to train on, and those of the last pictures. Raises UsageError where none is left to train on."""
    pictures = list(dict.fromkeys(chain.sample.cluster for chain in chains))
    n = 0 if held_out is None else max(1, round(held_out * len(pictures))) if held_out < 1 else round(held_out)
    if n >= len(pictures):
        raise UsageError(
            f"chain.held_out: {n} of {len(pictures)} pictures: nothing is left to train on", "hold out fewer"
        )
    last = set(pictures[len(pictures) - n :])
    kept = [chain for chain in chains if chain.sample.cluster not in last]
    return kept, [chain for chain in chains if chain.sample.cluster in last]


KIND = Kind(SFTRecipe, run, check)
