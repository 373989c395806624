"""Models for training: loaded, wrapped in LoRA or frozen where they should be, and guarded against training nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl.errors import UsageError
from visrl.policies.families import family_class
from visrl.policies.families.base import Family
from visrl.runs.distributed import rank
from visrl.train.common.encoding import ConversationEncoder
from visrl.train.common.vision_cache import FeatureStore, freeze_vision, vision_is_frozen
from visrl.train.config.recipe import LoraSection, ModelSection

if TYPE_CHECKING:
    from torch import nn


@dataclass(slots=True)
class TrainableModel:
    """A model that is being trained. model: what is trained, in PEFT's wrapping if there is LoRA; base: the bare
    transformers model.
    """

    model: Any
    processor: Any
    family: Family
    encoder: ConversationEncoder

    @property
    def base(self) -> Any:
        return bare(self.model)

    def feature_store(self, gigabytes: float) -> FeatureStore | None:
        """Where vision features are kept; None where the vision tower is trained."""
        return FeatureStore(int(gigabytes * 2**30)) if vision_is_frozen(self.base) else None


def bare(model: Any) -> Any:
    """The transformers model inside PEFT's wrapping, if there is one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def load_trainable(section: ModelSection, lora: LoraSection | None, seed: int) -> TrainableModel:
    """Load a model for training; of a LoRA folder as ``path`` its base, with the adapter going on. seed: of a new adapter.

    Raises UsageError for one that is not there or not whole, has no family adapter, or trains nothing.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    from visrl.policies.hf.adapters import base_and_adapter
    from visrl.policies.hf.loading import CheckpointArguments, load_parts
    from visrl.train.common.branch_attention import use_branch_attention

    disable_progress_bar()  # one progress line, ours
    path, adapter = base_and_adapter(shipped(section.path), section.adapter or "")
    section = section.model_copy(update={"path": path, "adapter": adapter or None})
    args = CheckpointArguments(revision=section.revision or "", trust_remote_code=section.trust_remote_code)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[section.dtype]
    rounded = _rounded(section, lora)
    branched = section.attn == "flex_attention"
    _, processor, model = load_parts(
        path, args.where, dtype, None if branched else section.attn, processor=section.processor or "", **rounded
    )
    if branched:
        use_branch_attention(model)
    if rounded:
        from peft import prepare_model_for_kbit_training

        # activations are checkpointed where the trainer says so
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return trainable(model, processor, section, lora, seed)


def _rounded(section: ModelSection, lora: LoraSection | None) -> dict[str, Any]:
    """What loading is told of a base in 4 or 8 bits. Raises UsageError where its own weights were to be trained."""
    from visrl.policies.hf.loading import own_device
    from visrl.policies.hf.quantization import quantization

    if section.bits and lora is None and section.adapter is None:
        raise UsageError(
            f"model.load_in_{section.bits}bit: quantized weights cannot be trained", "set lora, or load an adapter"
        )
    return quantization(section.bits, own_device())


def check_model(section: ModelSection, lora: LoraSection | None) -> None:
    """What a recipe's model lacks: files, processor, adapter, bitsandbytes. No weights are read. Raises UsageError."""
    from visrl.policies.before import check_files

    asked = section.model_dump(include={"revision", "adapter", "processor", "trust_remote_code"})
    check_files(shipped(section.path), {**asked, "box_format": section.box_format or "native"})
    _rounded(section, lora)


def shipped(path: str) -> str:
    """The folder of a shipped checkpoint for its bare name (``sft``, ``base``, ``tiny``), else ``path`` itself.

    As ``--model`` has it, whatever lies in the working folder: one named ``base`` is ``./base``.
    """
    from visrl.world import CHECKPOINTS, checkpoint_path

    return str(checkpoint_path(path)) if path in CHECKPOINTS else path


