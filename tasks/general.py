"""POPE and MME: yes/no questions. The instruction is kept apart from the question, so that it is asked only for an answer.

Under ``direct`` the prompt is byte for byte the official one: LLaVA's for POPE, the MME authors' for MME.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.tasks.common import Document, Row, lines, text, whole_number

POPE_INSTRUCTION = "\nAnswer the question using a single word or phrase."  # llava_pope_test.jsonl
MME_INSTRUCTION = " Please answer yes or no."  # the end of every question in MME's files
MME_SUBTASKS = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)


def _yes_or_no(value: str) -> str:
    answer = value.strip().lower()
    if answer not in ("yes", "no"):
        raise ValueError(f"the true answer is {value!r:.40}, neither yes nor no")
    return answer


def pope(row: Row, task: str) -> CoTSample:
    """A row: question_id, image, text, label. Raises KeyError, TypeError or ValueError for a malformed one."""
    picture, question, number = text(row, "image"), text(row, "text"), whole_number(row, "question_id")
    return CoTSample(
        id=str(number),
        task=task,
        kind="qa",
        question=question,
        answers=(_yes_or_no(text(row, "label")),),
        instruction=POPE_INSTRUCTION,
        cluster=picture,
        # no question_id for replay: the two releases of POPE random number other questions with the same ids
        meta={"picture": picture, "raw_question": question},
    )


def pope_from_hub(category: str, row: Row) -> Iterator[Row]:
    """A row of lmms-lab/POPE, which pools COCO's three splits under ``category``."""
    if row["category"] == category:
        yield {
            "question_id": int(row["question_id"]),
            "image": f"{row['image_source']}.jpg",
            "text": row["question"],
            "label": row["answer"],
        }


def mme_documents(*files: Path) -> Iterator[Document]:
    """MME's own files: a line per question, ``picture <tab> question <tab> Yes|No``; the file's name is the subtask."""
    for file in files:
        subtask = file.name.split(".")[0]
        for where, line in lines(file):
            fields = line.split("\t")
            if len(fields) != 3:
                raise UsageError(
                    f"{where}: {len(fields)} fields instead of 3 (picture, question, answer)",
                    "fields are separated by tabs",
                )
            yield Document(
                where, {"subtask": subtask, **dict(zip(("picture", "question", "answer"), fields, strict=True))}
            )


def numbered(documents: Iterator[Document]) -> Iterator[Document]:
    """Rows with ``nth``: which question about its picture a row is, from 1."""
    seen: Counter[tuple[str, str]] = Counter()
    for document in documents:
        key = (document.row["subtask"], PurePosixPath(document.row["picture"]).stem)
        seen[key] += 1
        yield Document(document.where, {**document.row, "nth": seen[key]}, document.picture)


def mme(row: Row, task: str) -> CoTSample:
    """A row: subtask, picture, question, answer, nth. Raises KeyError, TypeError or ValueError for a malformed one."""
    subtask, name, asked = text(row, "subtask"), text(row, "picture"), text(row, "question")
    picture = f"{subtask}/{name}"
    return CoTSample(
        id=f"{subtask}/{PurePosixPath(name).stem}/{whole_number(row, 'nth')}",
        task=task,
        kind="qa",
        question=asked.removesuffix(MME_INSTRUCTION),
        answers=(_yes_or_no(text(row, "answer")),),
        instruction=MME_INSTRUCTION if asked.endswith(MME_INSTRUCTION) else "",
        cluster=picture,
        group=subtask,
        meta={"picture": picture, "raw_question": asked},
    )


def mme_from_hub(row: Row) -> Iterator[Row]:
    """A row of lmms-lab/MME, whose question_id is ``subtask/picture``."""
    yield {
        "subtask": row["category"],
        "picture": row["question_id"].rsplit("/", 1)[-1],
        "question": row["question"],
        "answer": row["answer"],
    }
