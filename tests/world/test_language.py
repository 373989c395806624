"""Descriptions fit one thing only: checked by reading the words back with a second, independent grammar."""

import re

from visrl.world import general_questions, questions
from visrl.world.expressions import descriptions, held_out, is_held_out, with_article
from visrl.world.general_questions import vocabulary
from visrl.world.rng import Dice
from visrl.world.scenes import COLOURS, RELATIONS, SHAPES, Scene, Thing
from visrl.world.splits import picture

SCENES = [s for i in range(90) if (s := picture("test", i)).kind == "scene"]


def meant(words, scene):
    """The things ``words`` fit, read word by word."""
    head, relation, landmark = re.match(r"(.*?)(?: (left of|right of|above|below) the (.*))?$", words).groups()
    found = list(scene.things)
    if landmark:
        (anchor,) = meant(landmark, scene)
        axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
        found = [t for t in found if t is not anchor and (t.centre[axis] - anchor.centre[axis]) * sign > 0]
    for phrase, (axis, sign) in {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}.items():
        if re.search(rf" (on|at) the {phrase}$", head):
            found = [t for t in found if (t.centre[axis] - scene.size[axis] / 2) * sign > 0]
            head = re.sub(rf" (on|at) the {phrase}$", "", head)
    for word in head.split():
        found = [t for t in found if word in (t.colour, t.shape, t.size, "shape")]
    return found


def test_every_description_fits_exactly_the_thing_it_is_of():
    seen = {"attribute": 0, "size": 0, "position": 0, "relation": 0}
    for scene in SCENES:
        for description in descriptions(scene):
            assert meant(description.words, scene) == [description.thing], (scene.key, description.words)
            seen[description.sort] += 1
    assert min(seen.values()) > 50


def test_near_duplicates_are_told_apart():
    """Two red circles: "red circle" fits both and must not be offered; "small red circle" fits one."""
    small = Thing("red", "circle", "small", (10, 10, 100, 100), "E")
    large = Thing("red", "circle", "large", (200, 10, 340, 150), "H")
    words = [d.words for d in descriptions(Scene("k", "scene", (448, 448), (small, large)))]
    assert "red circle" not in words and "red shape" not in words
    assert {"small red circle", "large red circle", "small circle", "circle on the left", "circle on the right"} <= set(
        words
    )


def test_a_thing_near_the_middle_is_not_on_a_side():
    """Centre 220 of 448 is 0.9 % left of the middle, within the 8 % that are nobody's side."""
    middle = Thing("red", "circle", "small", (175, 20, 265, 110), "E")
    words = [d.words for d in descriptions(Scene("k", "scene", (448, 448), (middle,)))]
    assert "circle at the top" in words and "circle on the left" not in words


def test_one_combination_in_eight_is_held_out_and_every_part_of_it_is_not():
    combinations = [(c, s, r) for c in COLOURS for s in SHAPES for r in ("", *RELATIONS)]
    kept = [x for x in combinations if held_out(*x)]
    assert len(kept) * 8 == len(combinations) == 8 * 4 * 5
    taught = set(combinations) - set(kept)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {(x[a], x[b]) for x in taught} >= {(x[a], x[b]) for x in kept}, "every pair of parts is taught"


def test_no_split_but_heldout_asks_for_a_held_out_combination():
    for split in ("pretrain", "train", "rl", "val", "test", "heldout"):
        asked = 0
        for index in (i for i in range(200) if i % 6 < 4):
            scene = picture(split, index)
            chosen = questions.choose(scene, split, Dice("x", index), questions.SORTS)
            if chosen is not None:
                assert is_held_out(chosen) == (split == "heldout"), chosen
                asked += 1
        assert asked > 50


def test_articles():
    assert [with_article(w) for w in ("orange square", "red circle", "E", "U", "X", "T")] == [
        *("an orange square", "a red circle", "an E", "a U", "an X", "a T")
    ]


def test_bars_by_height():
    scene = next(picture("test", i) for i in range(5, 90, 6))
    tallest = next(d.thing for d in descriptions(scene) if d.words == "tallest bar")
    assert all(tallest.box[3] - tallest.box[1] >= t.box[3] - t.box[1] for t in scene.things)


def test_the_vocabulary_covers_all_that_is_asked():
    from visrl.world.model import build_tokenizer
    from visrl.world.samples import samples

    tokenizer = build_tokenizer()
    kinds = ["rec", *questions.DOMAINS, *(f"pope_{v}" for v in general_questions.VARIANTS), "mme", "mmbench"]
    for sample in (s for kind in kinds for s in samples(kind, limit=60)):
        ids = tokenizer(f"{sample.question} {sample.instruction} {' '.join(sample.answers)}").input_ids
        assert tokenizer.unk_token_id not in ids, sample.question
    assert len(vocabulary()) == len(set(vocabulary()))
