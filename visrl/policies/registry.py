"""Model names as users write them -> Policy. Heavy libraries are imported only for the kind that needs them.

``hf:ID_OR_PATH`` or a bare path · ``endpoint:URL[,URL]#NAME`` · ``openai:NAME`` · ``vllm:ID_OR_PATH``
``replay:FILE_OR_DIR`` · ``constant:TEXT`` · ``blind:MODEL`` · a shipped name
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from visrl.core.box_formats import FORMATS
from visrl.errors import UsageError, nearest
from visrl.policies.arguments import ModelArguments
from visrl.policies.protocol import FunctionPolicy, Policy
from visrl.world import CHECKPOINTS


def parse_model_args(text: str) -> dict[str, str]:
    """``"a=b,c={"d": 1, "e": 2}"`` -> dict of texts: a value that begins like a JSON object or list ends where that ends.

    Raises UsageError for a part without ``=``, and for JSON that is none.
    """
    found: dict[str, str] = {}
    rest = text
    while rest := rest.lstrip(", "):
        name, separator, behind = rest.partition("=")
        if not separator or "," in name:
            part = rest.partition(",")[0].strip()
            raise UsageError(f"--model-args: {part!r} is not key=value", "for example dtype=bfloat16,device_map=auto")
        behind = behind.lstrip()
        length = _json_length(name, behind) if behind.startswith(("{", "[")) else len(behind.partition(",")[0])
        found[name.strip()], rest = behind[:length].strip(), behind[length:]
    return found


def _json_length(name: str, text: str) -> int:
    """How many characters the JSON value at the beginning of ``text`` has, blanks behind it included."""
    try:
        end = json.JSONDecoder().raw_decode(text)[1]
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--model-args: {name} is not JSON: {error}", """for example mm_processor_kwargs={"max_pixels": 100352}"""
        ) from error
    rest = text[end:]
    end += len(rest) - len(rest.lstrip())
    if end < len(text) and text[end] != ",":
        raise UsageError(
            f"--model-args: {name}: {text[end:][:20]!r} after its JSON value", "separate arguments by a comma"
        )
    return end


def load_policy(spec: str, args: Mapping[str, str] | None = None) -> Policy:
    """The policy a user named. Raises UsageError for an unknown kind, name or argument, with the nearest one known."""
    kind, rest, args = kind_and_place(spec, args or {})
    if kind == "blind":
        from visrl.policies.blind import Blind

        return Blind(load_policy(rest, args))
    return _KINDS[kind]()(rest, **args)


def looks_at_pictures(spec: str) -> bool:
    """Whether the model that a user named will open pictures: recorded outputs and constants do not."""
    return spec.partition(":")[0] not in ("replay", "constant")


def kind_and_place(spec: str, args: Mapping[str, str]) -> tuple[str, str, dict[str, str]]:
    """The kind of model that a user named, where it is, and its arguments. Raises UsageError as :func:`load_policy` does."""
    args = dict(args)
    if "pretrained" in args:  # as lmms-eval and lm-evaluation-harness name a model: a kind, and where it is
        if spec not in _KINDS:
            raise UsageError(
                f"--model {spec} with pretrained={args['pretrained']}", "give the model once: --model hf:PATH"
            )
        spec = f"{spec}:{args.pop('pretrained')}"
    kind, separator, rest = spec.partition(":")
    if not separator or kind not in (*_KINDS, "blind"):
        if spec in CHECKPOINTS:
            kind, rest = "shipped", spec
        elif Path(spec).exists() or _is_hub_id(spec):
            kind, rest = "hf", spec
        else:
            known = [*CHECKPOINTS, *(f"{name}:" for name in (*_KINDS, "blind"))]
            raise UsageError(f"unknown model {spec!r}", nearest(spec, known))
    return kind, rest, args


def _is_hub_id(spec: str) -> bool:
    return spec.count("/") == 1 and not spec.startswith((".", "/", "~"))


def _hf() -> Callable[..., Policy]:
    from visrl.policies.hf.policy import HFPolicy

    return HFPolicy.load


def _endpoint() -> Callable[..., Policy]:
    from visrl.policies.servers.endpoint import EndpointPolicy

    return EndpointPolicy.load


def _openai() -> Callable[..., Policy]:
    from visrl.policies.servers.endpoint import EndpointPolicy

    return EndpointPolicy.of_openai


def _vllm() -> Callable[..., Policy]:
    from visrl.policies.servers.vllm import VLLMPolicy

    return VLLMPolicy.load


def _replay() -> Callable[..., Policy]:
    from visrl.policies.recorded.replay import ReplayPolicy

    return ReplayPolicy.load


class ShippedArguments(ModelArguments):
    """Of HFArguments what makes sense for a small model that is at hand."""

    kind = "a shipped model"

    dtype: str = "float32"
    rows: int = Field(default=64, ge=1)
    adapter: str = ""


class ConstantArguments(ModelArguments):
    """How a constant text is read as a box."""

    kind = "constant"

    box_format: str = "padded_square_3dp"


def fitting(spec: str, args: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The arguments without those of another kind of model, and the names of these: where a server takes the place of weights,
    their ``dtype`` means nothing. What no kind knows stays, to be refused.
    """
    kind = kind_and_place(spec, args)[0]
    own = _arguments_of(kind)
    odd = [name for name in args if own is not None and name not in own]
    if not odd:
        return dict(args), []
    elsewhere = {name for other in ("hf", "endpoint") for name in _arguments_of(other) or ()}
    fallen = [name for name in odd if name in elsewhere]
    return {name: value for name, value in args.items() if name not in fallen}, fallen


def _arguments_of(kind: str) -> set[str] | None:
    """What a kind of model takes; None where that is another's business (blind)."""
    found: type[ModelArguments]
    if kind in ("endpoint", "openai"):
        from visrl.policies.servers.endpoint import EndpointArguments

        found = EndpointArguments
    elif kind == "hf":
        from visrl.policies.hf.policy import HFArguments

        found = HFArguments
    elif kind == "vllm":  # what it does not know itself is the engine's business, unless it is another kind's
        from visrl.policies.servers.vllm_arguments import VLLMArguments

        found = VLLMArguments
    elif kind in ("shipped", "constant"):
        found = ShippedArguments if kind == "shipped" else ConstantArguments
    else:
        return None
    return {*found.model_fields, *found.other_names, "pretrained"}


def _shipped() -> Callable[..., Policy]:
    from visrl.policies.hf.policy import HFPolicy
    from visrl.world import checkpoint_path

    def load(name: str, **arguments: Any) -> Policy:
        policy = HFPolicy.load(str(checkpoint_path(name)), **ShippedArguments.read(arguments).model_dump())
        policy.rename(name)
        return policy

    return load


def _constant() -> Callable[..., Policy]:
    def load(text: str, **arguments: Any) -> Policy:
        name = ConstantArguments.read(arguments).box_format
        if name not in FORMATS:
            raise UsageError(f"unknown box format {name!r}", nearest(name, FORMATS))
        about = {"kind": "constant", "text": text}
        return FunctionPolicy(f"constant:{text}", lambda _: text, FORMATS[name], about=about)

    return load


_KINDS: dict[str, Callable[[], Callable[..., Policy]]] = {
    "hf": _hf,
    "endpoint": _endpoint,
    "openai": _openai,
    "vllm": _vllm,
    "replay": _replay,
    "constant": _constant,
    "shipped": _shipped,
}
