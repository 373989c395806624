"""Questions about a whole scene in the layouts of POPE (presence), MME (yes/no pairs) and MMBench (choices, rotated)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from visrl.world.expressions import (
    EXPRESSION,
    READ,
    READ_BAR,
    READ_FIELD,
    SIDES_OF_PICTURE,
    THERE_IS,
    VERIFY,
    Description,
    descriptions,
    with_article,
)
from visrl.world.glyphs import SIGNS
from visrl.world.rng import Dice
from visrl.world.scenes import COLOURS, RELATIONS, SHAPES, Scene, Thing, related

POPULAR: tuple[str, ...] = (
    "red circle",
    "blue square",
    "green triangle",
    "yellow diamond",
    "red square",
    "blue circle",
)
VARIANTS: tuple[str, ...] = ("random", "popular", "adversarial")
SUBTASKS: tuple[str, ...] = ("existence", "count", "position", "color", "OCR")
CHOICES: tuple[str, ...] = ("sign", "colour", "shape")

COUNT = "Are there {n} shapes in the image?"
WHERE = "Is the {it} {relation} the {other}?"
COLOUR = "Is the {it} {colour}?"
SAYS = "Is the sign on the {it} {a_sign}?"
CHOOSE = {
    "sign": "Which sign is on the {it}?",
    "colour": "What colour is the {it}?",
    "shape": "Which shape carries the sign {it}?",
}
SENTENCES: tuple[str, ...] = (
    "Are there 2 3 4 5 6 7 shapes in the image ?",
    "Is the left of the ?",
    "Is the ?",
    "What colour is the ?",
    "Which shape carries the sign ?",
    "A . B . C . D .",
    "What is written?",
)


@dataclass(frozen=True, slots=True)
class GeneralQuestion:
    """A question about a scene: ``thing`` is what must be looked at, None for the whole picture."""

    question: str
    answer: str
    thing: Thing | None = None
    group: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def present(scene: Scene) -> list[str]:
    return sorted({f"{t.colour} {t.shape}" for t in scene.things})


def absent(scene: Scene, variant: str, dice: Dice) -> str:
    """A name nothing in the scene has. Adversarial: its colour and its shape are both there, on different things."""
    there = set(present(scene))
    if variant == "popular":
        names = list(POPULAR)
    elif variant == "adversarial":
        names = [f"{a.colour} {b.shape}" for a in scene.things for b in scene.things]
    else:
        names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    left = sorted(set(names) - there)
    return dice.one(left) if left else absent(scene, "random", dice)


def presence(scene: Scene, variant: str, dice: Dice) -> list[GeneralQuestion]:
    """Up to three names that are there and as many that are not: POPE's balance."""
    yes = dice.some(present(scene), 3)
    rows: list[GeneralQuestion] = []
    for name in yes:
        thing = next(t for t in scene.things if f"{t.colour} {t.shape}" == name)
        rows.append(GeneralQuestion(THERE_IS.format(it=with_article(name)), "yes", thing, variant))
        rows.append(
            GeneralQuestion(THERE_IS.format(it=with_article(absent(scene, variant, dice))), "no", None, variant)
        )
    return rows


def pair(scene: Scene, subtask: str, dice: Dice) -> tuple[GeneralQuestion, GeneralQuestion] | None:
    """MME's two questions about one picture, the first answered yes, the second no; None if the scene affords none."""
    if subtask == "existence":
        yes = dice.one(presence(scene, "random", dice)[::2])
        return (
            GeneralQuestion(yes.question, "yes", yes.thing, subtask),
            GeneralQuestion(THERE_IS.format(it=with_article(absent(scene, "random", dice))), "no", None, subtask),
        )
    if subtask == "count":
        n = len(scene.things)
        wrong = n + (1 if n < 3 or dice.chance(0.5) else -1)
        return GeneralQuestion(COUNT.format(n=n), "yes", None, subtask), GeneralQuestion(
            COUNT.format(n=wrong), "no", None, subtask
        )
    named = [d for d in descriptions(scene) if d.sort == "attribute" and not d.words.endswith("shape")]
    if not named:
        return None
    if subtask == "position":
        return _position_pair(named, dice)
    target = dice.one(named)
    if subtask == "OCR":
        wrong_sign = dice.one([s for s in SIGNS if s != target.thing.sign])
        return (
            GeneralQuestion(
                SAYS.format(it=target.words, a_sign=with_article(target.thing.sign)), "yes", target.thing, subtask
            ),
            GeneralQuestion(SAYS.format(it=target.words, a_sign=with_article(wrong_sign)), "no", target.thing, subtask),
        )
    return _colour_pair(scene, dice)


