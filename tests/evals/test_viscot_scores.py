import gzip
import json

import pytest
from made import GOLD, failed, looked, numbers, said, sample, score

from visrl.core.boxes import SQUARE, Box, iou
from visrl.core.types import Episode, Score, Step, Unparsed
from visrl.evals.benchmarks import GROUPS, TASKS
from visrl.evals.judge import make_judge
from visrl.evals.scorers.scoring import score_group

EXACT = make_judge("exact")


class Broken:
    name, description, kind = "broken", "a judge that fails every second answer", "model"

    def judge_many(self, items):
        return [Score(None, "judge: down") if i % 2 else Score(0.5) for i, _ in enumerate(items)]


def asked(id_, answer, text, box=None, cluster=""):
    return sample(id_, answer=answer, box=GOLD, cluster=cluster), said(id_, text, box)


def test_box_and_answer_are_fractions():
    pairs = [
        asked("a", "red", "Red.", GOLD),
        asked("b", "red", "blue", Box(0, 0, 100, 50)),
        asked("c", "x", "x", Unparsed("?")),
    ]
    found = numbers(score("viscot_gqa", pairs, EXACT))
    assert found["answer"].value == pytest.approx(2 / 3)
    assert found["box_acc"].value == pytest.approx(1 / 3)  # IoU exactly .5 is not enough, unparsed is wrong
    assert (found["box_acc"].n, found["box_acc"].n_unparsed, found["box_acc"].unit) == (3, 1, "fraction")
    assert (found["answer"].judge, found["box_acc"].judge) == ("exact", None)


def test_a_little_over_half_is_enough():
    assert numbers(score("viscot_gqa", [asked("a", "x", "x", Box(0, 0, 100, 51))], EXACT))["box_acc"].value == 1.0


def test_without_a_box_turn_there_is_no_box_accuracy():
    assert list(numbers(score("viscot_gqa", [asked("a", "x", "x")], EXACT))) == ["answer"]


def test_a_failed_judge_is_unscored_not_zero():
    found = numbers(score("viscot_gqa", [asked(str(i), "x", "x") for i in range(4)], Broken()))["answer"]
    assert (found.value, found.n, found.n_unscored) == (0.5, 2, 2)
    assert found.unscored_reasons == {"judge: down": 2}


def test_without_a_judge_answers_are_unscored_and_say_so():
    found = numbers(score("viscot_gqa", [asked("a", "x", "x", GOLD)]))
    assert (found["answer"].value, found["answer"].unscored_reasons) == (None, {"no judge was named": 1})
    assert found["box_acc"].value == 1.0


def test_failed_samples_keep_their_reason_and_are_not_judged():
    pairs = [(sample("a", answer="x", box=GOLD), failed("a", "picture: gone")), asked("b", "x", "x", GOLD)]
    found = numbers(score("viscot_gqa", pairs, EXACT))
    for metric in ("answer", "box_acc"):
        assert (found[metric].value, found[metric].n, found[metric].unscored_reasons) == (1.0, 1, {"picture: gone": 1})


def test_an_empty_answer_is_an_answer_and_a_missing_one_is_not():
    pairs = [asked("a", "x", ""), (sample("b", answer="x"), looked("b", None))]
    found = numbers(score("viscot_gqa", pairs, EXACT))["answer"]
    assert (found.value, found.n, found.unscored_reasons) == (0.0, 1, {"no answer was given": 1})


def test_the_padded_square_and_the_picture_give_one_iou():
    # 640 x 200: the square adds 220 above and below. A box and its neighbour, in both frames
    a, b, size = Box(10, 20, 110, 120), Box(40, 20, 140, 140), (640, 200)
    square_px = [tuple(640 * v for v in box.to(SQUARE, size).xyxy) for box in (a, b)]
    assert iou(*(Box(*numbers_) for numbers_ in square_px)) == pytest.approx(iou(a, b), abs=1e-12)


