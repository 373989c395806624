"""How far a run is, on stderr: live on a terminal, elsewhere a plain line after 5 s, every 30 s and at the end of
each task, nothing with ``--quiet``.

done/total, samples per second, the score so far ± its standard error (clustered by picture, over what this command has run), the
share of boxes that parsed, failures, time left, memory. The score is the one the benchmark would report for these samples where
that costs nothing: rules, never a model as judge. It is a look at a run, not a result; results are in records/.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from visrl.core.types import CoTSample, Episode, Score, Unparsed

if TYPE_CHECKING:
    from rich.console import Console

LINE_EVERY_S = 30.0
FIRST_LINE_S = 5.0
SHOWN = ("acc@0.5", "click_acc", "answer", "accuracy", "correct", "box_acc")
"""Metrics of single samples, 0..1, the one that says most first."""
Scorer = Callable[[Sequence[CoTSample], Mapping[str, Episode]], Mapping[str, Mapping[str, Score]]]
"""samples and their episodes by id -> per sample, metric -> Score"""


@dataclass(slots=True)
class Running:
    """A mean and its cluster-robust standard error (evals/stats.py, CR1) that can be asked for at any time.

    Keeps two numbers per picture: with x̄ the mean of n values, a picture of n_g values that sum to s_g moves it by
    (s_g - n_g x̄) / n; se² = G / (G - 1) times the sum of the squares of these.
    """

    n: int = 0
    total: float = 0.0
    clusters: dict[str, list[float]] = field(default_factory=dict)

    def add(self, value: float, cluster: str) -> None:
        self.n += 1
        self.total += value
        found = self.clusters.setdefault(cluster, [0.0, 0.0])
        found[0] += 1
        found[1] += value

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def se(self) -> float | None:
        """None with fewer than two pictures."""
        groups = len(self.clusters)
        if groups < 2:
            return None
        moves = sum(((s - n * self.mean) / self.n) ** 2 for n, s in self.clusters.values())
        return math.sqrt(groups / (groups - 1) * moves)


@dataclass(slots=True)
class Counts:
    """What has come out of one task so far."""

    done: int = 0
    failed: int = 0
    asked_for_box: int = 0
    parsed: int = 0
    scores: dict[str, Running] = field(default_factory=dict)

    def add(self, episodes: Sequence[Episode]) -> None:
        self.done += len(episodes)
        self.failed += sum(e.error is not None for e in episodes)
        self.asked_for_box += sum(e.box is not None for e in episodes)
        self.parsed += sum(e.box is not None and not isinstance(e.box, Unparsed) for e in episodes)

    def score(self, samples: Sequence[CoTSample], scores: Mapping[str, Mapping[str, Score]]) -> None:
        for sample in samples:
            for metric, score in scores.get(sample.id, {}).items():
                if metric in SHOWN and score.value is not None:
                    self.scores.setdefault(metric, Running()).add(score.value, sample.cluster or sample.id)

    def __str__(self) -> str:
        best = sorted(self.scores, key=SHOWN.index)[:2]
        parts = [f"{metric} {_percent(self.scores[metric])}" for metric in best]
        if self.asked_for_box:
            parts.append(f"boxes parsed {100 * self.parsed / self.asked_for_box:.1f} %")
        return " · ".join([*parts, f"{self.failed} failed"])


def _percent(found: Running) -> str:
    error = "" if found.se is None else f" ± {100 * found.se:.1f}"
    return f"{100 * found.mean:.1f}{error} %"


def duration(seconds: float) -> str:
    """``45 s``, ``12:30`` (minutes), ``3:05:00`` (hours); ``?`` when unknown."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _bytes(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def memory() -> str:
    """This process's memory in use, and the accelerator's highest so far if a model has one. "" where nobody can say."""
    parts = []
    try:
        with open("/proc/self/statm") as file:  # noqa: PTH123 - a kernel file, read at every tick
            import resource

            parts.append(_bytes(int(file.read().split()[1]) * resource.getpagesize()))
    except (OSError, ValueError, ImportError):
        pass  # not Linux
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.append(f"{_bytes(torch.cuda.max_memory_allocated())} on the device")
    return " + ".join(parts)


