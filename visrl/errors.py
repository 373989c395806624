"""What a user can mend: printed as ``error: …`` / ``hint: …`` and exit code 2, never as a traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_GATE_FAILED = 1
EXIT_USAGE = 2
EXIT_INCOMPLETE = 3
FEW = 12
"""So many names still fit into a hint."""


class UsageError(Exception):
    """Wrong use or bad input. ``message`` names the file and line or the sample; ``hint`` says what to do next."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"error: {self.message}\n\nhint: {self.hint}" if self.hint else f"error: {self.message}"


def refused(error: OSError, place: object = None, hint: str = "") -> UsageError:
    """What the system would not do to a file, as an error: a full disk, no permission, a folder where a file should be."""
    where = place if place is not None else error.filename
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = hint or "free disk space and run the same command again; what is finished is kept"
    return UsageError(f"{where}: {why}" if where is not None else why, hint or "check the path and its permissions")


class Incomplete(UsageError):
    """A run that did what it could, and it is not enough to go on: exit code 3, with the reason."""


class Interrupted(Exception):
    """Ctrl-C, after what was finished has been saved; the message says what and where. Not a KeyboardInterrupt: command-line
    libraries turn those into exit codes of their own.
    """


class PictureError(Exception):
    """A picture that cannot be opened or decoded: its sample is recorded as failed with this reason; the run goes on."""


def printable(text: str, limit: int = 300) -> str:
    """Text of unknown origin for a terminal or a log: one line, no control or bidi characters, cut at ``limit``."""
    line = "".join(c if c.isprintable() else " " for c in text[: limit + 1])
    return line if len(text) <= limit else line[:limit] + "…"


def nearest(name: str, known: Iterable[str], listed_by: str = "visrl-eval ls") -> str:
    """A hint naming the closest of ``known``, or all where they are few, or the command that lists them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    return f"one of {', '.join(names)}" if len(names) <= FEW else f"`{listed_by}` lists them all"
