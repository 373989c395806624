"""How four numbers are written in a text: one syntax per way that models do. Linear in the length of the text.

At most the first ``READ`` characters of a text are looked at, and at most ``BLANKS`` blanks stand between two numbers.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from visrl.core.outputs import FULL_WIDTH
from visrl.core.types import Unparsed

Numbers = tuple[float, ...]
Order = Literal["xyxy", "yxyx"]
READ = 100_000
BLANKS = 64

# `\d+(?:\.\d*)?` and not `\d+\.?\d*`: the second backtracks quadratically on a megabyte of digits
_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_S = rf"\s{{0,{BLANKS}}}"  # never `\s*`: two of them side by side are quadratic on blanks
_FOUR = rf"({_NUMBER}){_S},{_S}({_NUMBER}){_S},{_S}({_NUMBER}){_S},{_S}({_NUMBER})"
_BRACKETED = re.compile(rf"\[{_S}{_FOUR}{_S}\]")
_ANY_LIST = re.compile(r"\[[\s\d.,eE+-]{1,400}\]")
_POINT = rf"\({_S}({_NUMBER}){_S},{_S}({_NUMBER}){_S}\)"
_PAIRS = re.compile(rf"{_POINT}\s{{0,8}},?\s{{0,8}}{_POINT}")
_SEPARATOR = r"[\s,\[\]]{1,8}"
_TAGGED = re.compile(
    rf"<box>[\s\[]{{0,8}}({_NUMBER}){_SEPARATOR}({_NUMBER}){_SEPARATOR}({_NUMBER}){_SEPARATOR}({_NUMBER})[\s\]]{{0,8}}</box>"
)
_SEVERAL = re.compile(r"<box>[\s\d.,eE+\[\]-]{1,4000}</box>")
_SINGLE = re.compile(_NUMBER)
_NEXT = re.compile(r"\][\s,]{1,8}\[")
_KEYED = re.compile(r'"\w{1,40}"\s{0,8}:\s{0,8}\[?\s{0,8}$')
_NEXT_BOX = re.compile(r"\s{0,8},\s{0,8}")
_BETWEEN = re.compile(r"[\s,;\[\]]*")
_LABEL = re.compile(
    r"<ref>[^<>]{0,200}</ref>|<\|object_ref_start\|>[^<>]{0,200}<\|object_ref_end\|>|<\|box_(?:start|end)\|>"
)  # what Qwen2-VL's and InternVL's tags say of a box, before it


_QUOTED = re.compile(rf"([\"']){_S}({_NUMBER}){_S}\1")
_ESCAPED = re.compile(r"\\(?:[nrt](?![A-Za-z])|(?=[\[\](){}]))")
_TYPED = FULL_WIDTH | {ord("、"): ","}


def as_typed(text: str) -> str:
    """Text as it is typed on an English keyboard: full-width signs, HTML's and a string's escapes, numbers in quotation marks."""
    text = _ESCAPED.sub(" ", html.unescape(text[:READ]).translate(_TYPED))
    return _QUOTED.sub(r" \2 ", text)


class Syntax(Protocol):
    """How four numbers stand in a text. ``stop`` is the text that ends a box, so that generation can end there."""

    @property
    def name(self) -> str: ...

    @property
    def stop(self) -> str: ...

    def write(self, numbers: Numbers) -> str:
        """The text of one box: four numbers in x1 y1 x2 y2 order."""
        ...

    def find(self, text: str) -> list[Numbers] | Unparsed:
        """All boxes so written anywhere in ``text``, in order, as x1 y1 x2 y2; Unparsed where there is none, or where prose
        names several different ones and does not say which it means.
        """
        ...

    def read_whole(self, text: str) -> list[Numbers] | Unparsed:
        """The boxes of a text that is this syntax and nothing else, a Markdown fence aside."""
        ...


def unfenced(text: str) -> str:
    """Text without Markdown fences: opened by ```json or ```, closed by ``` or, as some models do, by ```json again."""
    text = text.strip()
    if not text.startswith("```"):
        return text
    text = text.removeprefix("```").removeprefix("json")
    return text.rstrip().removesuffix("json").rstrip("`").strip()


def ordered(numbers: Numbers, order: Order) -> Numbers:
    """x1 y1 x2 y2 of four numbers in ``order``, or back: the exchange is its own inverse."""
    a, b, c, d = numbers
    return (b, a, d, c) if order == "yxyx" else (a, b, c, d)


def as_numbers(match: re.Match[str]) -> Numbers:
    return tuple(float(number) for number in match.groups())


def _apart(text: str) -> str:
    """Several boxes in one tag, as InternVL writes those of several objects, as one box per tag."""

    def split(tag: re.Match[str]) -> str:
        parts = _NEXT.split(tag.group())
        fours = all(len(_SINGLE.findall(part)) == 4 for part in parts)  # not the two corners of "[1, 2], [3, 4]"
        return "]]</box><box>[[".join(parts) if fours else tag.group()

    return _SEVERAL.sub(split, text)


def _decimal(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if digits else str(round(value))


def _none(text: str, otherwise: str) -> Unparsed:
    return Unparsed(otherwise if text.strip() else "empty output")


def _whole(pattern: re.Pattern[str], text: str, otherwise: str) -> list[Numbers] | Unparsed:
    """All matches of a text that consists of them, with blanks, commas and brackets between them at most."""
    text = unfenced(text[:READ])
    matches = list(pattern.finditer(text))
    edges = [0, *(edge for match in matches for edge in match.span()), len(text)]
    between = (text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    if matches and all(_BETWEEN.fullmatch(piece) for piece in between):
        return [as_numbers(match) for match in matches]
    return _none(text, otherwise)


@dataclass(frozen=True, slots=True)
class Brackets:
    """``[0.100, 0.200, 0.300, 0.400]``: VisCoT and VisRL write three decimals (get_bbox_str, convert_to_3f)."""

    digits: int = 3
    order: Order = "xyxy"
    name: str = "brackets"
    stop: str = "]"

    def write(self, numbers: Numbers) -> str:
        return "[" + ", ".join(_decimal(value, self.digits) for value in ordered(numbers, self.order)) + "]"

    def find(self, text: str) -> list[Numbers] | Unparsed:
        text = text[:READ]
        matches = list(_BRACKETED.finditer(text))
        if not matches:
            return Unparsed(_why_no_list(text))
        return _unless_in_prose([ordered(as_numbers(match), self.order) for match in matches], text, matches)

    def read_whole(self, text: str) -> list[Numbers] | Unparsed:
        found = _whole(_BRACKETED, text, "strict: not only lists of four numbers")
        return found if isinstance(found, Unparsed) else [ordered(numbers, self.order) for numbers in found]


def _why_no_list(text: str) -> str:
    if not text.strip():
        return "empty output"
    found = _ANY_LIST.search(text)
    if found is None:
        return "no list of four numbers"
    return f"a list of {found.group().count(',') + 1} numbers, not four"


def _unless_in_prose(found: list[Numbers], text: str, matches: list[re.Match[str]]) -> list[Numbers] | Unparsed:
    """The boxes of the matches, unless they differ and stand in sentences: which one is meant is not said."""
    if len(set(found)) > 1 and not _is_a_list(text, matches):
        return Unparsed("several different boxes in prose")
    return found


def _is_a_list(text: str, matches: list[re.Match[str]]) -> bool:
    """Whether several boxes stand there as a list (JSON, perhaps cut, or box after box) and not in sentences."""
    ends = [0, *(match.end() for match in matches)]
    before = [_LABEL.sub("", text[end : match.start()]) for end, match in zip(ends[:-1], matches, strict=True)]
    if all(_BETWEEN.fullmatch(piece) for piece in before[1:]) or all(_KEYED.search(piece[-100:]) for piece in before):
        return True
    return _json_value(text) is not None


def _json_value(text: str) -> Any:
    """The JSON value that a text is, a Markdown fence aside; None where it is not JSON."""
    try:
        return json.loads(unfenced(text), parse_int=float)
    except (ValueError, RecursionError):  # RecursionError: a megabyte of "["
        return None


@dataclass(frozen=True, slots=True)
class JsonObject:
    """``{"bbox_2d": [16, 135, 140, 468]}``, bare or in a list or a fenced block. ``find`` falls back to any list of four."""

    key: str = "bbox_2d"
    digits: int = 0
    order: Order = "xyxy"
    name: str = "json"
    stop: str = "]"

    def write(self, numbers: Numbers) -> str:
        return f'{{"{self.key}": {Brackets(self.digits, self.order).write(numbers)}}}'

    def find(self, text: str) -> list[Numbers] | Unparsed:
        matches = list(_BRACKETED.finditer(text[:READ]))
        keyed = re.compile(rf"[\"']{re.escape(self.key)}[\"']\s{{0,8}}:\s{{0,8}}\[?\s{{0,8}}$")
        own: list[re.Match[str]] = []
        for match in matches:
            goes_on = bool(own) and _NEXT_BOX.fullmatch(text, own[-1].end(), match.start())
            if goes_on or keyed.search(text[max(0, match.start() - 100) : match.start()]):
                own.append(match)
        if own and len(own) < len(matches):  # beside lists of four under other keys: "image_size"
            return _unless_in_prose([ordered(as_numbers(match), self.order) for match in own], text, own)
        return Brackets(self.digits, self.order).find(text)

    def read_whole(self, text: str) -> list[Numbers] | Unparsed:
        if len(text) > READ:
            return Unparsed(f"strict: more than {READ:,} characters")
        value = _json_value(text)
        if value is None:
            return _none(text, "strict: not JSON and nothing else")
        boxes = [ordered(numbers, self.order) for numbers in self._boxes_in(value)]
        return boxes or Unparsed(f'strict: no "{self.key}" of four numbers in the JSON')

    def _boxes_in(self, value: Any) -> Iterator[Numbers]:
        """Boxes of an object or a list of objects, in order."""
        for item in value if isinstance(value, list) else [value]:
            found = item.get(self.key) if isinstance(item, dict) else None
            if isinstance(found, list) and len(found) == 4 and all(isinstance(number, float) for number in found):
                yield tuple(found)


@dataclass(frozen=True, slots=True)
class PointPairs:
    """``<|box_start|>(101,202),(303,404)<|box_end|>``: Qwen2-VL. The tokens may be missing from decoded text."""

    name: str = "point_pairs"
    stop: str = "<|box_end|>"

    def write(self, numbers: Numbers) -> str:
        x1, y1, x2, y2 = (round(value) for value in numbers)
        return f"<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>"

    def find(self, text: str) -> list[Numbers] | Unparsed:
        text = text[:READ]
        matches = list(_PAIRS.finditer(text))
        found = _unless_in_prose([as_numbers(match) for match in matches], text, matches)
        return found or _none(text, "no pair of points (x1,y1),(x2,y2)")

    def read_whole(self, text: str) -> list[Numbers] | Unparsed:
        bare = text[:READ].replace("<|box_start|>", "").replace("<|box_end|>", "")
        return _whole(_PAIRS, bare, "strict: not only pairs of points (x1,y1),(x2,y2)")


@dataclass(frozen=True, slots=True)
class BoxTag:
    """``<box>101 202 303 404</box>`` (MiniCPM) or, with ``nested``, ``<box>[[101, 202, 303, 404]]</box>`` (InternVL)."""

    nested: bool = False
    name: str = "box_tag"
    stop: str = "</box>"

    def write(self, numbers: Numbers) -> str:
        values = [str(round(value)) for value in numbers]
        return f"<box>[[{', '.join(values)}]]</box>" if self.nested else f"<box>{' '.join(values)}</box>"

    def find(self, text: str) -> list[Numbers] | Unparsed:
        text = _apart(text[:READ])
        matches = list(_TAGGED.finditer(text))
        found = _unless_in_prose([as_numbers(match) for match in matches], text, matches)
        return found or _none(text, "no <box>…</box> of four numbers")

    def read_whole(self, text: str) -> list[Numbers] | Unparsed:
        return _whole(_TAGGED, _apart(text[:READ]), "strict: not only <box>…</box>")


@dataclass(frozen=True, slots=True)
class LocTokens:
    """Four location tokens, ``<loc0256><loc0100>…``: PaliGemma's order is y1 x1 y2 x2 (big_vision), 1024 bins, bin i = i/1024."""

    bins: int = 1024
    order: Order = "yxyx"
    width: int = 4
    name: str = "loc_tokens"
    stop: str = ""

    def write(self, numbers: Numbers) -> str:
        # the last bin is bins - 1: an edge at the very right of the picture loses up to a whole unit
        tokens = [f"<loc{min(max(round(value), 0), self.bins - 1):0{self.width}d}>" for value in numbers]
        return "".join(tokens[i] for i in self._permutation())

    def find(self, text: str) -> list[Numbers] | Unparsed:
        return self._checked([as_numbers(match) for match in self._pattern().finditer(text[:READ])], text)

    def read_whole(self, text: str) -> list[Numbers] | Unparsed:
        found = _whole(self._pattern(), text, "strict: not only location tokens")
        return found if isinstance(found, Unparsed) else self._checked(found, text)

    def _pattern(self) -> re.Pattern[str]:
        return re.compile("".join([rf"<loc(\d{{{self.width}}})>\s?"] * 4))

    def _checked(self, found: list[Numbers], text: str) -> list[Numbers] | Unparsed:
        """The boxes in x1 y1 x2 y2 order, if the first is within the bins."""
        if not found:
            return _none(text, "no four location tokens")
        if max(found[0]) >= self.bins:
            return Unparsed(f"location {max(found[0]):.0f} is beyond the last of {self.bins} bins")
        return [tuple(values[i] for i in self._permutation()) for values in found if max(values) < self.bins]

    def _permutation(self) -> tuple[int, int, int, int]:
        return (1, 0, 3, 2) if self.order == "yxyx" else (0, 1, 2, 3)
