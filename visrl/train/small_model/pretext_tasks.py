"""What the small models are taught, one example at a time: token ids, the targets among them, and the pictures.

A lesson is a function of (dice, picture's index). Prompts come from visrl.core.prompts, so training asks in the very words that
evaluation asks in. The base gets ``PRETEXT`` lessons only: no question in them is ever answered by a box.

=========  ===================================================  ==================================================
lesson     conversation                                         target
=========  ===================================================  ==================================================
bind       expression or question + picture                     on a few picture tokens: does the asked thing lie here
name       picture                                              on picture tokens: the colour (or shape) of what is there
edges      picture                                              on picture tokens: where an edge of what is there lies
spell      a page of signs, large enough to read                on picture tokens: the sign that is there
describe   location tokens + picture                            size, colour and shape of what is there
tell       expression + picture                                 size, colour, shape, and in which corner of the picture
caption    picture, and nothing asked                           names of things, each followed by where it is
read       question + crop alone (what a critic is shown)       the answer; on picture tokens the sign there or, where yes
                                                                or no is asked, whether what lies there is what is asked
look       question + picture + crop of the true box            the same
whole      question about the whole picture, no crop            the same, without the signs: too small to read there
box        expression or question + picture                     the box: labelled pictures only, never for the base
point      the same                                             box and bind in one
first      expression by colour and shape alone + picture       the same: what to learn before the rest
several    a wall, looked at as often as it takes               every box and the answer (several_looks.py)
=========  ===================================================  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from transformers import LlavaProcessor

from visrl.core.boxes import Box, Size
from visrl.core.chat_format import render
from visrl.core.crops import tight
from visrl.core.prompts import PROTOCOLS, answer_turns, box_turns
from visrl.core.types import Picture, Turn
from visrl.train.small_model.inputs import (
    IGNORE,
    Example,
    View,
    alphabet_page,
    crowded_page,
    jittered,
    patches_in,
    seen,
    view,
)
from visrl.train.small_model.several_looks import SeveralLooks
from visrl.world import questions, splits
from visrl.world.chat_format import BOX_FORMAT, LAYOUT
from visrl.world.model import NOT_HERE, PICTURE_TOKENS, READ_HERE, YES_HERE
from visrl.world.questions import DOMAINS, Document, true_box
from visrl.world.rendering import sign_box
from visrl.world.rng import Dice
from visrl.world.samples import drawn, sample_of
from visrl.world.scenes import Scene
from visrl.world.textured.scenery import PLAIN, Scenery, draw, dressed

TWO_PICTURES = ("look", "several")
PRETEXT = ("bind", "name", "edges", "spell", "describe", "tell", "caption", "read", "look", "whole")
UNREADABLE = ("fine", "OCR")  # yes or no about a sign: the whole picture does not show it, a crop does


class ExampleBuilder:
    """Makes examples with one processor. ``split`` and ``pictures`` say which pictures it may use, drawn over ``scenery``."""

    def __init__(
        self, processor: LlavaProcessor, split: str, pictures: int | None = None, scenery: Scenery = PLAIN
    ) -> None:
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.split, self.pictures, self.scenery = split, pictures or splits.SPLITS[split].pictures, scenery
        self.image_id = self.tokenizer.convert_tokens_to_ids("<image>")
        self.here, self.away, self.blank = self.tokenizer.convert_tokens_to_ids([YES_HERE, NOT_HERE, READ_HERE])
        self.lessons: dict[str, Callable[[Dice], Example | None]] = {
            "bind": self.bind,
            "name": self.name,
            "edges": self.edges,
            "spell": self.spell,
            "describe": self.describe,
            "tell": self.tell,
            "caption": self.caption,
            "read": self.read,
            "look": self.look,
            "whole": self.whole,
            "box": self.box,
            "point": self.point,
            "first": self.first,
            "several": SeveralLooks(processor, split, self.pictures).example,
        }

    def example(self, lesson: str, dice: Dice) -> Example:
        """One example; pictures that afford no such question are passed over."""
        while True:
            made = self.lessons[lesson](dice)
            if made is not None:
                return made

    # -- the lessons -------------------------------------------------------------------------------------------------

    def bind(self, dice: Dice) -> Example | None:
        row = self._grounded(dice)
        if row is None:
            return None
        example = self.prompt(row)
        self._on_picture(example, 0, self._where(row, dice))
        return example

    def point(self, dice: Dice) -> Example | None:
        row = self._grounded(dice)
        if row is None:
            return None
        example = self._with_box(row)
        self._on_picture(example, 0, self._where(row, dice))
        return example

    def first(self, dice: Dice) -> Example | None:
        row = questions.rec(self.split, self._index(dice, ("scene",)), dice.between(0, 7))
        if row is None or row["sort"] != "attribute":
            return None
        example = self._with_box(row)
        self._on_picture(example, 0, self._where(row, dice))
        return example

    def name(self, dice: Dice) -> Example:
        """A crowded page on which every thing's patches say its colour, or every thing's patches say its shape."""
        scene, colour = crowded_page(dice), dice.chance(0.3)
        turns = (Turn("user", (_PICTURE, "\nWhat colour is the shape?" if colour else "\nWhich shape is the shape?")),)
        example = self._encode(turns, "", [draw(scene, self.scenery)])
        targets: dict[int, int] = {}
        for thing in scene.things:
            token = self.tokenizer.convert_tokens_to_ids(thing.colour if colour else thing.shape)
            inside = np.flatnonzero(patches_in(thing.as_box(), scene.size)).tolist()
            targets |= dict.fromkeys(inside, token)
        self._on_picture(example, 0, targets)
        return example

    def edges(self, dice: Dice) -> Example:
        """Every thing's patches say where the thing's left edge is, or its top, right or bottom one, as a location token."""
        scene = crowded_page(dice) if dice.chance(0.5) else self._scene(dice, ("scene", "form", "chart"))
        which = dice.between(0, 3)
        words = ("left", "top", "right", "bottom")[which]
        example = self._encode(
            (Turn("user", (_PICTURE, f"\nWhat is at the {words} of the shape?")),), "", [draw(scene, self.scenery)]
        )
        targets: dict[int, int] = {}
        for thing in scene.things:
            written = BOX_FORMAT.write(thing.as_box(), scene.size)
            token = self.tokenizer(written, add_special_tokens=False).input_ids[which]
            inside = np.flatnonzero(patches_in(thing.as_box(), scene.size)).tolist()
            targets |= dict.fromkeys(inside, token)
        self._on_picture(example, 0, targets)
        return example

    def spell(self, dice: Dice) -> Example:
        """A page of the alphabet at the model's own resolution: signs on coloured tiles, each patch says its sign."""
        page, where = alphabet_page(dice)
        example = self._encode((Turn("user", (_PICTURE, "\nWhat is written?")),), "", [page])
        targets: dict[int, int] = {}
        for sign, box in where:
            token = self.tokenizer.convert_tokens_to_ids(sign)
            targets |= dict.fromkeys(np.flatnonzero(patches_in(box, page.size)).tolist(), token)
        self._on_picture(example, 0, targets)
        return example

    def describe(self, dice: Dice) -> Example | None:
        scene = self._scene(dice, ("scene",))
        thing = dice.one(scene.things)
        where = BOX_FORMAT.write(thing.as_box(), scene.size)
        turns = (Turn("user", (_PICTURE, f"\nWhat is in {where}?")),)
        return self._encode(turns, f"{thing.size} {thing.colour} {thing.shape}", [self._seen(scene.key)])

    def tell(self, dice: Dice) -> Example | None:
        """The answer must find the asked thing and look there: what pointing with a box needs too, without a box."""
        row = questions.rec(self.split, self._index(dice, ("scene",)), dice.between(0, 7))
        if row is None:
            return None
        scene = splits.redraw(row["picture"])
        thing = next(t for t in scene.things if list(t.box) == row["box"])
        x, y = thing.centre
        corner = f"{'top' if 2 * y < scene.size[1] else 'bottom'} {'left' if 2 * x < scene.size[0] else 'right'}"
        turns = (Turn("user", (_PICTURE, f"\nWhat is {row['question']}?")),)
        return self._encode(turns, f"{thing.size} {thing.colour} {thing.shape} {corner}", [self._seen(scene.key)])

    def caption(self, dice: Dice) -> Example:
        """A grounded caption: "large red circle <x1><y1><x2><y2> ..." for three things, in any order.

        Only the boxes are targets: which thing is named first is nobody's to know. Nothing is asked, so no question is
        answered by a box; what it teaches is how to say where something is.
        """
        own = dice.chance(0.5)
        scene = crowded_page(dice) if own else self._scene(dice, ("scene", "scene", "form", "chart"))
        named = {f"{t.size if scene.kind == 'scene' else ''} {t.colour} {t.shape}".strip(): t for t in scene.things}
        once = [n for n in named if sum(n.endswith(f"{t.colour} {t.shape}") for t in scene.things) == 1 or not own]
        example = self._encode((Turn("user", (_PICTURE,)),), "", [draw(scene, self.scenery)])
        for name in dice.some(sorted(once), 3):
            words = self.tokenizer(f" {name}", add_special_tokens=False).input_ids
            where = BOX_FORMAT.write(named[name].as_box(), scene.size)
            box = self.tokenizer(where, add_special_tokens=False).input_ids
            example.ids.extend(words + box)
            example.labels.extend([IGNORE] * len(words) + box)
        return example

    def read(self, dice: Dice) -> Example | None:
        return self._on_crop(dice, alone=True)

    def look(self, dice: Dice) -> Example | None:
        return self._on_crop(dice, alone=False)

    def whole(self, dice: Dice) -> Example | None:
        row = self._general(dice) if dice.chance(0.75) else self._question(dice)
        if row is None:
            return None
        turns = answer_turns(PROTOCOLS["direct"], sample_of(row), _PICTURE, None, "")
        example = self._encode(turns, row["answer"], [self._seen(row["picture"])])
        if row["answer"] in ("yes", "no") and row["group"] not in (*UNREADABLE, "count"):
            self._on_picture(example, 0, self._verdicts(row, (0, 0, *row["size"]), row["size"], dice))
        return example

    def box(self, dice: Dice) -> Example | None:
        row = self._grounded(dice) if dice.chance(0.9) else self._general(dice)
        return None if row is None else self._with_box(row)

    def prompt(self, row: Document) -> Example:
        """The box turn of a row, without a target."""
        turns = box_turns(PROTOCOLS["visrl_train"], sample_of(row), _PICTURE)
        return self._encode(turns, "", [self._seen(row["picture"])])

    # -- what to ask -------------------------------------------------------------------------------------------------

    def _index(self, dice: Dice, kinds: tuple[str, ...]) -> int:
        while True:
            index = dice.between(0, self.pictures - 1)
            if splits.kind_of(index) in kinds:
                return index

    def _scene(self, dice: Dice, kinds: tuple[str, ...]) -> Scene:
        return splits.picture(self.split, self._index(dice, kinds))

    def _seen(self, key: str) -> View:
        """The whole picture of a key of the plain world, over the builder's scenery."""
        return seen(dressed(key, self.scenery))

    def _grounded(self, dice: Dice) -> Document | None:
        """A row with a thing to point at: half referring expressions, half questions."""
        if dice.chance(0.5):
            return questions.rec(self.split, self._index(dice, ("scene",)), dice.between(0, 7))
        return self._question(dice)

    def _question(self, dice: Dice) -> Document | None:
        domain = dice.one(list(DOMAINS))
        return questions.viscot(self.split, self._index(dice, (DOMAINS[domain],)), domain, dice.between(0, 7))

    def _general(self, dice: Dice) -> Document | None:
        rows = dice.one((questions.pope, questions.mme, questions.mmbench))(self.split, self._index(dice, ("scene",)))
        return dice.one(rows) if rows else None

    def _on_crop(self, dice: Dice, alone: bool) -> Example | None:
        row = self._question(dice) if dice.chance(0.8) else self._general(dice)
        if row is None:
            return None
        scene = splits.redraw(row["picture"])
        region = tight(jittered(true_box(row), scene.size, dice), scene.size)
        picture = drawn(dressed(scene.key, self.scenery))
        crop = picture.crop(region)
        sample = sample_of(row)
        if alone:
            turns, images = answer_turns(PROTOCOLS["direct"], sample, _PICTURE, None, ""), [crop]
        else:
            turns = answer_turns(PROTOCOLS["visrl_train"], sample, _PICTURE, _PICTURE, "")
            images = [picture, crop]
        example = self._encode(turns, row["answer"], images)
        if row["answer"] in ("yes", "no"):
            targets = self._verdicts(row, region, crop.size, dice)
        else:
            targets = self._signs(scene, region, crop.size, dice)
        self._on_picture(example, len(images) - 1, targets)
        return example

    def _with_box(self, row: Document) -> Example:
        turns = box_turns(PROTOCOLS["visrl_train"], sample_of(row), _PICTURE)
        return self._encode(turns, BOX_FORMAT.write(true_box(row), row["size"]), [self._seen(row["picture"])])

    # -- tokens and targets ------------------------------------------------------------------------------------------

    def _where(self, row: Document, dice: Dice) -> dict[int, int]:
        """Targets on the picture's patches: the asked thing is here, or it is not."""
        inside = patches_in(true_box(row), row["size"])
        things = [patches_in(thing.as_box(), row["size"]) for thing in splits.redraw(row["picture"]).things]
        elsewhere = np.any(things, axis=0) & ~inside
        targets = dict.fromkeys(dice.some(np.flatnonzero(inside).tolist(), 8), self.here)
        # mostly patches of other things: against bare ground alone it would learn "a thing", not "the asked thing"
        targets |= dict.fromkeys(dice.some(np.flatnonzero(elsewhere).tolist(), 10), self.away)
        return targets | dict.fromkeys(dice.some(np.flatnonzero(~inside & ~elsewhere).tolist(), 2), self.away)

    def _signs(self, scene: Scene, region: tuple[int, int, int, int], size: Size, dice: Dice) -> dict[int, int]:
        """Targets on the crop's patches: the sign that lies there, or that none does."""
        inside = np.zeros(PICTURE_TOKENS, dtype=bool)
        targets: dict[int, int] = {}
        for thing in scene.things:
            box = _shifted(sign_box(thing, scene.kind), region)
            if _whole(size).contains(*box.centre):
                here = patches_in(box, size)
                inside |= here
                token = self.tokenizer.convert_tokens_to_ids(thing.sign)
                targets |= dict.fromkeys(dice.some(np.flatnonzero(here).tolist(), 6), token)
        return targets | dict.fromkeys(dice.some(np.flatnonzero(~inside).tolist(), 3), self.blank)

    def _verdicts(self, row: Document, region: tuple[int, int, int, int], size: Size, dice: Dice) -> dict[int, int]:
        """Targets on the patches of a yes-or-no question's picture, a crop of ``region``: "here" on the asked thing if the
        answer is yes, "away" on every other thing, and on all of them if it is no."""
        scene, targets = splits.redraw(row["picture"]), dict[int, int]()
        if row["group"] == "count":
            return targets
        for thing in scene.things:
            asked = list(thing.box) == row["box"]
            where = sign_box(thing, scene.kind) if row["group"] in UNREADABLE else thing.as_box().xyxy
            box = _shifted(where, region)
            if _whole(size).contains(*box.centre):
                token = self.here if asked and row["answer"] == "yes" else self.away
                targets |= dict.fromkeys(dice.some(np.flatnonzero(patches_in(box, size)).tolist(), 6), token)
        return targets

    def _encode(self, turns: tuple[Turn, ...], answer: str, images: Sequence[Image.Image | View]) -> Example:
        """Prompt, answer and end token. ``answer`` "": the prompt alone, to be given targets on its picture tokens."""
        text = render(LAYOUT, turns).text
        prompt = self.tokenizer(text.replace("<image>", "<image>" * PICTURE_TOKENS), add_special_tokens=False).input_ids
        reply = self.tokenizer(f"{answer}</s>", add_special_tokens=False).input_ids if answer else []
        return Example(
            prompt + reply,
            [IGNORE] * len(prompt) + reply,
            [view(image) if isinstance(image, Image.Image) else image for image in images],
        )

    def _on_picture(self, example: Example, which: int, targets: dict[int, int]) -> None:
        """Set targets on patches of picture ``which``. The model's loss scores label t + 1 from hidden state t, so a
        patch's target stands one place to its right."""
        first = [i for i, token in enumerate(example.ids) if token == self.image_id][which * PICTURE_TOKENS]
        last = len(example.labels) - 1
        for patch, token in targets.items():
            if first + patch + 1 <= last and example.labels[first + patch + 1] == IGNORE:
                example.labels[first + patch + 1] = token


_PICTURE = Picture("", lambda: Image.new("RGB", (1, 1)))


def _shifted(box: tuple[float, float, float, float], region: tuple[int, int, int, int]) -> Box:
    x1, y1, x2, y2 = box
    return Box(x1 - region[0], y1 - region[1], x2 - region[0], y2 - region[1])


def _whole(size: Size) -> Box:
    return Box(0.0, 0.0, float(size[0]), float(size[1]))
