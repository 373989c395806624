"""Benchmarks where zooming decides: V*Bench, HR-Bench, TreeBench, Ref-L4, RefCOCO-M, ScreenSpot and ScreenSpot-Pro.

Their layouts are those of their own repositories and evaluation code, as docs/data.md says for each; none of their files was seen
here, and what a field means is what that code makes of it. Departures: 1. V*Bench's files list the right option first, always;
here options are in an order that the question's name decides, else a constant "A" is right every time. 2. a question of HR-Bench
is what shares picture and wording: its file only numbers the cycles.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrl.core.boxes import Box, hull
from visrl.core.json_files import decode_foreign
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.evals.mmbench_tables import is_empty
from visrl.tasks.common import Document, Row, Source, json_list, sha256_of, text, whole_number
from visrl.tasks.mmbench import INSTRUCTION
from visrl.tasks.rec import box, size

LETTERS = "ABCDEF"
VSTAR_FOLDERS = ("direct_attributes", "relative_position")


@dataclass(frozen=True, slots=True)
class Folder(Source):
    """Documents that lie in many files: ``folder/pattern`` below the data folder, read in the order of their names."""

    folder: str = ""
    patterns: tuple[str, ...] = ()

    def files_in(self, data: Path) -> dict[str, Path]:
        """Name -> file. Raises UsageError for a missing folder, and where it holds none."""
        place = data / self.folder
        found = sorted(path for pattern in self.patterns for path in place.glob(pattern) if path.is_file())
        if not found:
            where = " nor ".join(f"{self.folder}/{pattern}" for pattern in self.patterns)
            raise UsageError(f"{data} has no {where}", "docs/data.md describes the layout of a data folder")
        return {path.relative_to(data).as_posix(): path for path in found}

    def hashes(self, data: Path) -> dict[str, str]:
        """One hash of all files, names included."""
        digest = hashlib.sha256()
        for name, path in self.files_in(data).items():
            digest.update(f"{name} {sha256_of(path)}\n".encode())
        return {f"{self.folder}/": digest.hexdigest()}


def _choice(name: str, task: str, question: str, options: Mapping[str, str], right: str, **more: Any) -> CoTSample:
    """A multiple-choice question as MMBench's are asked, with its options below it."""
    if right not in options:
        raise ValueError(f"the true answer {right!r:.40} is not among the options {', '.join(options)}")
    asked = "\n".join([question, *(f"{letter}. {option}" for letter, option in options.items())])
    meta = {"options": dict(options), "raw_question": question, **more.pop("meta", {})}
    return CoTSample(name, task, "qa", asked, answers=(right,), instruction=INSTRUCTION, meta=meta, **more)


def _boxed(boxes: Iterable[Box]) -> dict[str, Any]:
    """The true boxes, and the smallest around them."""
    found = tuple(boxes)
    return {"boxes": found, "box": hull(found)} if found else {}


def _xywh(numbers: Any) -> Box:
    """x, y, width, height in pixels as a box."""
    found = box(list(numbers) if isinstance(numbers, tuple) else numbers)
    return Box(found.x1, found.y1, found.x1 + found.x2, found.y1 + found.y2)


# --- V*Bench


