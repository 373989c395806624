"""Model text -> Box or Unparsed. Never raises, never invents a box, and is linear in the length of the text.

A :class:`BoxFormat` is a *syntax* (how four numbers are written), a *frame* (what they measure: declared, never guessed
from their magnitude) and a *mode* (where in the text they may stand). The parser is part of the metric, so records name
all three. Every format round-trips: ``parse(write(box, size), size)`` is the box to within half a unit of its grid.

Modes: ``strict`` reads only inside the last ``<answer>…</answer>``, only a JSON value there, and its last box. ``lenient``
reads the last ``<answer>`` if there is one, else what follows ``</think>``, else everything, and the first box there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from visrl.core.boxes import PIXEL, SQUARE, UNIT, Box, Frame, Size, grid
from visrl.core.types import Unparsed

Mode = Literal["lenient", "strict"]
Numbers = tuple[float, ...]

# `\d+(?:\.\d*)?` and not `\d+\.?\d*`: the second backtracks quadratically on a megabyte of digits
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_FOUR = rf"({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})"
_BRACKETED = re.compile(rf"\[\s*{_FOUR}\s*\]")
_ANY_LIST = re.compile(r"\[[\s\d.,eE+-]{1,400}\]")
_PAIRS = re.compile(rf"\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)\s*,?\s*\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)")
_SEPARATOR = r"[\s,\[\]]{1,8}"
_TAGGED = re.compile(
    rf"<box>[\s\[]{{0,8}}({_NUMBER}){_SEPARATOR}({_NUMBER}){_SEPARATOR}({_NUMBER}){_SEPARATOR}({_NUMBER})[\s\]]{{0,8}}</box>"
)


class Syntax(Protocol):
    """How four numbers stand in a text. ``stop`` is the text that ends a box, so that generation can end there."""

    @property
    def name(self) -> str: ...

    @property
    def stop(self) -> str: ...

    def write(self, numbers: Numbers) -> str: ...

    def find(self, text: str) -> Numbers | Unparsed:
        """The first four numbers so written, in x1 y1 x2 y2 order."""
        ...


def _decimal(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if digits else str(round(value))


def _first(pattern: re.Pattern[str], text: str, otherwise: str) -> Numbers | Unparsed:
    match = pattern.search(text)
    return tuple(float(number) for number in match.groups()) if match else Unparsed(otherwise)


@dataclass(frozen=True, slots=True)
class Brackets:
    """``[0.100, 0.200, 0.300, 0.400]``: VisCoT and VisRL write three decimals (get_bbox_str, convert_to_3f)."""

    digits: int = 3
    name: str = "brackets"
    stop: str = "]"

    def write(self, numbers: Numbers) -> str:
        return "[" + ", ".join(_decimal(value, self.digits) for value in numbers) + "]"

    def find(self, text: str) -> Numbers | Unparsed:
        return _first(_BRACKETED, text, _why_no_list(text))


def _why_no_list(text: str) -> str:
    if not text.strip():
        return "empty output"
    found = _ANY_LIST.search(text)
    if found is None:
        return "no list of four numbers"
    return f"a list of {found.group().count(',') + 1} numbers, not four"


@dataclass(frozen=True, slots=True)
class JsonObject:
    """``{"bbox_2d": [16, 135, 140, 468]}``, bare or in a list or a fenced block. Reading falls back to any list of four."""

    key: str = "bbox_2d"
    digits: int = 0
    name: str = "json"
    stop: str = "]"

    def write(self, numbers: Numbers) -> str:
        return f'{{"{self.key}": {Brackets(self.digits).write(numbers)}}}'

    def find(self, text: str) -> Numbers | Unparsed:
        return Brackets().find(text)


@dataclass(frozen=True, slots=True)
class PointPairs:
    """``<|box_start|>(101,202),(303,404)<|box_end|>``: Qwen2-VL. The tokens may be missing from decoded text."""

    name: str = "point_pairs"
    stop: str = "<|box_end|>"

    def write(self, numbers: Numbers) -> str:
        x1, y1, x2, y2 = (round(value) for value in numbers)
        return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"

    def find(self, text: str) -> Numbers | Unparsed:
        return _first(_PAIRS, text, "no pair of points (x1,y1),(x2,y2)" if text.strip() else "empty output")


@dataclass(frozen=True, slots=True)
class BoxTag:
    """``<box>101 202 303 404</box>`` (MiniCPM) or, with ``nested``, ``<box>[[101, 202, 303, 404]]</box>`` (InternVL)."""

    nested: bool = False
    name: str = "box_tag"
    stop: str = "</box>"

    def write(self, numbers: Numbers) -> str:
        values = [str(round(value)) for value in numbers]
        return f"<box>[[{', '.join(values)}]]</box>" if self.nested else f"<box>{' '.join(values)}</box>"

    def find(self, text: str) -> Numbers | Unparsed:
        return _first(_TAGGED, text, "no <box>…</box> of four numbers" if text.strip() else "empty output")


@dataclass(frozen=True, slots=True)
class LocTokens:
    """Four location tokens, ``<loc0256><loc0100>…``: PaliGemma's order is y1 x1 y2 x2 (big_vision), 1024 bins, bin i = i/1024."""

    bins: int = 1024
    order: Literal["xyxy", "yxyx"] = "yxyx"
    width: int = 4
    name: str = "loc_tokens"
    stop: str = ""

    def write(self, numbers: Numbers) -> str:
        # the last bin is bins - 1: an edge at the very right of the picture loses up to a whole unit
        tokens = [f"<loc{min(max(round(value), 0), self.bins - 1):0{self.width}d}>" for value in numbers]
        return "".join(tokens[i] for i in self._permutation())

    def find(self, text: str) -> Numbers | Unparsed:
        found = re.search("".join([rf"<loc(\d{{{self.width}}})>\s?"] * 4), text)
        if found is None:
            return Unparsed("no four location tokens" if text.strip() else "empty output")
        values = [float(group) for group in found.groups()]
        if max(values) >= self.bins:
            return Unparsed(f"location {max(values):.0f} is beyond the last of {self.bins} bins")
        return tuple(values[i] for i in self._permutation())

    def _permutation(self) -> tuple[int, int, int, int]:
        return (1, 0, 3, 2) if self.order == "yxyx" else (0, 1, 2, 3)


