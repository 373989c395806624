"""A run's samples as one flat table, for other tools: CSV, JSON lines or Parquet. A row per scored sample, in the run's order."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from visrl.core.boxes import Box
from visrl.core.types import Episode, Unparsed
from visrl.errors import UsageError, nearest, refused
from visrl.evals.sample_scores import Rows, of_run
from visrl.runs.lines import read_episodes
from visrl.runs.meta import read_evaluation
from visrl.tables.formats import no_formula

FORMATS = ("csv", "jsonl", "parquet")
CORNERS = ("box_x1", "box_y1", "box_x2", "box_y2")
_BEFORE, _AFTER = ("task", "sample_id", "picture", "group"), (*CORNERS, "unparsed", "box_text", "answer_text", "error")


def columns(scores: Rows) -> list[str]:
    """The table's columns: what the sample is, a column per metric (0..1, empty where unscored), what the model said."""
    metrics = dict.fromkeys(metric for rows in scores.values() for row in rows.values() for metric in row.values)
    taken = {*_BEFORE, *_AFTER}
    return [*_BEFORE, *(metric for metric in metrics if metric not in taken), *_AFTER]


def sample_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """A row per scored sample; boxes in pixels of the picture. Raises UsageError where the folder is no scored run."""
    read_evaluation(folder)
    scores = of_run(folder)
    said = {(e.task, e.sample_id): e for e in read_episodes(folder / "episodes.jsonl")}
    names = columns(scores)
    for task, rows in scores.items():
        for sample_id, row in rows.items():
            known = {"task": task, "sample_id": sample_id, "picture": row.cluster, "group": row.group}
            found = {**row.values, **known, **_said(said.get((task, sample_id)))}
            yield {name: found.get(name) for name in names}


def _said(episode: Episode | None) -> dict[str, Any]:
    if episode is None:
        return {}
    box = episode.box
    return {
        **dict(zip(CORNERS, box.xyxy if isinstance(box, Box) else (None,) * 4, strict=True)),
        "unparsed": box.reason if isinstance(box, Unparsed) else None,
        "box_text": None if episode.box_step is None else episode.box_step.output,
        "answer_text": episode.answer,
        "error": episode.error,
    }


def write(folder: Path, format_: str, out: Path | None, stream: IO[str]) -> None:
    """Write the table to ``out``, else to ``stream``. Raises UsageError for an unknown format, and for Parquet to a stream."""
    if format_ not in FORMATS:
        raise UsageError(f"--format: unknown {format_!r}", nearest(format_, FORMATS))
    if format_ == "parquet":
        if out is None:
            raise UsageError("parquet cannot be printed to a terminal", "name a file: --output samples.parquet")
        _write_parquet(list(sample_rows(folder)), columns(of_run(folder)), out)
        return
    lines = _csv_lines(folder) if format_ == "csv" else map(_json_line, sample_rows(folder))
    if out is None:
        stream.writelines(lines)
        return
    try:
        with out.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.writelines(lines)
    except OSError as error:
        raise refused(error, out, "choose another place with --output") from error


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _csv_lines(folder: Path) -> Iterator[str]:
    """Text that a spreadsheet would run as a formula gets a leading apostrophe."""
    names = columns(of_run(folder))
    yield _csv_line(names)
    for row in sample_rows(folder):
        yield _csv_line([no_formula(row[name]) for name in names])


def _csv_line(values: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(values)
    return out.getvalue()


def _write_parquet(rows: Sequence[dict[str, Any]], names: Sequence[str], out: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    texts = {"task", "sample_id", "picture", "group", "unparsed", "box_text", "answer_text", "error"}
    schema = pa.schema([(name, pa.string() if name in texts else pa.float64()) for name in names])
    clean = [{name: _utf8(value) for name, value in row.items()} for row in rows]
    try:
        parquet.write_table(pa.Table.from_pylist(clean, schema=schema), out)
    except OSError as error:
        raise refused(error, out, "choose another place with --output") from error


def _utf8(value: Any) -> Any:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, as its escape."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
