"""The contract between visrl and a model: everything a caller may ask of a policy is declared here, with its default.

A policy answers conversations. transformers in this process (hf/), servers (servers/) and recorded outputs (recorded/) look
alike; a caller never asks what kind a policy is, only what it declares. Only hf/ and families/ may import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from visrl.core.box_formats import BoxFormat
from visrl.core.boxes import Size
from visrl.core.crops import CropName
from visrl.core.types import CoTSample, Turn
from visrl.errors import UsageError

StepName = Literal["box", "answer", "look"]
"""look: a turn under a protocol of several looks, which may call or answer; its number is the request's stream."""
STOPS_READ = 64
"""A text with more stops than these, none of which ends it, is rambling: it goes on to its length."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. The defaults are greedy decoding of one output.

    n: outputs per conversation. temperature 0 is greedy. seed: fixes sampling, with the request's key, whatever the batch.
    stop: texts at which generation ends (the text is kept). accept_stop: whether a text that ends in one of them really is
    over; None: always. A closing bracket in a thought or in a quoted label ends no box.
    max_tokens: VisCoT's 128 (model_cot_loader.py).
    """

    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    seed: int = 0
    stop: tuple[str, ...] = ()
    accept_stop: Callable[[str], bool] | None = None

    def end_of(self, text: str) -> int | None:
        """How many characters of ``text`` there are up to its first stop that counts, that included; None where it goes on."""
        ends = sorted({at + len(stop) for stop in self.stop for at in _places(stop, text)})
        return next((end for end in ends if self.accept_stop is None or self.accept_stop(text[:end])), None)

    def cut(self, text: str) -> str:
        """``text`` up to its first stop that counts, that included."""
        end = self.end_of(text)
        return text if end is None else text[:end]


