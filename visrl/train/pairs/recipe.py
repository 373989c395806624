"""The recipe of ``kind: pairs``: its sections, the official values as defaults (docs/method.md d)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from visrl.core.arguments import MOST_PROCESSES
from visrl.core.crops import CropName
from visrl.train.config.protocols import ProtocolChoice, protocol_of, several
from visrl.train.config.recipe import Recipe
from visrl.train.config.section import Section
from visrl.train.critics.critics import CriticSection, ModelArgs, take_away_unfit
from visrl.train.critics.judged import Inner
from visrl.train.data.questions import QuestionSection
from visrl.train.pairs.diversity import Controller
from visrl.train.pairs.selection import Mode, Rule


class PolicySection(Section):
    """A model as ``visrl-eval --model`` names it."""

    model: str
    args: ModelArgs = Field(default_factory=dict, description="as in --model-args")
    name: str | None = Field(default=None, description="what records call it; default: as it is named here")

    @model_validator(mode="after")
    def _fitting(self) -> PolicySection:
        take_away_unfit(self.model, self.args)
        return self


class SamplingSection(Section):
    """How chains are drawn; the official values are the defaults (docs/method.md d)."""

    attempts: int = Field(default=3, ge=1, le=10_000, description="two boxes each")
    later_attempts: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="of several looks: from each look two further boxes, so many times; 1 where left out",
    )
    temperature: float = Field(default=2.0, ge=0, le=1000)
    top_p: float = Field(default=0.7, gt=0, le=1)
    top_k: int = Field(default=50, ge=0)
    max_tokens: int = Field(default=128, ge=1)
    extra_samples: int = Field(
        default=6, ge=0, le=10_000, description="further boxes of the same prefill, for diversity: resample"
    )


class SelectionSection(Section):
    """Which chains become pairs (selection.py)."""

    mode: Mode = "code"
    win_box: float = Field(default=0.8, ge=0, le=1)
    win_answer: float = Field(default=0.8, ge=0, le=1)
    lose_box: float = Field(default=0.2, ge=0, le=1)
    lose_answer: float = Field(default=0.2, ge=0, le=1)
    box_critic: bool = Field(default=True, description="false: the ablation without bounding box critics")
    pairs: int = Field(default=1, ge=1, description="at most so many of a question; `paper` only")
    inner: Inner | None = Field(
        default=None,
        description="of several looks: a look before the last is as good as its crop or what was cut out after it (`best`, where"
        " left out), or as its `own` crop alone",
    )

    min_difference: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="where the thresholds give no pair: the best against the worst, if both their scores are so far apart; not"
        " done where left out",
    )

    @model_validator(mode="after")
    def _apart(self) -> SelectionSection:
        for what, win, lose in (("answer", self.win_answer, self.lose_answer), ("box", self.win_box, self.lose_box)):
            if win <= lose:
                raise ValueError(f"win_{what} must lie above lose_{what}: {win:g} and {lose:g}")
        if self.mode == "code" and self.pairs != 1:
            raise ValueError("mode code makes one pair per question; select.pairs is for mode paper")
        return self

    def rule(self) -> Rule:
        return Rule(**self.model_dump(exclude_none=True))


class PairsRecipe(Recipe):
    """Everything but ``output``, ``batch_size`` and ``ray`` decides the pairs."""

    kind: Literal["pairs"]
    policy: PolicySection
    critic: CriticSection
    data: QuestionSection
    sampling: SamplingSection = SamplingSection()
    diversity: Controller = "paper"
    select: SelectionSection = SelectionSection()
    protocol: ProtocolChoice | None = Field(default=None, description="default: what the policy was made with")
    crop: CropName = Field(
        default="tight", description="compat_visrl: the official crop in the wrong frame, to see what it costs"
    )
    exhaustive: bool = Field(default=False, description="score every box, for analysis; the pairs are the same")
    batch_size: int = Field(default=16, ge=1)
    ray: int | None = Field(
        default=None,
        ge=1,
        le=MOST_PROCESSES,
        description="workers on a Ray cluster, per model (docs/scaling.md); none: this process",
    )

    @model_validator(mode="after")
    def _of_several(self) -> PairsRecipe:
        if self.protocol is not None and not several(self.protocol):
            for name, value in (
                ("sampling.later_attempts", self.sampling.later_attempts),
                ("select.inner", self.select.inner),
            ):
                if value is not None:
                    raise ValueError(f"{name} is of several looks, and protocol {self.protocol} looks once")
        return self

    @field_validator("protocol")
    @classmethod
    def _looks(cls, name: str | None) -> str | None:
        if name is not None and not protocol_of(name).looks:
            raise ValueError(f"protocol {name} does not look; there are no boxes to prefer")
        return name
