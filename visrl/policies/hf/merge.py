"""A LoRA adapter and its base as one checkpoint, written as evaluation merges them: the same weights, so the same scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from visrl.core.records import dump_json
from visrl.errors import UsageError, refused
from visrl.policies.hf.hashes import weights_hash
from visrl.policies.hf.loading import CheckpointArguments, load_checkpoint

FACTS = "merged.json"
"""Beside the weights: what they were made of."""


def merge(path: str, output: Path, *, adapter: str = "", dtype: str = "auto", processor: str = "") -> Mapping[str, Any]:
    """Write the merged weights, config and processor to the new folder ``output``, with :data:`FACTS`, which are returned.

    path: a folder of an adapter, which names its base; or a base, with ``adapter``. dtype: of the written weights, the base's
    own by default. Raises UsageError where there is no adapter, it does not fit, or ``output`` exists.
    """
    if output.exists():
        raise UsageError(f"{output} exists", "name a new folder with --output")
    arguments = CheckpointArguments.read({"adapter": adapter, "dtype": dtype, "processor": processor, "device": "cpu"})
    loaded = load_checkpoint(path, arguments)
    if loaded.about["adapter"] is None:
        raise UsageError(
            f"{path} is not an adapter", "name a folder with adapter_config.json, or a base with --adapter DIR"
        )
    beside = output.parent / f".{output.name}.{uuid4().hex}.tmp"
    try:
        beside.mkdir(parents=True)
        loaded.model.save_pretrained(beside)
        loaded.processor.save_pretrained(beside)
        facts = {
            "weights_sha256": weights_hash(beside),
            "dtype": loaded.about["dtype"],
            "base": {name: loaded.about[name] for name in ("path", "revision", "weights_sha256")},
            "adapter": loaded.about["adapter"],
        }
        (beside / FACTS).write_text(dump_json(facts), encoding="utf-8")
        beside.replace(output)
    except OSError as error:
        raise refused(error, output) from error
    return facts
