"""Answer and boxes along the way, worked out by hand."""

import pytest

from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Episode, Look, Step, Unparsed
from visrl.evals.benchmarks import TaskSpec
from visrl.evals.judge import make_judge
from visrl.evals.scorers.scoring import score_task

SPEC = TaskSpec("t", "way", 4, unit="fraction")
POSTER, SIGN = Box(0, 0, 100, 100), Box(40, 40, 60, 60)


def sample(name, *boxes):
    return CoTSample(name, "t", "qa", "What?", size=(200, 200), box=POSTER, boxes=boxes, answers=("E",), cluster=name)


def look(box, own=True, fault=""):
    return Look(Step("p", "o") if own else None, None if fault else box, None if fault else (0, 0, 9, 9), fault)


def episode(name, answer, *looks, ended="answer"):
    return Episode(name, "t", answer_step=Step("p", answer), looks=looks, ended=ended)


def scored(samples, episodes):
    found = score_task(SPEC, samples, {e.sample_id: e for e in episodes}, make_judge("exact"))
    return {m.metric: m for m in found.metrics}, found.samples


def test_every_look_is_held_against_its_own_box():
    """a: both looks right, IoU 1 and 1/2 (20 x 10 of 20 x 20: not more than a half, wrong). b: the first at the right half,
    100 x 80 of 100 x 100: IoU .8; no second: IoU 0. c: one box, one look. d: faulty first call, the second look is its first.
    """
    a, b, c, d = (sample(n, *boxes) for n, boxes in zip("abcd", [(POSTER, SIGN)] * 2 + [(POSTER,)] * 2, strict=True))
    numbers, per_sample = scored(
        [a, b, c, d],
        [
            episode("a", "E", look(POSTER), look(Box(40, 40, 60, 50))),
            episode("b", "H", look(Box(0, 20, 100, 100))),
            episode("c", "E", look(POSTER)),
            episode("d", "E", look(None, fault="degenerate"), look(Box(0, 0, 50, 100))),
        ],
    )
    assert numbers["answer"].value == pytest.approx(3 / 4) and numbers["answer"].n == 4
    assert numbers["answer/takes=1"].value == pytest.approx(2 / 2) and numbers["answer/takes=1"].n == 2
    assert numbers["answer/takes=2"].value == pytest.approx(1 / 2) and numbers["answer/takes=2"].n == 2
    # look 1: IoU 1, .8, 1 and .5; more than a half: three of four
    assert numbers["miou/look=1"].value == pytest.approx((1 + 0.8 + 1 + 0.5) / 4)
    assert numbers["box_acc/look=1"].value == pytest.approx(3 / 4)
    # look 2, of those that take two: IoU .5 and 0; neither more than a half
    assert numbers["miou/look=2"].value == pytest.approx((0.5 + 0) / 2)
    assert numbers["box_acc/look=2"].value == 0 and numbers["box_acc/look=2"].n == 2
    assert per_sample["a"]["miou/look=2"].value == pytest.approx(0.5)
    # looks that were carried out: 2, 1, 1, 1
    assert numbers["looks"].value == pytest.approx(5 / 4)
    assert numbers["faulty_calls"].value == pytest.approx(100 * 1 / 6)


def test_a_run_without_second_looks_has_no_number_of_them():
    numbers, per_sample = scored([sample("a", POSTER, SIGN)], [episode("a", "E", look(POSTER), ended="looks")])
    assert numbers["box_acc/look=1"].value == 1
    assert not [name for name in numbers if name.endswith("look=2")] and "miou/look=2" not in per_sample["a"]


def test_a_controls_look_is_nobodys():
    """Gold first, then the model's own: only the second is scored, IoU 1 over one sample."""
    numbers, _ = scored([sample("a", POSTER, SIGN)], [episode("a", "E", look(POSTER, own=False), look(SIGN))])
    assert numbers["box_acc/look=2"].value == 1 and numbers["box_acc/look=2"].n == 1
    assert numbers["box_acc/look=1"].value is None and numbers["box_acc/look=1"].n == 0


def test_controls_alone_have_answers_only():
    numbers, _ = scored(
        [sample("a", POSTER, SIGN)], [episode("a", "E", look(POSTER, own=False), look(SIGN, own=False))]
    )
    assert sorted(numbers) == ["answer", "answer/looks=2", "answer/takes=2", "looks"]


def test_one_look_under_the_papers_protocols_is_the_first():
    asked = Episode("a", "t", Step("p", "o"), Box(0, 0, 100, 60), (0, 0, 100, 60), Step("p", "H"))
    unread = Episode("b", "t", Step("p", "o"), Unparsed("no box"), None, Step("p", "E"))
    numbers, _ = scored([sample("a", POSTER, SIGN), sample("b", POSTER, SIGN)], [asked, unread])
    assert numbers["miou/look=1"].value == pytest.approx((0.6 + 0) / 2) and numbers["answer"].value == pytest.approx(
        1 / 2
    )


def test_failed_samples_are_unscored():
    failed = Episode("b", "t", error="picture: gone")
    numbers, per_sample = scored([sample("a", POSTER), sample("b", POSTER)], [episode("a", "E", look(POSTER)), failed])
    assert (numbers["answer"].value, numbers["answer"].n, numbers["answer"].n_unscored) == (1, 1, 1)
    assert (numbers["box_acc/look=1"].value, numbers["box_acc/look=1"].n) == (1, 1)
    assert per_sample["b"]["box_acc/look=1"].reason == "picture: gone"
