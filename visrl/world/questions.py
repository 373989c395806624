"""Documents of the small world: plain JSON rows, as a benchmark's file would hold them. tasks/world.py makes samples of them.

A row: {id, picture, size, question, answer, box, cluster, group, sort, ...}. Rows of an unlabelled split have no box.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from visrl.core.boxes import Box
from visrl.errors import UsageError
from visrl.world import general_questions
from visrl.world.deep.documents import documents as deep_documents
from visrl.world.expressions import EXPRESSION, VERIFY, Description, ask, descriptions, is_held_out, with_article
from visrl.world.general_questions import GeneralQuestion
from visrl.world.glyphs import SIGNS
from visrl.world.rng import Dice
from visrl.world.scenes import Kind, Scene
from visrl.world.splits import SPLITS, indices, picture
from visrl.world.textured.scenery import PLAIN, Scenery, dressed

Document = dict[str, Any]
DOMAINS: dict[str, Kind] = {"doc": "form", "chart": "chart", "general": "scene", "relation": "scene", "fine": "scene"}
SORTS = ("attribute", "attribute", "size", "position", "relation")  # two in five by colour and shape


def true_box(row: Document) -> Box:
    """The row's box, in pixels of its picture. Raises KeyError for a row of an unlabelled split."""
    return box_of(row["box"])


def box_of(numbers: Sequence[int]) -> Box:
    """x1, y1, x2, y2 of a row as a box, in pixels of its picture."""
    x1, y1, x2, y2 = map(float, numbers)
    return Box(x1, y1, x2, y2)


def rec(split: str, index: int, turn: int = 0) -> Document | None:
    """A referring expression for picture ``index``; ``turn`` asks again, differently. None if nothing can be asked."""
    scene = picture(split, index)
    dice = Dice("rec", scene.key, turn)
    chosen = choose(scene, split, dice, SORTS)
    if chosen is None:
        return None
    question = dice.one(EXPRESSION).format(it=chosen.words)
    return _row(f"rec:{index}:{turn}", split, scene, GeneralQuestion(question, "", chosen.thing), chosen.sort)


def viscot(split: str, index: int, domain: str, turn: int = 0) -> Document | None:
    """A question whose answer is written too small to read in the whole picture, with the box that shows it."""
    scene, dice, chosen = _viscot_choice(split, index, domain, turn)
    if chosen is None:
        return None
    question, answer = ask(chosen, dice, scene.kind), chosen.thing.sign
    if domain == "fine":
        question, answer = _verify(scene, chosen, dice)
    asked = GeneralQuestion(question, answer, chosen.thing, domain)
    return _row(f"{domain}:{index}:{turn}", split, scene, asked, chosen.sort)


def _viscot_choice(split: str, index: int, domain: str, turn: int) -> tuple[Scene, Dice, Description | None]:
    scene = picture(split, index)
    dice = Dice("viscot", domain, scene.key, turn)
    sorts: tuple[str, ...] = {"relation": ("relation",), "doc": ("field",), "chart": ("bar",)}.get(domain, SORTS[:4])
    return scene, dice, choose(scene, split, dice, sorts)


def hidden_box(row: Document) -> list[int]:
    """The true box of a :func:`viscot` row whose split hides it: to report how often a model was right, never to learn from."""
    split, domain, index, turn = row["id"].split(":")
    _, _, chosen = _viscot_choice(split, int(index), domain, int(turn))
    assert chosen is not None, "a row is a question that could be asked"
    return list(chosen.thing.box)


def _verify(scene: Scene, chosen: Description, dice: Dice) -> tuple[str, str]:
    """Yes or no, half each; a wrong sign is one that another thing of the scene carries, where there is one."""
    truth = dice.chance(0.5)
    others = sorted({t.sign for t in scene.things} - {chosen.thing.sign})
    sign = chosen.thing.sign if truth else dice.one(others or [s for s in SIGNS if s != chosen.thing.sign])
    return dice.one(VERIFY).format(it=chosen.words, sign=sign, a_sign=with_article(sign)), "yes" if truth else "no"


