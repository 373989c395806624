import random

import pytest

from visrl.core.boxes import SQUARE, Box, iou
from visrl.core.crops import CROPS, compat_visrl, control_box, random_box, tight, viscot_square112

GOLDEN = [  # docs/method.md a4, computed with the official code
    ((500, 333), (0.606, 0.358, 0.972, 0.744), (276, 80, 500, 304)),
    ((1024, 768), (0.222, 0.614, 0.413, 0.662), (213, 413, 437, 637)),
    ((1695, 2200), (0.148, 0.181, 0.298, 0.508), (0, 398, 718, 1116)),
    ((391, 500), (0.542, 0.686, 0.592, 0.786), (117, 256, 341, 480)),
    ((640, 640), (0.4, 0.4, 0.6, 0.6), (208, 208, 432, 432)),
    ((2000, 500), (0.45, 0.49, 0.46, 0.51), (798, 138, 1022, 362)),
    ((100, 80), (0, 0, 1, 1), (0, 0, 100, 80)),
]


@pytest.mark.parametrize(("size", "square", "expected"), GOLDEN)
def test_golden_crops(size, square, expected):
    assert viscot_square112(Box(*square, SQUARE).to_pixel(size), size) == expected


def test_tight_rounds_outwards_and_clips():
    assert tight(Box(-3.0, 10.2, 50.1, 99.0), (40, 80)) == (0, 10, 40, 80)
    assert tight(Box(12, 10, 20, 30), (40, 80)) == (12, 10, 20, 30)


def test_tight_outside_is_one_pixel():
    assert tight(Box(100, 100, 120, 130), (40, 80)) == (39, 79, 40, 80)


def test_compat_visrl_is_wrong_by_the_pad():
    # 400x200: pad 100 above. The box 100..200 x 50..150 is .25, .375, .5, .625 of the square; times (400, 200):
    # x 100..200 right, y 75..125: half the height, because .25 of the square's height is .5 of the picture's
    region = compat_visrl(Box(100, 50, 200, 150), (400, 200))
    assert region == (100, 75, 200, 125)
    assert iou(Box(*region), Box(100, 50, 200, 150)) == pytest.approx(0.5)
    assert compat_visrl(Box(100, 50, 200, 150), (400, 400)) == (100, 50, 200, 150)  # right for squares


@pytest.mark.parametrize("name", CROPS)
def test_every_crop_lies_inside(name):
    rng = random.Random(1)
    for _ in range(500):
        size = rng.randint(1, 900), rng.randint(1, 900)
        numbers = [rng.uniform(-100, 1000) for _ in range(4)]
        x1, y1, x2, y2 = CROPS[name](
            Box(
                min(numbers[0], numbers[2]),
                min(numbers[1], numbers[3]),
                max(numbers[0], numbers[2]),
                max(numbers[1], numbers[3]),
            ),
            size,
        )
        assert 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1], (name, size, numbers)


def test_controls():
    gold = Box(1, 2, 3, 4)
    rng = random.Random(0)
    assert control_box("gold", gold, (8, 8), rng) == gold
    assert control_box("centre", None, (8, 4), rng).xyxy == (2, 1, 6, 3)
    assert control_box("full", None, (8, 4), rng).xyxy == (0, 0, 8, 4)
    with pytest.raises(ValueError, match="no true box"):
        control_box("gold", None, (8, 8), rng)
    assert random_box((100, 50), random.Random("s:1")) == random_box((100, 50), random.Random("s:1"))


class Fixed:
    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


def test_a_random_box_by_hand():
    # centre (.5, .5), half sides .5 * .4 and .5 * .2 of 100 x 50: x 30..70, y 20..30
    assert random_box((100, 50), Fixed(0.5, 0.5, 0.4, 0.2)).xyxy == pytest.approx((30, 20, 70, 30))
    # centre (.1, .9), half sides .25: cut at the left and at the bottom
    assert random_box((100, 50), Fixed(0.1, 0.9, 0.5, 0.5)).xyxy == pytest.approx((0, 32.5, 35, 50))


def test_the_evaluation_crop_at_each_edge_of_a_large_picture():
    # half 112: a speck at the corner (0, 0) is moved to centre 112; one at (1000, 800) back to 888 and 688
    assert viscot_square112(Box(0, 0, 2, 2), (1000, 800)) == (0, 0, 224, 224)
    assert viscot_square112(Box(998, 798, 1000, 800), (1000, 800)) == (776, 576, 1000, 800)
    assert viscot_square112(Box(400, 300, 402, 302), (1000, 800)) == (289, 189, 513, 413)  # centre 401, 301
    # 300 wide, 500 high: half is 250; the centre (350, 400)
    assert viscot_square112(Box(200, 150, 500, 650), (1000, 800)) == (100, 150, 600, 650)
    # coordinates below 0 count as 0: centre (100 // 2, 300), half 112 moves it to 112
    assert viscot_square112(Box(-50, 200, 100, 400), (1000, 800)) == (0, 188, 224, 412)


def test_a_crop_is_never_empty():
    assert tight(Box(10, 10, 10, 10), (40, 80)) == (10, 10, 11, 11)
    assert tight(Box(40, 80, 40, 80), (40, 80)) == (39, 79, 40, 80)
    assert tight(Box(10.2, 10.2, 10.4, 12.4), (40, 80)) == (10, 10, 11, 13)
    assert compat_visrl(Box(10.5, 10.5, 10.9, 10.9), (40, 40)) == (10, 10, 11, 11)
