"""One sample's conversation under a protocol of several looks: what was said and shown so far, and what is said next.

Asks nobody: several_looks.py does. Every region is cut from the original picture, so that a crop of a crop loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from visrl.core.boxes import Box, Frame, Size
from visrl.core.looking.calls import Fault, View
from visrl.core.looking.rules import Limits, Rules, filled, in_words
from visrl.core.prompts import P_REC
from visrl.core.types import CoTSample, Ended, Episode, Look, Picture, Step, Turn, Unparsed
from visrl.policies.protocol import Tool

if TYPE_CHECKING:
    from PIL.Image import Image

    from visrl.core.crops import Region

NEVER_LOOKED = "it answered without a look"
ONLY_FAULTS = "no call could be carried out"
CALLED_AGAIN = "it called once more in the place of an answer"
UNKNOWN_SIZE = "the picture's size is unknown"


@dataclass(slots=True)
class Dialogue:
    """sample, picture, size: as the rollout opened them; size None: recorded text without pictures. family: the frame in which
    the model's family measures a picture of that size. most: looks allowed, by the protocol's limit or by a control's plan.
    native: a server describes the tool. views: what was shown, the original first. spent: new tokens. limit: what makes the next
    turn the last one, as the model was told.
    """

    sample: CoTSample
    picture: Picture
    size: Size | None
    rules: Rules
    most: int
    family: Frame | None = None
    native: bool = False
    turns: list[Turn] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    answer: Step | None = None
    box: Box | Unparsed | None = None
    ended: Ended | None = None
    error: str | None = None
    spent: int = 0
    limit: Ended | None = None
    _heard: int = 0  # turns that were in a prompt before

    @property
    def open(self) -> bool:
        return self.ended is None and self.error is None

    @property
    def limits(self) -> Limits:
        return self.rules.limits

    def unused(self, tokens: int) -> int:
        """How many new tokens the next turn may have, of ``tokens`` allowed per turn."""
        return min(tokens, self.limits.new_tokens - self.spent) if self.limits.new_tokens else tokens

    def _reach(self, tokens: int) -> bool:
        """Whether a further look is allowed; if not, ``limit`` says why. tokens: of a turn; the answer keeps its share."""
        self.limit = self._reached(tokens)
        return self.limit is None

    def _reached(self, tokens: int) -> Ended | None:
        if len(self.looks) >= self.most:
            return "looks"
        if self.limits.pictures and len(self.views) >= self.limits.pictures:
            return "pictures"
        if self.limits.new_tokens and self.limits.new_tokens - self.spent < 2 * tokens:
            return "tokens"
        return None

    def begin(self, tokens: int) -> None:
        """The first turns: the rules, the picture and the question."""
        texts, said = self.rules.texts, self._said()
        help_ = "" if self.native else texts.how_to_call
        system = texts.system + help_ if self._reach(tokens) else texts.without
        if self.size is not None:
            self.views.append(View((0, 0, *self.size), self.size))
        if system:
            self.turns.append(Turn("system", (filled(system, **said),)))
        self.turns.append(Turn("user", (self.picture, filled(texts.question, **said))))

    def tool(self) -> Tool | None:
        """What a server is told of the tool, where calls are native and a look is left."""
        call, texts = self.rules.call, self.rules.texts
        if not self.native or self.most <= 0 or not call.tool:
            return None
        return Tool(call.tool, filled(texts.tool, **self._said()), call.box, call.label)

    def _said(self) -> dict[str, object]:
        sample, call = self.sample, self.rules.call
        question = P_REC.format(expression=sample.question) if sample.kind == "rec" else sample.question
        said: dict[str, object] = {"question": question, "instruction": sample.instruction}
        said |= {"tool": call.tool, "box": call.box}
        frame = self.family if self.size is None or self.rules.unit == "family" else self.frame(self.size)
        return said if frame is None else {**said, "unit": in_words(frame)}

    def frame(self, size: Size) -> Frame:
        """Of a box in a shown picture of ``size``. Raises ValueError where it cannot be resized as the protocol says."""
        return self.rules.frame(size, self.family)

    def reply(self, text: str, *, own: bool = True) -> None:
        """A turn of the model's becomes part of the conversation. own: False for a control's, which it has yet to hear."""
        self.turns.append(Turn("assistant", (text,)))
        if own:
            self._heard = len(self.turns)

    def show(self, look: Look, tokens: int) -> None:
        """A look that was carried out: its region comes back. One without a region is recorded text: nothing can be cut."""
        self.looks.append(look)
        if look.looked_at is None:
            size, crop = None, Picture("", _no_picture)
        else:
            x1, y1, x2, y2 = look.looked_at
            size = self.rules.shown.size(x2 - x1, y2 - y1)
            crop = shown_crop(self.picture, look.looked_at, size)
            self.views.append(View(look.looked_at, size))
        texts = self.rules.texts
        number = len(self.looks)
        before, _, after = texts.crop.partition("{picture}")
        after += texts.more if self._reach(tokens) else texts.last
        said = {**self._said(), "number": number, "left": self.most - number}
        said["size"] = "? x ?" if size is None else f"{size[0]} x {size[1]}"
        parts = (filled(before, **said), crop, filled(after, **said))
        self.turns.append(Turn("user", tuple(part for part in parts if part != "")))

    def refuse(self, step: Step, fault: Fault, tokens: int) -> None:
        """A call that could not be carried out: the model is told why."""
        self.looks.append(Look(step, fault=fault.kind))
        texts = self.rules.texts
        text = texts.faulty + (texts.more if self._reach(tokens) else texts.last)
        said = {**self._said(), "fault": fault.text, "left": self.most - len(self.looks), "number": len(self.looks)}
        self.turns.append(Turn("user", (filled(text, **said),)))

    def heard(self) -> str:
        """What was said since the model's last turn, pictures as marks: a step's prompt."""
        return "\n".join(f"{turn.role}: {turn.text()}" for turn in self.turns[self._heard :])

    def episode(self) -> Episode:
        """What became of the sample."""
        done = [look for look in self.looks if not look.fault]
        looked = next((look.looked_at for look in reversed(done) if look.looked_at is not None), None)
        return Episode(
            self.sample.id,
            self.sample.task,
            box=self.box if self.sample.kind == "rec" else self._last_box(done),
            looked_at=looked,
            answer_step=self.answer,
            error=self.error,
            looks=tuple(self.looks),
            ended=self.ended,
            size=self.size,
        )

    def _last_box(self, done: list[Look]) -> Box | Unparsed | None:
        """Of the model's own last look; None where none was allowed, or controls alone looked."""
        own = [look for look in done if look.step is not None]
        if own:
            return own[-1].box or Unparsed(UNKNOWN_SIZE)
        if done or self.most <= 0 or self.error is not None:
            return None
        return Unparsed(ONLY_FAULTS if self.looks else NEVER_LOOKED)


def shown_crop(picture: Picture, region: Region, size: Size) -> Picture:
    """``region`` of a picture at ``size`` (width, height), cut when it is opened; its name says where, and how large where that
    is not its own size."""
    own = (region[2] - region[0], region[3] - region[1])
    scaled = "" if own == size else f"@{size[0]}x{size[1]}"

    def cut() -> Image:
        crop = picture.open().crop(region)
        return crop if own == size else crop.resize(size, _bicubic())

    return Picture(f"{picture.ref}#xyxy={','.join(map(str, region))}{scaled}", cut)


def _bicubic() -> int:
    from PIL.Image import Resampling

    return int(Resampling.BICUBIC)


def _no_picture() -> Image:
    from visrl.errors import PictureError

    raise PictureError("no picture was loaded for this sample")
