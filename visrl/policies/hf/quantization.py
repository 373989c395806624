"""Weights in 4 or 8 bits by bitsandbytes (``pip install visrl[quantized]``): smaller, and another model than the whole one."""

from __future__ import annotations

import importlib.util
from typing import Any

from visrl.errors import UsageError

INSTALL = "pip install 'visrl[quantized]', or leave load_in_4bit and load_in_8bit out"


def quantization(bits: int, device: str) -> dict[str, Any]:
    """What ``from_pretrained`` is told to round the weights to ``bits`` (0: not at all) while they are read onto ``device``.

    Raises UsageError without bitsandbytes.
    """
    if not bits:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(f"load_in_{bits}bit needs bitsandbytes, which is not installed", INSTALL)
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8),
        "device_map": {"": device},
    }
