"""What makes two requests one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATED_ONLY = frozenset({"tensors", "torch", "transformers", "pixels", "key_env"})
"""Of ``model_info``: said in records, but what decides the outputs is said otherwise (weights' hashes, arguments)."""


def deciding(value: Any, *, inside: bool = False) -> Any:
    """A request, or a part of one, without what is only stated: what two commands must agree in to be one run."""
    if isinstance(value, Mapping):
        return {
            key: deciding(item, inside=inside or key == "model_info")
            for key, item in value.items()
            if not (inside and key in STATED_ONLY)
        }
    return value
