"""Checkpoints of a phase: which one training goes on from, and what transformers leaves out of them.

``checkpoint-N/files.json``        name -> bytes and CRC-32 of every file: what was cut or changed since is noticed before use
``checkpoint-N/window-RANK.json``  losses and metrics since the last line of the history, and the tokens seen: a resumed phase
logs what an undisturbed one does
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from transformers.trainer_utils import sort_checkpoints

from visrl.core.json_files import read_as
from visrl.core.records import dump_json, write_atomically
from visrl.errors import UsageError

FILES = "files.json"
_AGAIN = "delete that folder; the same command then goes on from the checkpoint before it, or starts the phase anew"
_NEEDED = ("trainer_state.json", "scheduler.pt")
_PIECE = 1 << 20


class Stored(BaseModel):
    """What a file of a checkpoint was when it was written."""

    bytes: int
    crc32: int


class Window(BaseModel):
    """What has been summed up since the last line of the history, by one process.

    loss: the sum of the steps' losses. total: the same of all logged steps. logged: the step of the last line. metrics: name ->
    values since then. tokens: seen so far.
    """

    loss: float
    total: float
    logged: int
    metrics: dict[str, list[float]]
    tokens: float


def seal(folder: Path) -> None:
    """Write down what the files of a checkpoint are, before it is renamed to its place."""
    found = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FILES
    }
    write_atomically(folder / FILES, dump_json(found))


def _crc32(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            found = zlib.crc32(piece, found)
    return found


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was written; None where there is no checkpoint.

    A damaged one is named on stderr, and the one before it is used. Raises UsageError where all are damaged.
    """
    said: list[str] = []
    for place in reversed(_checkpoints(folder)):
        damage = next(_damages(place), None)
        if damage is None:
            if said:
                print(f"{'; '.join(said)}; training goes on from {place.name}", file=sys.stderr)
            return place
        said.append(f"{place}: damaged: {damage}")
    if said:
        raise UsageError(said[0], _AGAIN)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return [Path(place) for place in sort_checkpoints(str(folder))] if folder.is_dir() else []


def _damages(place: Path) -> Iterator[str]:
    """What is wrong with a checkpoint, the first thing first. One that an older visrl wrote has no list of its files."""
    if (place / FILES).is_file():
        try:
            listed = read_as(place / FILES, TypeAdapter(dict[str, Stored]), _AGAIN)
        except UsageError as error:
            yield error.message
            return
        for name, was in listed.items():
            if not (place / name).is_file():
                yield f"{name} is missing"
            elif (place / name).stat().st_size != was.bytes:
                yield f"{name} has {(place / name).stat().st_size} bytes, not {was.bytes}"
            elif _crc32(place / name) != was.crc32:
                yield f"{name} is not what was written"
    for name in _NEEDED:
        if not (place / name).is_file():
            yield f"{name} is missing"
    if not any(place.glob("optimizer*")) and not any(place.glob("global_step*")):  # DeepSpeed's own
        yield "optimizer.pt is missing"


def write_window(place: Path, rank: int, window: Window) -> None:
    """Keep a process's window beside its random state."""
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(_window(place, rank), dump_json(window.model_dump()))


def read_window(place: Path, rank: int) -> Window | None:
    """A process's window; None in a checkpoint of an older visrl, or of fewer processes."""
    path = _window(place, rank)
    return read_as(path, TypeAdapter(Window), _AGAIN) if path.is_file() else None


def _window(place: Path, rank: int) -> Path:
    return place / f"window-{rank}.json"


def window_of(trainer: Any) -> Window:
    """Of a TRL trainer between two steps."""
    metrics = {name: list(map(float, values)) for name, values in trainer._metrics["train"].items()}
    return Window(
        loss=float(trainer._tr_loss),
        total=float(trainer._total_loss_scalar),
        logged=trainer._globalstep_last_logged,
        metrics=metrics,
        tokens=float(trainer._total_train_tokens),
    )


def restore_window(trainer: Any, window: Window) -> None:
    """Put back what :func:`window_of` found, before the first step."""
    trainer._tr_loss += window.loss
    trainer._total_loss_scalar, trainer._globalstep_last_logged = window.total, window.logged
    for name, values in window.metrics.items():
        trainer._metrics["train"][name] = list(values)
    trainer._total_train_tokens = window.tokens
