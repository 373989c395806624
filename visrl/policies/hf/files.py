"""The files of a checkpoint: an index that agrees with its shards, and tensors whose numbers can be weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from visrl.errors import UsageError
from visrl.policies.hf.adapters import few

log = logging.getLogger(__name__)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WHOLE_NUMBERS = ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL")  # as safetensors names them
QUIETLY = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
COPY = "the files are of two copies, or of an incomplete one: copy them again"


def require_safetensors(path: str, revision: str = "") -> None:
    """Before loading: an index may name pickles, or files elsewhere, and transformers would follow it.

    path: a folder or a hub id. Raises UsageError for such an index, and for one that cannot be read; a folder that holds whole
    weights besides is said, since only those are read.
    """
    index = _index(path, revision)
    if index is None:
        return
    shards = set(listed(index).values())
    others = {name for name in shards if not name.endswith(".safetensors") or Path(name).name != name}
    if others:
        raise UsageError(
            f"{index} names files that are no safetensors of this folder: {few(others)}",
            "weights are read from safetensors only, all of one folder; save_pretrained() writes them",
        )
    if (index.parent / SINGLE).exists() and shards != {SINGLE}:
        log.warning("%s holds %s and the shards of %s: only the first is read", path, SINGLE, INDEX)


def require_files(folder: Path, model: Any) -> None:
    """After loading: every tensor that the index lists is in its shard, and none holds whole numbers where a weight is a float.

    Raises UsageError with the tensors' names.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        held = {SINGLE: tensor_types(single)}
    elif index.is_file():
        weight_map = listed(index)
        held = {shard: tensor_types(folder / shard) for shard in sorted(set(weight_map.values()))}
        absent = {name for name, shard in weight_map.items() if name not in held[shard]}
        if absent:
            raise UsageError(f"{index} lists tensors that its shards do not hold: {few(absent)}", COPY)
    else:
        return
    if not vars(model.config).get("quantization_config"):
        _require_floats(folder, [item for types in held.values() for item in types.items()], model)


def _require_floats(folder: Path, types: list[tuple[str, str]], model: Any) -> None:
    """Buffers, such as positions, may hold whole numbers; a weight of them would be its rounded code without its scale."""
    buffers = {name.rpartition(".")[2] for name, buffer in model.named_buffers() if not buffer.is_floating_point()}
    rounded = {
        f"{name} ({kind})"
        for name, kind in types
        if kind in WHOLE_NUMBERS and name.rpartition(".")[2] not in {*buffers, "position_ids", "num_batches_tracked"}
    }
    if rounded:
        raise UsageError(
            f"cannot load {folder}: weights of whole numbers: {few(rounded)}",
            "a quantized checkpoint says so in config.json (quantization_config); without it these numbers mean nothing",
        )


def require_finite(path: str, named: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Raises UsageError naming weights with NaN or infinity: every answer would come from them.

    A sum in float32 or wider is finite where all its terms are, and costs one reading; else each number is looked at.
    """
    found, kind = set(), ""
    for name, weight in named:
        if weight.is_meta or not weight.is_floating_point() or weight.element_size() < 2:
            continue
        wide = torch.promote_types(weight.dtype, torch.float32)
        if not weight.sum(dtype=wide).isfinite() and not weight.isfinite().all():
            found.add(name)
            kind = str(weight.dtype).removeprefix("torch.")
    if found:
        raise UsageError(
            f"cannot load {path}: weights that are not finite in {kind}: {few(found)}",
            "a training run that diverged, or a type too narrow for the file's numbers: dtype=bfloat16 is as wide as float32",
        )


def tensor_types(file: Path) -> dict[str, str]:
    """Name -> type, as safetensors has it, of each tensor of a file. Raises UsageError where it cannot be read."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} cannot be read: {error}", "it is cut off or damaged: copy it again") from error


def listed(index: Path) -> Mapping[str, str]:
    """Tensor -> shard, of an index. Raises UsageError where it is none."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{index} cannot be read: {error}", COPY) from error
    shards = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()) or not shards:
        raise UsageError(f"{index} has no weight_map of tensors and files", COPY)
    return shards


def _index(path: str, revision: str) -> Path | None:
    if Path(path).is_dir():
        return Path(path, INDEX) if Path(path, INDEX).is_file() else None
    found = cached_file(path, INDEX, revision=revision or None, **QUIETLY)
    return None if found is None else Path(str(found))
