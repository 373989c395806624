"""One run on several processes, as ``torchrun``, ``accelerate launch`` or a SLURM script start them.

Every process reads the same documents and takes every W-th batch of those that are missing; batches and draws depend on no
process, so that who does what changes no result. Each writes a file of its own, which process 0 gathers (store.py). What
is finished survives the death of any of them. The processes meet over gloo, with and without GPUs, and send each other nothing
but numbers to add. torch is imported only where there are several.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TypeVar

from visrl.errors import EXIT_INCOMPLETE, EXIT_USAGE, Incomplete, UsageError

ASKED = "VISRL_PROCESSES"
"""Environment variable: how many processes a script meant to start."""
BARRIER_TIMEOUT = timedelta(days=1)
"""How long one process waits for another: the slowest share of a long run, as in lmms-eval."""
Item = TypeVar("Item")


class LostProcess(UsageError):
    """Another process of this run ended early; what it had to say is on stderr."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Which of how many this process is. Process 0 writes what all of them found, and alone speaks."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Iterable[Item]) -> Iterator[Item]:
        """This process's part of what all of them see in the same order."""
        return islice(items, self.rank, None, self.world_size)

    def wait(self) -> None:
        """Until every process is here. Raises LostProcess where one is gone."""
        self.total(0)

    def total(self, number: int) -> int:
        """The sum of every process's ``number``; waits for all of them. Raises LostProcess where one is gone."""
        return number if self.world_size == 1 else _sum(number)

    def __str__(self) -> str:
        return f"process {self.rank + 1} of {self.world_size}"


ALONE = Processes()


@functools.cache
def init() -> Processes:
    """Meet the other processes of this run, once; process 0 says on stderr how many really work. Raises UsageError as
    :func:`check_launch` does.
    """
    check_launch()
    if "RANK" not in os.environ and any(os.environ.get(name, "1") != "1" for name in _MPI):
        raise UsageError("processes started by mpirun cannot be used", _HOW)
    here = Processes(rank(), world_size())
    if here.world_size > 1:
        _meet()
        here = Processes(here.rank, here.total(1))
        if here.is_main:
            print(f"{here.world_size} processes (gloo)", file=sys.stderr)
    return here


def shutdown(code: int) -> int:
    """The end of a command that came to its end; one of several processes does not return.

    It skips the interpreter's own end, where threads of gloo that are still there abort the process now and then ("terminate
    called without an active exception"), after which a launcher calls the whole run failed. Everything is on disk by then.
    """
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def rank() -> int:
    """Which process this is, as the launcher says; 0 where there is only one. Meets nobody."""
    return int(os.environ.get("RANK", "0"))


def say(error: UsageError) -> int:
    """Print an error and return its exit code. Processes mostly fail alike, and the first says it: the others wait for a launcher
    to end them, and speak where none does, because then the error is theirs alone."""
    if rank() == 0:
        print(error, file=sys.stderr, flush=True)
    elif not isinstance(error, LostProcess):
        time.sleep(5)
        print(f"process {rank() + 1}: {error}", file=sys.stderr, flush=True)
    return EXIT_INCOMPLETE if isinstance(error, (LostProcess, Incomplete)) else EXIT_USAGE


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_launch() -> None:
    """Raise UsageError where other than so many processes were started as a launcher was asked for, which ``accelerate launch
    --cpu --num_processes 2`` does without a word, or as ``VISRL_PROCESSES`` says.
    """
    asked = os.environ.get(ASKED, "")
    if asked and asked != str(world_size()):
        raise UsageError(f"{ASKED}={asked}, but the launcher started {world_size()}", _HOW)
    # accelerate names a meeting point where several processes were asked for, and a precision to every process it starts
    known = os.environ.keys()
    if {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= known and not {"RANK", *_MPI} & known:
        raise UsageError("accelerate was asked for several processes and started one", _HOW)


_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_HOW = (
    "torchrun --nproc_per_node N --no-python COMMAND, or accelerate launch --multi_gpu --num_processes N --no_python COMMAND,"
    " without GPUs after ACCELERATE_USE_CPU=true: accelerate's --cpu starts one process (docs/scaling.md)"
)


def _meet() -> None:
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=BARRIER_TIMEOUT)


def _sum(number: int) -> int:
    import torch
    import torch.distributed as dist

    found = torch.tensor([number], dtype=torch.int64)
    try:
        dist.all_reduce(found)
    except RuntimeError as error:  # what gloo raises when a peer's connection closes
        raise LostProcess(
            "another process ended early; what it said stands near this",
            "what is finished is kept: the same command goes on",
        ) from error
    return int(found.item())
