"""Tokens of questions as a model will get them, laid out by its own processor over blank pictures of their sizes.

No weights and no picture files are needed: a picture's tokens depend on its size. What a model will say is not known, so it
is assumed to look at the true box, or where there is none at the middle half of the picture, to write that box in its own
format, and to answer in ``ANSWER`` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from visrl.core.boxes import Box, Size
from visrl.core.crops import CropName
from visrl.core.prompts import ProtocolName
from visrl.core.types import CoTSample, Picture
from visrl.errors import UsageError
from visrl.train.data.candidates import Candidate, Preference

if TYPE_CHECKING:
    from visrl.policies.families.base import Chat
    from visrl.train.common.encoding import ConversationEncoder

ANSWER = 8
TYPICAL: Size = (640, 480)
QUESTION = "What is written on the sign that stands to the left of the red car?"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one question. box, answer: prompts of the two turns, 0 where there is none; box_said, answer_said: replies.

    shared: tokens of the answer prompt that stand in the box turn's cache. pictures: picture tokens of both turns. patches:
    what the vision tower computes for them; values: of their pixels. judge, crop: prompts of the critics of an answer and of
    a box.
    """

    box: int = 0
    box_said: int = 0
    answer: int = 0
    answer_said: int = 0
    shared: int = 0
    pictures: int = 0
    patches: int = 0
    values: int = 0
    judge: int = 0
    crop: int = 0

    @property
    def prefill(self) -> int:
        return self.box + self.answer - self.shared

    @property
    def decode(self) -> int:
        return self.box_said + self.answer_said


def typical(n: int = 1) -> list[CoTSample]:
    """Typical questions, where there are no data yet."""
    return [CoTSample(f"typical{i}", "estimate", "qa", QUESTION, size=TYPICAL, answers=("stop",)) for i in range(n)]


def spread(rows: Sequence[Any], n: int) -> list[Any]:
    """At most ``n`` of the rows, evenly spaced."""
    return list(rows) if len(rows) <= n else [rows[i * len(rows) // n] for i in range(n)]


def lengths_of(
    encoder: ConversationEncoder,
    sample: CoTSample,
    protocol: ProtocolName,
    crop: CropName,
    *,
    answer: int = ANSWER,
    max_tokens: int = 128,
    critics: bool = False,
) -> Lengths:
    """One question laid out. Raises UsageError where the family cannot hold its conversation."""
    from visrl.core.chat_format import LayoutError
    from visrl.core.prompts import PROTOCOLS
    from visrl.policies.hf.decoding import shared_length
    from visrl.policies.hf.policy import WORTH_RESUMING
    from visrl.train.common.conversations import answer_prompt, box_prompt, box_text

    if protocol not in PROTOCOLS:
        raise UsageError(
            f"protocol {protocol}: how often a model will look is not known beforehand",
            f"one of {', '.join(PROTOCOLS)}",
        )
    item = _blank(sample, protocol)
    chain = Candidate(_looked_at(sample.box, item.size))
    try:
        asks, shows = PROTOCOLS[protocol].looks or sample.kind == "rec", sample.kind != "rec"
        first = encoder.chat(box_prompt(item), sample=item.sample.id) if asks else None
        second = (
            encoder.chat(answer_prompt(item, chain, crop, encoder.box_format), sample=item.sample.id) if shows else None
        )
    except LayoutError as error:
        raise UsageError(f"{encoder.family.name}: {error}", "choose another protocol or model") from error
    said = 0
    shared = 0
    if first is not None:
        reply = encoder.reply(box_prompt(item), first, box_text(encoder.box_format, chain, item.size, sample.id))
        said = min(len(reply) - bool(encoder.box_format.syntax.stop), max_tokens)
        if second is not None and encoder.family.keeps_prefix:
            known = shared_length(second, first.continued(reply.tolist()).signature)
            shared = known if known >= WORTH_RESUMING else 0
    shown = list({p.digest: p for chat in (first, second) if chat is not None for p in chat.pictures}.values())
    base = Lengths(
        box=_tokens(first),
        box_said=said,
        answer=_tokens(second),
        answer_said=min(answer, max_tokens) if second is not None else 0,
        shared=shared,
        pictures=sum(len(p.ids) for p in shown),
        patches=sum(_patches(p.pixels, encoder.family.config) for p in shown),
        values=sum(_values(p.pixels) for p in shown),
    )
    return _with_critics(base, encoder, item, chain, crop) if critics else base


def _with_critics(base: Lengths, encoder: ConversationEncoder, item: Any, chain: Candidate, crop: CropName) -> Lengths:
    from visrl.core.types import Turn
    from visrl.train.common.conversations import crop_of
    from visrl.train.critics.critics import P_ANSWER_CRITIC, P_BOX_CRITIC

    words = {"question": item.sample.question, "standard": (item.sample.answers or ("yes",))[0], "answer": "yes"}
    judge = encoder.chat((Turn("user", (item.picture, P_ANSWER_CRITIC.format(**words))),), sample=item.sample.id)
    about = encoder.chat(
        (Turn("user", (crop_of(item, chain, crop), P_BOX_CRITIC.format(**words))),), sample=item.sample.id
    )
    return replace(base, judge=len(judge.ids), crop=len(about.ids))


def _tokens(chat: Chat | None) -> int:
    return 0 if chat is None else len(chat.ids)


def _blank(sample: CoTSample, protocol: ProtocolName) -> Any:
    from PIL import Image

    from visrl.train.common.conversations import Opened

    size = sample.size or TYPICAL
    image = Image.new("RGB", size, (127, 127, 127))
    return Opened(sample, protocol, Picture(f"blank{size}", lambda: image), size)


def _looked_at(box: Box | None, size: Size) -> Box:
    if box is not None and not box.clipped(size).is_empty:
        return box.clipped(size)
    width, height = size
    return Box(width / 4, height / 4, 3 * width / 4, 3 * height / 4)


def _values(pixels: Any) -> int:
    return sum(int(v.numel()) for k, v in pixels.items() if k.startswith("pixel_values"))


def _patches(pixels: Any, config: Any) -> int:
    """Patches of one picture's pixels: their values divided by those of a patch."""
    vision = config.vision_config
    edge = vision.patch_size[0] if isinstance(vision.patch_size, (list, tuple)) else vision.patch_size
    return _values(pixels) // (3 * edge * edge * int(getattr(vision, "temporal_patch_size", 1)))


@dataclass(frozen=True, slots=True)
class Batches:
    """Mean over batches as training will make them. rows, tokens: of the largest, R x T as the model gets it, padding
    included; kept: its projected places. per_row: tokens a row costs on average, padding included. at_once: picture tokens
    of the rows that go forward together, at most: a model that has one token a picture (Mllama) takes rows by their number."""

    rows: int
    tokens: int
    kept: int
    per_row: float
    pictures: float
    patches: float
    at_once: int = 0


def blank_preference(sample: CoTSample) -> Preference:
    """A typical pair, where there are no data yet."""
    size = sample.size or TYPICAL
    box = _looked_at(sample.box, size)
    other = Box(0.0, 0.0, size[0] / 3, size[1] / 3)
    picture = _blank(sample, "visrl_train").picture
    chosen = Candidate(box, answer=(sample.answers or ("yes",))[0])
    return Preference(replace(sample, picture=picture), "visrl_train", chosen, Candidate(other, answer="no"))
