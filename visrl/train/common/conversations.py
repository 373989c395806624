"""Training rows -> conversations: the same turns, crops and box text as evaluation uses, from the same functions.

Every step of a chain is a conversation that ends where the model has to speak (the prompt), and the text it has to
say: its looks in order, then its answer. ``viscot_train`` and the protocols of several looks hold all of it in one
conversation; the other looking protocols ask for the answer in a new one, so that a chain becomes two
(docs/method.md a3). Nothing but box and answer tokens is ever trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from visrl.core.box_formats import BoxFormat
from visrl.core.boxes import Box, Size
from visrl.core.crops import CropName
from visrl.core.looking.calls import Fault
from visrl.core.looking.rules import Rules
from visrl.core.prompts import ProtocolName, answer_turns, box_turns
from visrl.core.types import CoTSample, Look, Picture, Turn
from visrl.errors import PictureError, UsageError
from visrl.rollout.dialogue import Dialogue, shown_crop
from visrl.rollout.several_looks import place, read_turn, written
from visrl.rollout.steps import PictureCache, crop_picture, open_picture, region_of
from visrl.train.config.protocols import protocol_of
from visrl.train.data.candidates import Candidate, CandidateLook

NO_LIMIT = 0
"""Tokens of a turn, where a dialogue counts them: rows are not made by generating, so that limit is never reached."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A sample's question with its picture decoded once."""

    sample: CoTSample
    protocol: ProtocolName
    picture: Picture
    size: Size

    @property
    def rules(self) -> Rules | None:
        """Those of a protocol of several looks; None for the paper's."""
        return protocol_of(self.protocol).several


def opened(sample: CoTSample, protocol: ProtocolName) -> Opened:
    """Decode the picture. Raises UsageError naming the sample where it cannot be, or is not of the annotated size."""
    if sample.picture is None:
        raise UsageError(f"sample {sample.id} has no picture", "training needs pictures")
    try:
        picture, size = open_picture(sample, PictureCache())
    except PictureError as error:
        raise UsageError(f"sample {sample.id}: picture: {error}", "remove the row or repair the picture") from error
    return Opened(sample, protocol, picture, size)


# --- one look


def box_text(box_format: BoxFormat, chain: Candidate | CandidateLook, size: Size, sample_id: str) -> str:
    """What a chain says when asked where to look: its own words, else the family's writing of its box."""
    said = chain.box_text if isinstance(chain, Candidate) else chain.text
    return said if said is not None else box_format.write(_box(chain, sample_id), size)


def _box(chain: Candidate | CandidateLook, sample_id: str) -> Box:
    if chain.box is None:
        raise UsageError(f"sample {sample_id} has no box", "every protocol but `direct` needs one")
    return chain.box


def crop_of(item: Opened, chain: Candidate | CandidateLook, crop: CropName) -> Picture:
    """What is shown of where ``chain`` looked."""
    box, rules = _box(chain, item.sample.id), item.rules
    if rules is None:
        return crop_picture(item.picture, region_of(box, item.size, crop))
    x1, y1, x2, y2 = region = region_of(box, item.size, rules.shown.crop)
    return shown_crop(item.picture, region, rules.shown.size(x2 - x1, y2 - y1))


def box_prompt(item: Opened) -> tuple[Turn, ...]:
    """The conversation that asks where to look, once."""
    return box_turns(protocol_of(item.protocol), item.sample, item.picture)


def answer_prompt(item: Opened, chain: Candidate, crop: CropName, box_format: BoxFormat) -> tuple[Turn, ...]:
    """The conversation that asks for the answer after looking where ``chain`` looked (stage 2: the chosen chain,
    docs/method.md 0, point 4).
    """
    protocol = protocol_of(item.protocol)
    if protocol.several is not None:
        return prompt_after(item, taken(item.sample, item.protocol, chain), crop, box_format)
    if not protocol.looks:
        return answer_turns(protocol, item.sample, item.picture, None, "")
    text = box_text(box_format, chain, item.size, item.sample.id)
    return answer_turns(protocol, item.sample, item.picture, crop_of(item, chain, crop), text)


# --- several


def dialogue_after(item: Opened, looks: Sequence[CandidateLook], box_format: BoxFormat) -> Dialogue:
    """A conversation of several looks after these: what the rollout would have said, to the byte.

    What is shown for a look is the region that its *text* names, as the rollout reads it. Raises UsageError naming the sample
    and the look for a box that cannot be said there, or words that name none.
    """
    rules, sample = item.rules, item.sample
    assert rules is not None, "a protocol of several looks"
    dialogue = Dialogue(sample, item.picture, item.size, rules, rules.limits.looks)
    try:
        dialogue.family = box_format.frame_for(item.size)
        dialogue.begin(NO_LIMIT)
    except ValueError as error:  # a picture that cannot be resized as the family or the protocol does
        raise UsageError(f"sample {sample.id}: picture: {error}", "remove the row") from error
    for number, look in enumerate(looks, 1):
        if dialogue.limit is not None:
            hint = "a larger limit: a protocol file, or protocol NAME:LOOKS"
            raise UsageError(f"sample {sample.id}: look {number} is one too many under {item.protocol}", hint)
        text = next_text(dialogue, look, box_format, sample.id)
        box = _said(dialogue, text, box_format, f"sample {sample.id}: look {number}")
        dialogue.reply(text)
        dialogue.show(Look(None, box, region_of(box, item.size, rules.shown.crop)), NO_LIMIT)
    return dialogue


