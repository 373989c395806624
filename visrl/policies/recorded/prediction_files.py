"""Reading published prediction files: each layout becomes rows with the keys by which their documents are found."""

from __future__ import annotations

import gzip
import hashlib
import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visrl.core.boxes import Box, Size
from visrl.core.json_files import MALFORMED, UNREADABLE, decode_foreign, reason
from visrl.core.outputs import ending_of, joined_content
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.evals.mmbench_tables import NOTHING, options_of, say_what_was_cut, table_rows
from visrl.policies.recorded.run_facts import run_facts
from visrl.policies.recorded.trajectories import Told, size_of, turns_of, turns_of_messages
from visrl.runs.lines import episode_from_json

Key = tuple[str, ...]
QUESTION_AND_BOX = "question+box"
NOT_RECORDED = "(the recording has no prompt)"
Row = dict[str, Any]

# What evaluation code appends to a question before the model sees it; two questions that differ only here are one document.
_SUFFIXES = (
    "answer the question using a single word or phrase.",
    "please answer yes or no.",
    "answer with the option's letter from the given choices directly.",
)
_MISPRINTS = {" imange": " image"}  # POPE's first release, and LLaVA's question file: "… an umbrella in the imange?"
_REC_PROMPT = re.compile(
    r"^(?:please provide the bounding box coordinates? of the region this sentence describes:"
    r"|locate the region this sentence describes:)\s*(?P<expression>.*?)\.?$"
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One recorded output. ``where`` is file:line for messages; ``true_box`` (pixels) tells twins of a picture apart.

    prompt, box_prompt: what the recording says was asked. split: the split of POPE its question file names. asked, options: the
    question and its options as the file has them, where its key alone could be another question's. turns: of a recording of
    several looks (trajectories.py); size: of its picture, in pixels.
    """

    where: str
    keys: tuple[Key, ...]
    text: str | None = None
    box_text: str | None = None
    task: str | None = None
    true_box: tuple[float, float, float, float] | None = None
    error: str | None = None
    prompt: str = NOT_RECORDED
    box_prompt: str = NOT_RECORDED
    split: str = ""
    asked: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    turns: Told | None = None
    size: Size | None = None

    @property
    def names_a_picture(self) -> bool:
        """Whether a key says of which picture: what only numbers a document may be another benchmark's number."""
        return any("picture" in key[0] or key[0] == QUESTION_AND_BOX for key in self.keys)

    def fits(self, sample: CoTSample) -> bool:
        """Whether question, options and true box on file, where there are any, are the document's; boxes to half a pixel.

        An option that pandas reads as an empty cell ("None") may be missing on file.
        """
        if self.asked and question_key(str(sample.meta.get("raw_question", sample.question))) not in self.asked:
            return False
        theirs = sample.meta.get("options")
        if self.options and theirs and not _same_options(_texts(self.options), _texts(theirs)):
            return False
        if self.true_box is None or sample.box is None:
            return True
        return all(abs(a - b) <= 0.5 for a, b in zip(self.true_box, sample.box.xyxy, strict=True))


def _same_options(on_file: Mapping[str, str], theirs: Mapping[str, str]) -> bool:
    lost = [letter for letter in theirs if letter not in on_file]
    return all(theirs[letter] in NOTHING for letter in lost) and all(
        theirs.get(letter) == text for letter, text in on_file.items()
    )


def _texts(options: Mapping[str, str]) -> dict[str, str]:
    return {letter: " ".join(str(text).split()).lower() for letter, text in options.items()}


@dataclass(frozen=True, slots=True)
class PredictionFile:
    """All rows of a file or folder; protocol and box format where the layout records them.

    documents: the file holds the questions too, with options and answers: no data folder is needed. limits: of a run, what its
    pictures' pixels and its looks were limited to.
    """

    kind: str
    rows: list[Prediction]
    sha256: str
    protocol: str | None = None
    box_format: str | None = None
    documents: bool = False
    limits: Mapping[str, Any] = field(default_factory=dict)


def question_key(text: str) -> str:
    """A question without picture marks, instructions, REC wrapping, case and extra blanks: equal for equal documents."""
    text = text.replace("<image>", " ").replace("\\n", " ")  # a line break that was escaped twice
    text = " ".join(text.lower().split())
    for wrong, right in _MISPRINTS.items():
        text = text.replace(wrong, right)
    for suffix in _SUFFIXES:
        text = text.removesuffix(suffix).rstrip()
    match = _REC_PROMPT.match(text)
    return (match["expression"] if match else text).rstrip(" .?")


def picture_key(name: str) -> str:
    """A picture's stem: published files name one picture 0020.png, 0020.jpg or code_reasoning/0020.txt."""
    return posixpath.splitext(posixpath.basename(name.replace("\\", "/").rstrip("/")))[0].lower()


def read_predictions(source: Path, questions: Path | None = None) -> PredictionFile:
    """Read a file or folder of predictions; the layout is told from its content, and is named in ``kind``.

    Raises UsageError: missing, empty, unknown layout, a malformed line (file:line), or a prediction of the wrong type.
    """
    if source.is_dir():
        return _read_folder(source)
    data = _read_bytes(source)
    digest = hashlib.sha256(data).hexdigest()
    if source.suffix == ".xlsx" or ".tsv" in source.suffixes:
        table = list(table_rows(data, source))
        whole = bool(table) and all({"question", "answer", "A", "B"} <= row.keys() for row in table)
        return PredictionFile("mmbench", list(_mmbench_rows(source, table)), digest, documents=whole)
    text = _decode(data, source)
    rows = list(_json_rows(text, source))
    kind, reader = _layout(rows[0][1], source)
    if kind == "vlm-r1":
        rows = [(n, item) for n, item in enumerate(rows[0][1]["results"], 1)]
    lookup = _question_file(questions) if questions else {}
    predictions = []
    for line, row in rows:
        try:
            predictions.append(reader(row, f"{source}:{line}", lookup))
        except MALFORMED as error:
            raise UsageError(
                f"{source}:{line}: not a {kind} row: {_say(error)}",
                "docs/data.md lists the layouts of recorded outputs",
            ) from error
    if kind == "trajectories":
        return PredictionFile(kind, predictions, digest, "zoom")
    protocol, box_format, limits = run_facts(source) if kind == "episodes" else (None, None, {})
    return PredictionFile(kind, predictions, digest, protocol, box_format, limits=limits)


def _say(error: Exception) -> str:
    return f"no field {error}" if isinstance(error, KeyError) else reason(error)


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file", "give the path of a predictions file or a run folder") from error
    except UNREADABLE as error:
        raise UsageError(f"{path}: cannot be read: {error}", "is the download complete?") from error
    if not data.strip():
        raise UsageError(f"{path} is empty", "a predictions file has a row per sample")
    return data


def _decode(data: bytes, path: Path) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 text at byte {error.start}", "predictions are JSON, jsonl, tsv or xlsx"
        ) from error
    if not text.strip():
        raise UsageError(f"{path} is empty", "a predictions file has a row per sample")
    return text


