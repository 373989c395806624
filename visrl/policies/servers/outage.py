"""How long nobody has answered, and when that is long enough.

A server that is away costs a request none of its tries while nobody else gets an answer either: all wait for it, looking again
after at most ``LONGEST`` seconds. Once ``patience`` seconds have passed in which requests failed and none was answered, what is
still asked fails at once, and before the next call the servers are asked for their models: where none answers, the run ends with
what is finished (``visrl.errors.Incomplete``, exit code 3). So does one of which ``LOST`` requests in a row were given up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

LONGEST = 10.0  # seconds between tries while a server is away
LOST = 50


@dataclass(slots=True)
class Outage:
    """What the requests of a policy know of each other. answers: so far. began: the first failure since the last of them.
    lost: requests given up in a row. reason: why nothing more is asked; "" while something is.
    """

    patience: float
    answers: int = 0
    began: float | None = None
    lost: int = 0
    reason: str = ""

    def answered(self) -> None:
        """A request was answered."""
        self.answers += 1
        self.lost, self.began = 0, None

    def failed(self, why: str) -> None:
        """A try failed in a way that may pass."""
        now = time.monotonic()
        self.began = now if self.began is None else self.began
        if not self.reason and now - self.began >= self.patience:
            self.reason = f"no answer for {now - self.began:.0f} s: {why}"

    def gave_up(self, why: str) -> None:
        """A request failed for good."""
        self.lost += 1
        if not self.reason and self.lost >= LOST:
            self.reason = f"{self.lost} requests in a row failed: {why}"

    def ended(self) -> None:
        """It answers again, or a new call begins: time between calls counts for nothing."""
        self.began, self.reason = None, ""
