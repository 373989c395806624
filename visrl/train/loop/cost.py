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
    """Model tokens of the phase that ended in ``folder``, by what they were for; {} where they are not known: SFT counts none,
    nor do some policies.
    """
    if (folder / "manifest.json").is_file():
        manifest = read_as(folder / "manifest.json", _OBJECT, HINT)
        whole = manifest.get("tokens", {}).get("all")
        fitting = manifest.get("request", {}).get("critic", {}).get("calibration", {}).get("tokens", 0)
        return {} if whole is None or fitting is None else {"drawn": whole["computed"] + fitting}
    found: dict[str, int] = {}
    for history in sorted(folder.glob("**/history.json")):
        counted = _of_history(read_as(history, _ROWS, HINT))
        if counted is None:
            return {}
        for name, count in counted.items():
            found[name] = found.get(name, 0) + count
    return found


def _of_history(rows: list[dict[str, Any]]) -> dict[str, int] | None:
    """Sums over the steps: a logged value is the mean, per step, of the steps since the row before. None where one is null."""
    logged = [row for row in rows if "tokens/trained" in row]
    if not logged:
        return None
    before = [0, *(row["step"] for row in logged)]
    steps = [row["step"] - start for row, start in zip(logged, before, strict=False)]

    def total(*names: str) -> int | None:
        values = [row[name] for row in logged for name in names]
        if None in values:
            return None
        return round(sum(row[name] * n for row, n in zip(logged, steps, strict=True) for name in names))

    trained = total("tokens/trained")
    if "tokens/generated" in logged[0]:
        other = {"drawn": total("tokens/generated", "tokens/critic")}
    else:
        other = {"scored": None if trained is None else round(trained / max(logged[-1]["epoch"], 1.0))}
    found = {"trained": trained, **other}
    return None if None in found.values() else {name: count for name, count in found.items() if count is not None}
