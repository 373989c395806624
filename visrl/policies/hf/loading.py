"""A checkpoint on disk or on the hub -> model, processor and what a record must say of them. Safetensors only."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar

from visrl.errors import UsageError
from visrl.policies.arguments import PixelArguments
from visrl.policies.families import family_class, family_for
from visrl.policies.families.base import Family
from visrl.runs.distributed import rank

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
NAMES_ELSEWHERE = {"torch_dtype": "dtype", "attn_implementation": "attn", "peft": "adapter"}
"""What lmms-eval, lm-evaluation-harness and transformers call an argument -> its name here."""


class CheckpointArguments(PixelArguments):
    """How a checkpoint is loaded. Evaluation refuses flash attention: branches of one row need a mask that it cannot take."""

    kind: ClassVar[str] = "hf"
    other_names: ClassVar[Mapping[str, str]] = NAMES_ELSEWHERE

    dtype: Annotated[Dtype, BeforeValidator(lambda word: _SHORT.get(word, word))] = "auto"
    device: str = ""
    device_map: str = ""
    attn: Literal["", "sdpa", "eager"] = ""
    revision: str = ""
    adapter: str = ""
    trust_remote_code: bool = False

    @property
    def where(self) -> dict[str, Any]:
        """What every ``from_pretrained`` is told."""
        revision = {"revision": self.revision} if self.revision else {}
        return {"trust_remote_code": self.trust_remote_code, **revision}


_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"}


def model_type(path: str, revision: str) -> str | None:
    """``model_type`` of a checkpoint's config.json, read before any class is chosen; None where there is no such file."""
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
    if args.device_map:
        _one_process_per_machine()
    if rank():
        disable_progress_bar()
    device_map = {"device_map": args.device_map} if args.device_map else {}
    config, processor, model = load_parts(path, args.where, args.dtype, args.attn or None, **device_map)
    if model.config._attn_implementation not in ("sdpa", "eager"):
        asked = model.config._attn_implementation
        raise UsageError(f"{path} asks for unsupported attention {asked}", "pass attn=sdpa or attn=eager")
    if args.adapter:
        model = _with_adapter(model, args.adapter)
    if not args.device_map:
        model = model.to(args.device or own_device())
    model.eval()
    family = family_for(config, processor)
    family.limit_pixels(args.pixel_limits)
    about = {
        "family": family.name,
        "path": path,
        "revision": commit_of(config) or args.revision or None,
        "weights_sha256": weights_hash(folder_of(path, args.revision)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn": model.config._attn_implementation,
        "image_processor": type(processor.image_processor).__name__,
        "trust_remote_code": args.trust_remote_code,
        "adapter": {"path": args.adapter, "weights_sha256": weights_hash(Path(args.adapter))} if args.adapter else None,
    }
    if family.pixel_limits:
        about["pixels"] = family.pixels()
    return Loaded(model, processor, family, about)


def load_config(path: str, where: Mapping[str, Any]) -> tuple[Any, Any]:
    """Config and processor of a folder or hub id; no weights are read. where: revision and trust_remote_code.

    Raises UsageError where transformers cannot load them.
    """
    if path.startswith(("/", ".", "~")) and not Path(path).is_dir():  # must not be asked of the hub
        raise UsageError(f"cannot load {path}: no such folder", "give a folder with config.json, or a hub id")
    try:
        raw, _ = PreTrainedConfig.get_config_dict(path, **where)
        if "model_type" not in raw:
            raise OSError("it has no config.json with a model_type")
        family_class(RawConfig.of(raw))  # registers classes of our own (Yi-VL) before transformers looks for them
        return AutoConfig.from_pretrained(path, **where), AutoProcessor.from_pretrained(path, **where)
    except (OSError, ImportError, ValueError) as error:
        raise UsageError(f"cannot load {path}: {_first_line(error)}", _hint(path, error)) from error


def load_parts(path: str, where: Mapping[str, Any], dtype: Any, attn: str | None, **more: Any) -> tuple[Any, Any, Any]:
    """Config, processor and model of a checkpoint, as its files have them: what evaluation and training load alike.

    Raises UsageError as :func:`load_config` does, and where there are no safetensors.
    """
    config, processor = load_config(path, where)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            path, config=config, dtype=dtype, attn_implementation=attn, use_safetensors=True, **where, **more
        )
    except (OSError, ImportError, ValueError) as error:
        raise UsageError(f"cannot load {path}: {_first_line(error)}", _hint(path, error)) from error
    return config, processor, model


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


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _hint(path: str, error: BaseException) -> str:
    folder = Path(path)
    if isinstance(error, ImportError):
        return "install the package it names"
    if folder.is_dir() and not list(folder.glob("*.safetensors")) and [*folder.glob("*.bin"), *folder.glob("*.pt")]:
        return "its weights are pickles; load them once where you trust them and save_pretrained() writes safetensors"
    return "give a folder with config.json, processor files and *.safetensors, or a hub id that this machine can reach"


def _with_adapter(model: Any, adapter: str) -> Any:
    """The model with a LoRA merged into its weights; merging rounds in the model's dtype."""
    from peft import PeftModel

    if not list(Path(adapter).glob("adapter_model.safetensors")):
        raise UsageError(f"no adapter_model.safetensors in {adapter}", "adapter= takes a folder saved by PEFT")
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def folder_of(path: str, revision: str) -> Path:
    """The folder a checkpoint's files lie in; for a hub id, the snapshot in the cache."""
    if Path(path).is_dir():
        return Path(path)
    return Path(str(cached_file(path, "config.json", revision=revision or None))).parent


def weights_hash(folder: Path) -> str:
    """sha256 over the names and bytes of a folder's safetensors files, in the order of their names; read again only where a size
    or a time of change differs.
    """
    files = [(file, file.stat()) for file in sorted(folder.glob("*.safetensors"))]
    return _bytes_hash(tuple((str(file.resolve()), file.name, stat.st_size, stat.st_mtime_ns) for file, stat in files))


@functools.lru_cache(maxsize=64)
def _bytes_hash(files: tuple[tuple[str, str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, name, *_ in files:
        total.update(name.encode())
        with Path(path).open("rb") as stream:
            while block := stream.read(1 << 22):
                total.update(block)
    return total.hexdigest()
