"""How far a run is, on stderr: a live bar on a terminal, a plain line now and then elsewhere, nothing with ``--quiet``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from visrl.types import Episode, Unparsed

LINE_EVERY_S = 30.0


@dataclass(slots=True)
class Counts:
    """What has come out of one task so far."""

    done: int = 0
    failed: int = 0
    asked_for_box: int = 0
    parsed: int = 0

    def add(self, episodes: Sequence[Episode]) -> None:
        self.done += len(episodes)
        self.failed += sum(e.error is not None for e in episodes)
        self.asked_for_box += sum(e.box is not None for e in episodes)
        self.parsed += sum(e.box is not None and not isinstance(e.box, Unparsed) for e in episodes)

    def __str__(self) -> str:
        parts = [f"boxes parsed {self.parsed / self.asked_for_box:.1%}"] if self.asked_for_box else []
        return " · ".join([*parts, f"{self.failed} failed"])


@dataclass(slots=True)
class Ticker:
    """Plain lines: one every ``LINE_EVERY_S`` seconds and one at the end, for logs and CI."""

    task: str
    total: int
    out: TextIO | None
    counts: Counts = field(default_factory=Counts)
    skipped: int = 0
    _began: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def add(self, episodes: Sequence[Episode]) -> None:
        self.counts.add(episodes)
        if self.out is not None and time.monotonic() - self._said >= LINE_EVERY_S:
            self.say()

    def skip(self, n: int) -> None:
        """Samples an earlier run finished: done, but not at this run's speed."""
        self.skipped += n
        self.counts.done += n

    def say(self) -> None:
        self._said = time.monotonic()
        spent = max(self._said - self._began, 1e-9)
        rate = (self.counts.done - self.skipped) / spent
        left = (self.total - self.counts.done) / rate if rate else float("inf")
        print(
            f"{self.task}: {self.counts.done}/{self.total} · {rate:.1f}/s · {self.counts} · {left:.0f} s left",
            file=self.out,
        )


@contextmanager
def progress(task: str, total: int, *, quiet: bool = False, out: TextIO | None = None) -> Iterator[Ticker]:
    """A ticker for ``total`` samples of ``task``; on a terminal it draws a bar instead of lines."""
    out = out or sys.stderr
    if quiet or total == 0:
        yield Ticker(task, total, None)
    elif out.isatty():
        with _bar(task, total, out) as ticker:
            yield ticker
    else:
        ticker = Ticker(task, total, out)
        yield ticker
        ticker.say()


@contextmanager
def _bar(task: str, total: int, out: TextIO) -> Iterator[Ticker]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[counts]}"),
    )
    with Progress(*columns, console=Console(file=out)) as bar:
        number = bar.add_task(task, total=total, counts="")

        class Bar(Ticker):
            def add(self, episodes: Sequence[Episode]) -> None:
                self.counts.add(episodes)
                bar.update(number, completed=self.counts.done, counts=str(self.counts))

        yield Bar(task, total, out)
