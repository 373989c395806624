"""Tokens, operations and hours: the formulae of docs/estimating.md, and what they assume of a GPU.

Data sheets' peaks are never reached: ``BUSY`` of the arithmetic and ``READING`` of the bandwidth are assumed, round numbers; a
step of training reached 0.33 on one H200 (docs/performance.md), generation was not taken apart.
``--tflops`` and ``--bandwidth`` put your own sustained figures in their place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from visrl.errors import UsageError, nearest
from visrl.estimate.shape import Shape

BUSY, READING = 0.35, 0.4


@dataclass(frozen=True, slots=True)
class GPU:
    """gb: memory (10^9 bytes). flops: sustained per second. bytes: sustained per second."""

    name: str
    gb: float
    flops: float
    bytes: float


def _sheet(name: str, gb: float, tera: float, giga: float) -> GPU:
    return GPU(name, gb, BUSY * tera * 1e12, READING * giga * 1e9)


GPUS = {  # memory GB, dense bfloat16 TFLOP/s, GB/s: the makers' data sheets
    gpu.name: gpu
    for gpu in (
        _sheet("a100-40", 40, 312, 1555),
        _sheet("a100", 80, 312, 2039),
        _sheet("h100", 80, 989, 3350),
        _sheet("h200", 141, 989, 4800),
        _sheet("l40s", 48, 362, 864),
        _sheet("rtx4090", 24, 165, 1008),
    )
}


def gpu_of(name: str, tflops: float | None, bandwidth: float | None) -> GPU:
    """A known GPU, with sustained TFLOP/s and GB/s of your own where given. Raises UsageError for an unknown name."""
    if name not in GPUS:
        raise UsageError(f"--gpu: unknown {name!r}", nearest(name, GPUS))
    gpu = GPUS[name]
    gpu = replace(gpu, flops=tflops * 1e12) if tflops else gpu
    return replace(gpu, bytes=bandwidth * 1e9) if bandwidth else gpu


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens of a phase over all samples. prefill: read; decode: written, in ``steps`` forward passes of a batch; trained:
    through forward and backward; patches: through the vision tower. context: mean tokens a token looks back at."""

    prefill: float = 0
    decode: float = 0
    steps: float = 0
    trained: float = 0
    patches: float = 0
    context: float = 0

    @property
    def tokens(self) -> float:
        return self.prefill + self.decode + self.trained


def operations(shape: Shape, work: Work, *, checkpointing: bool = False) -> float:
    """Floating-point operations: 2 per parameter and token forward, 4 a token of attention and looked-back token and width.

    Backward costs twice the forward where all weights are trained, once where only adapters are; checkpointing a forward more.
    """
    a_token = 2 * shape.language + 4 * shape.layers * shape.width * work.context
    passes = (2 if shape.adapters else 3) + (1 if checkpointing else 0)
    return a_token * (work.prefill + work.decode + passes * work.trained) + 2 * shape.vision * work.patches


def seconds(
    shape: Shape, work: Work, gpu: GPU, *, gpus: int, size: int, cache: float = 0, checkpointing: bool = False
) -> float:
    """Time on ``gpus`` that share the samples. Each step of decoding reads all weights and the batch's cache (bytes)."""
    computed = operations(shape, work, checkpointing=checkpointing) / gpu.flops
    read = work.steps * (size * (shape.language + shape.hidden) + cache) / gpu.bytes
    return (computed + read) / gpus
