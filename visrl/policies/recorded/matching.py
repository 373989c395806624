"""Which recorded row belongs to which document: by the benchmark's documents, never by position.

A row's keys are tried surest first, and a row must *fit*: question, options and true box on file, where there are any, are the
document's. Rows alike in every key (RefCOCO holds some sentences twice) go to the documents alike, one each. A row without a
picture belongs to the one picture that has its expression and its true box, if it is only one. A row that names its split of
POPE belongs to no other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from visrl.core.types import CoTSample
from visrl.policies.recorded.prediction_files import QUESTION_AND_BOX, Key, Prediction, picture_key, question_key


def sample_keys(sample: CoTSample) -> Iterator[Key]:
    """The keys a row may have for this document, the surest first, each made when it is asked for: mostly the first fits."""
    yield "id", sample.id
    shown = picture_key(sample.meta.get("picture", sample.cluster))
    asked = question_key(sample.meta.get("raw_question", sample.question))
    if sample.group:
        yield "group+picture+question", sample.group.lower(), shown, asked
    yield "picture+question", shown, asked
    if "question_id" in sample.meta:
        yield "question_id+question", str(sample.meta["question_id"]), asked
    if "index" in sample.meta:
        yield "index", str(sample.meta["index"])
    if sample.kind == "rec" and sample.box is not None:
        yield QUESTION_AND_BOX, asked


def match(rows: Sequence[Prediction], samples: Iterable[CoTSample], task: str) -> list[tuple[int, CoTSample]]:
    """(number of the row, document) for every document of ``task`` that has a row, in the documents' order."""
    index: dict[Key, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if row.task in (None, task) and _is_of_split(row, task):
            for key in row.keys:
                index[key].append(number)
    if any(key[0] == QUESTION_AND_BOX for key in index):
        samples = list(samples)
        _drop_ambiguous(rows, samples, index)
    taken: dict[int, CoTSample] = {}
    for sample in samples:
        found = next((n for n in _candidates(sample, index) if n not in taken and rows[n].fits(sample)), None)
        if found is not None:
            taken[found] = sample
    return list(taken.items())


def _candidates(sample: CoTSample, index: Mapping[Key, Sequence[int]]) -> Iterable[int]:
    return (number for key in sample_keys(sample) for number in index.get(key, ()))


def _is_of_split(row: Prediction, task: str) -> bool:
    """POPE's splits share questions: a row that names its split answers that split's question only."""
    return not row.split or "pope" not in task.split("_") or row.split.lower() in task.split("_")


def _drop_ambiguous(rows: Sequence[Prediction], samples: Sequence[CoTSample], index: dict[Key, list[int]]) -> None:
    """Takes out of ``index`` the rows without a picture that fit documents of more than one."""
    pictures: dict[int, set[str]] = defaultdict(set)
    for sample in samples:
        for number in index.get((QUESTION_AND_BOX, question_key(sample.question)), ()):
            if rows[number].fits(sample):
                pictures[number].add(sample.cluster or sample.id)
    for key, numbers in index.items():
        if key[0] == QUESTION_AND_BOX:
            numbers[:] = [number for number in numbers if len(pictures[number]) == 1]


def leftovers(rows: Sequence[Prediction], taken: AbstractSet[int]) -> tuple[list[Prediction], list[Prediction]]:
    """(rows without a document, rows of a document that another row has) once all tasks are matched.

    The same prediction twice, with the same text, is neither.
    """
    keys = {key for number in taken for key in rows[number].keys}
    texts = {(key, rows[number].text, rows[number].box_text) for number in taken for key in rows[number].keys}
    unused = [row for number, row in enumerate(rows) if number not in taken]
    without = [row for row in unused if not any(key in keys for key in row.keys)]
    doubled = [
        row
        for row in unused
        if any(key in keys for key in row.keys) and not any((key, row.text, row.box_text) in texts for key in row.keys)
    ]
    return without, doubled
