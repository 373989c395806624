"""One process at a time in a folder of training: the second command is refused at once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from visrl.errors import UsageError
from visrl.runs.distributed import rank


class Busy(UsageError):
    """Another process is at work in this folder."""


LOCK = ".lock"
_HELD: set[TextIO] = set()


def _let_go() -> None:
    """A forked worker that outlives a killed command for some seconds must not hold its lock meanwhile."""
    for file in _HELD:
        file.close()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def exclusive(output: Path, doing: str = "running this loop") -> Iterator[None]:
    """Hold ``output``, made if it is not there, and taken away again if nothing came into it; of several processes of one run
    the first holds it for all. Raises Busy.
    """
    if rank() != 0:
        yield
        return
    made = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"{output}: another process is {doing}", "wait for it, or name another output") from error
        _HELD.add(file)
        try:
            yield
        finally:
            _HELD.discard(file)
            if made and output.is_dir() and [path.name for path in output.iterdir()] == [LOCK]:
                (output / LOCK).unlink()
                output.rmdir()
