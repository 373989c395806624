"""Walls of posters: signs that take one look or two, true boxes on the way, and the same pixels on every machine."""

import hashlib
import json
from collections import Counter

import pytest

from visrl.core.boxes import Box, iou
from visrl.core.looking.calls import View, into
from visrl.core.prompts import PROTOCOLS, SEVERAL
from visrl.evals.benchmarks import TASKS
from visrl.policies.protocol import FunctionPolicy
from visrl.rollout.config import rollout_config, with_looks
from visrl.rollout.rollout import look_then_answer
from visrl.tasks import load
from visrl.world import IMAGE_SIZE
from visrl.world.chat_format import BOX_FORMAT
from visrl.world.deep.documents import documents, hidden_boxes, row
from visrl.world.deep.drawing import draw
from visrl.world.deep.walls import MAKES, WALLS, rewall, wall
from visrl.world.glyphs import DIGITS, LETTERS, hands, ink
from visrl.world.rendering import sign_box
from visrl.world.samples import drawn, sample_of

PIXELS, ROWS = "8ff7817aacf3700a", "136b654ca4a9294f"  # a change needs a new visrl.world.VERSION
SOME = [wall(split, index) for split in ("train", "val", "test") for index in range(40)]


def test_pixels_and_documents_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for index in range(4):
        image = draw(wall("test", index))
        digest.update(repr((image.size, image.mode)).encode() + image.tobytes())
    rows = hashlib.sha256(json.dumps(list(documents("test", 40)), sort_keys=True).encode()).hexdigest()[:16]
    assert (digest.hexdigest()[:16], rows) == (PIXELS, ROWS)


def test_nothing_touches_or_leaves_what_holds_it():
    for seen in SOME:
        assert len({poster.colour for poster in seen.posters}) == len(seen.posters) >= 2, seen.key
        for i, poster in enumerate(seen.posters):
            x1, y1, x2, y2 = poster.box
            assert 0 <= x1 < x2 <= seen.size[0] and 0 <= y1 < y2 <= seen.size[1], seen.key
            assert all(iou(poster.as_box(), other.as_box()) == 0 for other in seen.posters[i + 1 :]), seen.key
            names = [(thing.colour, thing.shape) for thing in poster.things]
            assert len(set(names)) == len(names) and poster.colour not in dict(names), seen.key
            for j, thing in enumerate(poster.things):
                assert x1 < thing.box[0] and thing.box[2] < x2 and y1 < thing.box[1] and thing.box[3] < y2, seen.key
                assert all(iou(thing.as_box(), other.as_box()) == 0 for other in poster.things[j + 1 :]), seen.key
                a, b, c, d = sign_box(thing, "scene", poster.make.cell)
                assert thing.box[0] <= a < c <= thing.box[2] and thing.box[1] <= b < d <= thing.box[3], seen.key


def test_how_high_a_sign_is_in_each_view():
    """A letter is 7 marks high, a digit 8; a view is 64 pixels of the longest side. Small posters' marks are 3 pixels, so 21 or 24:
    1.8 or 2.0 of a wall's 768, 21 * 64 / 136 = 9.9 to 24 * 64 / 112 = 13.7 in the poster. Large ones' are 2, so 14 or 16: 1.2 or
    1.3, 14 * 64 / 384 = 2.3 to 16 * 64 / 320 = 3.2 in the poster, 14 * 64 / 80 = 11.2 to 16 * 64 / 64 = 16.0 in the thing.
    """
    high = {ink(sign, hands(sign, False)[0], 1).shape[0] for sign in (*LETTERS, *DIGITS)}
    assert high == {7, 8} and {max(size) for size in WALLS} == {768}
    found = {}
    for name, make in MAKES.items():
        marks = [h * make.cell * IMAGE_SIZE for h in sorted(high)]
        found[name] = [
            [round(m / side, 1) for m, side in zip(marks, sides, strict=True)]
            for sides in ((768, 768), make.side[::-1], make.thing[::-1])
        ]
    assert found["small"][:2] == [[1.8, 2.0], [9.9, 13.7]]
    assert found["large"] == [[1.2, 1.3], [2.3, 3.2], [11.2, 16.0]]


def test_there_are_as_many_as_the_task_says_and_most_take_two_looks():
    samples = list(load("world_deep", None, with_pictures=True))
    assert (
        len(samples)
        == TASKS["world_deep"].n
        == 1000
        == len({s.id for s in samples})
        == len({s.cluster for s in samples})
    )
    assert 0.55 < Counter(len(s.boxes) for s in samples)[2] / 1000 < 0.65
    assert all(s.box == s.boxes[0] and s.meta["looks"] == len(s.boxes) for s in samples)
    assert samples[0].picture.open().size == samples[0].size


def test_the_question_names_one_sign_and_the_boxes_lead_to_it():
    for document in documents("test", 150):
        named = [
            (poster, thing)
            for poster in rewall(document["picture"]).posters
            for thing in poster.things
            if f" {thing.colour} {thing.shape} on the {poster.colour} poster" in document["question"]
        ]
        ((poster, thing),) = named
        assert thing.sign == document["answer"]
        assert document["boxes"] == [list(poster.box), list(thing.box)][: poster.make.looks]
        assert document["box"] == list(poster.box) and document["looks"] == poster.make.looks


def test_asking_the_wrong_poster_often_gives_another_sign():
    """On most walls a thing of the same colour and shape hangs on two posters; which poster is asked about then matters."""
    twins = 0
    for seen in SOME:
        names = Counter((t.colour, t.shape) for p in seen.posters for t in p.things)
        twins += max(names.values()) > 1
    assert twins > len(SOME) / 2


