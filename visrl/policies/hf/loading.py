"""A checkpoint on disk or on the hub -> model, processor and what a record must say of them. Safetensors only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from pydantic import BeforeValidator, model_validator
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar
from typing_extensions import Self

from visrl.errors import UsageError
from visrl.policies.arguments import PixelArguments
from visrl.policies.families import family_class, family_for, older
from visrl.policies.families.base import Family
from visrl.policies.hf.adapters import base_and_adapter, load_adapter
from visrl.policies.hf.complete import no_report, require_complete, tensors_loaded
from visrl.policies.hf.files import require_files, require_finite, require_safetensors
from visrl.policies.hf.hashes import weights_hash
from visrl.policies.hf.own_template import say_if_ignored
from visrl.policies.hf.quantization import quantization
from visrl.policies.hf.vocabulary import require_one_vocabulary
from visrl.runs.distributed import rank
from visrl.runs.hub import require_checkpoint, settle

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
NAMES_ELSEWHERE = {"torch_dtype": "dtype", "attn_implementation": "attn", "peft": "adapter", "lora": "adapter"}
"""What lmms-eval, lm-evaluation-harness and transformers call an argument -> its name here."""


class CheckpointArguments(PixelArguments):
    """How a checkpoint is loaded. Evaluation refuses flash attention: branches of one row need a mask that it cannot take."""

    kind: ClassVar[str] = "hf"
    other_names: ClassVar[Mapping[str, str]] = NAMES_ELSEWHERE

    dtype: Annotated[Dtype, BeforeValidator(lambda word: _SHORT.get(word, word))] = "auto"
    device: str = ""
    device_map: str = ""
    attn: Annotated[Literal["", "sdpa", "eager"], BeforeValidator(lambda word: _attention(word))] = ""
    revision: str = ""
    adapter: str = ""
    processor: str = ""
    trust_remote_code: bool = False
    load_in_4bit: bool = False
    load_in_8bit: bool = False

    @model_validator(mode="after")
    def _one_rounding(self) -> Self:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit: give one of them")
        return self

    @property
    def bits(self) -> int:
        """Of a weight, where they are rounded; 0 where they are not."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else 0

    @property
    def where(self) -> dict[str, Any]:
        """What every ``from_pretrained`` is told."""
        revision = {"revision": self.revision} if self.revision else {}
        return {"trust_remote_code": self.trust_remote_code, **revision}


def _attention(word: Any) -> Any:
    if str(word).startswith(("flash", "paged", "kernels-community")):
        raise ValueError(
            "flash attention takes no mask, and evaluation needs one: samples of a prompt are branches of one row; use sdpa"
        )
    return word