@dataclass(slots=True)
class Ticker:
    """Counts one task and, with ``out``, says how it goes: a plain line now and then, for logs and CI."""

    task: str
    total: int
    out: TextIO | None
    scorer: Scorer | None = None
    counts: Counts = field(default_factory=Counts)
    skipped: int = 0
    _began: float = field(default_factory=time.monotonic)
    _said: float | None = None
    _said_of: int = -1

    def add(self, samples: Sequence[Any], episodes: Sequence[Any]) -> None:
        """Finished results, and the items they (and maybe others) are of."""
        self.counts.add(episodes)
        if self.out is not None and self.scorer is not None:
            self.counts.score(samples, self.scorer(samples, {e.sample_id: e for e in episodes}))
        self.tick()

    def skip(self, n: int) -> None:
        """Samples an earlier run finished: done, but not at this run's speed."""
        self.skipped += n
        self.counts.done += n

    def tick(self) -> None:
        wait = FIRST_LINE_S if self._said is None else LINE_EVERY_S
        if self.out is not None and time.monotonic() - (self._said or self._began) >= wait:
            self.say()

    def pace(self) -> str:
        """Speed, time left and memory."""
        rate = (self.counts.done - self.skipped) / max(time.monotonic() - self._began, 1e-9)
        left = (self.total - self.counts.done) / rate if rate else float("inf")
        parts = [f"{rate:.1f}/s" if rate < 1000 else f"{rate:,.0f}/s", f"{duration(left)} left", memory()]
        return " · ".join(part for part in parts if part)

    def last(self) -> None:
        """The line at the end, unless the one before has said it."""
        if self._said_of != self.counts.done:
            self.say()

    def say(self) -> None:
        self._said, self._said_of = time.monotonic(), self.counts.done
        print(
            f"{self.task}: {self.counts.done}/{self.total} · {self.counts} · {self.pace()}", file=self.out, flush=True
        )


@contextmanager
def progress(
    task: str, total: int, *, scorer: Scorer | None = None, quiet: bool = False, out: TextIO | None = None
) -> Iterator[Ticker]:
    """A ticker for ``total`` samples of ``task``; on a terminal it draws a bar instead of lines."""
    out = out or sys.stderr
    if quiet or total == 0:
        yield Ticker(task, total, None)
        return
    console = _terminal(out)
    if console is not None:
        with _bar(task, total, scorer, console) as ticker:
            yield ticker
    else:
        ticker = Ticker(task, total, out, scorer)
        yield ticker
        ticker.last()


def _terminal(out: TextIO) -> Console | None:
    """A console that can redraw; None for a file, a pipe and a dumb terminal."""
    if not out.isatty():
        return None
    from rich.console import Console

    console = Console(file=out)
    return None if console.is_dumb_terminal else console


@contextmanager
def _bar(task: str, total: int, scorer: Scorer | None, console: Console) -> Iterator[Ticker]:
    from rich.console import RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    class Bar(Ticker):
        def tick(self) -> None:
            shown.update(number, completed=self.counts.done)

    class Shown(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            for shown_task in self.tasks:
                shown_task.fields["pace"] = ticker.pace()
            yield self.make_tasks_table(self.tasks)
            yield Text(f"  {ticker.counts}", style="dim")

    ticker = Bar(task, total, console.file, scorer)  # type: ignore[arg-type]  # rich's IO is a TextIO
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    shown = Shown(*columns, console=console, refresh_per_second=4)
    number = shown.add_task(task, total=total, pace="")
    with shown, _logs_above():
        yield ticker


@contextmanager
def _logs_above() -> Iterator[None]:
    """While a bar is drawn, log lines go through rich, which prints them above it."""
    handlers = [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]
    before: list[Any] = [handler.setStream(sys.stderr) for handler in handlers]
    try:
        yield
    finally:
        for handler, stream in zip(handlers, before, strict=True):
            if stream is not None:
                handler.setStream(stream)