def test_an_unlabelled_split_hides_its_boxes():
    for document in documents("rl", 20):
        assert "box" not in document and "boxes" not in document
        assert sample_of(document).boxes == () and len(hidden_boxes(document)) == document["looks"]
    labelled = row("test", 3, 2)
    assert hidden_boxes(labelled) == labelled["boxes"] and labelled["id"] == "test:deep:3:2"


def test_walls_are_no_pictures_of_the_other_tasks():
    assert drawn("deep:test:3").size == wall("test", 3).size and rewall("deep:test:3") == wall("test", 3)
    with pytest.raises(IndexError, match="1800 walls, not 1800"):
        wall("val", 1800)


def gold_run(sample, looks):
    """The gold path under ``zoom_box``: (episode, what the model is asked)."""
    asked = []
    policy = FunctionPolicy("f", lambda r: asked.append(r) or sample.answers[0], BOX_FORMAT, needs_pictures=True)
    config = rollout_config(policy, protocol=with_looks(SEVERAL["zoom_box"], looks), box_source="gold")
    (episode,) = look_then_answer(policy, [sample], config)
    return episode, asked[-1].turns


def test_the_gold_path_by_hand():
    """The second box is written in the crop of the first: in 32 steps of the crop's longer side, the shorter one centred."""
    sample = next(s for s in load("world_deep", None, with_pictures=True) if len(s.boxes) == 2)
    episode, turns = gold_run(sample, 3)
    assert [look.box for look in episode.looks] == list(sample.boxes) and episode.ended == "looks"
    (x1, y1, x2, y2), (a, b, c, d) = (box.xyxy for box in sample.boxes)
    side = max(x2 - x1, y2 - y1)
    left, top = (side - (x2 - x1)) / 2, (side - (y2 - y1)) / 2
    steps = [(a - x1 + left) / side, (b - y1 + top) / side, (c - x1 + left) / side, (d - y1 + top) / side]
    said = [turn.text() for turn in turns if turn.role == "assistant"][1]
    written = [int(said[4 + 7 * i : 6 + 7 * i]) for i in range(4)]
    assert all(abs(32 * true - step) <= 1 for true, step in zip(steps, written, strict=True))
    assert [p.open().size for t in turns for p in t.pictures] == [
        sample.size, (int(x2 - x1), int(y2 - y1)), (int(c - a), int(d - b)),
    ]  # fmt: skip
    assert [turn.text() for turn in turns if turn.role == "user"][1:] == [
        "<image>\nLook again, or answer.",
        "<image>\nAnswer now.",
    ]


def test_without_looks_it_is_asked_as_under_direct():
    sample = next(load("world_deep", None, with_pictures=True))
    _, turns = gold_run(sample, 0)
    asked = []
    policy = FunctionPolicy("f", lambda r: asked.append(r) or "E", BOX_FORMAT, needs_pictures=True)
    list(look_then_answer(policy, [sample], rollout_config(policy, protocol="direct")))
    assert asked[0].turns == turns and PROTOCOLS["direct"].looks is False


def test_training_asks_in_the_rollouts_words():
    from visrl.train.small_model.several_looks import held
    from visrl.world.rng import Dice

    for index in range(12):
        talk = held("val", index, Dice("t", index), 3)
        _, turns = gold_run(talk.sample, 3)
        own = [(t.role, t.text()) for t in talk.turns if t.role != "assistant"]
        theirs = [(t.role, t.text()) for t in turns if t.role != "assistant"]
        assert own[:-1] == theirs[:-1], "all but the last, which says that the gold path ends"
        first = next(t.text() for t in turns if t.role == "assistant")
        assert talk.turns[2].text() == first, "boxes in the whole picture are written alike; the crop is jittered"
        near = into(talk.sample.boxes[0], View((0, 0, *talk.sample.size), talk.sample.size))
        assert iou(near, Box(*map(float, talk.views[1].region))) > 0.5


def test_what_is_taught_of_a_conversation():
    """A new word or sentence is one token, which begins where another stands; replies are targets, each with its end."""
    import torch

    from visrl.train.small_model.several_looks import SeveralLooks, held
    from visrl.world.model import SEVERAL_LOOKS, build_model, build_processor, build_tokenizer, extend
    from visrl.world.rng import Dice

    tokenizer = build_tokenizer()
    processor, model = build_processor(tokenizer), build_model(tokenizer, seed=0, layers=1, width=32)
    known = len(tokenizer)
    extend(model, tokenizer)
    extend(model, tokenizer)  # once is enough
    table = model.get_input_embeddings().weight
    assert len(tokenizer) == known + len(SEVERAL_LOOKS) == table.shape[0] == model.lm_head.weight.shape[0]
    for text, like in SEVERAL_LOOKS.items():
        (own,) = tokenizer(text, add_special_tokens=False).input_ids
        assert torch.equal(table[own], table[tokenizer.convert_tokens_to_ids(like)])
    builder = SeveralLooks(processor, "val", 1800)
    talk = next(t for t in (held("val", i, Dice(i), 3) for i in range(9)) if len(t.sample.boxes) == 2)
    example = builder.encoded(talk)
    taught = tokenizer.decode([token for token in example.labels if token != -100])
    first, second = (turn.text() for turn in talk.turns if turn.role == "assistant" and "loc" in turn.text())
    said = f"{first}</s>{second}</s>{talk.sample.answers[0]}</s>"
    assert taught.replace(" ", "") == said and "<unk>" not in tokenizer.decode(example.ids)
    assert len(example.views) == 3 and all(view.shape == (64, 64, 3) for view in example.views)
    # with targets on pictures: one more kind each, and no word's target moves
    marked = builder.example(Dice("m"))
    assert {builder.here, builder.away} & set(marked.labels) and len(marked.ids) == len(marked.labels)