UNLOADABLE = (
    OSError, ImportError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, AssertionError, ZeroDivisionError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip
"""What transformers, safetensors and torch raise on a checkpoint that is not whole, or not of its config."""
SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"}


def model_type(path: str, revision: str) -> str | None:
    """``model_type`` of a checkpoint's config.json, read before any class is chosen; None where there is no such file."""
    require_checkpoint(path, revision)
    try:
        raw, _ = PreTrainedConfig.get_config_dict(path, **({"revision": revision} if revision else {}))
    except OSError:
        return None
    return str(raw["model_type"]) if "model_type" in raw else None


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint ready to use. ``about``: JSON values for records."""

    model: Any
    processor: Any
    family: Family
    about: dict[str, Any]


def load_checkpoint(path: str, args: CheckpointArguments | None = None) -> Loaded:
    """Load ``path`` (a folder or a hub id), with a PEFT ``adapter`` folder merged into it if one is named.

    Raises UsageError for anything a user can mend: no such checkpoint, no safetensors, no adapter for its family.
    """
    args = args or CheckpointArguments()
    path, adapter = base_and_adapter(path, args.adapter)
    if args.device_map:
        _one_process_per_machine()
    require_device(args.device)
    require_device("" if args.device_map in SPREADS else args.device_map)
    if rank():
        disable_progress_bar()
    how = quantization(args.bits, args.device or own_device())
    if args.device_map:
        how["device_map"] = args.device_map
    config, processor, model = load_parts(
        path, args.where, args.dtype, args.attn or None, processor=args.processor, **how
    )
    if model.config._attn_implementation not in ("sdpa", "eager"):
        asked = model.config._attn_implementation
        raise UsageError(f"{path} asks for unsupported attention {asked}", "pass attn=sdpa or attn=eager")
    tensors = tensors_loaded(model)
    merged = None
    if adapter:
        model, applied = load_adapter(model, adapter, path)
        model = model.merge_and_unload()  # rounds in the model's dtype
        merged = {"path": adapter, "weights_sha256": weights_hash(Path(adapter)), "tensors": applied}
    if "device_map" not in how:
        model = model.to(args.device or own_device())
    model.eval()
    family = family_for(config, processor)
    family.limit_pixels(args.pixel_limits)
    say_if_ignored(path, family)
    about = {
        "family": family.name,
        "path": path,
        "revision": commit_of(config) or args.revision or None,
        "weights_sha256": weights_hash(folder_of(path, args.revision)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn": model.config._attn_implementation,
        "image_processor": type(processor.image_processor).__name__,
        "trust_remote_code": args.trust_remote_code,
        "adapter": merged,
        "tensors": tensors,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **({"processor": args.processor} if args.processor else {}),
        **({"bits": args.bits} if args.bits else {}),
    }
    if family.pixel_limits:
        about["pixels"] = family.pixels()
    if args.pixel_limits:
        about["pixel_limits"] = args.pixel_limits
    return Loaded(model, processor, family, about)


def load_config(path: str, where: Mapping[str, Any], processor: str = "") -> tuple[Any, Any]:
    """Config and processor of a folder or hub id; no weights are read. where: revision and trust_remote_code. processor: the
    folder or hub id it comes from, where not ``path``.

    Raises UsageError where transformers cannot load them.
    """
    for place in filter(None, (path, processor)):
        require_checkpoint(place, where.get("revision", "") if place == path else "")
    try:
        raw, _ = PreTrainedConfig.get_config_dict(path, **where)
        if "model_type" not in raw:
            raise OSError("it has no config.json with a model_type")
        family_class(RawConfig.of(raw))  # registers classes of our own (Yi-VL) before transformers looks for them
        config = AutoConfig.from_pretrained(path, **where)
    except UNLOADABLE as error:
        raise UsageError(f"cannot load {path}: {_reason(error)}", _hint(path, error)) from error
    return config, _load_processor(path, where, processor)


def _load_processor(path: str, where: Mapping[str, Any], processor: str) -> Any:
    place = processor or path
    trusted = {"trust_remote_code": where.get("trust_remote_code", False)}
    hint = "a fine-tune saved without its processor takes its base's: --model-args processor=BASE"
    try:
        found = AutoProcessor.from_pretrained(place, **(trusted if processor else where))
    except UNLOADABLE as error:
        raise UsageError(f"cannot load the processor of {place}: {_reason(error)}", hint) from error
    if not isinstance(found, ProcessorMixin):  # a tokenizer alone, where there is no file for pictures
        raise UsageError(f"{place} has no processor for pictures, only a {type(found).__name__}", hint)
    return found


def load_parts(
    path: str, where: Mapping[str, Any], dtype: Any, attn: str | None, *, processor: str = "", **more: Any
) -> tuple[Any, Any, Any]:
    """Config, processor and model of a checkpoint, as its files have them: what evaluation and training load alike.

    Raises UsageError as :func:`load_config` does, where there are no safetensors, where weights and files do not match one to
    one (complete.py): nothing is ever left at random; and where the files cannot be right (files.py, vocabulary.py).
    """
    config, found = load_config(path, where, processor)
    require_safetensors(path, where.get("revision", ""))
    try:
        with no_report():
            model, info = AutoModelForImageTextToText.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation=attn,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they come back in info, with their names
                output_loading_info=True,
                **where,
                **more,
            )
    except UNLOADABLE as error:
        raise UsageError(f"cannot load {path}: {_reason(error)}", _hint(path, error)) from error
    require_complete(path, model, info, family_class(config))
    require_files(folder_of(path, where.get("revision", "")), model)
    require_finite(path, model.named_parameters())
    require_one_vocabulary(path, model, found)
    older.cap(model)
    return config, found, model


def commit_of(config: Any) -> str | None:
    """The hub's commit a config came from; transformers sets it on what it downloads, and on nothing else."""
    return vars(config).get("_commit_hash")


def _one_process_per_machine() -> None:
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "device_map spreads one model over all GPUs, but several processes were started on this machine",
            "start one process per machine, or use --ray N, which gives each worker its own GPUs",
        )


def own_device() -> str:
    """The device of this process: of several on a machine, each has a GPU. Raises UsageError where there are fewer GPUs."""
    if not torch.cuda.is_available():
        return "cpu"
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place >= torch.cuda.device_count():
        raise UsageError(
            f"{place + 1} processes on a machine with {torch.cuda.device_count()} GPUs",
            "start at most one process per GPU",
        )
    return f"cuda:{place}"


@dataclass(frozen=True, slots=True)
class RawConfig:
    """The two fields of a config.json that choose a family, before any class of it is known."""

    model_type: str | None = None
    visrl_family: str | None = None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> RawConfig:
        return cls(raw.get("model_type"), raw.get("visrl_family"))


def require_device(name: str) -> None:
    """Raises UsageError for a device that is none, or not in this machine; "" is content."""
    if not name:
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device={name}: {_reason(error)}", "cpu, cuda, cuda:1, mps, …") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = f"torch {torch.__version__} finds {torch.cuda.device_count()} GPUs"
        raise UsageError(f"device={name}: {found}", "install the driver and a torch built for it, or leave device out")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            f"device={name}: this build of torch does not support it", "leave device out to run on the CPU"
        )


def _reason(error: BaseException) -> str:
    """The first line that says something; with the type, where the type is what says what went wrong."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line if line and isinstance(error, (OSError, ImportError, ValueError)) else f"{type(error).__name__}: {line}"


def _hint(path: str, error: BaseException) -> str:
    folder = Path(path)
    if isinstance(error, ImportError):
        return "install the package it names"
    if isinstance(error, torch.OutOfMemoryError):
        return "device_map=auto spreads it over all GPUs; dtype=bfloat16 or load_in_4bit=true make it smaller"
    if isinstance(error, SafetensorError):
        return "a file of weights is cut off or damaged: copy it again"
    if folder.is_dir() and not list(folder.glob("*.safetensors")) and [*folder.glob("*.bin"), *folder.glob("*.pt")]:
        return "its weights are pickles; load them once where you trust them and save_pretrained() writes safetensors"
    return "give a folder with config.json, processor files and *.safetensors, or a hub id that this machine can reach"


def folder_of(path: str, revision: str) -> Path:
    """The folder a checkpoint's files lie in; for a hub id, the snapshot in the cache."""
    if Path(path).is_dir():
        return Path(path)
    settle()
    return Path(str(cached_file(path, "config.json", revision=revision or None))).parent