def _position_pair(named: list[Description], dice: Dice) -> tuple[GeneralQuestion, GeneralQuestion] | None:
    if len(named) < 2:
        return None
    first, second = dice.some(named, 2)
    horizontal = dice.chance(0.5)
    options = RELATIONS[:2] if horizontal else RELATIONS[2:]
    true, false = options if related(first.thing, options[0], second.thing) else options[::-1]
    rows = [
        GeneralQuestion(WHERE.format(it=first.words, relation=r, other=second.words), a, first.thing, "position")
        for r, a in ((true, "yes"), (false, "no"))
    ]
    return rows[0], rows[1]


def _colour_pair(scene: Scene, dice: Dice) -> tuple[GeneralQuestion, GeneralQuestion] | None:
    alone = [t for t in scene.things if sum(o.shape == t.shape for o in scene.things) == 1]
    if not alone:
        return None
    thing = dice.one(alone)
    wrong = dice.one([c for c in COLOURS if c != thing.colour])
    return (
        GeneralQuestion(COLOUR.format(it=thing.shape, colour=thing.colour), "yes", thing, "color"),
        GeneralQuestion(COLOUR.format(it=thing.shape, colour=wrong), "no", thing, "color"),
    )


def choice(scene: Scene, kind: str, dice: Dice) -> GeneralQuestion | None:
    """A question with four options (in ``extra``); the answer is the true option's text. Rotation is the caller's."""
    if kind == "sign":
        target = dice.one([d for d in descriptions(scene) if d.sort in ("attribute", "size")])
        return _options(CHOOSE[kind], target.words, target.thing, target.thing.sign, list(SIGNS), kind, dice)
    if kind == "colour":
        alone = [t for t in scene.things if sum(o.shape == t.shape for o in scene.things) == 1]
        if not alone:
            return None
        thing = dice.one(alone)
        return _options(CHOOSE[kind], thing.shape, thing, thing.colour, list(COLOURS), kind, dice)
    alone = [t for t in scene.things if sum(o.sign == t.sign for o in scene.things) == 1]
    if not alone:
        return None
    thing = dice.one(alone)
    return _options(CHOOSE[kind], thing.sign, thing, thing.shape, list(SHAPES), kind, dice)


def _options(
    template: str, it: str, thing: Thing, answer: str, pool: list[str], kind: str, dice: Dice
) -> GeneralQuestion:
    wrong = dice.some([name for name in pool if name != answer], 3)
    return GeneralQuestion(template.format(it=it), answer, thing, kind, {"options": dice.shuffled([answer, *wrong])})


def vocabulary() -> list[str]:
    """Every word and mark that the templates of expressions and of general questions can produce, for the tokenizer."""
    sentences = [*READ, *READ_FIELD, *READ_BAR, *VERIFY, *EXPRESSION, THERE_IS, *SENTENCES]
    words = re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w+\}", " ", " ".join(sentences)))
    names = [
        *COLOURS,
        *SHAPES,
        "bar",
        "shape",
        "small",
        "large",
        "tallest",
        "shortest",
        "the",
        "a",
        "an",
        "yes",
        "no",
        *SIGNS,
    ]
    places = [word for phrase in (*SIDES_OF_PICTURE, *RELATIONS) for word in phrase.split()]
    return sorted({*words, *names, *places})
