"""Rows and pictures in parquet shards and webdataset tars, read one row at a time: pictures are looked up when they are opened.

parquet     a column per field of a row, and ``image``: encoded bytes, or ``datasets``' struct of bytes and path
tar         ``KEY.json`` (a row) beside ``KEY.jpg``, ``.jpeg``, ``.png`` or ``.webp``, as webdataset writes them; not compressed

A picture's name is ``SHARD/MEMBER`` (tar) or ``SHARD/NUMBER`` (parquet), relative to the folder of the shards. Nothing is ever
unpacked to disk: members are read by offset, and one that is a link or whose name would lead out of a folder is an error.
Memory: one batch of rows, one row group of pictures, and the member table of ``SHARDS_OPEN`` tars, however many rows there are.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from visrl.errors import PictureError, UsageError

SUFFIXES = (".parquet", ".tar")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
ROWS = 64  # of a parquet shard at once, without their pictures
SHARDS_OPEN = 4
Numbered = tuple[str, dict[str, Any]]


def is_sharded(path: Path) -> bool:
    """Whether a data path names shards: one, a pattern of them, or a folder."""
    return path.suffix in SUFFIXES or path.is_dir()


def shards_of(path: Path) -> list[Path]:
    """The shards of a path, in the order of their names. Raises UsageError where there are none."""
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
    elif path.is_file():
        found = [path]
    else:
        there = path.parent.iterdir() if path.parent.is_dir() else ()
        found = sorted(p for p in there if fnmatchcase(p.name, path.name))
    if not found:
        raise UsageError(
            f"no shards in {path}",
            "set data.path to a .parquet or .tar file, a pattern like shards/*.tar, or their folder",
        )
    return found


def root_of(path: Path) -> Path:
    """The folder that picture names of shards are relative to."""
    return path if path.is_dir() else path.parent


def shard_rows(path: Path) -> Iterator[Numbered]:
    """(place, row) of every row of all shards, its ``picture`` named. Raises UsageError naming shard and row."""
    for shard in shards_of(path):
        yield from _tar_rows(shard) if shard.suffix == ".tar" else _parquet_rows(shard)


# --- parquet


@contextmanager
def _parquet(shard: Path) -> Iterator[Any]:
    """A parquet file. Raises UsageError for what is none, and within for a page of it that is damaged."""
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(shard) as file:
            yield file
    except (OSError, ArrowException) as error:
        raise UsageError(f"{shard}: not a readable parquet file: {error}", "is the download complete?") from error


def _parquet_rows(shard: Path) -> Iterator[Numbered]:
    with _parquet(shard) as file:
        columns = [name for name in file.schema_arrow.names if name != "image"]
        pictured = "image" in file.schema_arrow.names
        number = 0
        for batch in file.iter_batches(batch_size=ROWS, columns=columns):
            for row in batch.to_pylist():
                named = {"picture": f"{shard.name}/{number}"} if pictured else {}
                yield f"{shard}: row {number}", {"id": f"{shard.stem}/{number}", **_given(row), **named}
                number += 1


def _given(value: Any) -> Any:
    """A row without its nulls, which are how parquet writes fields that are not there."""
    if isinstance(value, dict):
        return {k: _given(v) for k, v in value.items() if v is not None}
    return value


@lru_cache(maxsize=2)
def _pictures_of(shard: Path, group: int) -> Any:
    """The picture column of one row group."""
    with _parquet(shard) as file:
        return file.read_row_group(group, columns=["image"]).column("image")


@lru_cache(maxsize=SHARDS_OPEN)
def _groups(shard: Path) -> tuple[int, ...]:
    """Rows of each row group."""
    with _parquet(shard) as file:
        return tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))


def _parquet_picture(shard: Path, name: str) -> bytes:
    number = int(name) if name.isdecimal() else -1
    group = 0
    for group, rows in enumerate(_groups(shard)):  # noqa: B007 - the group that holds it
        if 0 <= number < rows:
            break
        number -= rows
    else:
        raise PictureError(f"{shard.name} has no row {name}")
    held = _pictures_of(shard, group)[number].as_py()
    data = held.get("bytes") if isinstance(held, dict) else held
    if not data:
        raise PictureError(f"{shard.name}, row {name}: no picture bytes")
    return bytes(data)


# --- tar


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar, none of them kept. Raises UsageError for what is not one, and for a torn tar."""
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all it has seen
                if not member.isdir():
                    _check(shard, member)
                    yield member
    except (OSError, tarfile.TarError) as error:
        raise UsageError(
            f"{shard}: not a readable tar: {error}", "shards are uncompressed .tar files; is the download complete?"
        ) from error


def _check(shard: Path, member: tarfile.TarInfo) -> None:
    place = PurePosixPath(member.name)
    if not member.isreg():
        raise UsageError(
            f"{shard}: member {member.name!r:.120} is not a regular file", "links and devices are not read"
        )
    if place.is_absolute() or ".." in place.parts or "\\" in member.name:
        raise UsageError(
            f"{shard}: member {member.name!r:.120} points outside the archive", "names are relative, without .."
        )


def _bytes(shard: Path, offset: int, size: int) -> bytes:
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _tar_rows(shard: Path) -> Iterator[Numbered]:
    """Members of one key stand together, in any order."""
    key, row, picture = "", None, ""
    for member in _members(shard):
        stem, _, extension = member.name.rpartition(".")
        if stem != key:
            if row is not None:
                yield _tar_row(shard, key, row, picture)
            key, row, picture = stem, None, ""
        if extension == "json":
            row = _json(shard, member)
        elif f".{extension.lower()}" in PICTURES:
            picture = member.name
    if row is not None:
        yield _tar_row(shard, key, row, picture)


def _tar_row(shard: Path, key: str, row: dict[str, Any], picture: str) -> Numbered:
    if not picture:
        raise UsageError(f"{shard}: {key} has no picture", f"put {key}.jpg beside {key}.json ({', '.join(PICTURES)})")
    return f"{shard}: {key}.json", {"id": f"{shard.stem}/{key}", **row, "picture": f"{shard.name}/{picture}"}


def _json(shard: Path, member: tarfile.TarInfo) -> dict[str, Any]:
    try:
        row = json.loads(_bytes(shard, member.offset_data, member.size))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{shard}: {member.name}: not JSON: {error}", "each .json is one row") from error
    if not isinstance(row, dict):
        raise UsageError(f"{shard}: {member.name}: a JSON {type(row).__name__}, not an object", "each .json is one row")
    return row


@lru_cache(maxsize=SHARDS_OPEN)
def _places(shard: Path) -> dict[str, tuple[int, int]]:
    """Where each picture of a tar lies."""
    return {m.name: (m.offset_data, m.size) for m in _members(shard) if Path(m.name).suffix.lower() in PICTURES}


def _tar_picture(shard: Path, name: str) -> bytes:
    if name not in _places(shard):
        raise PictureError(f"{shard.name} has no {name}")
    offset, size = _places(shard)[name]
    return _bytes(shard, offset, size)


def picture_bytes(shard: Path, name: str) -> bytes:
    """The encoded picture of a row. Raises PictureError where it is not there."""
    try:
        return _tar_picture(shard, name) if shard.suffix == ".tar" else _parquet_picture(shard, name)
    except (OSError, UsageError) as error:
        raise PictureError(f"{shard.name}/{name}: {error}") from error


def split_name(name: str) -> tuple[str, str] | None:
    """``SHARD/MEMBER`` -> its two parts; None for a picture that is a file."""
    shard, _, member = name.partition("/")
    return (shard, member) if member and PurePosixPath(shard).suffix in SUFFIXES else None
