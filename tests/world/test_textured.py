"""The textured world: the plain one's questions over other pixels; what is covered never hides an answer; the same everywhere."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from visrl.errors import UsageError
from visrl.tasks import fingerprint, load
from visrl.train.config.recipe import load_recipe
from visrl.train.data.questions import QuestionSection, load_questions
from visrl.train.loop.ablations import jobs
from visrl.train.loop.phases import own_recipe, phases
from visrl.world.questions import documents, hidden_box
from visrl.world.rendering import draw as draw_plain
from visrl.world.rendering import shaded, sign_box, silhouette
from visrl.world.rng import Dice
from visrl.world.samples import drawn
from visrl.world.scenes import COLOURS, Thing
from visrl.world.splits import picture, redraw
from visrl.world.textured.drawing import painted
from visrl.world.textured.grounds import GROUNDS, MUTED, ground
from visrl.world.textured.marks import MARKS, mark
from visrl.world.textured.occlusion import readable
from visrl.world.textured.scenery import draw, dressed, undressed

PIXELS = "560f8e35e10458fe"  # a change needs a new visrl.world.VERSION
RECIPES = Path(__file__).parents[2] / "recipes"
SOME = [picture(split, index) for split in ("train", "test") for index in range(36)]


@pytest.fixture(scope="module")
def made():
    """(scene, pixels, what is covered) of each."""
    return [(scene, *painted(scene)) for scene in SOME]


def test_pixels_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for index in (0, 1, 2, 3, 6, 7, 8, 4, 5):  # scenes, a form, a chart
        image = draw(picture("test", index), "textured")
        digest.update(repr((image.size, image.mode)).encode() + image.tobytes())
    assert digest.hexdigest()[:16] == PIXELS


def test_only_pictures_differ_from_the_plain_world():
    for task in ("rec", "doc", "fine", "pope_popular", "mme", "mmbench"):
        for plain, textured in zip(
            documents(task, limit=30), documents(task, limit=30, scenery="textured"), strict=True
        ):
            key = plain["picture"]
            assert textured == plain | {"picture": f"textured:{key}", "cluster": f"textured:{key}"}
    (sample,) = load("world_textured_viscot_doc", None, with_pictures=True, limit=1)
    (other,) = load("world_viscot_doc", None, with_pictures=True, limit=1)
    assert (sample.id, sample.question, sample.answers, sample.box) == (
        other.id,
        other.question,
        other.answers,
        other.box,
    )
    assert (
        sample.picture.open().size == sample.size and sample.picture.open().tobytes() != other.picture.open().tobytes()
    )
    assert fingerprint("world_textured_rec", None)["scenery"] == "textured"
    assert "scenery" not in fingerprint("world_rec", None), "as records on file have it"


def test_keys():
    assert undressed("textured:val:7") == ("textured", "val:7") and undressed("val:7") == ("plain", "val:7")
    assert dressed("val:7", "plain") == "val:7" and redraw("textured:val:7") == redraw("val:7") == picture("val", 7)
    assert drawn("val:7").tobytes() == draw_plain(picture("val", 7)).tobytes() == draw(picture("val", 7)).tobytes()
    assert drawn("textured:val:7").tobytes() == draw(picture("val", 7), "textured").tobytes()


def test_every_sign_is_drawn_as_in_the_plain_world(made):
    """No cover within 5 pixels of a sign; on a shape or a bar its pixels are the plain world's; on paper its ink is dark and what lies
    around it light: 216 - 8 at least, lit by (240 - 24 - 20) / 256 at least: 159. Ink that leaves 40 of a page of 240 leaves 40 of 250
    + 1 here at most: 42."""
    for scene, pixels, covered in made:
        plain = np.asarray(draw_plain(scene))
        for thing in scene.things:
            x1, y1, x2, y2 = sign_box(thing, scene.kind)
            assert not covered[max(y1 - 5, 0) : y2 + 5, max(x1 - 5, 0) : x2 + 5].any(), scene.key
            here, there = pixels[y1:y2, x1:x2], plain[y1:y2, x1:x2]
            if scene.kind != "form":
                assert (here == there).all(), scene.key
            else:
                inked = there.max(2) <= 40
                assert inked.any() and here[inked].max() <= 42, scene.key
                assert here[there.min(2) >= 240].min() >= 159, scene.key


def test_four_fifths_of_every_thing_show_and_where_it_ends(made):
    """Counted by the pictures' own pixels: how many still have the thing's colour, not counting its sign."""
    for scene, pixels, covered in made:
        for thing in scene.things:
            (x1, y1, x2, y2), own = silhouette(thing, scene.kind)
            hidden = own & covered[y1:y2, x1:x2]
            assert hidden.sum() <= own.sum() / 5, scene.key
            coloured = own & (pixels[y1:y2, x1:x2] == shaded(thing)).all(2)
            sign = own.sum() - (own & (np.asarray(draw_plain(scene))[y1:y2, x1:x2] == shaded(thing)).all(2)).sum()
            assert coloured.sum() >= own.sum() * 4 / 5 - sign, scene.key
            rows, columns = coloured.nonzero()
            ends = (rows.min() < 4, columns.min() < 4, rows.max() >= y2 - y1 - 4, columns.max() >= x2 - x1 - 4)
            assert sum(ends) >= 3 and (scene.kind != "chart" or ends[0]), scene.key


def test_a_good_part_of_things_is_covered_and_so_are_all_kinds_of_pictures(made):
    covered, everything = Counter(), Counter()
    for scene, _, mask in made:
        for thing in scene.things:
            (x1, y1, x2, y2), own = silhouette(thing, scene.kind)
            covered[scene.kind] += bool((own & mask[y1:y2, x1:x2]).any())
            everything[scene.kind] += 1
    assert all(0.3 < covered[kind] / everything[kind] < 0.8 for kind in ("scene", "form", "chart")), covered


def test_the_rule_by_hand():
    """A square of 100 x 100 whose sign, 15 x 21, lies in the middle: from 93, 90 to 108, 111, or 88, 85 to 113, 116 with what
    must be clear around it."""
    thing = Thing("red", "square", "small", (50, 50, 150, 150), "E")
    assert sign_box(thing, "scene") == (93, 90, 108, 111)

    def allowed(*pieces, kind="scene"):
        covered = np.zeros((200, 200), dtype=bool)
        for x1, y1, x2, y2 in pieces:
            covered[y1:y2, x1:x2] = True
        return readable(thing, kind, covered)

    assert allowed((0, 0, 50, 200))  # beside it
    assert allowed((50, 50, 70, 150)) and not allowed((50, 50, 71, 150))  # 2,000 of its 10,000 pixels, 2,100
    assert allowed((88, 116, 113, 130)) and not allowed(
        (88, 115, 113, 130)
    )  # below what must be clear, and a row of that
    top, left, half = (
        (50, 50, 101, 54),
        (50, 50, 54, 101),
        (50, 50, 100, 54),
    )  # 51 of 100 columns (rows) of an end, and 50
    assert allowed(top) and allowed(left) and not allowed(top, left) and allowed(half, left)
    assert not allowed(top, kind="chart") and allowed(left, kind="chart")  # a bar's height


def test_what_a_triangle_hides_at_its_tip():
    """Its outermost four rows are some pixels wide: without them the tip, its top side, does not show."""
    thing = Thing("red", "triangle", "small", (50, 50, 150, 150), "E")
    covered = np.zeros((200, 200), dtype=bool)
    covered[50:55] = True
    assert readable(thing, "scene", covered), "three sides show"
    covered[50:150, 50:54] = True
    assert not readable(thing, "scene", covered), "tip and left corner are hidden, less than a fifth of it"


def test_no_ground_and_no_mark_has_a_things_colour():
    """Channels of a ground differ by 2 x 26 at most, after rounding 60 at the very most; those of a thing, in any shade, by more: the
    least is pink's 245 - 130 = 115, less 2 x 14 of shade: 87."""
    least = min(max(c) - min(c) for c in COLOURS.values())
    assert least == 115 and least - 28 > MUTED
    for number, make in enumerate(GROUNDS):
        canvas = make((224, 168), Dice("g", number)).astype(int)
        assert (canvas.max(2) - canvas.min(2)).max() <= MUTED, make.__name__
    for index in range(12):
        canvas = ground("scene", (448, 336), Dice(index)).astype(int)
        assert canvas.shape == (336, 448, 3) and (canvas.max(2) - canvas.min(2)).max() <= MUTED