def next_text(dialogue: Dialogue, look: CandidateLook, box_format: BoxFormat, sample_id: str) -> str:
    """A look as it is said next: its own words, else as the protocol asks for them."""
    return look.text if look.text is not None else written(box_format, dialogue, _box(look, sample_id))


def _said(dialogue: Dialogue, text: str, box_format: BoxFormat, where: str) -> Box:
    call = read_turn(box_format, text, dialogue.rules)
    found = call if call is None or isinstance(call, Fault) else place(box_format, dialogue, call)
    if isinstance(found, Box):
        return found
    why = "it names no region" if found is None else found.text
    raise UsageError(f"{where}: {text!r}: {why}", "widen its box, or leave the look out: it could not be carried out")


def taken(sample: CoTSample, protocol: ProtocolName, chain: Candidate) -> tuple[CandidateLook, ...]:
    """The looks of a chain. Of a referring expression the box is the answer, and no look.

    Raises UsageError naming the sample where its protocol looks once, and it has no box.
    """
    found = protocol_of(protocol)
    if sample.kind == "rec" or not found.looks:
        return chain.looks or ()
    if found.several is None:
        _box(chain, sample.id)
    return chain.all_looks


def prompt_after(
    item: Opened, looks: Sequence[CandidateLook], crop: CropName, box_format: BoxFormat
) -> tuple[Turn, ...]:
    """The conversation in which the model speaks after these looks: where it looks next, or answers."""
    if item.rules is not None:
        return tuple(dialogue_after(item, looks, box_format).turns)
    if not looks and (item.sample.kind == "rec" or protocol_of(item.protocol).looks):
        return box_prompt(item)
    chain = Candidate(looks[0].box, looks[0].text) if looks else Candidate()
    return answer_prompt(item, chain, crop, box_format)


def look_text(item: Opened, before: Sequence[CandidateLook], look: CandidateLook, box_format: BoxFormat) -> str:
    """What is said for ``look`` after those ``before``."""
    if item.rules is not None:
        return next_text(dialogue_after(item, before, box_format), look, box_format, item.sample.id)
    return box_text(box_format, look, item.size, item.sample.id)


def answer_said(item: Opened, chain: Candidate, box_format: BoxFormat) -> str:
    """The answer of a chain as it is said; under a protocol of several looks as that declares it."""
    if item.rules is None:
        return chain.answer
    if chain.answer_text is not None:
        return chain.answer_text
    text = _box_or_answer(item, chain, box_format)
    return f"<answer>{text}</answer>" if item.rules.answer_in_tags else text


def _box_or_answer(item: Opened, chain: Candidate, box_format: BoxFormat) -> str:
    rec = item.sample.kind == "rec"
    return box_text(box_format, chain, item.size, item.sample.id) if rec else chain.answer


def last_text(item: Opened, chain: Candidate, box_format: BoxFormat) -> str:
    """What a chain says last: its answer; of a referring expression asked for once, its box."""
    if item.rules is None:
        return _box_or_answer(item, chain, box_format)
    return answer_said(item, chain, box_format)


# --- a chain as conversations


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole conversation to learn from; ``every_reply`` False: only its last reply is trained, the others are
    context.
    """

    turns: tuple[Turn, ...]
    every_reply: bool


def _in_one(protocol: ProtocolName) -> bool:
    """Whether a chain is one conversation from its first look to its answer."""
    return protocol == "viscot_train" or protocol_of(protocol).several is not None


def count(sample: CoTSample, protocol: ProtocolName, *, joined: bool, looks: int = 1) -> int:
    """How many conversations a chain of so many looks becomes (see :func:`conversations`)."""
    found = protocol_of(protocol)
    if found.several is None and (sample.kind == "rec" or not found.looks):
        return 1
    return 1 if joined and _in_one(protocol) else looks + 1


def conversations(
    item: Opened, chain: Candidate, crop: CropName, box_format: BoxFormat, *, joined: bool
) -> list[Conversation]:
    """A chain as conversations with replies.

    joined: the family can learn all replies of one conversation from one sequence. It cannot where the first reply
    would see what comes later: PaliGemma's prefix looks both ways, Mllama's pictures all stand first, the crop among
    them.
    """
    looks = taken(item.sample, item.protocol, chain)
    said = [
        (prompt_after(item, looks[:k], crop, box_format), look_text(item, looks[:k], look, box_format))
        for k, look in enumerate(looks)
    ]
    said.append((prompt_after(item, looks, crop, box_format), last_text(item, chain, box_format)))
    whole = [(*turns, Turn("assistant", (text,))) for turns, text in said]
    if joined and _in_one(item.protocol):
        return [Conversation(whole[-1], True)]
    return [Conversation(turns, k == 0) for k, turns in enumerate(whole)]
