"""A point in the place of a box: what models say when they are asked where to click."""

from __future__ import annotations

import re

from visrl.core.boxes import PIXEL, Box, Frame, Size
from visrl.core.final_answer import final_answer
from visrl.core.types import Unparsed

_NUMBER = r"(-?\d{1,7}(?:\.\d{1,9})?)"
_PAIR = re.compile(rf"[\[(]\s{{0,4}}{_NUMBER}\s{{0,4}},\s{{0,4}}{_NUMBER}\s{{0,4}}[\])]")
_NAMED = re.compile(rf"\bx\s{{0,2}}=\s{{0,2}}{_NUMBER}\s{{0,2}},\s{{0,4}}y\s{{0,2}}=\s{{0,2}}{_NUMBER}")


def read_point(text: str, frame: Frame, size: Size) -> Box | Unparsed:
    """The one point of an answer, ``[x, y]``, ``(x, y)`` or ``x=…, y=…`` in units of ``frame``, as an empty box in pixels at that
    place: its centre is the point. Several different points, like none, are unparsed.
    """
    answer = final_answer(text)
    if isinstance(answer, Unparsed):
        return answer
    found = {(float(x), float(y)) for pattern in (_PAIR, _NAMED) for x, y in pattern.findall(answer)}
    if len(found) != 1:
        return Unparsed("no point" if not found else "several points")
    x, y = found.pop()
    return Box(x, y, x, y, frame).converted(PIXEL, size) or Unparsed("a number is too large")
