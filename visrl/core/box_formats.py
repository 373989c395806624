"""Model text -> Box or Unparsed. Never raises, never invents a box, and is linear in the length of the text.

A :class:`BoxFormat` is a *syntax* (how four numbers are written), a *frame* (what they measure: declared, never guessed
from their magnitude) and a *mode* (which rule reads them). The parser is part of the metric, so records name all three.
Every format round-trips: ``parse(write(box, size), size)`` is the box to within half a unit of its grid.

Modes (``parser=…``):
``lenient``     the first box in the declared syntax anywhere in the final answer (final_answer); several different ones in
                prose, and a thought that never ends, are unparsed
``strict``      the final answer must be boxes in the declared syntax and nothing else; the last of several
``vlm_r1``      VLM-R1's rule: the last ``{…[int, int, int, int]…}`` inside ``<answer>``, JSON or not, else no box
``lmms_eval``   lmms-eval's: of all boxes, as pixels and as thousandths, the one nearest to the true box. *Reads the truth*
``vlmevalkit``  VLMEvalKit's: the frame follows from the size of the numbers. *Guesses*
The last two ignore the declared frame, and their numbers are never comparable (box_rules.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from visrl.core.box_rules import UNCOMPARABLE, in_pixels, lmms_eval, vlm_r1, vlmevalkit
from visrl.core.box_syntax import (
    BoxTag,
    Brackets,
    JsonObject,
    LocTokens,
    Numbers,
    PointPairs,
    Syntax,
    as_typed,
    unfenced,
)
from visrl.core.boxes import PIXEL, SQUARE, UNIT, Box, Frame, Size, grid, resized, smart_resized
from visrl.core.final_answer import final_answer
from visrl.core.types import Unparsed
from visrl.errors import UsageError, nearest

__all__ = [
    "FORMATS",
    "MODES",
    "UNCOMPARABLE",
    "BoxFormat",
    "BoxTag",
    "Brackets",
    "JsonObject",
    "LocTokens",
    "Mode",
    "Numbers",
    "PointPairs",
    "Syntax",
    "format_named",
    "parser_named",
    "resized_format",
    "unfenced",
]

Mode = Literal["lenient", "strict", "vlm_r1", "lmms_eval", "vlmevalkit"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True, slots=True)
class BoxFormat:
    """Syntax, frame and mode together: what a family writes, and how it is read back.

    frame: a Frame, or a function of the picture's (width, height) for models that measure in the resized picture. It raises
    ValueError for a picture that it cannot resize.
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

    def parse(self, text: str, size: Size, truth: Box | None = None) -> Box | Unparsed:
        """The one box in pixels of the original picture of ``size``, or why there is none. Never raises.

        Of several boxes ``lenient`` takes the first, ``strict`` and ``vlm_r1`` the last. truth: the true box in pixels, read by
        ``lmms_eval`` only.
        """
        if self.mode == "lmms_eval":
            return _full(lmms_eval(text, size, truth))
        if self.mode == "vlmevalkit":
            return _full(vlmevalkit(text, size))
        found = self.numbers(text)
        if isinstance(found, Unparsed):
            return found
        return self._box(found[0] if self.mode == "lenient" else found[-1], size)

    def ends_with_box(self, text: str) -> bool:
        """Whether a text that ends in the syntax's ``stop`` holds a box there, outside any thought, so that nothing after it can
        change what is read. Rules other than ``lenient`` read the whole output.
        """
        return self.mode == "lenient" and not isinstance(self.numbers(text), Unparsed)

    def parse_all(self, text: str, size: Size) -> list[Box] | Unparsed:
        """Every box of an output in pixels, in order, or why there is none: for benchmarks with several true boxes.

        Boxes that are empty or overflow are left out. Under ``vlm_r1`` and the guessing rules there is one at most.
        """
        if self.mode in UNCOMPARABLE:
            one = self.parse(text, size)
            return one if isinstance(one, Unparsed) else [one]
        found = self.numbers(text)
        if isinstance(found, Unparsed):
            return found
        boxes = [self._box(numbers, size) for numbers in found]
        kept = [box for box in boxes if isinstance(box, Box)]
        return kept or next(box for box in boxes if isinstance(box, Unparsed))

    def numbers(self, text: str) -> list[Numbers] | Unparsed:
        """The boxes as they are written, x1 y1 x2 y2 in units of the frame, by the mode's rule: not a guessing one."""
        if self.mode == "vlm_r1":
            one = vlm_r1(text)
            return one if isinstance(one, Unparsed) else [one]
        answer = final_answer(text)
        if isinstance(answer, Unparsed):
            return answer
        if self.mode == "strict":
            return self.syntax.read_whole(answer)
        found = self.syntax.find(answer)
        if isinstance(found, Unparsed) and (typed := as_typed(answer)) != answer:
            otherwise = self.syntax.find(typed)
            return found if isinstance(otherwise, Unparsed) else otherwise
        return found

    def _box(self, numbers: Numbers, size: Size) -> Box | Unparsed:
        try:
            frame = self.frame_for(size)
        except ValueError as error:  # a picture that the model's processor does not take
            return Unparsed(str(error))
        return _full(in_pixels(numbers, frame, size))

    def with_mode(self, mode: Mode) -> BoxFormat:
        return replace(self, mode=mode)

    def describe(self) -> dict[str, str]:
        """For records: which parser made the number."""
        frame = self.frame.name if isinstance(self.frame, Frame) else "resized"
        return {"name": self.name, "syntax": self.syntax.name, "frame": frame, "mode": self.mode}


