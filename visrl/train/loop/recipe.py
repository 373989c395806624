"""The recipe of ``kind: loop``: phases that are recipes themselves, and what is wired between them.

A phase names a recipe file, relative to the loop's own, and may ``set`` values of it by their dotted keys: each setting is
twice. Wired by the loop, whatever those files say: output, seed, weights to start from, policy, critic, pairs and stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from visrl.core.crops import CropName
from visrl.errors import UsageError
from visrl.train.config.protocols import ProtocolChoice
from visrl.train.config.recipe import Recipe, Stages, flat
from visrl.train.config.section import Section
from visrl.train.critics.critics import ModelArgs
from visrl.world import CHECKPOINTS


def _dotted(found: Any) -> Any:
    """``{trainer: {learning_rate: x}}``, which ``--set rl.set.trainer.learning_rate=x`` makes, is one value."""
    return dict(flat(found)) if isinstance(found, dict) else found


Settings = Annotated[dict[str, Any], BeforeValidator(_dotted)]


class PhaseSection(Section):
    """A phase: a recipe file, and values of it that are other ones here."""

    recipe: Path = Field(description="relative to the file that names it")
    set: Settings = Field(default_factory=dict, description="dotted key -> value, as --set takes them")

    @field_validator("recipe")
    @classmethod
    def _beside(cls, path: Path, info: ValidationInfo) -> Path:
        return (info.context or {}).get("folder", Path()) / path


Method = Literal["dpo", "grpo", "rloo"]
Answering = Literal["hf", "vllm"]


class RLSection(PhaseSection):
    """Reinforcement: ``dpo`` makes pairs and trains stage after stage on them; ``grpo`` and ``rloo`` draw as they train."""

    method: Method = Field(default="dpo", description="rloo: a recipe of kind grpo with the leave-one-out baseline")


class WarmUpSection(Section):
    """M_SFT: trained by a recipe (of kind sft or small_model), or a model that is ready."""

    recipe: Path | None = Field(default=None, description="relative to the file that names it")
    set: Settings = Field(default_factory=dict, description="dotted key -> value, as --set takes them")
    model: str | None = Field(default=None, description="a ready one: a shipped name, a folder or a hub id")

    @field_validator("recipe")
    @classmethod
    def _beside(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else (info.context or {}).get("folder", Path()) / path

    @model_validator(mode="after")
    def _one_of_both(self) -> WarmUpSection:
        if (self.recipe is None) == (self.model is None) or (self.model is not None and self.set):
            raise ValueError("a recipe (and what to set of it), or a ready model")
        return self

    @property
    def phase(self) -> PhaseSection:
        """The recipe to train by. Raises UsageError where the model is ready."""
        if self.recipe is None:
            raise UsageError(f"sft.model {self.model} is given, so there is no recipe to train it")
        return PhaseSection(recipe=self.recipe, set=self.set)


class ScoreSection(Section):
    """How each phase's end is scored: as ``visrl-eval run`` would, by the same code."""

    tasks: str = Field(default="world_viscot", description="tasks or groups, comma-separated")
    args: ModelArgs = Field(default_factory=dict, description="as in --model-args")
    data: Path | None = Field(default=None, description="folder of benchmark files")
    protocol: ProtocolChoice | None = Field(default=None, description="default: the loop's")
    crop: CropName | None = Field(default=None, description="default: the loop's")
    limit: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=128, ge=1)
    judge: str = "exact"


class LoopRecipe(Recipe):
    """``base`` is M_org: what the warm-up starts from and the critic of every iteration."""

    kind: Literal["loop"]
    name: str = Field(default="", description="of the run, in tables; default: the output folder's")
    base: str = Field(description="M_org: a shipped name, a folder or a hub id")
    sft: WarmUpSection | None = Field(default=None, description="none: reinforcement begins with the base")
    continued_sft: PhaseSection | None = Field(
        default=None, description="further training between SFT and RL: a comparison"
    )
    pairs: PhaseSection | None = Field(default=None, description="of kind pairs")
    rl: RLSection | None = Field(default=None, description="of kind dpo (used for every stage), or of kind grpo")
    iterations: int = Field(default=1, ge=0, le=1000)
    stages: Stages = (1, 2)
    critic: Literal["base", "sft"] = Field(default="base", description="sft: the ablation with M_SFT as critic")
    protocol: ProtocolChoice | None = Field(
        default=None, description="of every phase whose own recipe names none; without it each phase's default"
    )
    crop: CropName | None = Field(default=None, description="likewise")
    mixed: bool = Field(default=False, description="SFT may teach another protocol or crop than is sampled and scored")
    policy: Answering = Field(
        default="hf",
        description="who answers in pairs and scoring: transformers in this process, or vLLM (docs/engines.md)",
    )
    score: ScoreSection = ScoreSection()
    reuse: tuple[Path, ...] = Field(
        default=(), description="other loops' folders: a finished phase with the same hashes is copied, not run again"
    )
    launch: str | None = Field(
        default=None,
        description="a command before `visrl-train` for training phases, each then in processes of its own:"
        " accelerate launch --config_file FILE --no_python",
    )
    max_failed: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="the share of an iteration's questions that may fail, each tried again, before it is an error",
    )
    redo: bool = Field(default=False, description="move aside and redo what a changed recipe makes stale")

    @model_validator(mode="after")
    def _whole(self) -> LoopRecipe:
        if self.iterations and (self.rl is None or (self.rl.method == "dpo" and self.pairs is None)):
            raise ValueError(
                "iterations need the phases pairs and rl (iterations: 0 for none), with method grpo or rloo only rl"
            )
        if self.rl is not None and self.rl.method != "dpo" and self.pairs is not None:
            raise ValueError(f"rl.method {self.rl.method} draws its own chains: leave out pairs")
        if self.policy == "vllm" and (named := {self.base, self.sft and self.sft.model} & set(CHECKPOINTS)):
            raise ValueError(f"policy vllm: vLLM has no such model as the shipped {', '.join(map(str, named))}")
        if self.critic == "sft" and self.sft is None:
            raise ValueError("critic: sft needs the phase sft")
        return self

    @property
    def run_name(self) -> str:
        return self.name or self.output.name
