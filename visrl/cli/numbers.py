"""What ``min`` and ``max`` of an option cannot say: NaN passes both, and bounds that nobody means would clutter the help."""

from __future__ import annotations

import typer

from visrl.core.arguments import LARGEST, within

_TINY = 1e-30


def sensible(value: float | None) -> float | None:
    """The callback of an option that is a number: finite, and not beyond ``LARGEST``."""
    return _checked(value, -LARGEST, f"of at most {LARGEST:.0e}")


def positive(value: float | None) -> float | None:
    """The same, above zero."""
    return _checked(value, _TINY, f"above 0, of at most {LARGEST:.0e}")


def _checked(value: float | None, low: float, said: str) -> float | None:
    if value is not None and not within(value, low, LARGEST):
        raise typer.BadParameter(f"{value:.6g} is not a number {said}")
    return value