def vstar_documents(*files: Path) -> Iterator[Document]:
    """A JSON object per file, beside its picture: question, options (the right one first), target_object, bbox."""
    for path in files:
        try:
            row = decode_foreign(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read: {error}", "is the download complete?") from error
        if not isinstance(row, dict):
            raise UsageError(f"{path}: a JSON {type(row).__name__}, not an object", "docs/data.md describes the layout")
        name = f"{path.parent.name}/{path.stem}"
        yield Document(str(path), {**row, "name": name, "picture": _beside(path, name)})


def _beside(path: Path, name: str) -> str:
    """The picture's name: that of the file beside an annotation; .jpg where there is none."""
    for ending in (".jpg", ".png", ".jpeg", ".webp", ".JPG"):
        if path.with_suffix(ending).is_file():
            return name + ending
    return f"{name}.jpg"


def vstar(row: Row, task: str) -> CoTSample:
    """The sample of one picture. Raises KeyError, TypeError or ValueError for a malformed row."""
    name, listed = text(row, "name"), row["options"]
    if not isinstance(listed, list) or not 2 <= len(listed) <= len(LETTERS) or len(set(listed)) < len(listed):
        raise ValueError(f"options {listed!r:.80} are not two to six different texts")
    ordered = sorted(map(str, listed), key=lambda option: hashlib.sha256(f"{name}:{option}".encode()).hexdigest())
    right = LETTERS[ordered.index(str(listed[0]))]
    return _choice(
        name,
        task,
        text(row, "question"),
        dict(zip(LETTERS, ordered, strict=False)),
        right,
        cluster=text(row, "picture"),
        group=name,
        meta={"picture": row["picture"], "category": name.split("/")[0]},
        **_boxed(map(_xywh, row.get("bbox") or [])),
    )


# --- HR-Bench and TreeBench: tables in VLMEvalKit's layout


def _options(row: Row) -> dict[str, str]:
    return {letter: str(row[letter]) for letter in LETTERS if not is_empty(row.get(letter))}


def question_of(row: Row) -> str:
    """What a row of HR-Bench shares with the other cycles of its question."""
    asked = hashlib.sha256(str(row["question"]).encode()).hexdigest()[:12]
    return f"{row['picture_id']}-{asked}" if row.get("picture_id") else asked


def with_cycles(documents: Iterator[Document]) -> Iterator[Document]:
    """Rows with ``rotations``: how many rows the file holds of a question."""
    kept = list(documents)
    held = Counter(question_of(document.row) for document in kept)
    for document in kept:
        row = {**document.row, "rotations": held[question_of(document.row)]}
        yield Document(document.where, row, document.picture)


def hrbench(row: Row, task: str) -> CoTSample:
    """A row: index, question, A to D, answer, category (single or cross), cycle_category, picture_id."""
    return _choice(
        str(row["index"]),
        task,
        str(row["question"]),
        _options(row),
        str(row["answer"]).strip(),
        cluster=str(row.get("picture_id") or question_of(row)),
        group=question_of(row),
        meta={
            "index": str(row["index"]),
            "category": str(row.get("category", "")),
            "cycle": str(row.get("cycle_category", "")),
            "rotations": row.get("rotations", 0),
        },
    )


def treebench(row: Row, task: str) -> CoTSample:
    """A row: index, question, A to D, answer, category, target_instances (a list of x1, y1, x2, y2 as text), picture_id."""
    found = _listed(row["target_instances"])
    index = str(row["index"])
    return _choice(
        index,
        task,
        str(row["question"]),
        _options(row),
        str(row["answer"]).strip(),
        cluster=str(row.get("picture_id") or index),
        group=index,
        meta={"index": index, "category": str(row.get("category", ""))},
        **_boxed(box(list(one)) for one in found),
    )


def _listed(targets: Any) -> list[Any]:
    """A list as Python writes it. Raises ValueError for anything else; the parser itself says so in several ways."""
    try:
        found = ast.literal_eval(targets) if isinstance(targets, str) else targets
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise ValueError(f"target_instances {targets!r:.60} is not a list of boxes")
    return found


# --- referring expressions


def parquet_rows(*files: Path) -> Iterator[Document]:
    """The rows of parquet files, one at a time."""
    from pyarrow import ArrowException, parquet

    for path in files:
        number = 0
        try:
            for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield Document(f"{path}: row {number}", row)
        except (OSError, ArrowException) as error:
            raise UsageError(f"{path}: no parquet after row {number}: {error}", "is the download complete?") from error


def ref_l4(row: Row, task: str) -> CoTSample:
    """A row: id, caption, bbox (x, y, width, height in pixels), file_name, width, height, ori_category_id, is_rewrite."""
    picture = text(row, "file_name")
    return CoTSample(
        str(row["id"]),
        task,
        "rec",
        text(row, "caption"),
        size=size(row),
        box=_xywh(row["bbox"]),
        cluster=picture,
        meta={
            "picture": picture,
            "category": str(row.get("ori_category_id", "")),
            "rewritten": bool(row.get("is_rewrite", False)),
        },
    )


def expressions(documents: Iterator[Document]) -> Iterator[Document]:
    """RefCOCO-M: a row per picture as rows of ours, one per sentence."""
    for document in documents:
        for row in refcoco_m_rows(document.row):
            yield Document(document.where, row, document.picture)


def refcoco_m_rows(row: Row) -> Iterator[Row]:
    """A picture's row: image_id, file_name, samples with id, sentences, bbox (x, y, width, height) and mask.size [H, W]."""
    for one in row["samples"]:
        high, wide = one["mask"]["size"]
        for number, sentence in enumerate(one["sentences"]):
            yield {
                "img_path": row["file_name"],
                "expression": sentence,
                "bbox": list(_xywh(one["bbox"]).xyxy),
                "width": int(wide),
                "height": int(high),
                "image_id": row["image_id"],
                "sent_id": int(one["id"]) * 1000 + number,
            }


# --- screens


def screens(*files: Path) -> Iterator[Document]:
    """JSON lists, one per platform or application; ``number`` counts a file's rows from 1."""
    for path in files:
        for number, row in enumerate(json_list(path), 1):
            yield Document(f"{path}: row {number}", {**row, "file": path.name.split(".")[0], "number": number})


def screenspot(row: Row, task: str) -> CoTSample:
    """A row: img_filename, bbox (x, y, width, height in pixels), instruction, data_type (text or icon), data_source."""
    name = f"{text(row, 'file')}:{whole_number(row, 'number')}"
    return _pointing(name, task, text(row, "img_filename"), row, _xywh(row["bbox"]), str(row.get("data_type", "")))


def screenspot_pro(row: Row, task: str) -> CoTSample:
    """A row: id, img_filename, bbox (x1, y1, x2, y2 in pixels), img_size, instruction, ui_type (text or icon), group."""
    width, height = row["img_size"]
    extent = size({"width": width, "height": height})
    sample = _pointing(
        str(row["id"]), task, text(row, "img_filename"), row, box(row["bbox"]), str(row.get("ui_type", ""))
    )
    return CoTSample(
        sample.id, task, "rec", sample.question, size=extent, box=sample.box, cluster=sample.cluster, meta=sample.meta
    )


def _pointing(name: str, task: str, picture: str, row: Row, true: Box, kind: str) -> CoTSample:
    meta = {"picture": picture, "category": kind, "pointing": True}
    return CoTSample(name, task, "rec", text(row, "instruction"), box=true, cluster=picture, meta=meta)
