"""``kind: dpo``: one stage of step-level DPO, or both, each in a folder of its own below ``output`` (``stage1/``,
``stage2/``).

Stage 2 goes on with the model in memory, and its reference is that model: the end of stage 1 (docs/method.md e:
"refreshed at every stage"). The same command resumes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from trl import DPOConfig

from visrl.core.crops import CropName
from visrl.errors import EXIT_DONE, UsageError
from visrl.policies.hf.decoding import sliding_window
from visrl.runs.distributed import rank
from visrl.train.common.exclusive import exclusive
from visrl.train.common.models import (
    TrainableModel,
    check_model,
    load_trainable,
    own_forward,
    starting_weights,
    why_not_shared,
)
from visrl.train.common.phase_folder import check_or_renew, claim, finished, say_where, train
from visrl.train.common.trainer_args import OWN, trainer_config
from visrl.train.config.protocols import check_crop, several
from visrl.train.config.recipe import (
    DataSection,
    Kind,
    LoraSection,
    ModelSection,
    Recipe,
    Stages,
    check_trainer_section,
)
from visrl.train.config.section import Section
from visrl.train.data.candidates import Preference, last_look_alone
from visrl.train.data.fingerprint import preferences_hash
from visrl.train.data.load import load_preferences
from visrl.train.dpo.collator import PairCollator, has_term
from visrl.train.dpo.losses import Term, stage_terms
from visrl.train.dpo.same_texts import check_differ
from visrl.train.dpo.trainer import StepDPOTrainer

OFFICIAL: dict[str, Any] = {  # configs/train_rl.yaml, docs/method.md e
    "learning_rate": 5e-6,
    "num_train_epochs": 5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 8,
    "save_steps": 200,
    "logging_steps": 10,
}


NotNegative = Annotated[float, Field(ge=0)]


class StepSection(Section):
    """The method's own knobs; the official values are the defaults (docs/method.md e)."""

    stages: Stages = (1, 2)
    beta_box: float = Field(default=0.1, gt=0)
    beta_answer: float = Field(default=0.1, gt=0)
    lambda_box: float = Field(default=0.5, ge=0)
    lambda_answer: float = Field(default=0.5, ge=0)
    look_weights: Annotated[tuple[NotNegative, ...], Field(min_length=1)] | Literal["last"] | None = Field(
        default=None,
        description=(
            "of several looks: what multiplies the weight of each look's term, in order, the last one goes on; 1 each;"
            " `last`: each pair's last look alone has a term"
        ),
    )
    context: Literal["win_crop", "own_crop"] = Field(
        default="win_crop", description="which crop the rejected answer follows"
    )
    crop: CropName = "tight"
    prefix_sharing: bool = Field(
        default=True, description="chosen and rejected in one row; exact, and up to twice as fast"
    )
    vision_cache_gb: float = Field(default=4.0, ge=0, description="memory for features of a frozen vision tower")
    max_tokens: int | None = Field(
        default=None, ge=1, description="stop at a longer sequence, naming it; nothing is ever cut"
    )

    @field_validator("look_weights", mode="before")
    @classmethod
    def _last_or_numbers(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "last":
            raise ValueError(f"{value!r}: a number for each look, in order, or `last`")
        return value

    def terms(self, stage: int, looks: int = 1) -> tuple[Term, ...]:
        """The terms of a stage with this recipe's lambdas and betas. looks: the most that a pair has."""
        asked = self.look_weights if isinstance(self.look_weights, tuple) else (1.0,)
        weights = [asked[min(k, len(asked) - 1)] for k in range(looks)]
        return stage_terms(
            stage,
            beta_box=self.beta_box,
            beta_answer=self.beta_answer,
            lambda_box=self.lambda_box,
            lambda_answer=self.lambda_answer,
            weights=weights,
        )


class DPORecipe(Recipe):
    """``trainer`` passes straight to TRL's DPOConfig."""

    kind: Literal["dpo"]
    model: ModelSection
    data: DataSection
    lora: LoraSection | None = None
    step: StepSection = StepSection()
    trainer: dict[str, Any] = Field(default_factory=dict, validate_default=True)

    @field_validator("trainer")
    @classmethod
    def _known(cls, section: dict[str, Any]) -> dict[str, Any]:
        if section.get("eval_strategy", "no") not in ("no", False):
            raise ValueError(
                "eval_strategy: pairs are not held out here; each stage's end is scored instead (visrl-eval)"
            )
        reserved = OWN | {"beta": "step.beta_box and step.beta_answer", "ld_alpha": "nothing: it is not supported"}
        return OFFICIAL | check_trainer_section(section, DPOConfig, reserved)


def run(recipe: DPORecipe) -> int:
    """Train the stages that are not finished. Raises UsageError."""
    pairs = load_preferences(recipe.data)
    with exclusive(recipe.output, "training here"):
        _stages(recipe, pairs)
    return EXIT_DONE


def _stages(recipe: DPORecipe, pairs: list[Preference]) -> None:
    data = preferences_hash(pairs)
    before: Path | None = None
    trainable: TrainableModel | None = None
    weights = starting_weights(recipe.model)
    for stage in recipe.step.stages:
        folder = recipe.output / f"stage{stage}"
        check_or_renew(folder, settings(recipe, stage), data, weights)
        if not finished(folder):
            trainable = trainable or load_trainable(
                _starting_point(recipe, before), recipe.lora if before is None else None, recipe.seed
            )
            claim(folder, settings(recipe, stage), data, weights or starting_weights(recipe.model))
            run_stage(recipe, stage, trainable, pairs)
            if rank() == 0:
                protocols = {str(pair.protocol) for pair in pairs}
                say_where(folder / "final", recipe.model, protocols, recipe.step.crop)
        before = folder / "final"


def check(recipe: DPORecipe) -> None:
    """Raises UsageError for a model or for pairs that are not there, unless every stage is finished."""
    if not all(finished(recipe.output / f"stage{stage}") for stage in recipe.step.stages):
        check_model(recipe.model, recipe.lora)
        pairs, terms = _usable(recipe, load_preferences(recipe.data), recipe.step.stages[-1])
        check_differ(pairs, terms, None, own_crop=recipe.step.context == "own_crop")


def _starting_point(recipe: DPORecipe, before: Path | None) -> ModelSection:
    """The recipe's model, or the stage before: its adapter on the same base, or its weights."""
    if before is None:
        return recipe.model
    changed = (
        {"adapter": str(before)}
        if (before / "adapter_config.json").is_file()
        else {"path": str(before), "revision": None}
    )
    return recipe.model.model_copy(update=changed)


def settings(recipe: DPORecipe, stage: int) -> dict[str, Any]:
    """What makes a stage what it is: the recipe without the list of stages and the place it is written to."""
    asked = recipe.model_dump(mode="json", exclude={"output"})
    asked["step"].pop("stages")
    return asked | {"stage": stage}


def run_stage(recipe: DPORecipe, stage: int, trainable: TrainableModel, pairs: list[Preference]) -> StepDPOTrainer:
    """One stage from the model in memory to ``final/``. Raises UsageError where it cannot begin (see StepDPOTrainer)."""
    folder, step = recipe.output / f"stage{stage}", recipe.step
    pairs, terms = _usable(recipe, pairs, stage)
    check_differ(pairs, terms, trainable.encoder.box_format, own_crop=step.context == "own_crop")
    reason = why_not_shared(trainable.base)
    collator = PairCollator(
        pairs,
        trainable.encoder,
        tuple(term.name for term in terms),
        crop=step.crop,
        context=step.context,
        shared=step.prefix_sharing and reason is None,
        window=sliding_window(trainable.base),
        max_tokens=step.max_tokens,
        store=trainable.feature_store(step.vision_cache_gb),
    )
    args = trainer_config(DPOConfig, recipe.trainer, folder, recipe.seed, trainable.base)
    title = f"stage {stage}" + (f" (plain rows: {reason})" if step.prefix_sharing and reason else "")
    with own_forward(trainable.model):
        trainer = StepDPOTrainer(trainable, collator, terms, args, folder, title=title)
        train(trainer, trainable, folder)
    return trainer


def _usable(recipe: DPORecipe, pairs: Sequence[Preference], stage: int) -> tuple[list[Preference], tuple[Term, ...]]:
    """The pairs that a stage has a term for, and its terms. Raises UsageError for pairs that cannot be trained, and for none."""
    terms = recipe.step.terms(stage, max(len(pair.chosen.all_looks) for pair in pairs))
    _check(recipe, pairs, terms)
    if recipe.step.look_weights == "last":
        pairs = [last_look_alone(pair) for pair in pairs]
    kept = [pair for pair in pairs if any(has_term(pair, term.name) for term in terms)]
    if not kept:
        raise UsageError("no pair has a look of weight above 0", "another step.look_weights")
    if len(kept) < len(pairs):
        print(f"left out: {len(pairs) - len(kept)} pairs without a look of weight above 0", file=sys.stderr)
    return kept, terms


def _check(recipe: DPORecipe, pairs: Sequence[Preference], terms: tuple[Term, ...]) -> None:
    """Pairs that a term cannot use: referring expressions have no answer. Named, not dropped.

    A rejected answer may be empty: the model said nothing, and its end token alone is what is trained against.
    """
    for pair in pairs:
        if several(pair.protocol):
            _check_looks(recipe, pair)
        elif pair.chosen.box is None or pair.rejected.box is None:
            raise UsageError(f"pair {pair.sample.id} has no boxes", "every stage prefers a box: remove such pairs")
    if not any(term.name == "answer" for term in terms):
        return
    for pair in pairs:
        if not pair.chosen.answer or (pair.sample.kind == "rec" and not pair.rejected.answer):
            raise UsageError(
                f"pair {pair.sample.id} has no answers", "stage 2 needs answers; step.stages: [1] trains on boxes alone"
            )
    if silent := sum(not pair.rejected.answer for pair in pairs):
        print(
            f"{silent} of {len(pairs)} losing chains answered nothing: their end token is trained against",
            file=sys.stderr,
        )


def _check_looks(recipe: DPORecipe, pair: Preference) -> None:
    """Raises UsageError for what several looks have not."""
    check_crop(pair.protocol, recipe.step.crop, "crop" in recipe.step.model_fields_set)
    if pair.sample.kind == "rec":
        raise UsageError(
            f"pair {pair.sample.id}: a referring expression under {pair.protocol}",
            "prefer boxes under a protocol of one look",
        )
    if not pair.chosen.all_looks or not any(look.box for look in pair.rejected.all_looks):
        raise UsageError(f"pair {pair.sample.id} has no boxes", "every stage prefers a box: remove such pairs")
    if recipe.step.context == "own_crop":
        raise UsageError(
            f"step.context own_crop: {pair.protocol} looks several times, and what is rejected is no chain of its own",
            "leave the key out",
        )


KIND = Kind(DPORecipe, run, check)
