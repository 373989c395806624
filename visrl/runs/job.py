"""The one loop that finishes what is missing, batch by batch, into a run folder. Evaluation and pair generation are two uses.

Batches are whole and keep their boundaries, so that a resumed run asks the model the same batches; several processes each
take every W-th of those with something left to do. Failed items are results too: they are written down, counted, and tried
again by the next run. A job whose first ``ABORT_AFTER_FAILURES`` items all fail gives up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from visrl.errors import UsageError, printable
from visrl.runs.progress import Ticker
from visrl.runs.store import Run

ABORT_AFTER_FAILURES = 50
"""So many failures with nothing else before them: a server that is down should not cost a night."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def batches(items: Iterable[Item], n: int) -> Iterator[list[Item]]:
    """Lists of ``n`` items in order, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, n)):
        yield batch


@dataclass(frozen=True, slots=True)
class Batch(Generic[Item]):
    """number: its place among all batches. missing: the ids of its items that need a result."""

    number: int
    items: list[Item]
    missing: set[str]


def missing_batches(
    items: Iterable[Item], batch_size: int, id_of: Callable[[Item], str], is_missing: Callable[[str], bool]
) -> Iterator[Batch[Item]]:
    """The batches with something left to do."""
    for number, batch in enumerate(batches(items, batch_size)):
        missing = {name for item in batch if is_missing(name := id_of(item))}
        if missing:
            yield Batch(number, batch, missing)


@dataclass(frozen=True, slots=True)
class Job(Generic[Item, Result]):
    """What the loop must know of its results. noun: of items, in the plural. error_of: why a result is a failure, or None."""

    run: Run
    noun: str
    serialize: Callable[[Result], Mapping[str, Any]]
    error_of: Callable[[Result], str | None]

    def finish(self, made: Iterable[tuple[Sequence[Item], Sequence[Result]]], wanted: int, ticker: Ticker) -> int:
        """Append results as they come, batch by batch; returns how many failed.

        made: items and the results for those that were missing. wanted: how many are missing in all.
        Raises UsageError where none of the first ``ABORT_AFTER_FAILURES`` succeeds, or the disk refuses; all before is kept.
        """
        failed = fresh = 0
        for items, results in made:
            self.run.append_lines(map(self.serialize, results))
            ticker.add(items, results)
            errors = [error for result in results if (error := self.error_of(result)) is not None]
            failed, fresh = failed + len(errors), fresh + len(results)
            if failed == fresh >= ABORT_AFTER_FAILURES and fresh < wanted:
                raise UsageError(
                    f"the first {failed} {self.noun} all failed: {printable(errors[-1])}",
                    f"finished {self.noun} are kept; the same command resumes",
                )
        self.run.sync()
        return failed
