"""What a command sets for its process: what torch reads once when it is imported, and what the garbage collector looks at."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager


def wait_without_spinning() -> None:
    """Threads of OpenMP that wait give their core away, unless the user has chosen.

    Small models wait often: beside other work on the same two cores, `tiny` took twice the time with threads that spin. Results
    are the same.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def held_to_the_end() -> Iterator[None]:
    """What is made within stays as long as the command: the garbage collector neither runs meanwhile nor looks at it later.

    A collector that looks at all recorded outputs again and again takes a share of a command's time (docs/performance.md). The
    command's end lets them go (``gc.unfreeze``).
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if on:
            gc.enable()
