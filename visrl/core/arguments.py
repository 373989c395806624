"""What a number of a command line, of ``--model-args`` or of a recipe may be, where nothing narrower is declared; and a command
line by argparse that ends wrong use as every other command does: ``error: …``, ``hint: …``, exit code 2.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from visrl.errors import UsageError

LARGEST = 10**12
"""Beyond any count, size or duration that is meant; far below where lengths, timers and file formats overflow."""
MOST_PROCESSES = 1024
"""Processes, threads or actors of one command: a slip of the keyboard must not bring a machine down."""
LARGEST_SEED = 2**32 - 1
"""numpy's generators take no larger one."""


def check_magnitude(value: Any, name: str = "") -> None:
    """Raises ValueError for a number, alone or within containers, that is not finite or beyond ``LARGEST``. name: of its key."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_magnitude(inner, f"{key}: ")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_magnitude(inner, name)
    elif isinstance(value, (int, float)) and not within(value, -LARGEST, LARGEST):
        raise ValueError(f"{name}not a finite number of at most {LARGEST:.0e}")


def within(value: float, low: float, high: float) -> bool:
    """Whether a number lies in a range, its ends included. NaN lies in none."""
    return not math.isnan(value) and low <= value <= high


class Parser(argparse.ArgumentParser):
    """Raises UsageError for what it cannot read."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")
