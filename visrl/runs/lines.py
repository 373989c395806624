"""The lines of a run folder as objects: episodes to JSON and back, and any file of lines, read one by one.

Every field is checked as it is read: a line of another shape is an error that names file, line and field.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from visrl.core.boxes import Box, Size
from visrl.core.json_files import decode, reason
from visrl.core.types import Episode, Step, Unparsed
from visrl.errors import UsageError

log = logging.getLogger(__name__)
Line = TypeVar("Line")
_STEP = frozenset(Step.__slots__)
_COUNT = (int, type(None))  # a bool is none of them


def episode_to_json(episode: Episode) -> dict[str, Any]:
    """An episode as a JSON object; None fields are left out."""
    box = episode.box
    value: dict[str, Any] = {"task": episode.task, "sample_id": episode.sample_id}
    if isinstance(box, Box):
        value["box"] = list(box.xyxy)
    elif isinstance(box, Unparsed):
        value["unparsed"] = box.reason
    if episode.looked_at is not None:
        value["looked_at"] = list(episode.looked_at)
    for name in ("box_step", "answer_step"):
        step: Step | None = getattr(episode, name)
        if step is not None:
            value[name] = {k: v for k in Step.__slots__ if (v := getattr(step, k)) is not None}
    if episode.error is not None:
        value["error"] = episode.error
    return value


def episode_from_json(value: Any) -> Episode:
    """The inverse of :func:`episode_to_json`. Raises KeyError, TypeError or ValueError on another shape, naming the field."""
    if not isinstance(value, dict):
        raise TypeError("not a JSON object")
    box: Box | Unparsed | None = None
    if "box" in value:
        box = Box(*_four(value, "box", _is_number))
    elif "unparsed" in value:
        box = Unparsed(_text(value, "unparsed"))
    looked = value.get("looked_at")
    return Episode(
        sample_id=_text(value, "sample_id"),
        task=_text(value, "task"),
        box_step=_step(value, "box_step"),
        box=box,
        looked_at=None if looked is None else _four(value, "looked_at", _is_integer),
        answer_step=_step(value, "answer_step"),
        error=None if value.get("error") is None else _text(value, "error"),
    )


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value[name]
    if not isinstance(found, str):
        raise TypeError(f"{name} is not a text")
    return found


def _four(value: Mapping[str, Any], name: str, fits: Callable[[Any], bool]) -> tuple[Any, Any, Any, Any]:
    found = value[name]
    if not isinstance(found, list) or len(found) != 4 or not all(map(fits, found)):
        raise TypeError(f"{name} is not four {'integers' if fits is _is_integer else 'numbers'}")
    return found[0], found[1], found[2], found[3]


def _is_integer(found: Any) -> bool:
    return type(found) is int  # a bool is none here


def _is_number(found: Any) -> bool:
    return type(found) in (int, float)


def _step(value: Mapping[str, Any], name: str) -> Step | None:
    found = value.get(name)
    if found is None and name not in value:
        return None
    if not isinstance(found, dict) or not found.keys() <= _STEP:
        raise TypeError(f"{name} is not a step")
    read, generated = found.get("prompt_tokens"), found.get("output_tokens")
    if type(read) not in _COUNT or type(generated) not in _COUNT:
        raise TypeError(f"{name}: a number of tokens is not an integer")
    ended = None if found.get("finish_reason") is None else _text(found, "finish_reason")
    return Step(_text(found, "prompt"), _text(found, "output"), read, generated, ended, _sizes(found))


def _sizes(step: Mapping[str, Any]) -> tuple[Size, ...] | None:
    found = step.get("seen_sizes")
    if found is None:
        return None
    if not isinstance(found, list) or not all(
        isinstance(size, list) and len(size) == 2 and all(map(_is_integer, size)) for size in found
    ):
        raise TypeError("seen_sizes is not a list of widths and heights")
    return tuple((width, height) for width, height in found)


def read_episodes(path: Path) -> Iterator[Episode]:
    """Episodes in file order; see :func:`read_lines`."""
    return read_lines(path, episode_from_json)


def read_lines(path: Path, make: Callable[[Any], Line]) -> Iterator[Line]:
    """What ``make`` makes of each JSON line, in order. A torn last line (a kill in mid-write) is dropped with a warning.

    Raises UsageError naming the line for anything else that is damaged: nothing is skipped in silence.
    """
    return (made for _, made in read_placed(path, make))


def read_placed(path: Path, make: Callable[[Any], Line]) -> Iterator[tuple[int, Line]]:
    """The same, each after the number of its line's first byte."""
    if not path.exists():
        return
    place = 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                log.warning("%s:%d: the last line is torn and dropped; its sample runs again", path, number)
                return
            try:
                made = make(decode(line))
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{path}:{number}: damaged: {reason(error)}",
                    "delete that line to run its sample again, or choose a new --output",
                ) from error
            yield place, made
            place += len(line)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {reason(error)}", "choose a new --output") from error


class Recorded(Mapping[str, Episode]):
    """The last episode of each of a task's samples, read from the file when it is asked for: holds ids and places."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.places: dict[str, int] = {}

    def __getitem__(self, sample_id: str) -> Episode:
        self._file.seek(self.places[sample_id])
        return episode_from_json(decode(self._file.readline()))

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


@contextmanager
def recorded(path: Path) -> Iterator[Mapping[str, Recorded]]:
    """task -> its episodes, while the file is open. Reads every line once; raises UsageError as :func:`read_lines`."""
    with ExitStack() as files:
        found: dict[str, Recorded] = {}
        for place, episode in read_placed(path, episode_from_json):
            if episode.task not in found:
                found[episode.task] = Recorded(files.enter_context(path.open("rb")))
            found[episode.task].places[episode.sample_id] = place
        yield found
