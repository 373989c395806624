"""What was loaded is what the files hold: weights with no tensor, tensors with no place, other shapes stop a run by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from visrl.errors import UsageError
from visrl.policies.families.base import Family
from visrl.policies.hf.adapters import few

REPORTERS = ("transformers.modeling_utils", "transformers.distributed.tensor_parallel")


def require_complete(path: str, model: Any, info: Mapping[str, Any], family: type[Family]) -> None:
    """Raises UsageError unless every weight came from the files and every tensor of the files went into a weight.

    info: of ``from_pretrained(…, output_loading_info=True)``; what transformers declares for the class is left out there, and
    weights tied to one that was loaded. family: its ``ignored_weights`` have no place in the model, and are known.
    """
    known = [re.compile(pattern) for pattern in family.ignored_weights]
    mismatched = {
        f"{name} (file {list(found)}, model {list(wanted)})" for name, found, wanted in info["mismatched_keys"]
    }
    unexpected = {name for name in info["unexpected_keys"] if not any(p.search(name) for p in known)}
    _refuse(path, mismatched, "of another shape", "config.json and the weights are of two models")
    _refuse(
        path, set(info["missing_keys"]), "missing in its files", "the missing weights would be random: copy it again"
    )
    _refuse(path, unexpected, "with no place in the model", "config.json is of another model, or of another size")
    if vars(model).get("_hf_peft_config_loaded"):
        raise UsageError(f"{path} is an adapter", "give its base as the model, and --model-args adapter=FOLDER")


def tensors_loaded(model: Any) -> int:
    """How many parameters a model has, tied ones once; all came from files where :func:`require_complete` is content."""
    return sum(1 for _ in model.parameters())


@contextmanager
def no_report() -> Iterator[None]:
    """transformers prints a table of what does not fit; here it is an error that says so. And what it did not shard."""
    logs = [logging.getLogger(name) for name in REPORTERS]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def _refuse(path: str, names: Collection[str], what: str, hint: str) -> None:
    if names:
        raise UsageError(f"cannot load {path}: weights {what}: {few(names)}", hint)