def weights_id(model: str, adapter: str | None = None) -> str:
    """sha256 of the weights' bytes, an adapter's behind a ``+``; of a hub id its commit, which names them before they are here.

    Raises UsageError where there are none.
    """
    from visrl.policies.hf.loading import folder_of

    path = Path(shipped(model))
    if path.is_dir():
        found = _hash_of(path)
    else:
        try:
            found = f"{model}@{folder_of(model, '').name}"
        except OSError as error:
            raise UsageError(f"no weights at {model}", "give a bundled model, a folder, or a hub id") from error
    return found if adapter is None else f"{found}+{_hash_of(Path(adapter))}"


def starting_weights(section: ModelSection) -> str | None:
    """sha256 of the weights that a phase begins from, those of an adapter behind a ``+``; on the first of several processes.

    None where they are not here: not yet (a hub id), or no longer, as they may be once a phase is finished.
    """
    from visrl.policies.hf.adapters import base_and_adapter
    from visrl.policies.hf.loading import folder_of

    if rank() != 0:
        return None
    try:
        base, adapter = base_and_adapter(shipped(section.path), section.adapter or "")
        folder = _hash_of(folder_of(base, section.revision or ""))
    except (UsageError, OSError):
        return None
    return f"{folder}+{_hash_of(Path(adapter))}" if adapter else folder


def _hash_of(folder: Path) -> str:
    from visrl.policies.hf.hashes import weights_hash

    if not any(folder.glob("*.safetensors")):
        raise UsageError(f"no weights at {folder}", "give a folder with *.safetensors")
    return weights_hash(folder)


def trainable(model: Any, processor: Any, section: ModelSection, lora: LoraSection | None, seed: int) -> TrainableModel:
    """A loaded model with what is to be trained of it switched on."""
    from visrl.policies.hf.adapters import load_adapter

    family = family_class(model.config)(model.config, processor)
    encoder = ConversationEncoder(family, family.box_format(section.box_format or "native"))
    if section.adapter is not None:
        model, _ = load_adapter(model, section.adapter, section.path, trainable=True)
    elif lora is not None:
        model = add_lora(model, lora, seed)
    elif section.freeze_vision:
        freeze_vision(model)
    require_something_to_train(model)
    return TrainableModel(model, processor, family, encoder)


def lora_target(model: nn.Module) -> str:
    """A regex of the language model's linear layers. Bare names like ``q_proj`` would hit the vision tower
    too.
    """
    import torch

    decoder = model.get_decoder()  # type: ignore[operator]  # a method of PreTrainedModel
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    leaves = {
        name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)
    }
    return rf"{re.escape(prefix)}\..*\.({'|'.join(sorted(leaves))})"


def add_lora(model: Any, section: LoraSection, seed: int) -> Any:
    """``model`` with fresh adapters (the official r 8, alpha 16; B starts at 0, so the policy starts where the model
    is). A is drawn from ``seed`` alone, and the generator that others draw from stays where it is.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    target = section.target or lora_target(model)
    config = LoraConfig(
        r=section.r, lora_alpha=section.alpha, lora_dropout=section.dropout, target_modules=target, bias="none"
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(
            f"lora.target: {error}", "give a regular expression that matches whole module names"
        ) from error


def require_something_to_train(model: nn.Module) -> None:
    """Raises UsageError where nothing requires a gradient."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            "no parameter of this model is trainable",
            "set lora, load an adapter for training, or set freeze_vision: false",
        )


def why_not_shared(model: Any) -> str | None:
    """Why chosen and rejected cannot stand in one row of this model, or None where they can."""
    chosen = model.config._attn_implementation
    return None if chosen in ("sdpa", "eager") else f"attn {chosen} takes no block mask"


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Give the model its forward back afterwards: TRL patches it in place, and a copy would stay bound to the
    original.
    """
    base = bare(model)
    before = base.__dict__.get("forward")
    try:
        yield
    finally:
        if before is None:
            base.__dict__.pop("forward", None)
        else:
            base.forward = before