def test_nothing_but_things_has_a_strong_colour(made):
    for scene, pixels, _ in made:
        strong = np.ptp(pixels.astype(int), axis=2) > MUTED
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            strong[y1:y2, x1:x2] = False
        assert not strong.any(), scene.key


def test_marks_differ_and_lie_on_no_thing(made):
    """What of a shape or bar is not covered has the plain world's pixels."""
    for scene, pixels, covered in made:
        plain = np.asarray(draw_plain(scene))
        for thing in scene.things:
            (x1, y1, x2, y2), own = silhouette(thing, scene.kind)
            bare = own & ~covered[y1:y2, x1:x2]
            assert (pixels[y1:y2, x1:x2] == plain[y1:y2, x1:x2]).all(2)[bare].all(), scene.key
    for name in MARKS:
        assert 0.05 < mark(name, 40).mean() < 0.8, name
    assert len({mark(name, 40).tobytes() for name in MARKS}) == len(MARKS)


def test_walls_are_plain_only():
    with pytest.raises(UsageError, match="no textured walls"):
        documents("deep", scenery="textured")


def test_questions_of_training_are_those_of_the_plain_world_with_their_hidden_boxes():
    plain, textured = (
        load_questions(QuestionSection(format="world", limit=10, scenery=scenery)) for scenery in (None, "textured")
    )
    assert [(s.id, s.question, s.box) for s in plain] == [(s.id, s.question, s.box) for s in textured]
    assert {s.cluster.partition(":")[0] for s in textured} == {"textured"} and textured[
        0
    ].picture.open().size == textured[0].size
    row = next(documents("general", "rl", 1, "textured"))
    assert "box" not in row and hidden_box(row) == list(map(int, textured[0].box.xyxy))


def test_the_recipe_is_textured_in_every_phase():
    recipe = load_recipe(RECIPES / "world-textured.yaml").recipe
    queue = list(jobs(recipe))
    assert [(job.variant, job.seed) for job in queue[:4]] == [
        ("full", 0), ("no-box-critic", 0), ("more-sft-compute", 0), ("full", 1),
    ]  # fmt: skip
    assert len(queue) == 9
    for job in queue:
        assert (job.recipe.base, job.recipe.score.tasks) == ("runs/world-textured-base", "world_textured_viscot")
        shown = {}
        for phase in phases(job.recipe):
            if (
                found := own_recipe(job.recipe, phase)
            ) is not None and phase.what != "rl":  # rl has the pairs' pictures
                shown[phase.what] = found.recipe.data.scenery if phase.what == "pairs" else found.recipe.scenery
        assert shown == dict.fromkeys(shown, "textured")
        assert set(shown) == {"warm-up", "continued_sft" if job.variant == "more-sft-compute" else "pairs"}
        if job.variant != "more-sft-compute":
            (pairs,) = [own_recipe(job.recipe, p).recipe for p in phases(job.recipe) if p.what == "pairs"]
            assert pairs.select.box_critic is (job.variant == "full") and pairs.data.limit == 1500