def choose(scene: Scene, split: str, dice: Dice, sorts: tuple[str, ...]) -> Description | None:
    """A description the split may ask for: first its sort, then one of that sort. None if the scene affords none."""
    allowed = [d for d in descriptions(scene) if d.sort in sorts and is_held_out(d) == (split == "heldout")]
    if split == "heldout" and scene.kind == "chart":  # bars have no shape to hold out
        allowed = descriptions(scene)
    available = [sort for sort in sorts if any(d.sort == sort for d in allowed)]
    if not available:
        return None
    sort = dice.one(available)
    return dice.one([d for d in allowed if d.sort == sort])


def _row(name: str, split: str, scene: Scene, asked: GeneralQuestion, sort: str) -> Document:
    """A document. asked: the question, its answer, and the thing to look at, whose box is the true one."""
    row: Document = {
        "id": f"{split}:{name}",
        "picture": scene.key,
        "size": list(scene.size),
        "question": asked.question,
        "answer": asked.answer,
        "cluster": scene.key,
        "group": asked.group,
        "sort": sort,
        "things": len(scene.things),
    }
    if SPLITS[split].labelled:
        row["box"] = list(asked.thing.box) if asked.thing else [0, 0, *scene.size]
    return row


def _general_row(name: str, split: str, scene: Scene, question: GeneralQuestion) -> Document:
    return {**_row(name, split, scene, question, sort=question.group), **question.extra}


def pope(split: str, index: int, variant: str | None = None) -> list[Document]:
    """Presence questions of one picture, up to six; the variant goes round with the picture unless it is given."""
    scene = picture(split, index)
    variant = variant or general_questions.VARIANTS[(index // 6) % len(general_questions.VARIANTS)]
    rows = general_questions.presence(scene, variant, Dice("pope", variant, scene.key))
    return [_general_row(f"pope:{variant}:{index}:{i}", split, scene, question) for i, question in enumerate(rows)]


def mme(split: str, index: int) -> list[Document]:
    """A yes and a no question about one picture; the subtask goes round with the picture."""
    scene = picture(split, index)
    subtask = general_questions.SUBTASKS[(index // 6) % len(general_questions.SUBTASKS)]
    pair = general_questions.pair(scene, subtask, Dice("mme", scene.key))
    return [_general_row(f"mme:{index}:{i}", split, scene, question) for i, question in enumerate(pair or ())]


def mmbench(split: str, index: int, rotations: int = 4) -> list[Document]:
    """One question with four options, asked ``rotations`` times with the options turned by one each time."""
    scene = picture(split, index)
    kind = general_questions.CHOICES[(index // 6) % len(general_questions.CHOICES)]
    question = general_questions.choice(scene, kind, Dice("mmbench", scene.key))
    if question is None:
        return []
    rows = []
    for turn in range(rotations):
        options = question.extra["options"][turn:] + question.extra["options"][:turn]
        row = _general_row(f"mmbench:{index}:{turn}", split, scene, question)
        letter = "ABCD"[options.index(question.answer)]
        rows.append({**row, "options": options, "answer": letter, "group": str(index), "turn": turn})
    return rows


def documents(task: str, split: str = "test", limit: int | None = None, scenery: Scenery = PLAIN) -> Iterator[Document]:
    """The rows of a task, lazily: ``rec``, ``pope_<variant>``, ``mme``, ``mmbench``, ``deep`` or a domain of :data:`DOMAINS`.

    scenery: what their pictures are drawn over; ids, questions, answers and boxes are the same in each. Raises UsageError for
    ``deep`` over another than the plain one.
    """
    if task == "deep":
        if scenery != PLAIN:
            raise UsageError(f"no {scenery} walls: the task deep is drawn plain", "leave scenery out")
        return deep_documents(split, limit)
    many: dict[str, Callable[[str, int], list[Document]]] = {"mme": mme, "mmbench": mmbench}
    many |= {f"pope_{variant}": partial(pope, variant=variant) for variant in general_questions.VARIANTS}
    kind: Kind = DOMAINS.get(task, "scene")

    def rows() -> Iterator[Document]:
        for index in indices(split, kind):
            if task in many:
                yield from many[task](split, index)
                continue
            row = rec(split, index) if task == "rec" else viscot(split, index, task)
            if row is not None:
                yield row

    return (over(row, scenery) for row in islice(rows(), limit))


def over(row: Document, scenery: Scenery) -> Document:
    """The row with its picture drawn over ``scenery``."""
    picture_key = dressed(row["picture"], scenery)
    return {**row, "picture": picture_key, "cluster": picture_key}
