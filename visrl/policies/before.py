"""What can be known of a model before it is loaded: its files, its adapter and its arguments, or that its server answers.

A loop meets its last model after hours. Config, processor and the list of files are read, no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visrl.errors import UsageError
from visrl.policies.registry import kind_and_place

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
    from visrl.policies.families import family_class
    from visrl.policies.hf.adapters import adapter_tensors, base_and_adapter
    from visrl.policies.hf.loading import load_config, model_type
    from visrl.policies.hf.policy import HFArguments
    from visrl.policies.hf.remote_code import CHAT_TYPES
    from visrl.world import CHECKPOINTS, checkpoint_path

    read = HFArguments.read(args)
    path = str(checkpoint_path(path)) if path in CHECKPOINTS else path
    path, adapter = base_and_adapter(path, read.adapter)
    if adapter:
        adapter_tensors(adapter)
    if model_type(path, read.revision) in CHAT_TYPES:
        return
    config, processor = load_config(path, read.where, read.processor)
    family_class(config)(config, processor).box_format(read.box_format)
    if Path(path).is_dir() and not any(Path(path).glob("*.safetensors")):
        raise UsageError(f"cannot load {path}: it has no *.safetensors", "weights are read from safetensors only")
