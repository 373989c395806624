"""Seconds and bytes of a device: wall time between synchronisations, the allocator's peak."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], Any], device: str, repeats: int, *, warm: int = 1) -> tuple[float, Any]:
    """Median wall seconds of ``call`` after ``warm`` calls that do not count, and what it returned last."""
    times, found = [], None
    for i in range(warm + repeats):
        wait(device)
        began = time.perf_counter()
        found = call()
        wait(device)
        if i >= warm:
            times.append(time.perf_counter() - began)
    return statistics.median(times), found


class Peak:
    """``with Peak(device) as peak: …``; then ``before`` and ``bytes``: held at the start, and at most. On a CPU the process's size."""

    def __init__(self, device: str) -> None:
        self.device, self.before, self.bytes = device, 0, 0

    def __enter__(self) -> Peak:
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.before = self._held()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = torch.cuda.max_memory_allocated() if self.device == "cuda" else self._held()

    def _held(self) -> int:
        if self.device == "cuda":
            return torch.cuda.memory_allocated()
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
