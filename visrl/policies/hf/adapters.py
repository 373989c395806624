"""LoRA folders (PEFT): resolved to a base and an adapter, and applied whole or not at all."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from visrl.core.json_files import decode_foreign, read_object
from visrl.errors import UsageError
from visrl.policies.hf.hashes import weights_hash
from visrl.runs.distributed import rank

log = logging.getLogger(__name__)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SHOWN = 5  # names in a message


def few(names: Collection[str]) -> str:
    """The first names and how many there are."""
    listed = ", ".join(sorted(names)[:SHOWN])
    return f"{listed}, … ({len(names)} in all)" if len(names) > SHOWN else listed


def base_and_adapter(path: str, adapter: str) -> tuple[str, str]:
    """A LoRA folder given as a model -> the base that its adapter_config.json names, and the folder; else what was given.

    Raises UsageError where the base is not named, where there are two adapters, and for a folder that holds whole weights
    and an adapter: transformers would take the adapter and its base, and not say so.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        return path, adapter
    if [file for file in folder.glob("*.safetensors") if file.name != WEIGHTS]:
        raise UsageError(
            f"{path} contains both full weights and {CONFIG}",
            "keep one of the two in the folder, or move the adapter out",
        )
    if adapter:
        raise UsageError(
            f"{path} is an adapter, and adapter={adapter} names another", "give the base as the model, and one adapter"
        )
    base = _config(folder).get("base_model_name_or_path")
    if not base:
        raise UsageError(f"{folder / CONFIG} names no base_model_name_or_path", f"--model BASE, adapter={path}")
    if str(base).startswith(("/", ".", "~")) and not Path(str(base)).is_dir():
        raise UsageError(
            f"{path} is an adapter of {base}, and there is no such folder", f"--model BASE --model-args adapter={path}"
        )
    if Path(str(base), CONFIG).is_file():
        raise UsageError(
            f"{path} is an adapter of {base}, which is an adapter itself",
            f"visrl-train merge {base} --output DIR writes whole weights; then --model DIR --model-args adapter={path}",
        )
    return str(base), path


def load_adapter(model: Any, folder: str, base: str, *, trainable: bool = False) -> tuple[Any, int]:
    """``model`` wrapped with the adapter of ``folder``, and how many tensors of its file were applied: all of them.

    base: what the model was loaded from; a warning is logged where the adapter was trained on another.
    Raises UsageError naming the tensors that have no place in this model, or a place and no tensor.
    """
    from peft import PeftModel

    names = adapter_tensors(folder)
    config = _config(Path(folder))
    trained_on = config.get("base_model_name_or_path")
    if trained_on and not _same_place(str(trained_on), base):
        log.warning("the adapter %s was trained on %s, and is applied to %s", folder, trained_on, base)
    elif (
        rank() == 0
        and Path(base).is_dir()
        and (known := _base_weights(Path(folder)))
        and known != weights_hash(Path(base))
    ):
        log.warning("the adapter %s was trained on other weights than %s now holds", folder, base)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of missing tensors; below they are refused
            wrapped = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
            _require_whole(wrapped, folder)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        # RuntimeError: torch names each tensor of another shape on a line of its own, behind a heading
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UsageError(
            f"the adapter {folder} does not fit {base}: {' '.join(lines[:2])[:400]}",
            "give the adapter of this model, or the model of this adapter",
        ) from error
    return wrapped, len(names)


def _base_weights(folder: Path) -> str | None:
    """What visrl's training wrote of the weights that an adapter of its own was trained on: their sha256."""
    file = folder / "phase.json"
    said = read_object(file, "copy the adapter again").get("weights_sha256") if file.is_file() else None
    return str(said).partition("+")[0] if said else None


def adapter_tensors(folder: str) -> list[str]:
    """Names of the tensors in an adapter's file. Raises UsageError where there is none, or it cannot be read."""
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        raise UsageError(f"no {WEIGHTS} in {folder}", "adapter= takes a folder saved by PEFT")
    try:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{file} cannot be read: {error}", "it is truncated or damaged: copy it again") from error
    if not names:
        raise UsageError(f"{file} holds no tensors", "adapter= takes a folder saved by PEFT")
    return names


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = decode_foreign((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder / CONFIG} cannot be read: {error}", "adapter= takes a folder saved by PEFT"
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"{folder / CONFIG} is not a JSON object", "adapter= takes a folder saved by PEFT")
    if not found.get("r") or not str(found.get("peft_type", "LORA")).upper() == "LORA":
        raise UsageError(
            f"{folder / CONFIG} is of type {found.get('peft_type')}, not a LoRA with a rank",
            "LoRA adapters can be merged and trained on; merge others with the tool that made them",
        )
    scales = [found.get("lora_alpha", 8), *dict(found.get("alpha_pattern") or {}).values()]
    if not all(isinstance(scale, (int, float)) and isfinite(scale) and scale for scale in scales):
        raise UsageError(
            f"{folder / CONFIG}: lora_alpha is {found.get('lora_alpha')!r}, or one of alpha_pattern is no scale",
            "give the alpha that the adapter was trained with",
        )
    return found


def _require_whole(wrapped: Any, folder: str) -> None:
    """Every tensor of the file has a place, every place of the adapter a tensor; asked of PEFT, which renames older keys.

    Of biases it is not asked: PEFT 0.19 writes none of ``bias: lora_only``, and does not miss them.
    """
    from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(folder, device="cpu")
    _require_numbers(weights, folder)
    result = set_peft_model_state_dict(wrapped, weights)
    homeless = set(result.unexpected_keys)
    empty = {name for name in result.missing_keys if ".default" in name}
    biases = _trained_biases(wrapped)
    if len(list(filter(_is_bias, weights))) < len(biases):
        empty |= biases - set(weights)
    hint = "it was trained on another model, or by a library that names modules otherwise: rename its keys"
    if homeless:
        raise UsageError(f"the adapter {folder}: no place in this model for {few(homeless)}", hint)
    if empty:
        raise UsageError(f"the adapter {folder}: no tensor in its file for {few(empty)}", hint)


def _trained_biases(wrapped: Any) -> set[str]:
    """Names of the base's biases that the adapter says were trained: all, or those of its modules."""
    from peft.tuners.lora import LoraLayer

    kind = wrapped.peft_config["default"].bias
    every = {name.replace(".base_layer.", ".") for name, _ in wrapped.named_parameters() if _is_bias(name)}
    if kind == "lora_only":
        modules = {name for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)}
        return {name for name in every if name.removesuffix(".bias") in modules}
    return every if kind == "all" else set()


def _is_bias(name: str) -> bool:
    return name.endswith(".bias") and ".lora_" not in name


def _require_numbers(weights: Mapping[str, Any], folder: str) -> None:
    """What is merged are finite floats: whole numbers are a rounded adapter's codes, without their scale."""
    whole = {f"{name} ({weight.dtype})" for name, weight in weights.items() if not weight.is_floating_point()}
    wild = {name for name, weight in weights.items() if not weight.float().isfinite().all()}
    hint = "a training run that diverged, or a quantized adapter: give one saved in a float type"
    if whole:
        raise UsageError(f"the adapter {folder}: no floats in {few(whole)}", hint)
    if wild:
        raise UsageError(f"the adapter {folder}: NaN or infinity in {few(wild)}", hint)


def _same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())