_WHOLE = re.compile(r"\s*\{[ \t]*\r?\n")  # an object over several lines: one document, not a line per row


def _json_rows(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of a jsonl, or a single JSON document as line 1 (a list gives its items)."""
    if text.lstrip()[0] == "[" or "\n" not in text.strip() or _WHOLE.match(text):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", 1)
            raise UsageError(f"{path}:{line}: not JSON: {reason(error)}", "is the file complete?") from error
        items = value if isinstance(value, list) else [value]
        if not items:
            raise UsageError(f"{path} holds no predictions", "a predictions file has a row per sample")
        yield from enumerate(items, 1)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, decode_foreign(line)
            except ValueError as error:
                raise UsageError(f"{path}:{number}: not JSON: {error}", "each line is one JSON object") from error


Questions = dict[str, tuple[str, str, str]]
"""question_id -> picture, question, category ("" where none is named)."""
Reader = Callable[[Row, str, Questions], Prediction]


def _layout(first: Any, source: Path) -> tuple[str, Reader]:
    """Which layout a file has, from the fields of its first row."""
    if isinstance(first, dict):
        if isinstance(first.get("results"), list):
            return "vlm-r1", _vlm_r1
        for kind, fields, reader in (
            ("episodes", {"sample_id", "task"}, _episode),
            ("llava", {"question_id", "text"}, _llava),
            ("trajectories", {"id", "messages"}, _trajectory),
            ("generic", {"id", "text"}, _generic),
        ):
            if fields <= first.keys():
                return kind, reader
    raise UsageError(
        f"{source}: unknown layout of predictions",
        'a generic file is jsonl of {"id": …, "text": …} or {"id": …, "box_text": …, "text": …}',
    )


def _text(row: Row, name: str) -> str:
    """A field's text; parts are joined. Raises KeyError or TypeError."""
    if not isinstance(row[name], str | list):
        raise TypeError(f"{name} is {type(row[name]).__name__}, not text")
    return joined_content(row[name])


def _text_or_none(row: Row, name: str) -> str | None:
    """A text, or None where there is none. Raises TypeError."""
    return None if row.get(name) is None else _text(row, name)


def _output(row: Row, name: str) -> tuple[str | None, str | None]:
    """(text, why it cannot be scored) of a row's output. A row that says why it has none need not have one."""
    value = row.get(name)
    if value is None or value != value:  # NaN, as pandas writes an empty cell
        error = ending_of(row, None)
        if error is None and name not in row:
            raise KeyError(name)
        return None, error or f"{name} is empty: no output was recorded"
    text = _text(row, name)
    return text, ending_of(row, text)


def _vlm_r1(row: Row, where: str, _: Questions) -> Prediction:
    x1, y1, x2, y2 = (float(value) for value in row["ground_truth"])
    question = _text(row, "question")
    key: Key = (QUESTION_AND_BOX, question_key(question))
    if row.get("image"):
        key = ("picture+question", picture_key(_text(row, "image")), question_key(question))
    text, error = _output(row, "model_output")
    return Prediction(where, (key,), text, true_box=Box(x1, y1, x2, y2).xyxy, error=error, prompt=question)


def _generic(row: Row, where: str, _: Questions) -> Prediction:
    box_text = _text(row, "box_text") if row.get("box_text") is not None else None
    text, error = _output(row, "text")
    return Prediction(where, (("id", str(row["id"])),), text, box_text, _text_or_none(row, "task"), error=error)


def _llava(row: Row, where: str, questions: Questions) -> Prediction:
    """LLaVA's answer file; also its MME jsonl, whose question_id is ``subtask/picture`` and names no single question."""
    number, prompt = str(row["question_id"]), str(row.get("prompt", NOT_RECORDED))
    text, error = _output(row, "text")
    if questions:
        if number not in questions:
            raise ValueError(f"question_id {number} is not in the question file")
        picture, question, category = questions[number]
        found: Key = ("picture+question", picture_key(picture), question_key(question))
        return Prediction(where, (found,), text, error=error, prompt=prompt, split=category)
    question = question_key(str(row.get("prompt", "")))
    if "/" in number:
        subtask, _, picture = number.partition("/")
        found = ("group+picture+question", subtask.lower(), picture_key(picture), question)
        return Prediction(where, (found,), text, error=error, prompt=prompt)
    keys: tuple[Key, ...] = (("question_id+question", number, question), ("index", number))
    return Prediction(where, keys if question else keys[1:], text, error=error, prompt=prompt, asked=question)


def _episode(row: Row, where: str, _: Questions) -> Prediction:
    box, answer = row.get("box_step") or {}, row.get("answer_step") or {}
    return Prediction(
        where,
        (("id", _text(row, "sample_id")),),
        _text_or_none(answer, "output"),
        _text_or_none(box, "output"),
        _text(row, "task"),
        error=_text_or_none(row, "error"),
        prompt=_text_or_none(answer, "prompt") or "",
        box_prompt=_text_or_none(box, "prompt") or "",
        **_several(row),
    )


def _several(row: Row) -> dict[str, Any]:
    if row.get("ended") is None:
        return {}
    episode = episode_from_json(row)
    return {"turns": turns_of(episode), "size": episode.size}


def _trajectory(row: Row, where: str, _: Questions) -> Prediction:
    error = ending_of(row, "recorded")
    turns = None if error is not None else turns_of_messages(row["messages"])
    key = ("id", str(row["id"]))
    return Prediction(where, (key,), task=row.get("task"), error=error, turns=turns, size=size_of(row))


def _question_file(path: Path) -> Questions:
    """The questions of a LLaVA question file. Raises UsageError for rows of another layout."""
    rows = _json_rows(_decode(_read_bytes(path), path), path)
    try:
        return {
            str(row["question_id"]): (str(row["image"]), str(row["text"]), str(row.get("category") or ""))
            for _, row in rows
        }
    except MALFORMED as error:
        raise UsageError(
            f"{path}: not a question file: {error}", "a question file has question_id, image and text in each row"
        ) from error


def _read_folder(folder: Path) -> PredictionFile:
    episodes = folder / "episodes.jsonl"
    if episodes.is_file():
        return read_predictions(episodes)
    files = sorted(folder.glob("*.txt")) + sorted(folder.glob("*.txt.gz"))
    if not files:
        raise UsageError(
            f"{folder}: neither episodes.jsonl nor MME's <subtask>.txt files", "give the predictions file itself"
        )
    rows: list[Prediction] = []
    digest = hashlib.sha256()
    for file in files:
        data = _read_bytes(file)
        digest.update(data)
        rows += _mme_rows(file, _decode(data, file))
    return PredictionFile("mme", rows, digest.hexdigest())


def _mme_rows(file: Path, text: str) -> Iterator[Prediction]:
    subtask = file.name.split(".")[0].lower()
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 in an answer ends no line
        if line.strip():
            line = line.rstrip("\r")
            fields = line.split("\t")
            if len(fields) != 4:
                raise UsageError(
                    f"{file}:{number}: {len(fields)} fields instead of 4 (picture, question, truth, answer)",
                    "fields are separated by tabs",
                )
            key = ("group+picture+question", subtask, picture_key(fields[0]), question_key(fields[1]))
            answer = fields[3].replace("\\n", "\n")  # a line break that was escaped to stay in its line
            yield Prediction(f"{file}:{number}", (key,), answer, prompt=fields[1])


def _mmbench_rows(file: Path, rows: list[Row]) -> Iterator[Prediction]:
    say_what_was_cut(rows, file)
    for number, row in enumerate(rows, 2):  # line 1 is the header
        if "index" not in row or "prediction" not in row:
            raise UsageError(
                f"{file}: no columns index and prediction, but {sorted(map(str, row))[:8]}",
                "MMBench predictions have both",
            )
        text = "" if row["prediction"] is None else str(row["prediction"])
        asked, options = question_key(str(row.get("question") or "")), options_of(row)
        key = ("index", str(row["index"]).removesuffix(".0"))  # pandas writes a column with a gap as floats
        yield Prediction(f"{file}:{number}", (key,), text, error=ending_of(row, text), asked=asked, options=options)
