"""``trainer:`` passes straight to TRL and transformers, which check few of its numbers: a learning rate of -1 would train."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from visrl.core.arguments import LARGEST, LARGEST_SEED, MOST_PROCESSES, within

_TINY = 1e-30
_COUNT, _POSITIVE, _SHARE = (1, LARGEST), (_TINY, LARGEST), (0, 1)
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "save_total_limit",
         "eval_accumulation_steps", "torch_empty_cache_steps", "ddp_bucket_cap_mb", "ddp_timeout", "dataloader_prefetch_factor",
         "precompute_ref_batch_size", "max_completion_length", "generation_batch_size", "steps_per_generation", "num_iterations",
         "ref_model_sync_steps", "pad_to_multiple_of"),
        _COUNT,
    ),
    **dict.fromkeys(
        ("num_train_epochs", "learning_rate", "logging_steps", "eval_steps", "save_steps", "adam_epsilon", "temperature", "delta",
         "sapo_temperature_neg", "sapo_temperature_pos", "discopop_tau"),
        _POSITIVE,
    ),
    **dict.fromkeys(
        ("adam_beta1", "adam_beta2", "label_smoothing", "label_smoothing_factor", "ref_model_mixup_alpha", "top_entropy_quantile",
         "vllm_gpu_memory_utilization"),
        _SHARE,
    ),
    "top_p": (_TINY, 1),
    "num_generations": (2, LARGEST),
    "max_steps": (-1, LARGEST),
    "local_rank": (-1, MOST_PROCESSES),
    "dataloader_num_workers": (0, MOST_PROCESSES),
    "dataset_num_proc": (1, MOST_PROCESSES),
    "data_seed": (0, LARGEST_SEED),
}  # fmt: skip
"""Key -> its least and largest value; (0, LARGEST) where a key is not here."""
ALL = (0, LARGEST)


def numeric(config: type) -> dict[str, set[type]]:
    """Keys of TRL's ``config`` that are numbers, with the types that each may have."""
    hints = typing.get_type_hints(config)
    found = {item.name: _kinds(hints[item.name]) for item in fields(config)}
    return {name: kinds for name, kinds in found.items() if kinds & {int, float}}


def _kinds(hint: Any) -> set[type]:
    return {part for part in (typing.get_args(hint) or (hint,)) if isinstance(part, type)}


def check_numbers(section: Mapping[str, Any], config: type) -> None:
    """Raises ValueError naming a key whose value is no number, of the wrong kind, or out of its range."""
    known = numeric(config)
    for key in section.keys() & known.keys():
        if not _allowed(section[key], known[key]):
            kind = "a number" if float in known[key] else "a whole number"
            raise ValueError(f"{key}: {section[key]!r} is not {kind}")
        if isinstance(section[key], (int, float)) and not _in_range(key, section[key]):
            low, high = RANGES.get(key, ALL)
            raise ValueError(f"{key}: {section[key]:.6g} is not between {low:g} and {high:g}")


def _allowed(value: Any, kinds: set[type]) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return True
    return type(value) in kinds


def _in_range(key: str, value: float) -> bool:
    """Zero steps would mean: as many as the epochs have. -1 says so."""
    return within(value, *RANGES.get(key, ALL)) and not (key == "max_steps" and value == 0)