def _places(stop: str, text: str) -> Iterator[int]:
    """Where the first ``STOPS_READ`` occurrences of a stop begin."""
    at = text.find(stop)
    for _ in range(STOPS_READ):
        if at < 0:
            return
        yield at
        at = text.find(stop, at + 1)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that cuts out a region, for servers that are told of tools. Its arguments: ``box``, four numbers, and ``label``."""

    name: str
    description: str
    box: str
    label: str


@dataclass(frozen=True, slots=True)
class Request:
    """One conversation to continue.

    key: the sample's id. step: which turn of the protocol this is; recorded outputs are looked up by it.
    size: of the original picture (width, height).
    stream: tells apart requests of one key and step that must draw independently (the chains of one question): randomness
    hangs on (seed, key, step, stream, index) and on nothing else.
    keep_cache: requests of the next call begin like this one. A policy may then keep what it computed for this key (the
    picture's features, the key-value cache of the shared prefix); outputs must not depend on that.
    tool: what the model may call, for a policy with ``native_tools``. Turns hold calls as text all the same.
    """

    key: str
    step: StepName
    turns: tuple[Turn, ...]
    size: Size | None = None
    stream: str = ""
    keep_cache: bool = False
    tool: Tool | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What came back for a request: ``n`` texts, or the reason why there is none (the sample fails, the others continue).

    retry: asking again may help. False for what is decided (a picture that does not open, a refused request) and for a policy
    that has already tried patiently.
    prompt: what was really asked, where that is not the request (recorded outputs have their own prompts).
    prompt_tokens: of the whole prompt, once, whatever n; cached_tokens: those of them that were not computed again.
    output_tokens: of all n texts together. finish_reason: why the first text ended there (stop, length, …), where that is known.
    seen_sizes: (width, height) in pixels at which the model saw each picture, where its processor resizes to many sizes.
    token_ids: of each text, exactly as sampled, with what ended it; None where the policy does not know them. The text holds
    less: it is cut at a stop, and without the tokens that structure a chat.
    """

    texts: tuple[str, ...] = ()
    error: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    prompt: str = ""
    cached_tokens: int = 0
    retry: bool = True
    finish_reason: str | None = None
    seen_sizes: tuple[Size, ...] | None = None
    token_ids: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a model computed: ``prompt`` tokens of all prompts, ``cached`` of them taken from a cache, ``output`` tokens."""

    prompt: int = 0
    cached: int = 0
    output: int = 0

    @classmethod
    def of(cls, output: Output) -> Tokens | None:
        """None where the policy does not count."""
        if output.prompt_tokens is None or output.output_tokens is None:
            return None
        return cls(output.prompt_tokens, output.cached_tokens, output.output_tokens)

    @property
    def computed(self) -> int:
        """Prefill and decode: the tokens a model really ran on."""
        return self.prompt - self.cached + self.output

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.cached + other.cached, self.output + other.output)


@dataclass(frozen=True, slots=True)
class LogLikelihood:
    """Natural logarithm of a text's probability, end of reply included; or ``error``: why there is none."""

    value: float = 0.0
    error: str = ""
    tokens: Tokens | None = None


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Recorded outputs that no document of the run took: ``duplicates`` are those whose document another output had."""

    unused: int = 0
    duplicates: int = 0
    examples: tuple[str, ...] = ()


class Policy(ABC):
    """Anything that can look and answer. Subclasses set ``name`` and ``box_format`` and override what they can do.

    name: as records print it. box_format: how it writes boxes, and in which frame.
    needs_pictures: whether it looks at pixels; False for recorded outputs and constants.
    default_protocol, default_crop: what it was made with, used where the user names none (rollout/config.py).
    recorded: its outputs exist already; only documents that :meth:`match_samples` gives can be asked about.
    scores_texts: whether :meth:`loglikelihood` is there.
    rows: conversations per forward pass (or requests in flight) where the policy has such a thing; callers may set it.
    native_tools: whether it is told of tools by :class:`Tool` and not in the prompt; its outputs hold calls as text all the same.
    max_pictures: that it takes in one conversation; None: as many as one likes. default_looks: the limit that its outputs were
    recorded under, used where the user names none; None: the protocol's.
    """

    name: str
    box_format: BoxFormat
    needs_pictures: bool = True
    default_protocol: str = "visrl_train"
    default_crop: CropName = "viscot_square112"
    recorded: bool = False
    scores_texts: bool = False
    rows: int = 0
    native_tools: bool = False
    max_pictures: int | None = None
    default_looks: int | None = None

    @abstractmethod
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        """One Output per request, in order. Failures of single requests are Outputs with ``error``, not exceptions."""

    @abstractmethod
    def describe(self) -> Mapping[str, Any]:
        """What a record must say of this policy: path or id, revision, weights hash, dtype, family; JSON values, no secrets."""

    @property
    def batch_size(self) -> int:
        """How many requests a caller had best pass at once."""
        return 8 if self.needs_pictures else 512

    def require_reachable(self) -> None:  # noqa: B027 - most policies are here
        """Asked before every call of :meth:`generate`. Raises UsageError where what answers was never there, and Incomplete where
        it has gone: the run ends, with all that is finished.
        """

    def loglikelihood(self, requests: Sequence[Request], completions: Sequence[str]) -> list[LogLikelihood]:
        """How probable each completion is as the reply to its request, in order; what goes wrong with one is its ``error``.

        Raises UsageError where the policy only generates (``scores_texts`` False).
        """
        raise UsageError(
            f"{self.name} does not report log-probabilities of texts",
            "use critic.kind: score, which prompts for a score",
        )

    def match_samples(self, samples: Iterable[CoTSample], task: str) -> Iterable[CoTSample]:
        """The documents of ``task`` that can be asked about: all of them, unless outputs are ``recorded``."""
        return samples

    def unmatched(self) -> Unmatched:
        """Recorded outputs that no matched task took; call when all tasks of the run have been matched."""
        return Unmatched()

    def rename(self, name: str) -> None:
        """What records call this model, in the place of where its files lie: that must not be said where the place is a run's
        own or this machine's, and must not decide whether two runs are the same. Hashes of its files stay.

        Raises UsageError where the policy has no files.
        """
        raise UsageError(f"{self.name} cannot be given another name", "leave out policy.name and critic.name")

    def use_adapter(self, folder: str) -> None:
        """From now on answer with the LoRA of ``folder`` (PEFT). Raises UsageError where adapters cannot be exchanged."""
        raise UsageError(f"{self.name} cannot change its adapter", "load it again with adapter=")

    def with_adapter(self, folder: str) -> Policy | None:
        """The same weights with the LoRA of ``folder`` ("": with none), sharing what holds them, for two that answer in turn (a
        policy and its critic); None where that needs them loaded again.
        """
        return None

    def close(self) -> None:  # noqa: B027 - most policies hold nothing that outlives them
        """Let go of servers, connections and memory. Nothing may be asked afterwards."""


@dataclass
class FunctionPolicy(Policy):
    """A policy from a plain function ``(request) -> text``: for tests, baselines and overhead measurements."""

    name: str
    answer: Callable[[Request], str]
    box_format: BoxFormat
    needs_pictures: bool = False
    default_protocol: str = "direct"
    about: Mapping[str, Any] = field(default_factory=dict)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        return [Output(texts=(self.answer(request),) * sampling.n) for request in requests]

    def describe(self) -> Mapping[str, Any]:
        return {"kind": "function", **self.about}
