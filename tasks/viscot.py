"""The VisCoT benchmark: two-turn chains (``<set>.json``) joined with their boxes in pixels (``det_<set>.jsonl``).

The chain's box is rounded to a thousandth of the padded square; the detection file has the exact one and the picture's size.
Both files list the same rows in the same order (docs/method.md b1), which is verified here for every row.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from visrl.core.prompts import P_BOX
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.tasks.common import Document, Row, json_lines, json_list, text, whole_number
from visrl.tasks.rec import box, size


def documents(chains: Path, detections: Path) -> Iterator[Document]:
    """Each chain with its detection row under ``det``. Raises UsageError where the files do not belong together."""
    for number, (chain, found) in enumerate(zip_longest(json_list(chains), json_lines(detections)), 1):
        if chain is None or found is None:
            short, long = (chains, detections) if chain is None else (detections, chains)
            raise UsageError(
                f"{short} ends after {number - 1} rows, but {long} has more", "both files must list the same rows"
            )
        yield joined(chain, found.row, f"{chains}: row {number}")


def joined(chain: Row, detection: Row, where: str) -> Document:
    """One document of both rows. Raises UsageError unless question id and picture agree."""
    ours, theirs = chain.get("question_id"), detection.get("question_id")
    if ours is None or ours != theirs:
        raise UsageError(
            f"{where}: question_id {ours!r}, in the detection file {theirs!r}", "both files must list the same rows"
        )
    pictures = chain.get("image")
    if not isinstance(pictures, list) or not pictures:
        raise UsageError(
            f"{where}: image is {pictures!r:.60}, not a list of pictures", "docs/data.md describes the layout"
        )
    picture, other = str(pictures[0]), str(detection.get("img_path"))
    if (
        picture.rsplit("/", 1)[-1] != other.rsplit("/", 1)[-1]
    ):  # visual7w is cot/v7w in one file, cot/visual7w in the other
        raise UsageError(
            f"{where}: picture {picture!r}, in the detection file {other!r}", "both files must list the same rows"
        )
    return Document(where, {**chain, "det": detection})


def sample(row: Row, task: str) -> CoTSample:
    """The sample of one chain. Raises KeyError, TypeError or ValueError for a malformed row."""
    human, chain_box, _, answer = (text(turn, "value") for turn in row["conversations"])
    question = human.removeprefix("<image>\n").removesuffix(P_BOX)
    if f"<image>\n{question}{P_BOX}" != human:
        raise ValueError("the first turn is not '<image>', question and the sentence that asks for a box")
    picture, detection = row["image"][0], row["det"]
    number = whole_number(row, "question_id")
    return CoTSample(
        id=str(number),
        task=task,
        kind="qa",
        question=question,
        size=size(detection),
        box=box(detection["bbox"]),
        answers=(answer,),
        cluster=picture,
        meta={"picture": picture, "question_id": number, "chain_box": chain_box},
    )
