import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask

from visrl.core.boxes import PIXEL, SQUARE, UNIT, Box, grid, hull, iou, iou_arrays, resized

SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
FRAMES = st.sampled_from([PIXEL, UNIT, SQUARE, grid(1000), grid(1024), grid(32, "square"), resized((616, 448))])
NUMBERS = st.tuples(*[st.floats(-5000, 5000, allow_nan=False)] * 4)


def test_square_frame_by_hand():
    # W=500, H=333: the square's side is 500, the pad above is (500-333)//2 = 83
    # y = .358*500 - 83 = 96.0, x = .606*500 = 303.0
    box = Box(0.606, 0.358, 0.972, 0.744, SQUARE).to_pixel((500, 333))
    assert box.xyxy == pytest.approx((303.0, 96.0, 486.0, 289.0))


def test_portrait_pads_left():
    # W=333, H=500: pad left 83, so pixel x=0 is .166 of the square
    assert Box(0, 0, 333, 500).to(SQUARE, (333, 500)).xyxy == pytest.approx((0.166, 0.0, 0.832, 1.0))


def test_resized_and_grid_by_hand():
    # 640 px wide seen as 616: one unit is 640/616 px. 308 -> 320
    assert Box(308, 224, 616, 448, resized((616, 448))).to_pixel((640, 480)).xyxy == pytest.approx((320, 240, 640, 480))
    assert Box(500, 250, 1000, 750, grid(1000)).to_pixel((640, 480)).xyxy == pytest.approx((320, 120, 640, 360))


@given(NUMBERS, FRAMES, FRAMES, SIZES)
def test_conversion_round_trips(numbers, source, target, size):
    box = Box(*numbers, source)
    back = box.to(target, size).to(source, size)
    assert back.xyxy == pytest.approx(box.xyxy, rel=1e-9, abs=1e-6)


