"""Documents of the deep small world: a question about a sign on a poster, its answer, and the boxes on the way to it.

A row is as visrl/world/questions.py has it, with ``boxes``: the true box of every look that the sign takes, in order: the poster
and, where the poster is large, the thing on it. ``box`` is the smallest around them. ``looks``: how many they are. Rows of an
unlabelled split have neither ``box`` nor ``boxes``.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from visrl.world.deep.walls import Poster, Region, Wall, wall
from visrl.world.expressions import READ
from visrl.world.rng import Dice
from visrl.world.scenes import Thing
from visrl.world.splits import SPLITS

POSTER = "poster"
"""The one word of these questions that the small world's other tasks do not have."""
_LARGE = 0.6  # the share of questions about a large poster, where a wall has both


def documents(split: str = "test", limit: int | None = None) -> Iterator[dict[str, Any]]:
    """A row for each wall of ``split``, in order, lazily."""
    return islice((row(split, index) for index in range(SPLITS[split].pictures)), limit)


def row(split: str, index: int, turn: int = 0) -> dict[str, Any]:
    """The question about wall ``index``; ``turn`` asks again, differently."""
    seen = wall(split, index)
    dice, poster, thing = _choice(seen, turn)
    words = f"{thing.colour} {thing.shape} on the {poster.colour} {POSTER}"
    made: dict[str, Any] = {
        "id": f"{split}:deep:{index}:{turn}",
        "picture": seen.key,
        "size": list(seen.size),
        "question": dice.one(READ).format(it=words),
        "answer": thing.sign,
        "cluster": seen.key,
        "group": "deep",
        "sort": poster.size,
        "things": sum(len(p.things) for p in seen.posters),
        "looks": poster.make.looks,
    }
    if SPLITS[split].labelled:
        made["boxes"] = [list(box) for box in _way(poster, thing)]
        made["box"] = list(poster.box)
    return made


def hidden_boxes(row: dict[str, Any]) -> list[list[int]]:
    """``boxes`` of a row whose split hides them: to report how often a model was right, never to learn from."""
    split, _, index, turn = row["id"].split(":")
    _, poster, thing = _choice(wall(split, int(index)), int(turn))
    return [list(box) for box in _way(poster, thing)]


def _choice(seen: Wall, turn: int) -> tuple[Dice, Poster, Thing]:
    """What is asked about: first the sort of poster, then one of that sort, then a thing on it."""
    dice = Dice("deep", seen.key, turn)
    size = "large" if dice.chance(_LARGE) else "small"
    there = [poster for poster in seen.posters if poster.things]
    poster = dice.one([poster for poster in there if poster.size == size] or there)
    return dice, poster, dice.one(poster.things)


def _way(poster: Poster, thing: Thing) -> tuple[Region, ...]:
    return (poster.box, thing.box)[: poster.make.looks]
