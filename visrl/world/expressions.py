"""Words for what is in a scene: descriptions that fit one thing only, and the sentences around them.

A description is *unique by construction*: :func:`descriptions` checks it against every other thing of the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from visrl.world.rng import Dice
from visrl.world.scenes import COLOURS, RELATIONS, SHAPES, Scene, Thing, related

Sort = Literal["attribute", "size", "position", "relation", "field", "bar"]

SIDES_OF_PICTURE: dict[str, tuple[int, int]] = {
    "on the left": (0, -1),
    "on the right": (0, 1),
    "at the top": (1, -1),
    "at the bottom": (1, 1),
}
_CLEAR = 0.08  # a thing counts as "on the left" when its centre is this share of the width left of the middle

READ = (
    "What is written on the {it}?",
    "Which sign is on the {it}?",
    "What does the {it} say?",
)
READ_FIELD = (
    "What is entered beside the {it}?",
    "Which sign is in the field of the {it}?",
    "What does the field with the {it} say?",
)
READ_BAR = (
    "What is printed on the {it}?",
    "Which sign is on the {it}?",
    "How is the {it} labelled?",
)
VERIFY = (
    "Is the sign on the {it} {a_sign}?",
    "Does the {it} say {sign}?",
)
EXPRESSION = ("the {it}", "{it}", "find the {it}")
THERE_IS = "Is there {it} in the image?"


@dataclass(frozen=True, slots=True)
class Description:
    """Words that fit exactly one thing. ``relation`` is "" unless the words use another thing as a landmark."""

    words: str
    thing: Thing
    sort: Sort
    relation: str = ""


def descriptions(scene: Scene) -> list[Description]:
    """Every description the grammar has for the scene's things, in a fixed order."""
    if scene.kind == "form":
        return [Description(f"{t.colour} {t.shape}", t, "field") for t in scene.things]
    if scene.kind == "chart":
        return list(_bars(scene))
    return [d for thing in scene.things for d in _of(thing, scene)]


def _bars(scene: Scene) -> Iterator[Description]:
    for thing in scene.things:
        yield Description(f"{thing.colour} bar", thing, "bar")
    ranked = sorted(scene.things, key=lambda t: t.box[1])
    yield Description("tallest bar", ranked[0], "bar")
    yield Description("shortest bar", ranked[-1], "bar")


def _of(thing: Thing, scene: Scene) -> Iterator[Description]:
    others = [other for other in scene.things if other is not thing]
    same_colour = [o for o in others if o.colour == thing.colour]
    same_shape = [o for o in others if o.shape == thing.shape]
    twins = [o for o in same_colour if o.shape == thing.shape]
    if not twins:
        yield Description(f"{thing.colour} {thing.shape}", thing, "attribute")
    if not same_colour:
        yield Description(f"{thing.colour} shape", thing, "attribute")
    if not any(o.size == thing.size for o in twins):
        yield Description(f"{thing.size} {thing.colour} {thing.shape}", thing, "size")
    if not any(o.size == thing.size for o in same_shape):
        yield Description(f"{thing.size} {thing.shape}", thing, "size")
    yield from _by_place(thing, same_shape, scene)
    yield from _by_landmark(thing, same_shape, scene)


def _by_place(thing: Thing, same_shape: list[Thing], scene: Scene) -> Iterator[Description]:
    def place(t: Thing, axis: int, way: int) -> float:
        return (t.centre[axis] / scene.size[axis] - 0.5) * way

    for words, (axis, way) in SIDES_OF_PICTURE.items():
        if place(thing, axis, way) > _CLEAR and all(place(o, axis, way) < -_CLEAR for o in same_shape):
            yield Description(f"{thing.shape} {words}", thing, "position")


def _by_landmark(thing: Thing, same_shape: list[Thing], scene: Scene) -> Iterator[Description]:
    for landmark in scene.things:
        names = [o for o in scene.things if (o.colour, o.shape) == (landmark.colour, landmark.shape)]
        if landmark is thing or len(names) > 1:
            continue
        for relation in RELATIONS:
            if not _clearly(thing, relation, landmark):
                continue
            if any(related(o, relation, landmark) for o in same_shape if o is not landmark):
                continue
            words = f"{thing.shape} {relation} the {landmark.colour} {landmark.shape}"
            yield Description(words, thing, "relation", relation)


def _clearly(thing: Thing, relation: str, landmark: Thing) -> bool:
    """Related, and mainly along that axis: nobody calls what lies below and a little to the left "left of"."""
    dx = abs(thing.centre[0] - landmark.centre[0])
    dy = abs(thing.centre[1] - landmark.centre[1])
    return related(thing, relation, landmark) and (dx > dy if relation in RELATIONS[:2] else dy > dx)


def held_out(colour: str, shape: str, relation: str) -> bool:
    """Whether asking for this combination is kept for the ``heldout`` split: one in eight of colour x shape x relation.

    A Latin square: every colour, shape and relation is seen in training, and each pair of them; the triple is not.
    ``relation`` "" (no landmark) is a fifth value.
    """
    relations = ("", *RELATIONS)
    total = list(COLOURS).index(colour) + 2 * SHAPES.index(shape) + 3 * relations.index(relation)
    return total % 8 == 0


def is_held_out(description: Description) -> bool:
    thing = description.thing
    return thing.shape in SHAPES and held_out(thing.colour, thing.shape, description.relation)


def with_article(words: str) -> str:
    """ "an orange circle", "an E", "a U": by sound, for the words and signs there are."""
    return f"{'an' if words.split()[0] in ('orange', 'E', 'H', 'L', 'X') else 'a'} {words}"


def ask(description: Description, dice: Dice, kind: str) -> str:
    """A question whose answer is the sign on the described thing."""
    templates = {"form": READ_FIELD, "chart": READ_BAR}.get(kind, READ)
    return dice.one(templates).format(it=description.words)
