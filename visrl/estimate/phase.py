"""What an estimate is asked for, and what it says of one phase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from visrl.estimate.lengths import ANSWER
from visrl.estimate.memory import Memory
from visrl.estimate.shape import Described
from visrl.estimate.work import GPU, Work

if TYPE_CHECKING:
    from visrl.train.common.encoding import Speaker

LOOKED_AT = 64
"""Rows whose tokens are counted; the rest is taken to be like them."""
LINE = {"episode": 2000, "question": 4000}  # bytes on disk of a finished sample, and of a question with its chains
ROWS = 32  # HFPolicy's conversations per forward pass on a GPU


@dataclass(frozen=True, slots=True)
class EstimateRequest:
    """What to estimate for. samples: how many rows, where the data are not there yet. answer: tokens of an answer."""

    gpu: GPU
    gpus: int = 1
    sharding: str = "ddp"
    samples: int | None = None
    answer: int = ANSWER


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase on ``gpus``. memory: bytes of one GPU. disk: bytes. notes: what is assumed, one sentence each."""

    name: str
    samples: int
    work: Work
    memory: Memory
    seconds: float
    disk: float
    notes: list[str] = field(default_factory=list)


def speaker_of(model: Described, box_format: str | None) -> Speaker:
    """The family with the box format it will write."""
    from visrl.train.common.encoding import Speaker

    return Speaker(model.family, model.family.box_format(box_format or "native"))
