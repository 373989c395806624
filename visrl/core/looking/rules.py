"""Protocols of several looks, as data: how a look is asked for, what its numbers measure, what comes back, what ends it.

The paper's protocols (core/prompts.py) are the special case of one look, asked for by a turn of its own, in the original picture.
Here the model decides: each of its turns either calls for a region (``Rules.ask``) or answers. A region comes back as a further
picture of the same conversation, a call that cannot be carried out comes back as a text that says why (calls.py reads
them). ``zoom`` is in our own words; a published prompt is written down as a YAML file (rollout/protocol_files.py).

Texts may hold ``{names}`` of :data:`NAMES`, which are filled in; everything else in braces stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from visrl.core.boxes import PIXEL, UNIT, Frame, Size, grid, resized, smart_resized
from visrl.core.crops import CropName

Ask = Literal["tool_call", "box_turn"]
Where = Literal["original", "last", "named"]
Unit = Literal["family", "pixel", "fraction", "thousandth", "resized"]
NAMES: Mapping[str, str] = {
    "question": "the question; of referring expressions, the sentence that asks for the box",
    "instruction": "how the benchmark wants the answer, for example its letter",
    "unit": "what the four numbers of a box measure, in words",
    "tool": "the tool's name",
    "box": "the name of the argument that holds the box",
    "picture": "where the crop stands in the text that comes back",
    "number": "which look this was, from 1",
    "left": "how many looks are left",
    "size": "of the crop as it is shown, width x height in pixels",
    "fault": "why a call could not be carried out",
}
_NAME = re.compile(r"\{(" + "|".join(NAMES) + r")\}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What an episode may use up. Whichever is reached first, the model is told, and its next turn is the last one.

    looks: calls, faulty ones included. new_tokens: generated in all turns together; 0: no limit but that of each turn.
    pictures: shown in all, the original included; 0: no limit.
    """

    looks: int = 6
    new_tokens: int = 0
    pictures: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """How a call is written: ``opening`` JSON ``closing``.

    tool: the call is ``{"name": tool, "arguments": {…}}``; "" where the JSON is the arguments alone. box: the argument with the
    four numbers, x1 y1 x2 y2. source: the argument that names a picture, under ``coordinates: named``: ``original_image``,
    ``observation_2``, or a number from 0.
    """

    opening: str = "<tool_call>"
    closing: str = "</tool_call>"
    tool: str = "image_zoom_in_tool"
    box: str = "bbox_2d"
    label: str = "label"
    source: str = "source"


@dataclass(frozen=True, slots=True)
class Shown:
    """What comes back for a region. crop: how it is cut. scale: of its sides; min_side: its shorter side is enlarged to at
    least so many pixels. max_ratio: a region longer than so many times its width is refused; processors refuse such pictures.
    """

    crop: CropName = "tight"
    scale: float = 1.0
    min_side: int = 0
    max_ratio: float = 100.0

    def size(self, width: int, height: int) -> Size:
        """(width, height) at which a crop of so many pixels is shown."""
        scale = max(self.scale, self.min_side / min(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


@dataclass(frozen=True, slots=True)
class Texts:
    """What is said. system: where looks are allowed, ``how_to_call`` behind it unless a server describes the tool by itself;
    without: where none is. question: the first turn, behind the picture. crop: comes back with a region; faulty: in place of one;
    more, last: behind either, while looks are left and when none is.
    """

    system: str
    how_to_call: str
    without: str
    question: str
    crop: str
    faulty: str
    more: str
    last: str
    tool: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """How one looks, several times.

    ask: by a tool call, or by writing a box as the model's family does. coordinates: the picture in which a box lies: the
    original, the last one shown, or the one that the call names. unit: what its numbers count: as the model's family declares,
    pixels, fractions or thousandths of the sides, or pixels of the picture resized by ``resize`` (factor, least and most pixels).
    answer_in_tags: whether training teaches ``<answer>…</answer>``, or the answer alone; either is read.
    """

    texts: Texts
    ask: Ask = "tool_call"
    call: Call = field(default_factory=Call)
    coordinates: Where = "original"
    unit: Unit = "family"
    resize: tuple[int, int, int] = (28, 56 * 56, 14 * 14 * 4 * 16384)
    shown: Shown = field(default_factory=Shown)
    limits: Limits = field(default_factory=Limits)
    answer_in_tags: bool = True

    def frame(self, size: Size, family: Frame | None) -> Frame:
        """The frame of a box in a picture of ``size`` (width, height). family: the model's own, where ``unit`` asks for it.

        Raises ValueError for a picture that cannot be resized so.
        """
        if self.unit == "family":
            assert family is not None, "the family's frame is asked for"
            return family
        if self.unit == "resized":
            return resized(smart_resized(size, *self.resize))
        return {"pixel": PIXEL, "fraction": UNIT, "thousandth": grid(1000)}[self.unit]


def filled(text: str, **values: object) -> str:
    """``text`` with the names in braces that are given replaced; other braces stay, JSON is full of them."""
    return _NAME.sub(lambda name: str(values.get(name[1], name[0])), text)


def in_words(frame: Frame) -> str:
    """What the numbers of a box in ``frame`` measure, for a prompt."""
    what = "the picture" if frame.area == "picture" else "the square around the picture"
    if frame.extent is None:
        return "pixels of the picture"
    if frame.name.startswith("resized"):
        return "pixels of the picture as you see it"
    most = int(max(frame.extent))
    return f"fractions of the sides of {what}, from 0 to 1" if most == 1 else f"steps from 0 to {most} along {what}"


ZOOM_TEXTS = Texts(
    system=(
        "You answer questions about a picture. What is too small to be read in it you can look at closer: the tool {tool} cuts"
        " a region out and shows it to you as a further picture. Look as often as you need to, one region at a time. As soon as"
        " you know the answer, write it between <answer> and </answer>."
    ),
    how_to_call=(
        "\n\nTo look, end your turn with one call in this form:\n"
        '<tool_call>{"name": "{tool}", "arguments": {"{box}": [x1, y1, x2, y2], "label": "what should be there"}}</tool_call>\n'
        "x1, y1 is the region's top left corner and x2, y2 its bottom right one, in {unit}. They always refer to the first"
        " picture."
    ),
    without="You answer questions about a picture. Write your answer between <answer> and </answer>.",
    question="\n{question}{instruction}",
    crop="<tool_response>{picture}</tool_response>\nThis is region {number}, {size} pixels.",
    faulty="<tool_response>The call was not carried out: {fault}.</tool_response>",
    more=" Looks left: {left}.",
    last=" No look is left. Answer now, between <answer> and </answer>.",
    tool=(
        "Cuts a region out of the first picture and shows it as a further picture. {box}: x1, y1, x2, y2 of the region, its top"
        " left and bottom right corner, in {unit}."
    ),
)
ZOOM = Rules(ZOOM_TEXTS, limits=Limits(looks=6, new_tokens=16384, pictures=12))

BOX_TEXTS = Texts(
    system="Look closer, by the bounding box coordinate of a region in the last picture, or answer.",
    how_to_call="",
    without="",  # as `direct`, byte by byte: without a look allowed there is nothing to explain
    question="\n{question}{instruction}",
    crop="{picture}",
    faulty="\nThat is no region of the picture.",
    more="\nLook again, or answer.",
    last="\nAnswer now.",
)
ZOOM_BOX = Rules(
    BOX_TEXTS, ask="box_turn", coordinates="last", limits=Limits(looks=3, pictures=4), answer_in_tags=False
)
"""Looks as the model's family writes boxes, each in the last picture shown: few words, and few steps of a coordinate suffice."""