def _full(box: Box | Unparsed | None) -> Box | Unparsed:
    """A box that has an area, or why not."""
    if box is None:
        return Unparsed("a number is too large")
    if isinstance(box, Box) and box.is_empty:
        return Unparsed("empty box: x2 <= x1 or y2 <= y1")
    return box


FORMATS: dict[str, BoxFormat] = {
    fmt.name: fmt
    for fmt in (
        BoxFormat("padded_square_3dp", Brackets(3), SQUARE),  # VisCoT, and the text format of all the paper's models
        BoxFormat("wh_norm_3dp", Brackets(3), UNIT),
        BoxFormat("json_pixel", JsonObject(), PIXEL),
        BoxFormat("json_1000", JsonObject(), grid(1000)),
        BoxFormat("json_unit", JsonObject(digits=3), UNIT),
        BoxFormat("json_1000_yx", JsonObject("box_2d", order="yxyx"), grid(1000)),  # Gemini: [ymin, xmin, ymax, xmax]
        BoxFormat("point_pairs_1000", PointPairs(), grid(1000)),
        BoxFormat("box_tag_1000", BoxTag(), grid(1000)),
        BoxFormat("box_tag_nested_1000", BoxTag(nested=True), grid(1000)),
        BoxFormat("loc_1024", LocTokens(), grid(1024)),
        BoxFormat("brackets_1024", Brackets(0), grid(1024)),
    )
}
"""Formats that need no more than their name. ``json_resized`` needs the resized size, or the limits it follows from."""
RESIZED = "json_resized"
QWEN_LIMITS = (28, 56 * 56, 14 * 14 * 4 * 16384)
"""Factor of the sides, least and most pixels of Qwen2.5-VL's processor where nobody sets them."""


def resized_format(factor: int, min_pixels: int, max_pixels: int) -> BoxFormat:
    """Boxes in pixels of the picture as Qwen's processors resize it: sides multiples of ``factor``, area within limits."""
    return BoxFormat(RESIZED, JsonObject(), partial(_resized_frame, factor, min_pixels, max_pixels))


def _resized_frame(factor: int, min_pixels: int, max_pixels: int, size: Size) -> Frame:
    return resized(smart_resized(size, factor, min_pixels, max_pixels))


def format_named(name: str, *, min_pixels: str = "", max_pixels: str = "", resized_to: str = "") -> BoxFormat:
    """The format a user names. ``json_resized``: Qwen2.5-VL's; every picture's size as the model saw it is ``resized_to``
    (``1400x700``), or is computed from ``min_pixels`` and ``max_pixels``.

    Raises UsageError for an unknown name, for limits that are no numbers, and for limits given to a format that has none.
    """
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels, "resized": resized_to}
    if name == RESIZED:
        if resized_to:
            return BoxFormat(RESIZED, JsonObject(), resized(_size(resized_to)))
        factor, least, most = QWEN_LIMITS
        least, most = _positive(min_pixels, least), _positive(max_pixels, most)
        if least > most:
            raise UsageError(f"min_pixels={least} is more than max_pixels={most}", "for example max_pixels=1003520")
        return resized_format(factor, least, most)
    if name not in FORMATS:
        raise UsageError(f"unknown box format {name!r}", nearest(name, [*FORMATS, RESIZED]))
    if given := [limit for limit, value in limits.items() if value]:
        raise UsageError(
            f"box format {name} has no {', '.join(given)}", f"{RESIZED} is the format that uses the resized picture"
        )
    return FORMATS[name]


def _size(text: str) -> Size:
    wide, _, high = text.partition("x")
    return _positive(wide, 0), _positive(high, 0)


def _positive(text: str, otherwise: int) -> int:
    value = int(text) if text.isdecimal() and len(text) < 10 else 0 if text else otherwise
    if value < 1:
        raise UsageError(f"{text!r} is not a number of pixels", "for example max_pixels=1003520 or resized=1400x700")
    return value


def parser_named(name: str) -> Mode:
    """The mode a user names. Raises UsageError for an unknown one."""
    for mode in MODES:
        if mode == name:
            return mode
    raise UsageError(f"unknown parser {name!r}", nearest(name, MODES))
