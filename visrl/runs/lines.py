"""The lines of a run folder as objects: episodes to JSON and back, and any file of lines, read one by one.

Every field is checked as it is read: a line of another shape is an error that names file, line and field. A line ends with the
CRC-32 of the object without it, so that a changed number is noticed, too; lines of an older visrl have none, and are read.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import msgspec

from visrl.core.boxes import Box
from visrl.core.json_files import decode, decode_as, reason
from visrl.core.types import Ended, Episode, Look, Step, Unparsed
from visrl.errors import UsageError

log = logging.getLogger(__name__)
Line = TypeVar("Line")


_CRC = b', "crc32": '
_LONGEST_CRC = len(_CRC) + len("4294967295}\n")


def sealed(text: str) -> bytes:
    """A line of a JSON object (ASCII, at least one key) with its checksum."""
    data = text.encode("ascii")
    return b"%b%b%d}\n" % (data[:-1], _CRC, zlib.crc32(data))


def unsealed(line: bytes) -> bytes:
    """The object of a line without its checksum, if it has one. Raises ValueError where that says something else."""
    at = line.rfind(_CRC, -_LONGEST_CRC)
    if at < 0:
        return line
    data = line[:at] + b"}"
    if line[at + len(_CRC) :].rstrip(b"\n") != b"%d}" % zlib.crc32(data):
        raise ValueError("the line is not what was written: its checksum differs")
    return data


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
            value[name] = _step_to_json(step)
    if episode.error is not None:
        value["error"] = episode.error
    return value | _several(episode)


def _step_to_json(step: Step) -> dict[str, Any]:
    return {k: v for k in Step.__slots__ if (v := getattr(step, k)) is not None}


def _several(episode: Episode) -> dict[str, Any]:
    """What an episode of several looks has besides; of one look nothing: its lines are as they always were."""
    value: dict[str, Any] = {"looks": [_look_to_json(look) for look in episode.looks]} if episode.looks else {}
    if episode.ended is not None:
        value["ended"] = episode.ended
    if episode.size is not None:
        value["size"] = list(episode.size)
    return value


def _look_to_json(look: Look) -> dict[str, Any]:
    value: dict[str, Any] = {} if look.step is None else {"step": _step_to_json(look.step)}
    if look.box is not None:
        value["box"] = list(look.box.xyxy)
    if look.looked_at is not None:
        value["looked_at"] = list(look.looked_at)
    return value | ({"fault": look.fault} if look.fault else {})


class _StepLine(msgspec.Struct, forbid_unknown_fields=True):
    prompt: str
    output: str
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    seen_sizes: list[tuple[int, int]] | None = None


_Number = (
    Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)] | float
)  # integers stay integers: the bytes of a run are kept


class _LookLine(msgspec.Struct, forbid_unknown_fields=True):
    step: _StepLine | None = None
    box: tuple[_Number, _Number, _Number, _Number] | None = None
    looked_at: tuple[int, int, int, int] | None = None
    fault: str = ""


class _EpisodeLine(msgspec.Struct):
    sample_id: str
    task: str
    box: tuple[_Number, _Number, _Number, _Number] | msgspec.UnsetType = msgspec.UNSET
    unparsed: str | msgspec.UnsetType = msgspec.UNSET
    looked_at: tuple[int, int, int, int] | None = None
    box_step: _StepLine | None = None
    answer_step: _StepLine | None = None
    error: str | None = None
    looks: list[_LookLine] = []
    ended: Ended | None = None
    size: tuple[int, int] | None = None


_EPISODE = msgspec.json.Decoder(_EpisodeLine)


def episode_from_line(line: bytes) -> Episode:
    """The episode of a line of episodes.jsonl. Raises ValueError on another shape, naming the field."""
    return _episode(_checked(line))


def _checked(line: bytes) -> _EpisodeLine:
    """A line whose every field is of its type and finite: an episode can be made of it."""
    return decode_as(line, _EPISODE)


def episode_from_json(value: Any) -> Episode:
    """The inverse of :func:`episode_to_json`. Raises ValueError on another shape, naming the field."""
    return _episode(msgspec.convert(value, _EpisodeLine))


def _episode(line: _EpisodeLine) -> Episode:
    box: Box | Unparsed | None = None
    if line.box is not msgspec.UNSET:
        box = Box(*line.box)
    elif line.unparsed is not msgspec.UNSET:
        box = Unparsed(line.unparsed)
    looked, error = line.looked_at, line.error
    steps = _step(line.box_step), _step(line.answer_step)
    looks = tuple(map(_look, line.looks))
    return Episode(line.sample_id, line.task, steps[0], box, looked, steps[1], error, looks, line.ended, line.size)


def _look(line: _LookLine) -> Look:
    return Look(_step(line.step), None if line.box is None else Box(*line.box), line.looked_at, line.fault)


def _step(line: _StepLine | None) -> Step | None:
    if line is None:
        return None
    sizes = None if line.seen_sizes is None else tuple(line.seen_sizes)
    return Step(line.prompt, line.output, line.prompt_tokens, line.output_tokens, line.finish_reason, sizes)


def read_episodes(path: Path) -> Iterator[Episode]:
    """Episodes in file order; see :func:`read_lines`."""
    return (episode for _, episode in _placed(path, episode_from_line))


def read_lines(path: Path, make: Callable[[Any], Line]) -> Iterator[Line]:
    """What ``make`` makes of each JSON line, in order. A torn last line (a kill in mid-write) is dropped with a warning.

    Raises UsageError naming the line for anything else that is damaged: nothing is skipped in silence.
    """
    return (made for _, made in read_placed(path, make))


def read_placed(path: Path, make: Callable[[Any], Line]) -> Iterator[tuple[int, Line]]:
    """The same, each after the number of its line's first byte."""
    return _placed(path, lambda line: make(decode(line)))


def _placed(path: Path, made_of: Callable[[bytes], Line]) -> Iterator[tuple[int, Line]]:
    if not path.exists():
        return
    place = 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                log.warning("%s:%d: the last line is torn and dropped; its sample runs again", path, number)
                return
            try:
                made = made_of(unsealed(line))
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
        return episode_from_line(self._file.readline())

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
        for place, line in _placed(path, _checked):
            if line.task not in found:
                found[line.task] = Recorded(files.enter_context(path.open("rb")))
            found[line.task].places[line.sample_id] = place
        yield found
