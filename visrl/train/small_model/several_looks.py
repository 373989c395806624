"""Examples of several looks on the deep world's walls: whole conversations, in the very words of the rollout.

The conversation is held by :class:`visrl.rollout.dialogue.Dialogue` with the true boxes in the place of a model, so that the
model is trained on what it will be asked. Shown regions are jittered: crops of a model's own boxes are never exact, and what is
written next then lies in a crop that is a little off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import LlavaProcessor

from visrl.core.boxes import Box
from visrl.core.chat_format import render
from visrl.core.crops import tight
from visrl.core.looking.calls import View, into
from visrl.core.looking.rules import ZOOM_BOX, Limits
from visrl.core.types import CoTSample, Look, Turn
from visrl.rollout.dialogue import Dialogue
from visrl.rollout.several_looks import written
from visrl.train.small_model.inputs import IGNORE, Example, jittered, patches_in, seen, view
from visrl.world.chat_format import BINS, BOX_FORMAT, LAYOUT
from visrl.world.deep.documents import row
from visrl.world.deep.walls import Wall, rewall
from visrl.world.model import NOT_HERE, PICTURE_TOKENS, READ_HERE, YES_HERE
from visrl.world.rendering import sign_box
from visrl.world.rng import Dice
from visrl.world.samples import sample_of
from visrl.world.scenes import Thing

ALLOWED = ((0, 4), (1, 20), (2, 30), (3, 46))
"""How many looks are allowed, in percent of the examples: 3 is the protocol's own limit."""
Patches = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Held:
    """A conversation that has been held. turns: with the answer; views: what was shown, the picture first."""

    sample: CoTSample
    turns: tuple[Turn, ...]
    views: tuple[View, ...]


def held(split: str, index: int, dice: Dice, allowed: int | None = None) -> Held:
    """A conversation about wall ``index``: as many looks as the sign takes, or as are allowed (None: drawn), and the answer."""
    sample = sample_of(row(split, index, dice.between(0, 7)))
    assert sample.picture is not None and sample.size is not None
    mark = dice.between(0, 99)
    if allowed is None:
        allowed = next(looks for looks, _ in ALLOWED if mark < sum(share for n, share in ALLOWED if n <= looks))
    rules = replace(ZOOM_BOX, limits=Limits(looks=allowed))
    dialogue = Dialogue(sample, sample.picture, sample.size, rules, allowed, BOX_FORMAT.frame_for(sample.size))
    dialogue.begin(1)
    for box in sample.boxes[:allowed]:
        dialogue.reply(written(BOX_FORMAT, dialogue, box))
        step = max(dialogue.views[-1].size) / BINS  # a box that is written and read is off by up to half a step
        near = jittered(box, sample.size, dice, 0.4 * step / max(box.x2 - box.x1, box.y2 - box.y1))
        dialogue.show(Look(None, box, tight(near, sample.size)), 1)
    dialogue.reply(sample.answers[0])
    return Held(sample, tuple(dialogue.turns), tuple(dialogue.views))


class SeveralLooks:
    """Makes examples with one processor. ``split`` and ``pictures`` say which walls it may use."""

    def __init__(self, processor: LlavaProcessor, split: str, pictures: int) -> None:
        self.tokenizer, self.split, self.pictures = processor.tokenizer, split, pictures
        self.image_id = self.tokenizer.convert_tokens_to_ids("<image>")
        self.here, self.away, self.blank = self.tokenizer.convert_tokens_to_ids([YES_HERE, NOT_HERE, READ_HERE])

    def example(self, dice: Dice) -> Example:
        """Targets are the boxes and the answer; on each picture where to look next, and on the one that is read the sign."""
        talk = held(self.split, dice.between(0, self.pictures - 1), dice)
        example = self.encoded(talk)
        wall = rewall(talk.sample.meta["picture"])
        for which, shown in enumerate(talk.views):
            self._on_picture(example, which, self._targets(wall, talk, which, shown, dice))
        return example

    def encoded(self, talk: Held) -> Example:
        """Token ids and targets: each reply with the mark that ends it."""
        rendered = render(LAYOUT, talk.turns, add_generation_prompt=False)
        ids: list[int] = []
        labels: list[int] = []
        done = 0
        for start, end in rendered.replies:
            asked, said = self._ids(rendered.text[done:start]), self._ids(rendered.text[start:end])
            ids, labels, done = ids + asked + said, labels + [IGNORE] * len(asked) + said, end
        assert talk.sample.picture is not None
        whole = talk.sample.picture.open()
        crops = [view(whole.crop(seen.region)) for seen in talk.views[1:]]
        return Example(ids, labels, [seen(talk.sample.meta["picture"]), *crops])

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(
            text.replace("<image>", "<image>" * PICTURE_TOKENS), add_special_tokens=False
        ).input_ids
        return found

    def _targets(self, wall: Wall, talk: Held, which: int, shown: View, dice: Dice) -> dict[int, int]:
        """Of picture ``which``: what to look at next is here, all else of its sort is not; or what is written where."""
        sample = talk.sample
        if which < len(sample.boxes):
            things = [poster.as_box() for poster in wall.posters] if which == 0 else [
                thing.as_box() for poster in wall.posters for thing in poster.things
            ]  # fmt: skip
            inside = _patches(sample.boxes[which], shown)
            others = np.any([_patches(box, shown) for box in things], axis=0) & ~inside
            targets = self._some(inside, 8, self.here, dice) | self._some(others, 10, self.away, dice)
            return targets | self._some(~inside & ~others, 2, self.away, dice)
        signs = [(thing, _sign(thing, p.make.cell)) for p in wall.posters for thing in p.things]
        targets, inside = dict[int, int](), np.zeros(PICTURE_TOKENS, dtype=bool)
        for thing, box in signs:
            here = _patches(box, shown)
            inside |= here
            targets |= self._some(here, 6, self.tokenizer.convert_tokens_to_ids(thing.sign), dice)
        return targets | self._some(~inside, 3, self.blank, dice)

    @staticmethod
    def _some(patches: Patches, most: int, token: int, dice: Dice) -> dict[int, int]:
        return dict.fromkeys(dice.some(np.flatnonzero(patches).tolist(), most), token)

    def _on_picture(self, example: Example, which: int, targets: dict[int, int]) -> None:
        """Set targets on patches of picture ``which``; a patch's stands one place to its right, where the loss scores it from."""
        first = [i for i, token in enumerate(example.ids) if token == self.image_id][which * PICTURE_TOKENS]
        for patch, token in targets.items():
            if example.labels[first + patch + 1] == IGNORE:
                example.labels[first + patch + 1] = token


def _patches(box: Box, shown: View) -> Patches:
    """Which patches of a shown picture lie in a box of the wall."""
    return patches_in(into(box, shown), shown.size)


def _sign(thing: Thing, cell: int) -> Box:
    x1, y1, x2, y2 = map(float, sign_box(thing, "scene", cell))
    return Box(x1, y1, x2, y2)
