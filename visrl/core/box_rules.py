"""Other people's rules for reading a box, under their names, so that their numbers can be made again here.

``vlm_r1`` is proven on its authors' own predictions (tests/test_box_rules.py). ``lmms_eval`` and ``vlmevalkit`` are offered to
show what those tools would print: one tries two frames and keeps the one nearer to the *true* box, the other *guesses* the frame
from the size of the numbers. Numbers made with them are never comparable. Each departs from its source in one thing: what
holds no box is Unparsed here and a box of zeros there, which is wrong in both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from visrl.core.box_syntax import BLANKS, READ, Numbers, as_numbers
from visrl.core.boxes import PIXEL, Box, Frame, Size, grid, iou
from visrl.core.types import Unparsed

UNCOMPARABLE = {
    "lmms_eval": "parser lmms_eval reads the truth: of two frames the one nearer to the true box counts",
    "vlmevalkit": "parser vlmevalkit guesses the frame from the size of the numbers",
}
"""Parser -> why a number made with it cannot be compared."""

_FOUR_WHOLE = re.compile(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]")


def vlm_r1(text: str) -> Numbers | Unparsed:
    """The last ``[int, int, int, int]`` between the first ``{`` and the last ``}`` of the first ``<answer>…</answer>``.

    VLM-R1's evaluation of its trained models (``{.*[…].*}``, greedy): whether that is JSON does not matter.
    """
    start = text.find("<answer>")
    end = text.find("</answer>", start) if start >= 0 else -1
    if end < 0:
        return Unparsed("vlm_r1: no <answer>…</answer>")
    answer = text[start + len("<answer>") : end][:READ]
    opening, closing = answer.find("{"), answer.rfind("}")
    inside = answer[opening:closing] if 0 <= opening < closing else ""
    found = list(_FOUR_WHOLE.finditer(inside))
    return as_numbers(found[-1]) if found else Unparsed("vlm_r1: no {…[int, int, int, int]…} in <answer>")


_S = rf"\s{{0,{BLANKS}}}"
_PLAIN = re.compile(r"-?\d+(?:\.\d+)?")
_GAP = re.compile(r"\s*,\s*|\s+")
_LMMS_KEYS = ("bbox_2d", "bbox", "box", "coordinates", "coord", "location", "position")
_DEEP = 50


def lmms_eval_boxes(text: str) -> list[Numbers]:
    """Every box that lmms-eval's ``refcoco_grounding`` finds: in the JSON of the output, else any four numbers in a row."""
    text = text[:READ]
    for value in _json_values(text):
        return list(_flattened(value, 0)) or list(_fours_in_a_row(text))
    return list(_fours_in_a_row(text))


def _fours_in_a_row(text: str) -> Iterator[Numbers]:
    """Every four numbers with only a comma or blanks between them. Number by number: one pattern for four would be cubic."""
    run: list[float] = []
    end = 0
    for match in _PLAIN.finditer(text):
        if not _GAP.fullmatch(text, end, match.start()):
            run.clear()
        run.append(float(match.group()))
        end = match.end()
        if len(run) == 4:
            yield tuple(run)
            run.clear()


def _json_values(text: str) -> Iterator[Any]:
    """What parses as JSON, in lmms-eval's order: a fenced block, the whole, the outermost list, the outermost object."""
    text = text.strip()
    fence = text.find("```")
    closing = text.find("```", fence + 3) if fence >= 0 else -1
    if closing > 0:
        inside = text[fence + 3 : closing]
        yield from _loaded(inside[4:] if inside[:4].lower() == "json" else inside)
    yield from _loaded(text)
    for left, right in ("[]", "{}"):
        start, end = text.find(left), text.rfind(right)
        if 0 <= start < end:
            yield from _loaded(text[start : end + 1])


def _loaded(text: str) -> Iterator[Any]:
    try:
        yield json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return


def _flattened(value: Any, depth: int) -> Iterator[Numbers]:
    if depth > _DEEP:
        return
    if isinstance(value, dict):
        boxes = (numbers for key in _LMMS_KEYS if (numbers := _four(value.get(key))) is not None)
        own = next(boxes, None)
        if own is not None:
            yield own
            return
        value = list(value.values())
    elif (own := _four(value)) is not None:
        yield own
        return
    if isinstance(value, list):
        for item in value:
            yield from _flattened(item, depth + 1)


def _four(value: Any) -> Numbers | None:
    if isinstance(value, list) and len(value) == 4 and all(isinstance(number, float) for number in value):
        return tuple(value)
    return None


def lmms_eval(text: str, size: Size, truth: Box | None) -> Box | Unparsed:
    """The box that overlaps ``truth`` (pixels) most, of all boxes in the output, each read as pixels and as thousandths."""
    if truth is None:
        return Unparsed("lmms_eval: this rule needs the true box")
    boxes = [
        box
        for numbers in lmms_eval_boxes(text)
        for frame in (PIXEL, grid(1000))
        if (box := in_pixels(numbers, frame, size)) is not None
    ]
    return max(boxes, key=lambda box: iou(box, truth)) if boxes else Unparsed("lmms_eval: no four numbers")


_EXPONENT = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_BETWEEN = rf"(?:{_S},{_S}|\s{{1,{BLANKS}}})"
_LISTED = re.compile(rf"\[{_S}({_EXPONENT}){_BETWEEN}({_EXPONENT}){_BETWEEN}({_EXPONENT}){_BETWEEN}({_EXPONENT}){_S}\]")
_SINGLE = re.compile(_EXPONENT)


def vlmevalkit(text: str, size: Size) -> Box | Unparsed:
    """VLMEvalKit's RefCOCO: the first list of four numbers, else the first four numbers; their frame guessed by their size.

    Largest magnitude up to 1.5: fractions; up to 1,000: thousandths; else pixels. Cut at the picture, turned round if reversed.
    """
    text = text[:READ]
    listed = _LISTED.search(text)
    loose = islice(_SINGLE.finditer(text), 4)
    numbers = as_numbers(listed) if listed else tuple(float(match.group()) for match in loose)
    if len(numbers) < 4:
        return Unparsed("vlmevalkit: no four numbers")
    largest = max(map(abs, numbers))
    frame = grid(1) if largest <= 1.5 else grid(1000) if largest <= 1000 else PIXEL
    box = in_pixels(numbers, frame, size)
    if box is None:
        return Unparsed("a number is too large")
    box = box.clipped(size)
    (x1, x2), (y1, y2) = sorted((box.x1, box.x2)), sorted((box.y1, box.y2))
    return Box(x1, y1, x2, y2)


def in_pixels(numbers: Numbers, frame: Frame, size: Size) -> Box | None:
    """Four numbers of a frame as a box in pixels of a picture of ``size``; None where one is not finite, or not any more."""
    if not all(map(math.isfinite, numbers)):
        return None
    x1, y1, x2, y2 = numbers
    return Box(x1, y1, x2, y2, frame).converted(PIXEL, size)
