"""Several processes of one run, forked: torch and what the test has made are there already."""

import multiprocessing
import os
import socket

import torch.distributed  # noqa: F401 - once, for all children

from visrl.runs.distributed import init

FORK = multiprocessing.get_context("fork")


def _one(function, environment):
    os.environ.update(environment)
    init.cache_clear()
    function()


def start(world, function):
    """``world`` processes that run ``function`` as ranks of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]
    processes = [FORK.Process(target=_one, args=(function, rank), daemon=True) for rank in ranks]
    for process in processes:
        process.start()
    return processes


def together(world, function):
    """Run ``function`` on ``world`` processes to the end; returns their exit codes."""
    processes = start(world, function)
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]


def files(folder):
    """name -> bytes of what is compared; of append-only files the lines, in order, since processes finish in any order."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "run.json":
            text = path.read_bytes()
            lines = path.name in ("episodes.jsonl", "chains.jsonl")
            found[str(path.relative_to(folder))] = sorted(text.splitlines()) if lines else text
    return found
