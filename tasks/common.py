"""Reading documents: gzip or plain, one row at a time, every complaint with file and line.

A task's documents are named by :class:`Source`: its files in a data folder, how their rows are read and adapted, and the
hub dataset that holds the same rows. After the row there is one code path for both.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from visrl.core.json_files import UNREADABLE, decode_foreign
from visrl.core.types import CoTSample, Picture
from visrl.errors import UsageError
from visrl.tasks.hub import Hub
from visrl.tasks.pictures import Library

Row = Mapping[str, Any]
Opened = tuple[str, Path]


@dataclass(frozen=True, slots=True)
class Document:
    """A row and where it stands, ``file:line``. ``picture``: its encoded bytes, for data that carries pictures in the rows."""

    where: str
    row: Row
    picture: Callable[[], bytes] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a task's documents come from.

    files: names in the data folder, each with the spellings accepted; ``.gz`` may follow any of them. parse: reads them, given
    in that order. finish: what a row needs to know of the rows before it. adapter: row -> sample without picture; its ``meta``
    or cluster names the picture. places: where under ``images/`` pictures may lie, tried in order. hub: what holds the same
    rows online; None where we know of nothing. in_rows: the rows carry their pictures, no folder is needed.
    """

    files: tuple[tuple[str, ...], ...]
    parse: Callable[..., Iterator[Document]]
    adapter: Callable[[Row, str], CoTSample]
    finish: Callable[[Iterator[Document]], Iterator[Document]] = lambda documents: documents
    places: tuple[str, ...] = ("{name}",)
    hub: Hub | None = None
    in_rows: bool = False

    def files_in(self, data: Path) -> dict[str, Path]:
        """Documented name -> file. Raises UsageError for a missing folder or file."""
        if data.is_file() and self.in_rows:  # a table that holds all: VLMEvalKit's predictions carry their questions
            return {self.files[0][0]: data}
        if not data.is_dir():
            raise UsageError(f"no data folder {data}", "docs/data.md describes the layout of --data DIR")
        return {spellings[0]: _find(data, spellings) for spellings in self.files}

    def hashes(self, data: Path) -> dict[str, str]:
        """Documented name -> sha256 of the unpacked bytes: what the documents are, for records."""
        return {name: sha256_of(path) for name, path in self.files_in(data).items()}

    def read(self, data: Path | None) -> Iterator[Document]:
        """The documents in a data folder, or without one those on the hub."""
        if data is not None:
            return self.finish(self.parse(*self.files_in(data).values()))
        return self.finish(Document(where, row, picture) for where, row, picture in self._hub().rows())

    def hub_facts(self) -> dict[str, Any]:
        return self._hub().facts()

    def _hub(self) -> Hub:
        if self.hub is None:
            raise UsageError(
                f"no hub dataset contains {self.files[0][0]}",
                "give the folder that contains it: --data DIR (docs/data.md)",
            )
        return self.hub

    def require_pictures(self, data: Path | None) -> None:
        """Raises UsageError if the folder of pictures is missing."""
        if not self.in_rows and not (data is None and self._hub().has_pictures):
            Library.of(data, self.places).require()

    def sample(self, name: str, document: Document, data: Path | None, *, with_pictures: bool) -> CoTSample:
        sample = self.adapter(document.row, name)
        picture_name = str(sample.meta.get("picture", sample.cluster))
        Library.check(picture_name, document.where)
        if not with_pictures:
            return sample
        library = Library.of(data, self.places)
        if document.picture is not None:
            return replace(sample, picture=library.packed(picture_name, document.picture))
        picture: Picture = library.picture(picture_name)
        return replace(sample, picture=picture)


def _find(data: Path, spellings: tuple[str, ...]) -> Path:
    for spelling in spellings:
        for path in (data / spelling, data / f"{spelling}.gz"):
            if path.is_file():
                return path
    raise UsageError(
        f"{data} has no {spellings[0]} (nor {spellings[0]}.gz)", "docs/data.md describes the layout of a data folder"
    )


def opened(path: Path) -> BinaryIO:
    """A file's bytes, unpacked. Raises UsageError if it cannot be opened."""
    try:
        return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error}", "check the path and its permissions") from error


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file:line, text) of every line that is not blank. Raises UsageError for a damaged archive or text that is not UTF-8."""
    number, name = 0, str(path)
    with opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if text.strip():
                    yield f"{name}:{number}", text
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}:{number}: not UTF-8 text", "is this the right file?") from error
        except UNREADABLE as error:  # a torn or foreign .gz
            raise UsageError(
                f"{path}: cannot be read past line {number}: {error}", "is the download complete?"
            ) from error


def json_lines(path: Path) -> Iterator[Document]:
    """Documents of a file with a JSON object per line."""
    for where, line in lines(path):
        try:
            row = decode_foreign(line)
        except ValueError as error:
            raise UsageError(f"{where}: not JSON: {error}", "each line is one JSON object") from error
        yield Document(where, _object(row, where))


def json_list(path: Path) -> list[Row]:
    """Rows of a file that holds one JSON list. Raises UsageError as :func:`lines` does."""
    with opened(path) as file:
        try:
            value = json.load(file)
        except (ValueError, RecursionError) as error:
            raise UsageError(
                f"{path}:{getattr(error, 'lineno', 1)}: not JSON: {error}", "is the file complete?"
            ) from error
        except UNREADABLE as error:
            raise UsageError(f"{path}: cannot be read: {error}", "is the download complete?") from error
    if not isinstance(value, list):
        raise UsageError(
            f"{path}: a JSON {type(value).__name__}, not a list of rows", "docs/data.md describes the layout"
        )
    return [_object(row, f"{path}: row {number}") for number, row in enumerate(value, 1)]


def _object(value: object, where: str) -> Row:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: a JSON {type(value).__name__}, not an object", "docs/data.md describes the layout")
    return value


def sha256_of(path: Path) -> str:
    """Hash of a file's unpacked bytes: the same data has the same hash, packed or not."""
    digest = hashlib.sha256()
    with opened(path) as file:
        try:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        except UNREADABLE as error:
            raise UsageError(f"{path}: cannot be read: {error}", "is the download complete?") from error
    return digest.hexdigest()


def text(row: Row, name: str) -> str:
    """A field that must be text. Raises KeyError or TypeError."""
    value = row[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is {type(value).__name__}, not text")
    return value


def whole_number(row: Row, name: str) -> int:
    """A field that must be a whole number. Raises KeyError or TypeError."""
    value = row[name]
    if type(value) is not int:  # a bool is none
        raise TypeError(f"{name} is {value!r:.40}, not a whole number")
    return value
