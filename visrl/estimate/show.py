"""An estimate as a table, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from visrl.estimate.launch import commands, slurm
from visrl.estimate.memory import RESERVE, SHARDED
from visrl.estimate.phase import EstimateRequest, Phase

GIGA = 1e9
FULL = 0.9  # of a GPU's memory, beyond which an estimate says that it will not fit


def print_estimate(
    phases: Sequence[Phase],
    words: Sequence[str],
    request: EstimateRequest,
    *,
    trains: bool,
    json_: bool,
    starts_itself: bool = False,
) -> None:
    """To stdout: phases, what is assumed, whether it fits, and how to start it. starts_itself: ``words`` are one process."""
    sharding = request.sharding if trains else None
    hours = sum(phase.seconds for phase in phases) / 3600
    script = slurm(words, request.gpus, sharding, hours, words[0], starts_itself=starts_itself)
    lines = commands(words, 1 if starts_itself else request.gpus, sharding)
    if json_:
        from visrl.core.records import dump_json

        estimate = {"phases": [_json(phase) for phase in phases], "gpu": asdict(request.gpu), "gpus": request.gpus}
        sys.stdout.write(dump_json({**estimate, "commands": lines, "slurm": script}))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(phases, request))
    for line in _remarks(phases, request):
        console.print(line, markup=False)
    print("\nstart it:", *(f"  {line}" for line in lines), sep="\n")
    print("\nSLURM:", *(f"  {line}" for line in script.splitlines()), sep="\n")


def _json(phase: Phase) -> dict[str, Any]:
    return {**asdict(phase), "tokens": phase.work.tokens, "memory_total": phase.memory.total + RESERVE}


def _table(phases: Sequence[Phase], request: EstimateRequest) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("phase", "samples", "prefill", "decode", "trained tokens", "GB a GPU", "hours", "disk GB"):
        table.add_column(title, justify="left" if title == "phase" else "right")
    for p in phases:
        work, memory = p.work, (p.memory.total + RESERVE) / GIGA
        counts = (f"{n / 1e6:,.2f} M" for n in (work.prefill, work.decode, work.trained))
        table.add_row(
            p.name, f"{p.samples:,}", *counts, f"{memory:.1f}", f"{p.seconds / 3600:.2f}", f"{p.disk / GIGA:.2f}"
        )
    total = sum(p.work.tokens for p in phases) / 1e6
    hours, disk = sum(p.seconds for p in phases) / 3600, sum(p.disk for p in phases) / GIGA
    table.add_row("all", "", f"{total:,.2f} M", "tokens", "", "", f"{hours:.2f}", f"{disk:.2f}")
    return table


def _remarks(phases: Sequence[Phase], request: EstimateRequest) -> list[str]:
    gpu = request.gpu
    lines = [
        f"{request.gpus} x {gpu.name}: {gpu.flops / 1e12:.0f} TFLOP/s and {gpu.bytes / 1e9:.0f} GB/s sustained are assumed, not"
        " measured (--tflops, --bandwidth; docs/estimating.md)"
    ]
    for phase in phases:
        parts = {k: v / GIGA for k, v in asdict(phase.memory).items() if v / GIGA >= 0.05}
        lines.append(
            f"{phase.name}: " + ", ".join(f"{k} {v:.1f}" for k, v in parts.items()) + " GB" if parts else phase.name
        )
        lines += [f"  {note}" for note in dict.fromkeys(phase.notes)]
        if phase.memory.total + RESERVE > FULL * gpu.gb * GIGA:
            ways = ", ".join(way for way in SHARDED if way not in ("ddp", request.sharding))
            lines.append(f"  does not fit {gpu.gb:.0f} GB: smaller batches, checkpointing, lora, or --sharding {ways}")
    return lines
