import pytest

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import SQUARE, Box
from visrl.evals.box_sets import f1_at, matched

A, B, C = Box(0, 0, 10, 10), Box(20, 0, 30, 10), Box(40, 0, 50, 10)


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ([], [], 1.0),  # an empty scene, and nothing said
        ([A], [], 0.0),
        ([], [A], 0.0),
        ([A], [A], 1.0),
        ([C, A], [A, B], 0.5),  # one hit: 2 * 1 / (2 + 2)
        ([A, A, A], [A], 0.5),  # a box said three times is one hit: 2 * 1 / (3 + 1)
        ([Box(0, 0, 10, 5)], [A], 0.0),  # exactly half
        ([Box(0, 0, 10, 6)], [A], 1.0),
    ],
)
def test_f1_by_hand(predicted, true, expected):
    assert f1_at(predicted, true) == expected


def test_matching_is_one_to_one_and_the_best_as_a_whole():
    # p covers both truths: .6 with a and .9 with b; q only b, .55. Greedy takes p-b (.9) and leaves q with nothing of a;
    # p-a (.6) and q-b (.55) sum to 1.15
    a, b = Box(0, 0, 10, 6), Box(0, 0, 10, 9)
    p, q = Box(0, 0, 10, 10), Box(0, 9 - 4.95, 10, 9)
    found = {(i, j) for i, j, _ in matched([p, q], [a, b])}
    assert found == {(0, 0), (1, 1)} and f1_at([p, q], [a, b]) == 1.0


def test_frames_must_agree():
    with pytest.raises(ValueError, match="convert both to pixels"):
        f1_at([A], [Box(0, 0, 1, 1, SQUARE)])


def test_an_output_of_several_boxes_is_parsed_as_several():
    text = '[{"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": [20, 0, 30, 10]}, {"bbox_2d": [5, 5, 5, 5]}]'
    assert FORMATS["json_pixel"].parse_all(text, (100, 100)) == [A, B]  # the empty one is none
    assert f1_at(FORMATS["json_pixel"].parse_all(text, (100, 100)), [A, B]) == 1.0
