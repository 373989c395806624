"""A policy answers conversations. transformers (hf/), servers (servers/) and recorded outputs (recorded/) look alike.

Only hf/ and families/ may import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from visrl.core.box_formats import BoxFormat
from visrl.core.boxes import Size
from visrl.core.types import Turn

StepName = Literal["box", "answer"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. The defaults are greedy decoding of one output.

    n: outputs per conversation. temperature 0 is greedy. seed: fixes sampling, with the request's key, whatever the batch.
    stop: texts at which generation ends (the text is kept). max_tokens: VisCoT's 128 (model_cot_loader.py).
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation to continue.

    key: the sample's id. A policy may keep what it computed for a key at the box turn (the picture's features, the
    key-value cache of the shared prefix) for the answer turn of the same batch; outputs must not depend on that.
    size: of the original picture (width, height).
    stream: tells apart requests of one key and step that must draw independently (the chains of one question): randomness
    hangs on (seed, key, step, stream, index) and on nothing else.
    """

    key: str
    step: StepName
    turns: tuple[Turn, ...]
    size: Size | None = None
    stream: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """What came back for a request: ``n`` texts, or the reason why there is none (the sample fails, the others continue).

    prompt: what was really asked, where that is not the request (recorded outputs have their own prompts).
    prompt_tokens: of the whole prompt, once, whatever n; cached_tokens: those of them that were not computed again.
    output_tokens: of all n texts together.
    """

    texts: tuple[str, ...] = ()
    error: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    prompt: str = ""
    cached_tokens: int = 0


@runtime_checkable
class Policy(Protocol):
    """Anything that can look and answer.

    name: as records print it. box_format: how it writes boxes, and in which frame. needs_pictures: False for replay.
    default_protocol: the protocol it was made with, used when the user names none.
    """

    name: str
    box_format: BoxFormat
    needs_pictures: bool
    default_protocol: str

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        """One Output per request, in order. Failures of single requests are Outputs with ``error``, not exceptions."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What a record must say of this policy: path or id, revision, weights hash, dtype, family; JSON values, no secrets."""
        ...


@dataclass(slots=True)
class FunctionPolicy:
    """A policy from a plain function ``(request) -> text``: for tests, baselines and overhead measurements."""

    name: str
    answer: Any
    box_format: BoxFormat
    needs_pictures: bool = False
    default_protocol: str = "direct"
    about: Mapping[str, Any] = field(default_factory=dict)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        return [Output(texts=(self.answer(request),) * sampling.n) for request in requests]

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "function", **self.about}
