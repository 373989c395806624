"""Training rows -> conversations: the same turns, crops and box text as evaluation uses, from the same functions.

Every step of a chain is a conversation that ends where the model has to speak (the prompt), and the text it has to
say.
``viscot_train`` holds box and answer in one conversation; the other looking protocols ask for the answer in a new
one, so that a chain becomes two (docs/method.md a3). Nothing but box and answer tokens is ever trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from visrl.core.box_formats import BoxFormat
from visrl.core.boxes import Box, Size
from visrl.core.crops import CropName
from visrl.core.prompts import PROTOCOLS, ProtocolName, answer_turns, box_turns
from visrl.core.types import CoTSample, Picture, Turn
from visrl.errors import PictureError, UsageError
from visrl.rollout.steps import PictureCache, crop_picture, open_picture, region_of
from visrl.train.data.rows import Chain

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Opened:
    """A sample's question with its picture decoded once."""

    sample: CoTSample
    protocol: ProtocolName
    picture: Picture
    size: Size


def opened(sample: CoTSample, protocol: ProtocolName) -> Opened:
    """Decode the picture. Raises UsageError naming the sample where it cannot be, or is not of the annotated size."""
    if sample.picture is None:
        raise UsageError(f"sample {sample.id} has no picture", "training needs pictures")
    try:
        picture, size = open_picture(sample, PictureCache())
    except PictureError as error:
        raise UsageError(f"sample {sample.id}: picture: {error}", "remove the row or repair the picture") from error
    return Opened(sample, protocol, picture, size)


def box_text(box_format: BoxFormat, chain: Chain, size: Size, sample_id: str) -> str:
    """What a chain says when asked where to look: its own words, else the family's writing of its box."""
    if chain.box_text is not None:
        return chain.box_text
    return box_format.write(_box(chain, sample_id), size)


def _box(chain: Chain, sample_id: str) -> Box:
    if chain.box is None:
        raise UsageError(f"sample {sample_id} has no box", "every protocol but `direct` needs one")
    return Box(*chain.box)


def crop_of(item: Opened, chain: Chain, crop: CropName) -> Picture:
    """The second picture: where ``chain`` looked."""
    return crop_picture(item.picture, region_of(_box(chain, item.sample.id), item.size, crop))


def box_prompt(item: Opened) -> tuple[Turn, ...]:
    """The conversation that asks where to look."""
    return box_turns(PROTOCOLS[item.protocol], item.sample, item.picture)


def answer_prompt(item: Opened, chain: Chain, crop: CropName, box_format: BoxFormat) -> tuple[Turn, ...]:
    """The conversation that asks for the answer after looking where ``chain`` looked (stage 2: the chosen chain,
    docs/method.md 0, point 4).
    """
    protocol = PROTOCOLS[item.protocol]
    if not protocol.looks:
        return answer_turns(protocol, item.sample, item.picture, None, "")
    text = box_text(box_format, chain, item.size, item.sample.id)
    return answer_turns(protocol, item.sample, item.picture, crop_of(item, chain, crop), text)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole conversation to learn from; ``every_reply`` False: only its last reply is trained, the others are
    context.
    """

    turns: tuple[Turn, ...]
    every_reply: bool


def count(sample: CoTSample, protocol: ProtocolName, *, joined: bool) -> int:
    """How many conversations a chain becomes (see :func:`conversations`)."""
    if sample.kind == "rec" or not PROTOCOLS[protocol].looks:
        return 1
    return 1 if protocol == "viscot_train" and joined else 2


def conversations(
    item: Opened, chain: Chain, crop: CropName, box_format: BoxFormat, *, joined: bool
) -> list[Conversation]:
    """A chain as conversations with replies.

    joined: the family can learn both replies of ``viscot_train`` from one sequence. It cannot where the first reply
    would see what comes later: PaliGemma's prefix looks both ways, Mllama's pictures all stand first, the crop among
    them.
    """
    protocol = PROTOCOLS[item.protocol]
    said = Turn("assistant", (chain.answer,))
    if protocol.looks or item.sample.kind == "rec":
        box = (*box_prompt(item), Turn("assistant", (box_text(box_format, chain, item.size, item.sample.id),)))
        if item.sample.kind == "rec":
            return [Conversation(box, True)]
    answer = (*answer_prompt(item, chain, crop, box_format), said)
    if not protocol.looks or (item.protocol == "viscot_train" and joined):
        return [Conversation(answer, True)]
    return [Conversation(box, True), Conversation(answer, False)]
