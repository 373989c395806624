"""What vLLM's engine is started with: visrl's own arguments, and any of the engine's by its own names."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from pydantic import Field

from visrl.core.json_files import MALFORMED, decode_foreign
from visrl.errors import UsageError, nearest
from visrl.policies.arguments import PixelArguments

if TYPE_CHECKING:
    from visrl.policies.families.base import Family

PICTURES = 2
"""Of a conversation: the picture and the crop."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as ``max_lora_rank`` (its MaxLoRARanks)."""
SCHEDULING = frozenset(
    {
        "gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "enforce_eager", "tensor_parallel_size",
        "pipeline_parallel_size", "data_parallel_size", "distributed_executor_backend", "swap_space", "cpu_offload_gb",
        "kv_cache_memory_bytes", "block_size", "disable_log_stats", "load_format", "download_dir", "max_loras",
        "max_cpu_loras", "enable_chunked_prefill", "limit_mm_per_prompt", "mm_processor_cache_gb", "max_model_len",
    }
)  # fmt: skip
"""Arguments that decide how fast and where, not what is computed: in no record, so that a run may go on with others."""
OURS = (
    "model",
    "enable_prefix_caching",
    "generation_config",
    "enable_lora",
    "tokenizer",
    "tokenizer_mode",
    "skip_tokenizer_init",
)
"""Set here: outputs of ``hf:`` and ``vllm:`` would part if they were others."""


class VLLMArguments(PixelArguments):
    """What visrl itself reads. Everything else is the engine's (:func:`engine_arguments`)."""

    kind: ClassVar[str] = "vllm"
    other_names: ClassVar[Mapping[str, str]] = {"torch_dtype": "dtype", "peft": "adapter", "lora": "adapter"}

    dtype: str = "auto"
    revision: str = ""
    box_format: str = "native"
    adapter: str = ""
    trust_remote_code: bool = False
    max_lora_rank: int = Field(default=0, ge=0, le=LORA_RANKS[-1])


def separated(given: Mapping[str, Any]) -> tuple[VLLMArguments, dict[str, str]]:
    """visrl's own arguments, checked, and those left for the engine. Raises UsageError."""
    own = {*VLLMArguments.model_fields, *VLLMArguments.other_names}
    read = VLLMArguments.read({name: value for name, value in given.items() if name in own})
    return read, {name: str(value) for name, value in given.items() if name not in own and value not in ("", None)}


class _Parser(argparse.ArgumentParser):
    """vLLM's arguments with its own types; what it refuses is a UsageError."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"--model-args: vllm: {message}", "as `vllm serve --help` describes it, with _ for -")


def engine_arguments(given: Mapping[str, str]) -> dict[str, Any]:
    """Texts -> values, by the parser of the installed engine: ``enforce_eager=true``, ``mm_processor_kwargs={"size": {…}}``.

    Raises UsageError for a name that its ``EngineArgs`` does not have, with the nearest of them, and for a value it refuses.
    """
    from vllm import EngineArgs

    fields = {field.name for field in dataclasses.fields(EngineArgs)}
    for name in given:
        if name in OURS:
            raise UsageError(
                f"--model-args: {name} is set by visrl",
                "leave it out; max_lora_rank=R prepares the engine for later adapters",
            )
        if name not in fields:
            known = sorted((fields | set(VLLMArguments.model_fields)) - set(OURS))
            raise UsageError(
                f"--model-args: vllm has no argument {name!r}",
                f"{nearest(name, known)}; it takes all of vLLM's engine arguments",
            )
    parser = _Parser(add_help=False, allow_abbrev=False)
    found = vars(EngineArgs.add_cli_args(parser).parse_args([word for pair in given.items() for word in _words(*pair)]))
    return {name: found[name] for name in given}


def _words(name: str, value: str) -> list[str]:
    """An argument as a command line has it: a switch has no value."""
    flag = name.replace("_", "-")
    if value.lower() in ("true", "false"):
        return [f"--{flag}" if value.lower() == "true" else f"--no-{flag}"]
    return [f"--{flag}={value}"]


def processor_kwargs(family: Family, args: VLLMArguments, engine: Mapping[str, Any]) -> dict[str, Any]:
    """The pixel limits as the family's processor takes them, and what the user says of it. Raises UsageError for both at once."""
    own, given = family.limits_as_kwargs(args.pixel_limits), dict(engine.get("mm_processor_kwargs") or {})
    known = {*family.pixel_limits, *(place.partition(".")[0] for place in family.pixel_limits.values())}
    if unseen := known & given.keys():
        raise UsageError(
            f"--model-args: mm_processor_kwargs sets {', '.join(sorted(unseen))}, which changes the coordinates of boxes",
            f"use {', '.join(family.pixel_limits)} instead",
        )
    if own and given:
        raise UsageError(
            f"--model-args: mm_processor_kwargs together with {', '.join(args.pixel_limits)}",
            "give the limits only once",
        )
    return own or given


def served_rank(args: VLLMArguments, adapter: str) -> int:
    """The LoRA rank to start the engine for, one that it takes; 0: none. Raises UsageError for an adapter that is none."""
    wanted = max(args.max_lora_rank, rank_of(adapter) if adapter else 0)
    return next((rank for rank in LORA_RANKS if rank >= wanted), wanted) if wanted else 0


def rank_of(folder: str) -> int:
    """The rank of a PEFT adapter. Raises UsageError where the folder holds none."""
    try:
        return int(decode_foreign((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    except (OSError, *MALFORMED) as error:
        raise UsageError(
            f"no adapter_config.json with a rank in {folder}", "adapter= takes a folder saved by PEFT"
        ) from error


def deciding(engine: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the engine's arguments that a record must say, as JSON values."""
    return {name: _plain(value) for name, value in sorted(engine.items()) if name not in SCHEDULING}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
