"""What a command sets before torch is imported, which reads it once."""

from __future__ import annotations

import os


def wait_without_spinning() -> None:
    """Threads of OpenMP that wait give their core away, unless the user has chosen.

    Small models wait often: beside other work on the same two cores, `tiny` took twice the time with threads that spin. Results
    are the same.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
