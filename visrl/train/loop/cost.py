"""What a phase of a loop cost: model tokens and processor time, so that methods can be compared on equal compute.

``drawn``    tokens that policy and critics computed for chains and verdicts: forward passes alone, what a cache holds left out
``trained``  tokens of the forward passes that were differentiated, what branches share counted once
``scored``   of preferences: those of the one pass that gives the reference's log-probabilities, before the first step
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from visrl.core.json_files import read_as

HINT = "it was written by this phase: delete the phase's folder to run it again"
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_ROWS: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(list[dict[str, Any]])


def cpu_seconds() -> float:
    """Processor time of this process and of those it waited for, in seconds."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def tokens_of(folder: Path) -> dict[str, int]:
    """Model tokens of the phase that ended in ``folder``, by what they were for; {} where it counts none (SFT)."""
    if (folder / "manifest.json").is_file():
        counted = read_as(folder / "manifest.json", _OBJECT, HINT).get("tokens", {})
        whole = counted.get("all")
        return {} if whole is None else {"drawn": whole["computed"]}
    found: dict[str, int] = {}
    for history in sorted(folder.glob("**/history.json")):
        for name, count in _of_history(read_as(history, _ROWS, HINT)).items():
            found[name] = found.get(name, 0) + count
    return found


def _of_history(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Sums over the steps: a logged value is the mean of the steps since the row before."""
    logged = [row for row in rows if "tokens/trained" in row]
    if not logged:
        return {}
    before = [0, *(row["step"] for row in logged)]
    steps = [row["step"] - start for row, start in zip(logged, before, strict=False)]

    def total(name: str) -> float:
        return sum(row.get(name, 0.0) * n for row, n in zip(logged, steps, strict=True))

    trained = total("tokens/trained")
    drawn = total("tokens/generated") + total("tokens/critic")
    once = {"drawn": round(drawn)} if drawn else {"scored": round(trained / max(logged[-1]["epoch"], 1.0))}
    return {"trained": round(trained), **once}