def test_the_average_is_of_the_eleven_sets_and_needs_them_all():
    # ten sets at 1 with one row each, docvqa at 0 with a hundred: (10 * 1 + 0) / 11
    scored = {
        name: score(
            name,
            [asked(str(i), "x", "y" if name == "viscot_docvqa" else "x", cluster=f"{name}{i}") for i in range(n)],
            EXACT,
        )
        for name in GROUPS["viscot"]
        for n in [100 if name == "viscot_docvqa" else 2]
    }
    (found,) = score_group("viscot", scored)  # no box_acc: nothing was asked for
    assert (found.metric, found.value) == ("answer", pytest.approx(10 / 11))
    assert (found.n, found.n_expected, found.judge) == (120, 8281, "exact")
    del scored["viscot_cub"]
    assert score_group("viscot", scored) == []


def test_a_set_that_failed_altogether_leaves_no_average():
    scored = {name: score(name, [asked("a", "x", "x", cluster=name)], EXACT) for name in GROUPS["viscot"]}
    scored["viscot_gqa"] = score("viscot_gqa", [(sample("a", answer="x"), failed("a", "boom"))], EXACT)
    (found,) = score_group("viscot", scored)
    assert (found.value, found.n, found.unscored_reasons) == (None, 10, {"boom": 1})


def rows_of(shared, name):
    with gzip.open(shared / f"viscot_benchmark/det_{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.parametrize("task", [name for name in TASKS if name.startswith("viscot_")])
def test_true_boxes_are_all_found_except_the_degenerate_ones_of_docvqa(shared, task):
    pairs = []
    for row in rows_of(shared, task.removeprefix("viscot_")):
        gold = Box(*row["bbox"])
        id_ = str(row["question_id"])
        pairs.append((sample(id_, box=gold, cluster=row["img_path"]), looked(id_, gold)))
    found = numbers(score(task, pairs))["box_acc"]
    assert found.n == TASKS[task].n
    assert found.n_clusters == TASKS[task].n_pictures
    assert found.value == pytest.approx(880 / 888 if task == "viscot_docvqa" else 1.0, abs=1e-9)


def test_a_constant_no_scores_what_cub_s_answers_say(shared):
    with gzip.open(shared / "viscot_benchmark/cub.json.gz", "rt", encoding="utf-8") as file:
        rows = json.load(file)
    pairs = [
        (
            sample(str(r["question_id"]), answer=r["conversations"][3]["value"], cluster=r["image"][0]),
            Episode(str(r["question_id"]), "t", answer_step=Step("", "no")),
        )
        for r in rows
    ]
    found = numbers(score("viscot_cub", pairs, EXACT))["answer"]
    assert found.value == pytest.approx(285 / 492)  # .579
    assert round(found.value, 3) == 0.579


def test_answers_and_boxes_that_are_unread_are_counted_each():
    pairs = [
        asked("a", "x", "<think>x", GOLD),
        asked("b", "x", "x", Unparsed("?")),
        asked("c", "x", "x", Unparsed("?")),
    ]
    found = numbers(score("viscot_gqa", pairs, EXACT))
    assert (found["answer"].n_unparsed, found["box_acc"].n_unparsed) == (1, 2)
    assert (found["answer"].value, found["box_acc"].value) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    found = numbers(score("viscot_gqa", [asked("a", "x", "x", GOLD)], EXACT))
    assert (found["answer"].n_unparsed, found["box_acc"].n_unparsed) == (0, 0)


def test_one_box_among_many_samples_is_a_box_turn_for_all(monkeypatch):
    from visrl.evals.scorers import measure

    monkeypatch.setattr(measure, "_CHUNK", 1)  # the last piece asks for no box
    pairs = [asked("a", "x", "x", GOLD), asked("b", "x", "x"), asked("c", "x", "<think>x")]
    found = numbers(score("viscot_gqa", pairs, EXACT))
    assert (found["box_acc"].value, found["box_acc"].n, found["box_acc"].n_unscored) == (1.0, 1, 2)
    assert (found["answer"].n, found["answer"].n_unparsed) == (3, 1)


def test_intervals_of_fractions_stay_in_their_scale():
    found = numbers(score("viscot_gqa", [asked(i, "x", "x", GOLD, cluster=i) for i in "abcde"], EXACT))
    for metric in ("answer", "box_acc"):  # five of five: 5 / (5 + 3.84146)
        assert found[metric].ci == pytest.approx((0.565518, 1.0), abs=1e-6)
