"""How a command ends when it does not come to its own end: a signal, a refused file, a reader that went away.

SIGINT, SIGTERM and SIGHUP once: what is being made is dropped, what is finished is kept, exit code 3. Twice: at once, same code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType

from visrl.errors import EXIT_INCOMPLETE
from visrl.runs.distributed import rank

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
AT_ONCE = "stopped at once; finished work is kept, the same command goes on\n"


class _Stop:
    """The handler: the first signal is a KeyboardInterrupt, wherever the program is; the next one ends the process."""

    def __init__(self) -> None:
        self.asked = False
        self.process = os.getpid()

    def __call__(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self.process:  # a forked worker: it is its parent's to say
            os._exit(EXIT_INCOMPLETE)
        if self.asked:
            os.write(2, AT_ONCE.encode())  # print() may be what is interrupted
            os._exit(EXIT_INCOMPLETE)
        self.asked = True
        raise KeyboardInterrupt


@contextmanager
def command_line() -> Iterator[None]:
    """Within: stdout takes any text, and signals stop the command as this module says. One that is ignored stays so, as
    ``nohup`` wants of SIGHUP.
    """
    _any_text_on_stdout()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stop = _Stop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _any_text_on_stdout() -> None:
    """Print what a terminal's encoding lacks as its escape: a name may hold half a surrogate pair, a locale only ASCII."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def reader_gone() -> int:
    """Who read our stdout has closed it (``| head``). Nothing more can be said there, and the interpreter must not try."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return EXIT_INCOMPLETE


def closed(end: SystemExit) -> bool:
    """Whether rich or click ended the program because stdout is closed: with exit code 1, which here says that a gate failed."""
    return isinstance(end.__context__, BrokenPipeError)


def stopped(saved: str, command: str) -> int:
    """Say what is saved and how to go on; the first process of several speaks."""
    if rank() == 0:
        print(f"\nstopped: {saved}; the same command resumes from there:\n  {command}", file=sys.stderr, flush=True)
    return EXIT_INCOMPLETE
