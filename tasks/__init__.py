"""How a benchmark's document becomes a sample: ``load`` and ``fingerprint``.

docs/data.md says what a data folder looks like and which hub dataset stands in for it. The adapters (rec, viscot, general)
are pure: a row in, a CoTSample out. Files, the hub and pictures are common.py's, hub.py's and pictures.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from visrl.core.json_files import MALFORMED, reason
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.evals.benchmarks import OFFERED_SOURCES, TASKS, Task, resolve
from visrl.tasks import world
from visrl.tasks.common import Document, Source
from visrl.tasks.pictures import Library, Missing
from visrl.tasks.sources import SOURCES

__all__ = ["SOURCES", "TASKS", "Task", "adapt", "documents", "fingerprint", "load", "missing_pictures"]


def load(name: str, data: Path | None, *, with_pictures: bool, limit: int | None = None) -> Iterator[CoTSample]:
    """The samples of task ``name`` in published order, one at a time: memory does not grow with the split.

    data: a folder as docs/data.md lays out, or None for the hub. with_pictures: give samples their pictures, which are opened
    only when asked for. Raises UsageError for an unknown task, a missing, empty or malformed file (file:line), a name that
    leaves the data folder, a missing folder of pictures. A split of another size than published is the caller's to state.
    """
    source = _source(name)
    if data is not None:
        source.files_in(data)
    if with_pictures:
        source.require_pictures(data)
    return _unique(
        (document.where, adapt(source, name, document, data, with_pictures=with_pictures))
        for document in islice(documents(name, data), limit)
    )


def missing_pictures(name: str, data: Path | None, limit: int | None = None) -> Missing:
    """Which pictures of a task have no file, before anybody looks at one. Raises UsageError as :func:`load` does."""
    source = _source(name)
    if data is None or source.in_rows or TASKS[name].small_world:
        return Missing([], 0, "")  # drawn, or in the rows
    samples = load(name, data, with_pictures=True, limit=limit)
    names = list(dict.fromkeys(sample.picture.ref for sample in samples if sample.picture is not None))
    library = Library.of(data, source.places)
    missing = [picture for picture in names if library.find(picture) is None]
    return Missing(missing, len(names), str(library.root), library.tried(missing[0]) if missing else ())


def _unique(placed: Iterator[tuple[str, CoTSample]]) -> Iterator[CoTSample]:
    """The samples. Raises UsageError for an id that occurs twice: ids say what is finished, and pair runs."""
    places: dict[str, str] = {}
    for where, sample in placed:
        first = places.setdefault(sample.id, where)
        if first != where:
            raise UsageError(f"{where}: id {sample.id!r} also occurs in {first}", "ids of documents must be unique")
        yield sample


def documents(name: str, data: Path | None) -> Iterator[Document]:
    """The rows of task ``name`` before they become samples. Raises UsageError as :func:`load` does."""
    source, place, last = _source(name), str(data if data is not None else "the hub dataset"), ""
    try:
        for document in source.read(data):
            last = document.where
            yield document
    except MALFORMED as error:
        where = f"{last}: the row after it" if last else f"{place}: the first row"
        raise UsageError(f"{where}: {reason(error)}", f"rows of {name}: see docs/data.md") from error
    if not last:
        raise UsageError(f"{place}: no documents of {name}", "is the file empty, or the download incomplete?")


def adapt(source: Source, name: str, document: Document, data: Path | None, *, with_pictures: bool) -> CoTSample:
    """One row as a sample. Raises UsageError that names the row."""
    try:
        return source.sample(name, document, data, with_pictures=with_pictures)
    except KeyError as error:
        raise UsageError(f"{document.where}: no field {error}", f"rows of {name}: see docs/data.md") from error
    except MALFORMED as error:
        raise UsageError(f"{document.where}: {reason(error)}", f"rows of {name}: see docs/data.md") from error


def fingerprint(name: str, data: Path | None) -> dict[str, Any]:
    """What the documents are, for records: origin, and per file its sha256 (of the unpacked bytes) or the hub's revision."""
    source = _source(name)
    if data is None:
        return {"origin": "hub", **source.hub_facts()}
    return {"origin": "files", "sha256": source.hashes(data)}


def _source(name: str) -> Source:
    (spec,) = resolve([name]) if name not in SOURCES else (TASKS[name],)
    if spec.name in OFFERED_SOURCES:
        return _offered(spec.name)
    if spec.small_world:
        return world.SOURCES[spec.name]
    if spec.name not in SOURCES:
        raise UsageError(f"{name} has no data files", "its samples are generated by visrl")
    return SOURCES[spec.name]


def _offered(name: str) -> Source:
    source = OFFERED_SOURCES[name]
    if not isinstance(source, Source):
        raise UsageError(
            f"the source of the task {name!r} is a {type(source).__name__}", "it is a visrl.tasks.common.Source"
        )
    return source
