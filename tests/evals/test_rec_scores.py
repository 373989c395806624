import gzip
import json
from dataclasses import replace

import pytest
from made import GOLD, failed, looked, numbers, sample, score

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import SQUARE, Box
from visrl.core.types import CoTSample, Episode


def one(id_, box, cluster="", gold=GOLD):
    return sample(id_, box=gold, cluster=cluster, kind="rec"), looked(id_, box)


def test_half_is_not_enough():
    # gold 100 x 100; a box of 100 x 50 inside it has IoU exactly .5, one of 100 x 51 .51
    found = numbers(score("refcoco_val", [one("a", Box(0, 0, 100, 50)), one("b", Box(0, 0, 100, 51))]))
    assert found["acc@0.5"].value == 50.0
    assert found["miou"].value == pytest.approx((50 + 51) / 2)
    assert found["acc@0.75"].value == 0.0
    assert found["acc@0.5"].unit == "percent"
    assert (found["acc@0.5"].n, found["acc@0.5"].n_expected, found["acc@0.5"].n_missing) == (2, 10834, 10832)


def test_three_quarters_is_strict_too():
    found = numbers(score("refcoco_val", [one("a", Box(0, 0, 100, 75)), one("b", Box(0, 0, 100, 76))]))
    assert found["acc@0.75"].value == 50.0


def test_centre_is_pointing_without_the_extent():
    # a speck in the middle points right with IoU 1e-4; a large box beside it overlaps but its centre is outside
    found = numbers(score("refcoco_val", [one("a", Box(49, 49, 51, 51)), one("b", Box(90, 0, 190, 100))]))
    assert found["centre_acc"].value == 50.0
    assert found["acc@0.5"].value == 0.0


def test_unparsed_is_wrong_and_counted_even_where_the_true_box_touches_the_corner():
    scores = score("refcoco_val", [one("a", "no list of four numbers"), one("b", GOLD)])
    found = numbers(scores)
    for metric in ("acc@0.5", "miou", "acc@0.75", "centre_acc"):
        assert found[metric].value == 50.0, metric
        assert (found[metric].n, found[metric].n_unparsed, found[metric].n_unscored) == (2, 1, 0)
    assert scores.samples["a"]["centre_acc"].value == 0.0


def test_reversed_boxes_have_no_area_and_crash_nothing():
    assert numbers(score("refcoco_val", [one("a", Box(100, 100, 0, 0))]))["acc@0.5"].value == 0.0
    assert numbers(score("refcoco_val", [one("a", GOLD, gold=Box(5, 5, 5, 5))]))["acc@0.5"].value == 0.0


def test_boxes_that_no_frame_of_the_picture_holds_are_counted_and_said():
    """200 x 100: the square around it is x 0..200, y -50..150, and a hundredth of its side is 2. Fractions read as pixels of 468 are
    93,600: wrong by far, and no fault of the model's.
    """
    inside, outside = [(0, 0, 202, 100), (0, -52, 10, 152)], [(0, 0, 203, 100), (0, -53, 10, 10), (93600, 0, 94000, 9)]
    rows = [one(str(i), Box(*box)) for i, box in enumerate([*inside, *outside])] + [one("u", "no numbers")]
    asked = [(replace(sample, size=(200, 100)), episode) for sample, episode in rows]
    said = "3 boxes have numbers beyond the frame of their picture: is box_format right?"
    assert all(said in found.notes for found in numbers(score("refcoco_val", asked)).values())
    assert not numbers(score("refcoco_val", asked[:2]))["miou"].notes
    assert not numbers(score("refcoco_val", rows))["miou"].notes, "of pictures of unknown size nothing is said"
    qa = [(replace(sample, kind="qa"), episode) for sample, episode in asked]
    found = numbers(score("viscot_vsr", qa))
    assert said in found["box_acc"].notes and said not in found["answer"].notes


