"""The diversity controller: two boxes of an attempt apart, by geometry alone."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visrl.core.boxes import Box, iou
from visrl.core.types import Unparsed
from visrl.train.pairs.diversity import MAX_IOU, BoxProposal, control, disjoint_like, spread

SIZE = (400, 300)
A, NEAR, FAR = Box(50, 50, 130, 110), Box(60, 55, 140, 115), Box(250, 150, 330, 210)


def rngs(n=3):
    return [random.Random(i) for i in range(n)]


def looks(*boxes):
    return [BoxProposal(box, f"said {i}") if isinstance(box, Box) else box for i, box in enumerate(boxes)]


@pytest.mark.parametrize(("number", "d"), [(0, 0.4), (19, 0.4), (20, 0.5), (40, 0.6), (60, 0.7), (80, 0.8), (99, 0.8)])
def test_sides_may_differ_more_with_every_twenty_tries(number, d):
    # docs/method.md d3: d starts at .3 and grows by .1 at tries 0, 20, 40, 60 and 80
    assert spread(number) == pytest.approx(d)


sides = st.tuples(st.integers(8, 150), st.integers(8, 120), st.integers(0, 249), st.integers(0, 179))


@settings(max_examples=200, deadline=None)
@given(sides, st.integers(0, 10_000))
def test_a_replacement_is_inside_disjoint_and_of_similar_size(box, seed):
    w, h, x, y = box
    first = Box(x, y, x + w, y + h)
    drawn = disjoint_like(first, SIZE, random.Random(seed))
    if drawn is None:
        return
    assert drawn.x1 >= 0 and drawn.y1 >= 0 and drawn.x2 <= SIZE[0] and drawn.y2 <= SIZE[1]
    assert iou(drawn, first) == 0.0
    assert 0.2 * w <= drawn.x2 - drawn.x1 <= 1.8 * w  # 1 ± .8 at most
    assert 0.2 * h <= drawn.y2 - drawn.y1 <= 1.8 * h


def test_the_first_twenty_tries_keep_to_forty_per_cent():
    # a small box in a large picture is placed at once, so its sides are within 1 ± .4
    for seed in range(200):
        drawn = disjoint_like(Box(0, 0, 20, 20), SIZE, random.Random(seed))
        assert 12 <= drawn.x2 - drawn.x1 <= 28 and 12 <= drawn.y2 - drawn.y1 <= 28


def test_there_is_no_room_beside_the_whole_picture():
    assert disjoint_like(Box(0, 0, *SIZE), SIZE, random.Random(0)) is None


def test_a_box_outside_the_picture_has_no_like():
    assert disjoint_like(Box(500, 10, 600, 50), SIZE, random.Random(0)) is None


def test_boxes_apart_stay_as_they_are():
    (attempt,) = control(looks(A, FAR), 1, SIZE, "paper", rngs(1))
    assert [look.box for look in attempt.boxes] == [A, FAR] and attempt.boxes[1].source == "sampled"


def test_the_threshold_itself_is_not_above_it():
    # two boxes of 105 x 10 that share 10 x 10: 100 / (1050 + 1050 - 100) = 1 / 20 = .05
    a, b = Box(0, 0, 105, 10), Box(95, 0, 200, 10)
    assert iou(a, b) == pytest.approx(MAX_IOU)
    (attempt,) = control(looks(a, b), 1, SIZE, "paper", rngs(1))
    assert attempt.boxes[1].box == b
    (attempt,) = control(looks(a, Box(94, 0, 199, 10)), 1, SIZE, "paper", rngs(1))  # 110 / 1990 = .0553
    assert attempt.boxes[1].source == "random"


def test_overlapping_boxes_are_replaced_and_nobody_said_the_new_one():
    (attempt,) = control(looks(A, NEAR), 1, SIZE, "paper", rngs(1))
    assert attempt.boxes[0].box == A
    assert attempt.boxes[1].source == "random" and attempt.boxes[1].text is None
    assert iou(attempt.boxes[1].box, A) == 0.0


def test_without_the_controller_nothing_is_replaced():
    (attempt,) = control(looks(A, NEAR), 1, SIZE, "none", rngs(1))
    assert [look.box for look in attempt.boxes] == [A, NEAR]


def test_attempts_are_dropped_with_their_reason():
    boxes = looks(Unparsed("empty output"), FAR, A, Unparsed("no list"), Box(0, 0, *SIZE), Box(9, 9, 399, 299))
    assert [attempt.dropped for attempt in control(boxes, 3, SIZE, "paper", rngs())] == [
        "first box unparsed: empty output",
        "second box unparsed: no list",
        "no room for a second box",
    ]


def test_resample_takes_each_spare_once_then_draws():
    boxes = looks(A, NEAR, A, NEAR, A, NEAR, NEAR, FAR, Box(200, 200, 280, 260))
    attempts = control(boxes, 3, SIZE, "resample", rngs())
    assert [attempt.boxes[1].source for attempt in attempts] == ["spare", "spare", "random"]
    assert attempts[0].boxes[1].box == FAR and attempts[0].boxes[1].text == "said 7"
    assert attempts[1].boxes[1].box == Box(200, 200, 280, 260)


def test_an_attempt_hangs_on_its_own_randomness():
    alone = control(looks(A, FAR, A, NEAR), 2, SIZE, "paper", rngs(2))[1]
    after_another = control(looks(A, NEAR, A, NEAR), 2, SIZE, "paper", rngs(2))[1]
    assert alone == after_another


class Fixed:
    """Not random: gives what it is told, then says how it was asked."""

    def __init__(self, *numbers):
        self.numbers, self.asked = list(numbers), []

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.numbers.pop(0)

    def random(self):
        return self.numbers.pop(0)


def test_a_replacement_by_hand():
    # 80 x 60 times 1 + .25 and 1 - .5: 100 x 30; x = .5 * (400 - 100) = 150, y = .75 * (300 - 30) = 202.5
    rng = Fixed(0.25, -0.5, 0.5, 0.75)
    drawn = disjoint_like(A, SIZE, rng)
    assert drawn.xyxy == pytest.approx((150, 202.5, 250, 232.5))
    assert rng.asked == [(pytest.approx(-0.4), pytest.approx(0.4))] * 2


def test_what_is_larger_than_the_picture_or_touches_is_drawn_again():
    # 360 x 60 in 400 x 300 at the left: 1 + .25 makes 450 wide, too wide; then 360 x 60 at its own place; then below it
    left = Box(0, 0, 360, 60)
    assert disjoint_like(left, SIZE, Fixed(0.25, 0, 0.5, 0.5, 0, 0, 0, 0, 0, 0, 0, 0.5)).xyxy == (0, 120, 360, 180)
    # as wide as the picture is not too wide: 360 * (1 + 1/9) = 400
    assert disjoint_like(left, SIZE, Fixed(1 / 9, 0, 0.5, 0.5)).xyxy == pytest.approx((0, 120, 400, 180))
    # and as high: 60 * 5 = 300 beside a box of 40 x 60 at the left edge: x = 1 * (400 - 40)
    assert disjoint_like(Box(0, 0, 40, 60), SIZE, Fixed(0, 4, 1, 0.5)).xyxy == pytest.approx((360, 0, 400, 300))


def test_a_hundred_tries_and_no_more():
    rng = Fixed(*[0.0] * 400)  # always where the box is
    assert disjoint_like(Box(0, 0, 40, 60), SIZE, rng) is None
    assert len(rng.asked) == 200 and rng.numbers == []
    assert [rng.asked[2 * i][1] for i in (19, 20, 99)] == pytest.approx([0.4, 0.5, 0.8])


def test_a_spare_that_touches_a_little_serves():
    a, spare = Box(0, 0, 105, 10), Box(95, 0, 200, 10)  # IoU .05, the threshold
    (attempt,) = control(looks(a, a, Unparsed("?"), spare), 1, SIZE, "resample", rngs(1))
    assert (attempt.boxes[1].box, attempt.boxes[1].source, attempt.boxes[1].text) == (spare, "spare", "said 3")
    assert attempt.dropped == ""
