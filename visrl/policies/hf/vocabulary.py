"""Tokenizer, picture processor and model are of one checkpoint: what each takes the others' numbers to mean."""

from __future__ import annotations

from typing import Any

from visrl.errors import UsageError
from visrl.policies.hf.adapters import few

HINT = "the processor is of another model, or its files are older than the weights: --model-args processor=BASE names another"


def require_one_vocabulary(path: str, model: Any, processor: Any) -> None:
    """Raises UsageError where tokens have no embedding (on a GPU that ends the process), where the processor's mark of a picture
    is not the one that the model replaces by picture features, and where the two cut pictures into patches of other sizes.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = {f"{token!r} ({i})" for token, i in processor.tokenizer.get_vocab().items() if i >= rows}
    if beyond:
        raise UsageError(
            f"cannot load {path}: tokens of its tokenizer beyond the model's {rows} embeddings: {few(beyond)}", HINT
        )
    said, marked = _picture_mark(model.config), vars(processor).get("image_token_id")
    if said is not None and marked != said:
        raise UsageError(
            f"cannot load {path}: its processor marks pictures with token {marked}, config.json says {said}", HINT
        )
    edge = vars(model.config.vision_config).get("patch_size") if "vision_config" in vars(model.config) else None
    cut = {vars(part).get("patch_size") for part in (processor, processor.image_processor)} - {None}
    if isinstance(edge, int) and any(isinstance(size, int) and size != edge for size in cut):
        raise UsageError(
            f"cannot load {path}: its processor cuts pictures into patches of {min(cut)} pixels, the model into {edge}",
            HINT,
        )


def _picture_mark(config: Any) -> int | None:
    """The token that stands for a picture, under either name that transformers' configs have for it."""
    found = vars(config)
    return next(
        (int(found[name]) for name in ("image_token_id", "image_token_index") if found.get(name) is not None), None
    )