@dataclass(frozen=True, slots=True)
class BoxFormat:
    """Syntax, frame and mode together: what a family writes, and how it is read back.

    frame: a Frame, or a function of the picture's (width, height) for models that measure in the resized picture.
    """

    name: str
    syntax: Syntax
    frame: Frame | Callable[[Size], Frame]
    mode: Mode = "lenient"

    def frame_for(self, size: Size) -> Frame:
        return self.frame if isinstance(self.frame, Frame) else self.frame(size)

    def write(self, box: Box, size: Size) -> str:
        """The text a model is trained to write for ``box`` (any frame) in a picture of ``size`` (width, height)."""
        return self.syntax.write(box.to(self.frame_for(size), size).xyxy)

    def parse(self, text: str, size: Size) -> Box | Unparsed:
        """The box in pixels of the original picture of ``size``, or why there is none. Never raises."""
        numbers = read_strictly(text) if self.mode == "strict" else self.syntax.find(scope(text))
        if isinstance(numbers, Unparsed):
            return numbers
        if not all(map(math.isfinite, numbers)):
            return Unparsed("a number is too large")
        x1, y1, x2, y2 = numbers
        box = Box(x1, y1, x2, y2, self.frame_for(size)).to_pixel(size)
        return Unparsed("empty box: x2 <= x1 or y2 <= y1") if box.is_empty else box

    def with_mode(self, mode: Mode) -> BoxFormat:
        return replace(self, mode=mode)

    def describe(self) -> dict[str, str]:
        """For records: which parser made the number."""
        frame = self.frame.name if isinstance(self.frame, Frame) else "resized"
        return {"name": self.name, "syntax": self.syntax.name, "frame": frame, "mode": self.mode}


def answer_block(text: str) -> str | None:
    """What stands inside the last complete ``<answer>…</answer>``, or None."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end] if start >= 0 else None


def scope(text: str) -> str:
    """The part of an output that lenient reading looks at: a box in the reasoning must not win over the answer's."""
    answer = answer_block(text)
    if answer is not None:
        return answer
    _, thought, rest = text.rpartition("</think>")
    return rest if thought else text


def read_strictly(text: str) -> Numbers | Unparsed:
    """The *last* box of the JSON inside ``<answer>…</answer>``: four numbers under ``bbox_2d`` or ``bbox``, or a bare list.

    Last, because VLM-R1's pattern is greedy: of several boxes its published accuracies count the final one.
    """
    answer = answer_block(text)
    if answer is None:
        return Unparsed("strict: no <answer>…</answer>")
    try:
        value = json.loads(unfenced(answer), parse_int=float)
    except (ValueError, RecursionError):  # RecursionError: a megabyte of "["
        return Unparsed("strict: <answer> does not hold JSON")
    boxes = list(_boxes_in(value))
    return boxes[-1] if boxes else Unparsed("strict: no list of four numbers in the JSON")


def unfenced(text: str) -> str:
    """Text without Markdown fences: opened by ```json or ```, closed by ``` or, as some models do, by ```json again."""
    text = text.strip()
    if not text.startswith("```"):
        return text
    text = text.removeprefix("```").removeprefix("json")
    return text.rstrip().removesuffix("json").rstrip("`").strip()


def _boxes_in(value: Any) -> Iterator[Numbers]:
    """Boxes of a JSON value, in order, one level of list and object deep."""
    items = value if isinstance(value, list) and not _is_box(value) else [value]
    for item in items:
        if isinstance(item, dict):
            item = item.get("bbox_2d", item.get("bbox"))
        if _is_box(item):
            yield tuple(float(number) for number in item)


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(number, float) and math.isfinite(number) for number in value)
    )


FORMATS: dict[str, BoxFormat] = {
    fmt.name: fmt
    for fmt in (
        BoxFormat("padded_square_3dp", Brackets(3), SQUARE),  # VisCoT, and the text format of all the paper's models
        BoxFormat("wh_norm_3dp", Brackets(3), UNIT),
        BoxFormat("json_pixel", JsonObject(), PIXEL),
        BoxFormat("json_1000", JsonObject(), grid(1000)),
        BoxFormat("point_pairs_1000", PointPairs(), grid(1000)),
        BoxFormat("box_tag_1000", BoxTag(), grid(1000)),
        BoxFormat("box_tag_nested_1000", BoxTag(nested=True), grid(1000)),
        BoxFormat("loc_1024", LocTokens(), grid(1024)),
    )
}
"""Formats that need no model to be known. Families that measure in the resized picture make their own."""
