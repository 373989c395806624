"""Reference log-probabilities: the policy as it was when its phase began, computed once, kept in memory and on disk.

The reference is never loaded from a path. Every phase asks the model in memory, before its first step, for the
log-probabilities of all completions (TRL would reload the weights on disk, that is, those from before the
phase before). A phase that is resumed reads them from ``reference.safetensors``, whose metadata name the data
and the weights they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl.errors import UsageError
from visrl.train.common.writing import writing
from visrl.train.dpo.losses import TermName

if TYPE_CHECKING:
    from torch import Tensor

FILE = "reference.safetensors"
Table = dict[TermName, "Tensor"]


def read_reference(folder: Path, data: str, weights: str | None) -> Table | None:
    """The stored table, or None where there is none for this data and, unless None, for these weights."""
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("data") != data or (weights is not None and about.get("weights") != weights):
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except SafetensorError as error:
        raise UsageError(
            f"{path} is damaged: {error}", "delete it and the checkpoints of the phase, then run again"
        ) from error


def write_reference(folder: Path, table: Table, data: str, weights: str) -> None:
    """Write beside and rename."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{FILE}.tmp"
    with writing(folder / FILE):
        save_file(
            {str(term): values for term, values in table.items()}, beside, metadata={"data": data, "weights": weights}
        )
        beside.replace(folder / FILE)


def shares(n: int, world: int, rank: int) -> list[int]:
    """Which of ``n`` rows a process computes: every process the same number, so that sharded models move in step."""
    per = -(-n // world)
    return [min(rank + world * i, n - 1) for i in range(per)]


def compute_reference(
    terms: Sequence[TermName],
    n: int,
    score: Callable[[list[int]], dict[TermName, Tensor]],
    accelerator: Any,
    *,
    batch_size: int,
    tick: Callable[[int], None],
) -> Table:
    """term -> [N, 2]. ``score`` maps row numbers to each term's [B, 2] log-probabilities of chosen and rejected, without
    gradient.
    """
    import torch

    mine = shares(n, accelerator.num_processes, accelerator.process_index)
    table: Table = {term: torch.zeros(n, 2) for term in terms}
    for start in range(0, len(mine), batch_size):
        rows = mine[start : start + batch_size]
        scores = score(rows)
        everyone = accelerator.gather(torch.tensor(rows, device=accelerator.device)).cpu()
        for term in terms:
            table[term][everyone] = accelerator.gather(scores[term].float()).cpu()
        tick(len(everyone))
    return table
