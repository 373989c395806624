"""The turns of a protocol of several looks, read: does the model look, and where, or does it answer?

Never raises and never invents a box: a call that cannot be carried out is a :class:`Fault` of one of :data:`FAULTS`, which the
model is told in words and records count. A call inside a thought is none. Of a call and an answer in one turn the first counts,
and what follows it is not read: a model that goes on behind its call makes up what the tool will show.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from visrl.core.boxes import PIXEL, Box, Frame, Size
from visrl.core.final_answer import outside_thoughts
from visrl.core.json_files import decode_foreign
from visrl.core.looking.rules import Call, Rules

FaultKind = Literal[
    "unclosed",
    "not_json",
    "not_an_object",
    "unknown_tool",
    "no_box",
    "not_four_numbers",
    "unknown_picture",
    "degenerate",
    "outside",
]
FAULTS: Mapping[FaultKind, str] = {
    "unclosed": "the call is not closed",
    "not_json": "the call is not JSON",
    "not_an_object": "the call is not an object with a name and arguments",
    "unknown_tool": "there is no such tool",
    "no_box": "it names no region",
    "not_four_numbers": "the region is not four numbers x1, y1, x2, y2",
    "unknown_picture": "it names a picture that was not shown",
    "degenerate": "the region has no area, or is far too narrow: x1 < x2 and y1 < y2",
    "outside": "the region lies outside the picture",
}
"""Every way a call can be wrong, and what the model is told."""
Numbers = tuple[float, float, float, float]
_ANSWER = re.compile(r"<\s{0,4}answer\s{0,4}>", re.IGNORECASE)
_OBSERVATION = re.compile(r"\s*observation[_ ]?(\d{1,3})\s*", re.IGNORECASE)
_SHORT = 200  # characters of a label that are kept


@dataclass(frozen=True, slots=True)
class Asked:
    """A call: four numbers as they are written, in units of the protocol's frame, and the picture in which they lie (0: the
    original, 1: the first crop, …; None: as the protocol says)."""

    numbers: Numbers
    source: int | None = None
    label: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """A call that cannot be carried out."""

    kind: FaultKind

    @property
    def text(self) -> str:
        return FAULTS[self.kind]


@dataclass(frozen=True, slots=True)
class View:
    """A picture that was shown: which ``region`` of the original, x1, y1, x2, y2 in pixels, at which ``size`` (width, height)."""

    region: tuple[int, int, int, int]
    size: Size


def read_call(text: str, call: Call) -> Asked | Fault | None:
    """The call of a turn, why it cannot be carried out, or None for a turn that answers."""
    said = outside_thoughts(text)
    start = said.find(call.opening)
    answers = _ANSWER.search(said)
    if start < 0 or (answers is not None and answers.start() < start):
        return None
    inner, closing, _ = said[start + len(call.opening) :].partition(call.closing)
    return _read_json(inner, call) if closing else Fault("unclosed")


def ends_turn(text: str, call: Call) -> bool:
    """Whether a text that ends in a call's or an answer's closing tag is over: nothing after it would be read."""
    said = outside_thoughts(text)
    start, answers = said.find(call.opening), _ANSWER.search(said)
    return (start >= 0 and said.endswith(call.closing)) or (answers is not None and said.endswith("</answer>"))


def _read_json(text: str, call: Call) -> Asked | Fault:
    try:
        value = decode_foreign(_unfenced(text))
    except (ValueError, OverflowError):
        return Fault("not_json")
    if not isinstance(value, dict):
        return Fault("not_an_object")
    arguments = value
    if call.tool:
        arguments = _arguments(value)
        if not isinstance(value.get("name"), str) or not isinstance(arguments, dict):
            return Fault("not_an_object")
        if value["name"] != call.tool:
            return Fault("unknown_tool")
    return _asked(arguments, call)


def _unfenced(text: str) -> str:
    """Without the fence that some models put around JSON."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and len(text) > 6:
        return text[3:-3].removeprefix("json").strip()
    return text


def _arguments(value: Mapping[str, Any]) -> Any:
    """The arguments of a call; servers hand them on as JSON within a text (OpenAI's ``function.arguments``)."""
    arguments = value.get("arguments")
    if not isinstance(arguments, str):
        return arguments
    try:
        return decode_foreign(arguments)
    except (ValueError, OverflowError):
        return None