def test_failed_samples_are_unscored_with_their_reason_not_wrong():
    pairs = [one("a", GOLD), (sample("b", box=GOLD, kind="rec"), failed("b", "picture: truncated"))]
    scores = score("refcoco_val", pairs)
    found = numbers(scores)["acc@0.5"]
    assert (found.value, found.n, found.n_unscored) == (100.0, 1, 1)
    assert found.unscored_reasons == {"picture: truncated": 1}
    assert found.n + found.n_unscored + found.n_missing == found.n_expected
    assert scores.samples["b"]["acc@0.5"].reason == "picture: truncated"


def test_nothing_and_all_failed_give_no_value():
    for pairs in ([], [(sample("a", box=GOLD, kind="rec"), failed("a", "boom"))]):
        for measured in score("refcoco_val", pairs).metrics:
            assert (measured.value, measured.se, measured.ci, measured.n) == (None, None, None, 0)
            assert measured.notes == ("nothing could be scored",)


def test_a_sample_without_true_box_or_without_question_for_a_box_is_unscored():
    pairs = [(sample("a", kind="rec"), looked("a", GOLD)), (sample("b", box=GOLD, kind="rec"), Episode("b", "t"))]
    assert numbers(score("refcoco_val", pairs))["miou"].unscored_reasons == {
        "the sample has no true box": 1,
        "no box was asked for": 1,
    }


def test_a_box_that_cannot_be_compared_leaves_its_sample_alone_unscored():
    found = numbers(score("refcoco_val", [one("a", Box(0, 0, 1, 1, SQUARE)), one("b", GOLD)]))["acc@0.5"]
    assert (found.value, found.n, found.n_unscored) == (100.0, 1, 1)
    assert found.unscored_reasons == {"could not be scored: ValueError: boxes are scored in pixels, not in square": 1}


def test_pictures_not_questions_are_the_unit_of_doubt():
    # two pictures, one always right and one always wrong: se is that of two values, .5, however many questions
    pairs = [one(f"{p}{i}", GOLD if p == "x" else Box(500, 500, 600, 600), p) for p in "xy" for i in range(50)]
    found = numbers(score("refcoco_val", pairs))["acc@0.5"]
    assert (found.value, found.n, found.n_clusters) == (50.0, 100, 2)
    assert found.se == pytest.approx(50.0)


PUBLISHED = {
    ("baseline", "lenient"): {"refcoco_val": 89.75, "refcocop_val": 85.00, "refcocog_val": 86.60},
    ("checkpoint-100", "vlm_r1"): {"refcoco_val": 88.40, "refcocop_val": 83.20, "refcocog_val": 83.75},
}


@pytest.mark.parametrize(("state", "mode"), PUBLISHED)
def test_what_a_7b_model_really_answered_scores_as_its_authors_say(shared, state, mode):
    reader = FORMATS["json_pixel"].with_mode(mode)
    for split, accuracy in PUBLISHED[state, mode].items():
        with gzip.open(shared / f"predictions/rec/{state}__{split}.json.gz", "rt") as file:
            rows = json.load(file)["results"]
        pairs = [
            (
                CoTSample(str(i), "t", "rec", row["question"], box=Box(*row["ground_truth"]), cluster=row["image"]),
                Episode(str(i), "t", box=reader.parse(row["model_output"], (640, 480))),
            )
            for i, row in enumerate(rows)
        ]
        scores = score(split.replace("cocop", "coco+"), pairs)
        flags = [scores.samples[str(i)]["acc@0.5"].value == row["correct"] for i, row in enumerate(rows)]
        assert flags.count(False) == 0
        assert numbers(scores)["acc@0.5"].value == accuracy


def test_a_centre_is_tested_along_both_axes():
    # true box 0..100 both ways; boxes of 20 x 20 whose centres lie at (50, 50), (50, 100), (50, 101), (101, 50), (-1, 50)
    centres = ((50, 50), (50, 100), (50, 101), (101, 50), (-1, 50), (50, -1), (0, 0), (100, 50))
    pairs = [one(str(i), Box(x - 10, y - 10, x + 10, y + 10)) for i, (x, y) in enumerate(centres)]
    scores = score("refcoco_val", pairs)
    assert [scores.samples[str(i)]["centre_acc"].value for i in range(8)] == [1, 1, 0, 0, 0, 0, 1, 1]
    assert numbers(scores)["centre_acc"].value == pytest.approx(400 / 8)
