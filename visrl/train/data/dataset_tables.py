"""Data sets of the ``datasets`` library, and pictures in their rows by name: ``dataset:PATH?split=train&column=image#12``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from visrl.core.types import Picture
from visrl.errors import PictureError, UsageError, nearest
from visrl.runs.hub import settle

DATASET = "dataset:"
_FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}


class Place(NamedTuple):
    """Where rows are: what finds them again from a picture's name."""

    path: str
    subset: str | None
    split: str
    revision: str | None


@lru_cache(maxsize=8)
def table_of(place: Place) -> Any:
    """The rows of a place; text as it stands in its file (:func:`_read`). Raises UsageError where they cannot be read."""
    import datasets
    from datasets.exceptions import DatasetsError

    path = Path(place.path)
    try:
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
            return found if isinstance(found, datasets.Dataset) else _split(place, found)
        if path.is_file():
            return _read(_builder(path), split="train", data_files=str(path))
        if not path.is_dir():
            settle()
        return _read(place.path, split=place.split, name=place.subset, revision=place.revision)
    except (OSError, ValueError, RuntimeError, TypeError, DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]  # of a file that is none: what is wrong in it
        hint = (
            "data.path: a folder of save_to_disk, of parquet or jsonl files, or a hub id; data.dataset: split, subset"
        )
        raise UsageError(f"cannot load {place.path} ({place.split}): {reason}", hint) from error


def _read(path: str, split: str, **named: Any) -> Any:
    """``load_dataset``, but that text is never made into something else and back: CSV columns are text, all of them, and JSON
    columns in which it sees dates are read as they stand. Class labels that a data set declares are kept.

    Raises ValueError for a CSV file whose rows have more cells than its header.
    """
    import datasets

    builder = datasets.load_dataset_builder(path, **named)
    kind, files = type(builder).__module__.rpartition(".")[2], builder.config.data_files
    if kind == "csv" and files and builder.config.features is None:
        labels = {k: v for k, v in (builder.info.features or {}).items() if isinstance(v, datasets.ClassLabel)}
        columns = _csv_columns(files, split, builder.config.pd_read_csv_kwargs)
        features = datasets.Features({name: labels.get(name, datasets.Value("string")) for name in columns})
        return datasets.load_dataset(path, split=split, features=features, na_filter=False, **named)
    found = datasets.load_dataset(path, split=split, **named)
    dates = {name for name, feature in found.features.items() if _has_times(feature)}
    if kind != "json" or not dates:
        return found
    features = datasets.Features({k: datasets.Json() if k in dates else v for k, v in found.features.items()})
    return datasets.load_dataset(path, split=split, features=features, **named)


def _csv_columns(files: Mapping[Any, Any], split: str, asked: Mapping[str, Any]) -> list[str]:
    """The header of the first file of a split, where there is such a split: else what is said of it is said later."""
    import pandas as pd

    first = next(iter(files.get(split) or next(iter(files.values()))))
    head = pd.read_csv(first, **{**asked, "nrows": 1, "dtype": str, "na_filter": False, "chunksize": None})
    if not isinstance(head.index, pd.RangeIndex):
        raise ValueError(f"{first}: its rows have more cells than its header has columns")
    return [str(name) for name in head.columns]


def _inner(feature: Any) -> Any:
    """Of a list's type that of its items; else the type itself."""
    import datasets

    return feature.feature if isinstance(feature, datasets.Sequence | datasets.List) else feature


def _has_times(feature: Any) -> bool:
    """Whether there are dates or times in a column of this type, however deep."""
    import datasets

    inner = _inner(feature)
    if inner is not feature:
        return _has_times(inner)
    if isinstance(feature, Mapping):
        return any(map(_has_times, feature.values()))
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("timestamp", "date", "time", "duration"))


def _split(place: Place, found: Mapping[str, Any]) -> Any:
    if place.split not in found:
        raise UsageError(f"{place.path} has no split {place.split!r}", nearest(place.split, list(found)))
    return found[place.split]


def _builder(path: Path) -> str:
    if path.suffix not in _FILES:
        raise UsageError(f"{path}: unsupported file type", f"{', '.join(_FILES)}, or a folder")
    return _FILES[path.suffix]


def picture_columns(table: Any) -> set[str]:
    """The columns that hold pictures."""
    import datasets

    def is_picture(feature: Any) -> bool:
        inner = _inner(feature)
        return isinstance(inner, datasets.Image) or (isinstance(inner, dict) and {"bytes", "path"} <= set(inner))

    return {name for name, feature in table.features.items() if is_picture(feature)}


def label_names(table: Any) -> dict[str, dict[int, str]]:
    """Of columns of class labels, or of lists of them, what their numbers are called."""
    import datasets

    found = ((name, _inner(feature)) for name, feature in table.features.items())
    return {name: dict(enumerate(f.names)) for name, f in found if isinstance(f, datasets.ClassLabel)}


@lru_cache(maxsize=8)
def _stored(place: Place, column: str) -> Any:
    """The pictures' column as it is stored: bytes, or the path of a file."""
    import datasets

    table = table_of(place).select_columns([column])
    feature = table.features[column]
    if isinstance(feature, datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    if isinstance(feature, datasets.Sequence | datasets.List) and isinstance(feature.feature, datasets.Image):
        return table.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return table


@lru_cache(maxsize=8)
def _is_full(place: Place, column: str) -> bool:
    """Whether every row has one picture, so that none need be read to know."""
    import datasets

    stored = _stored(place, column)
    return isinstance(stored.features[column], datasets.Image) and not stored.data.column(column).null_count


def picture_named(name: str) -> Picture:
    """The picture of a row that names its own. Raises UsageError, when opened PictureError, where it is not there."""
    from visrl.tasks.pictures import decoded

    return Picture(name, lambda: decoded(stored_bytes(name), name))


def stored_bytes(name: str) -> bytes:
    """The encoded picture of that name. Raises PictureError where it is not there."""
    path, _, rest = name.removeprefix(DATASET).partition("?")
    query, _, at = rest.partition("#")
    facts = dict(parse_qsl(query))
    number, _, which = at.partition("/")
    place = Place(path, facts.get("subset"), facts.get("split", "train"), facts.get("revision"))
    try:
        held = _stored(place, facts["column"])[int(number)][facts["column"]]
        held = held[int(which)] if which else held
        return bytes(held["bytes"] or Path(held["path"]).read_bytes())
    except (LookupError, TypeError, ValueError, OSError, UsageError) as error:
        raise PictureError(f"{name}: {error}") from error


def picture_names(place: Place, column: str, number: int, row: Mapping[str, Any]) -> list[str]:
    """The names of a row's pictures. row: its texts, with ours for the column where that holds names of files."""
    table = table_of(place)
    if column not in picture_columns(table):
        named = row.get("image")
        names = [named] if isinstance(named, str) else list(named or ())
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise ValueError(f"column {column!r} (image): {type(wrong[0]).__name__}, not the name of a file")
        return names
    whole = _stored(place, column)
    held = True if _is_full(place, column) else whole[number][column]
    query = urlencode(
        {k: v for k, v in (*place._asdict().items(), ("column", column)) if v is not None and k != "path"}
    )
    name = f"{DATASET}{place.path}?{query}#{number}"
    if isinstance(held, list):
        return [f"{name}/{i}" for i in range(len(held))]
    return [] if held is None else [name]