def _asked(arguments: Mapping[str, Any], call: Call) -> Asked | Fault:
    if arguments.get(call.box) is None:
        return Fault("no_box")
    numbers = _four(arguments[call.box])
    if numbers is None:
        return Fault("not_four_numbers")
    source = _source(arguments.get(call.source)) if call.source else None
    if source == _NOWHERE:
        return Fault("unknown_picture")
    label = arguments.get(call.label)
    return Asked(numbers, source, label[:_SHORT] if isinstance(label, str) else "")


def _four(value: Any) -> Numbers | None:
    """Four finite numbers; a text is no number, nor is true."""
    if not isinstance(value, list) or len(value) != 4 or not {*map(type, value)} <= {int, float}:
        return None
    try:
        x1, y1, x2, y2 = map(float, value)
    except OverflowError:  # a whole number of over 300 digits
        return None
    return (x1, y1, x2, y2) if all(map(math.isfinite, (x1, y1, x2, y2))) else None


_NOWHERE = -1


def _source(value: Any) -> int | None:
    """Which picture a call names; ``_NOWHERE`` for what names none."""
    if value is None:
        return None
    if type(value) is int:
        return value if value >= 0 else _NOWHERE
    if isinstance(value, str):
        if value.strip().lower() in ("original_image", "original", "image"):
            return 0
        if found := _OBSERVATION.fullmatch(value):
            return int(found[1])
    return _NOWHERE


def call_text(name: str, arguments: str) -> str:
    """A server's own tool call as the text that ``zoom`` has it in. arguments: JSON, or whatever the model wrote in its place."""
    return f'{CALL.opening}{{"name": {json.dumps(name)}, "arguments": {arguments.strip() or "{}"}}}{CALL.closing}'


CALL = Call()


def viewed(asked: Asked, rules: Rules, shown: Sequence[View]) -> View | Fault:
    """The picture in which a call's numbers lie. shown: the original, then every crop."""
    if rules.coordinates == "original":
        return shown[0]
    if rules.coordinates == "last" or asked.source is None:
        return shown[-1] if rules.coordinates == "last" else shown[0]
    return shown[asked.source] if asked.source < len(shown) else Fault("unknown_picture")


def placed(numbers: Numbers, frame: Frame, view: View, max_ratio: float) -> Box | Fault:
    """Four numbers of a ``frame`` in a shown picture as a box in pixels of the original, cut at the edges of that picture."""
    box = Box(*numbers, frame).converted(PIXEL, view.size)
    if box is None:
        return Fault("outside")
    if box.is_empty:
        return Fault("degenerate")
    inside = box.clipped(view.size)
    if inside.is_empty:
        return Fault("outside")
    found = out_of(inside, view)
    wide, high = found.x2 - found.x1, found.y2 - found.y1
    if min(wide, high) <= 0 or max(wide, high) > max_ratio * max(1.0, min(wide, high)):
        return Fault("degenerate")
    return found


def out_of(box: Box, view: View) -> Box:
    """A box in pixels of a shown picture as a box in pixels of the original."""
    x1, y1, x2, y2 = view.region
    across, down = (x2 - x1) / view.size[0], (y2 - y1) / view.size[1]
    return Box(x1 + box.x1 * across, y1 + box.y1 * down, x1 + box.x2 * across, y1 + box.y2 * down)


def into(box: Box, view: View) -> Box:
    """The inverse of :func:`out_of`; may reach outside the picture."""
    x1, y1, x2, y2 = view.region
    across, down = view.size[0] / (x2 - x1), view.size[1] / (y2 - y1)
    return Box((box.x1 - x1) * across, (box.y1 - y1) * down, (box.x2 - x1) * across, (box.y2 - y1) * down)


def write_call(box: Box, frame: Frame, view: View, rules: Rules, number: int) -> str:
    """The call for a box in pixels of the original, as a model would write it. number: of the picture in which it lies."""
    call = rules.call
    numbers = into(box, view).to(frame, view.size).xyxy
    whole = frame.extent is None or max(frame.extent) > 1
    arguments: dict[str, Any] = {call.box: [round(n) if whole else round(n, 3) for n in numbers]}
    if rules.coordinates == "named":
        arguments[call.source] = "original_image" if number == 0 else f"observation_{number}"
    value = {"name": call.tool, "arguments": arguments} if call.tool else arguments
    return f"{call.opening}{json.dumps(value)}{call.closing}"