def test_iou_by_hand():
    # 10x10 and 10x10 shifted by 5: intersection 50, union 150
    assert iou(Box(0, 0, 10, 10), Box(5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou(Box(0, 0, 10, 10), Box(10, 0, 20, 10)) == 0.0


@pytest.mark.parametrize("numbers", [(5, 5, 5, 9), (9, 5, 5, 9), (5, 9, 9, 5), (0, 0, 0, 0)])
def test_empty_and_reversed_boxes_never_score(numbers):
    box = Box(*numbers)
    assert box.is_empty and box.area == 0.0
    assert iou(box, Box(0, 0, 10, 10)) == 0.0 == iou(box, box)


def test_iou_demands_equal_frames():
    with pytest.raises(ValueError, match="unit box and a pixel box"):
        iou(Box(0, 0, 1, 1, UNIT), Box(0, 0, 1, 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_boxes_are_finite(value):
    with pytest.raises(ValueError, match="finite"):
        Box(0, 0, value, 1)


def test_iou_agrees_with_pycocotools():
    rng = random.Random(0)
    corners = [
        sorted(rng.uniform(0, 100) for _ in range(2)) + sorted(rng.uniform(0, 100) for _ in range(2))
        for _ in range(600)
    ]
    boxes = [Box(x1, y1, x2, y2) for x1, x2, y1, y2 in corners]
    a, b = boxes[:300], boxes[300:]

    def xywh(box):
        return [box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1]

    theirs = np.diag(mask.iou([xywh(x) for x in a], [xywh(x) for x in b], [0] * 300))
    ours = np.array([iou(x, y) for x, y in zip(a, b, strict=True)])
    arrays = iou_arrays(np.array([x.xyxy for x in a]), np.array([x.xyxy for x in b]))
    assert np.abs(ours - theirs).max() < 1e-12
    assert np.array_equal(arrays, ours)  # the same arithmetic, to the last bit
    assert (ours > 0).sum() > 30  # and not a comparison of zeros


@given(NUMBERS, NUMBERS)
def test_iou_is_symmetric_and_bounded(p, q):
    a, b = Box(*p), Box(*q)
    assert iou(a, b) == iou(b, a)
    assert 0.0 <= iou(a, b) <= 1.0 + 1e-12


def test_iou_arrays_scores_nan_rows_zero():
    rows = np.array([[np.nan] * 4, [0, 0, 2, 2]])
    assert iou_arrays(rows, np.array([[0, 0, 2, 2.0]] * 2)).tolist() == [0.0, 1.0]


def test_hull_and_clip():
    assert hull([Box(1, 5, 3, 6), Box(2, 0, 9, 4)]).xyxy == (1, 0, 9, 6)
    assert Box(-5, 10, 700, 20).clipped((640, 480)).xyxy == (0, 10, 640, 20)
    with pytest.raises(ValueError, match="one frame"):
        hull([Box(0, 0, 1, 1), Box(0, 0, 1, 1, UNIT)])


def test_a_point_on_an_edge_is_inside():
    box = Box(10, 20, 30, 40)
    assert all(box.contains(x, y) for x in (10, 20, 30) for y in (20, 30, 40))
    assert not any(box.contains(*p) for p in ((9.9, 30), (30.1, 30), (20, 19.9), (20, 40.1)))


def test_area_centre_and_emptiness_by_hand():
    box = Box(10, 20, 40, 60)
    assert (box.area, box.centre, box.is_empty) == (30 * 40, (25, 40), False)
    assert Box(10, 20, 10, 60).is_empty and Box(10, 20, 40, 20).is_empty and not Box(10, 20, 10.1, 20.1).is_empty
    assert Box(40, 60, 10, 20).area == 0.0


def test_a_grid_over_the_padded_square_by_hand():
    # W 300, H 100: side 300, pad (300 - 100) // 2 = 100 above; a unit of 1000 is .3 px: 500 -> 150, y 500 -> 150 - 100
    assert Box(500, 500, 1000, 600, grid(1000, "square")).to_pixel((300, 100)).xyxy == pytest.approx((150, 50, 300, 80))
    # an odd difference: (301 - 100) // 2 = 100, not 100.5
    assert Box(0, 0, 1, 1, SQUARE).to_pixel((301, 100)).xyxy == pytest.approx((0, -100, 301, 201))
    assert Box(0, 0, 1, 1, SQUARE).to_pixel((100, 301)).xyxy == pytest.approx((-100, 0, 201, 301))
    assert [grid(1000).name, grid(32, "square").name, resized((616, 448)).name] == [
        "grid1000",
        "square-grid32",
        "resized616x448",
    ]


def test_clipping_at_every_edge():
    assert Box(-5, -7, 700, 500).clipped((640, 480)).xyxy == (0, 0, 640, 480)
    assert Box(700, 500, 900, 600).clipped((640, 480)).xyxy == (640, 480, 640, 480)
    assert Box(-9, -8, -2, -1).clipped((640, 480)).xyxy == (0, 0, 0, 0)
    assert Box(1, 2, 3, 4).clipped((640, 480)).xyxy == (1, 2, 3, 4)


def test_iou_by_hand_along_both_axes():
    # 10 x 20 and 6 x 30, shifted by (4, 5): they share 6 x 15 = 90; 200 + 180 - 90 = 290
    a, b = Box(0, 0, 10, 20), Box(4, 5, 10, 35)
    assert iou(a, b) == pytest.approx(90 / 290)
    assert iou_arrays(np.array([a.xyxy]), np.array([b.xyxy]))[0] == pytest.approx(90 / 290)
    assert iou(Box(0, 0, 10, 10), Box(0, 10, 10, 20)) == iou(Box(0, 0, 10, 10), Box(20, 20, 30, 30)) == 0.0


def test_arrays_of_small_and_reversed_boxes():
    # .5 x .5 within .5 x 1: 1 / 2; a reversed box has no area and shares none
    a = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 0.5], [5, 5, 3, 9], [5, 5, 9, 3]])
    b = np.array([[0, 0, 0.5, 0.5], [0, 0, 0.5, 1.0], [2, 2, 9, 9], [2, 2, 9, 9]])
    assert iou_arrays(a, b).tolist() == [1.0, 0.5, 0.0, 0.0] == iou_arrays(b, a).tolist()


def test_the_hull_of_one_box_is_that_box():
    assert hull([Box(1, 2, 3, 4, UNIT)]) == Box(1, 2, 3, 4, UNIT)
    with pytest.raises(ValueError, match="one frame"):
        hull([])
