"""What can be known of a model before it is loaded: its files, its adapter and its arguments, or that its server answers.

A loop meets its last model after hours. Config, processor and the list of files are read, no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl.errors import UsageError
from visrl.policies.registry import kind_and_place

if TYPE_CHECKING:
    from visrl.policies.families.base import Family
    from visrl.policies.hf.policy import HFArguments

IN_PROCESS = ("hf", "shipped")


def check_policy(spec: str, args: Mapping[str, str]) -> None:
    """What ``--model SPEC --model-args ARGS`` lacks. Raises UsageError, as loading would."""
    kind, place, rest = kind_and_place(spec, args)
    if kind == "blind":
        check_policy(place, rest)
    elif kind in IN_PROCESS:
        check_files(place, rest)
    elif kind == "vllm":
        from visrl.policies.servers.vllm import checked_arguments

        check_files(place, checked_arguments(rest))
    elif kind in ("endpoint", "openai"):
        from visrl.policies.servers.endpoint import EndpointPolicy

        (EndpointPolicy.load if kind == "endpoint" else EndpointPolicy.of_openai)(place, **rest).require_reachable()


def check_files(path: str, args: Mapping[str, Any]) -> None:
    """A checkpoint's config, processor and safetensors, and its adapter's, without reading weights. Raises UsageError."""
    from visrl.policies.hf.adapters import adapter_tensors
    from visrl.policies.hf.files import require_safetensors
    from visrl.policies.hf.policy import HFArguments

    read = HFArguments.read(args)
    path, adapter = _base_and_adapter(path, read)
    if adapter:
        adapter_tensors(adapter)
    family = _family(path, read)
    if family is None:
        return
    family.box_format(read.box_format)
    require_safetensors(path, read.revision)
    if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
        raise UsageError(f"cannot load {path}: it has no *.safetensors", "weights are read from safetensors only")


def box_format_names(path: str, args: Mapping[str, Any]) -> Callable[[str], str]:
    """What names of box formats (``native``, ``paper``, …) mean to a checkpoint's family: two of one meaning are one format.

    Of a model with code of its own every name is itself. Raises UsageError, as loading would, and the result for an unknown name.
    """
    from visrl.policies.hf.policy import HFArguments

    which = ("revision", "adapter", "processor", "trust_remote_code")  # an engine's arguments say nothing of a family
    read = HFArguments.read({name: args[name] for name in which if name in args})
    family = _family(_base_and_adapter(path, read)[0], read)
    return (lambda name: name) if family is None else (lambda name: family.box_format(name).name)


def _base_and_adapter(path: str, read: HFArguments) -> tuple[str, str]:
    from visrl.policies.hf.adapters import base_and_adapter
    from visrl.world import CHECKPOINTS, checkpoint_path

    return base_and_adapter(str(checkpoint_path(path)) if path in CHECKPOINTS else path, read.adapter)


def _family(path: str, read: HFArguments) -> Family | None:
    """A checkpoint's adapter, without its weights. None for models that bring code of their own."""
    from visrl.policies.families import family_class
    from visrl.policies.hf.loading import load_config, model_type
    from visrl.policies.hf.remote_code import CHAT_TYPES

    if model_type(path, read.revision) in CHAT_TYPES:
        return None
    config, processor = load_config(path, read.where, read.processor)
    return family_class(config)(config, processor)
