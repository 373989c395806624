"""Calls read from turns: what is asked for, and every way it can be wrong."""

from collections import Counter

import pytest
from looks_made import SIZE, call, faulty, wrapped

from visrl.core.boxes import PIXEL, UNIT, Box, grid
from visrl.core.final_answer import outside_thoughts
from visrl.core.looking.calls import Asked, Fault, View, ends_turn, into, out_of, placed, read_call, viewed, write_call
from visrl.core.looking.rules import ZOOM as RULES
from visrl.core.looking.rules import Call, Rules, Shown, filled, in_words

CALL = Call()
WHOLE = View((0, 0, *SIZE), SIZE)


def kind(turn: str) -> str:
    """What becomes of a turn: the kind of its fault, ``look`` or ``answer``."""
    found = read_call(turn, CALL)
    if isinstance(found, Asked):
        found = placed(found.numbers, PIXEL, WHOLE, 100)
    return "answer" if found is None else found.kind if isinstance(found, Fault) else "look"


def test_ten_thousand_faulty_calls_are_told_apart_and_none_raises():
    made = faulty(10_000)
    found = Counter((wanted, kind(turn)) for wanted, turn in made)
    assert set(found) == {(wanted, wanted) for wanted, _ in made}
    assert sum(found.values()) == 10_000 and len(found) == 8


def test_a_call_is_read():
    found = read_call(f"<think>small</think>{call([10, 20.5, 30, 40], label='a sign')}", CALL)
    assert found == Asked((10.0, 20.5, 30.0, 40.0), None, "a sign")
    fenced = '<tool_call>\n```json\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 3, 4]}}\n```\n</tool_call>'
    assert read_call(fenced, CALL) == Asked((1.0, 2.0, 3.0, 4.0))
    as_servers_hand_on = wrapped({"name": "image_zoom_in_tool", "arguments": '{"bbox_2d": [1, 2, 3, 4]}'})
    assert read_call(as_servers_hand_on, CALL) == Asked((1.0, 2.0, 3.0, 4.0))


@pytest.mark.parametrize(
    "turn, what",
    [
        ("<answer>B</answer>", "answer"),
        ("B", "answer"),
        ("", "answer"),
        (f"<answer>B</answer>{call([1, 2, 30, 40])}", "answer"),  # what comes first counts
        (f"{call([1, 2, 30, 40])}<answer>B</answer>", "look"),
        (f"{call([1, 2, 30, 40])}{call('x')}", "look"),
        (f"<think>{call([1, 2, 30, 40])}</think><answer>B</answer>", "answer"),  # a call in a thought is none
        (f"<think>{call([1, 2, 30, 40])}", "answer"),  # nor in one that never ends
        (f"looking</think>{call([1, 2, 30, 40])}", "look"),  # the prompt opened the thought
        (f"<think>a</think>b<think>c</think>{call([1, 2, 30, 40])}", "look"),
        (call([-50, -50, 30, 40]), "look"),  # partly outside: cut at the edges
    ],
)
def test_what_a_turn_does(turn, what):
    assert kind(turn) == what


def test_thoughts_are_taken_out():
    assert outside_thoughts("a<think>b</think>c<think>d") == "ac"
    assert outside_thoughts("b</think>c") == "c"
    assert outside_thoughts("no marks <here>") == "no marks <here>"


def test_a_turn_is_over_behind_its_call_and_not_within_a_thought():
    turn = call([1, 2, 3, 4])
    assert ends_turn(turn, CALL) and ends_turn("x <answer>B</answer>", CALL)
    assert not ends_turn(f"<think>{turn}", CALL) and not ends_turn("</answer>", CALL)
    assert not ends_turn("<think><answer>B</answer>", CALL)


def test_boxes_are_placed_in_the_original():
    # a view of the right half, shown twice as large: (200..400, 0..100) at 400 x 200
    view = View((200, 0, 400, 100), (400, 200))
    box = placed((100, 50, 300, 150), PIXEL, view, 100)
    assert box == Box(250, 25, 350, 75)  # x: 200 + 100 / 2 and 200 + 300 / 2, y: 50 / 2 and 150 / 2
    assert placed((0.25, 0.25, 0.75, 0.75), UNIT, view, 100) == box
    assert placed((250, 250, 750, 750), grid(1000), view, 100) == box
    assert into(box, view) == Box(100, 50, 300, 150) and out_of(into(box, view), view) == box


def test_a_box_is_cut_at_the_edges_of_the_picture_it_lies_in():
    view = View((200, 0, 400, 100), (200, 100))
    assert placed((-10, 50, 100, 500), PIXEL, view, 100) == Box(200, 50, 300, 100)
    assert placed((-10, 50, -1, 60), PIXEL, view, 100) == Fault("outside")
    # 200 wide and 1 high is 200 : 1
    assert placed((0, 50, 200, 51), PIXEL, view, 100) == Fault("degenerate")
    assert placed((0, 50, 200, 51), PIXEL, view, 200) == Box(200, 50, 400, 51)


def test_which_picture_the_numbers_lie_in_is_declared():
    shown = [WHOLE, View((0, 0, 10, 10), (10, 10)), View((5, 5, 8, 8), (30, 30))]
    asked = Asked((0, 0, 1, 1), 1)
    by = {where: viewed(asked, Rules(RULES.texts, coordinates=where), shown) for where in ("original", "last", "named")}
    assert by == {"original": shown[0], "last": shown[2], "named": shown[1]}
    named = Rules(RULES.texts, coordinates="named")
    assert viewed(Asked((0, 0, 1, 1)), named, shown) == WHOLE  # none named: the original
    assert viewed(Asked((0, 0, 1, 1), 3), named, shown) == Fault("unknown_picture")


@pytest.mark.parametrize(
    "source, number",
    [("original_image", 0), ("observation_2", 2), ("Observation 1", 1), (0, 0), (4, 4), (None, None)],
)
def test_pictures_are_named(source, number):
    assert read_call(call([1, 2, 3, 4], source=source), CALL) == Asked((1.0, 2.0, 3.0, 4.0), number)


@pytest.mark.parametrize("source", ["the dog", -1, True, [], 1.5, "observation_x"])
def test_a_picture_that_is_none(source):
    assert read_call(call([1, 2, 3, 4], source=source), CALL) == Fault("unknown_picture")


def test_another_syntax():
    """Mini-o3's: the arguments alone, in tags of their own."""
    mine = Call("<grounding>", "</grounding>", tool="")
    turn = '<grounding>{"bbox_2d": [0.1, 0.2, 0.3, 0.4], "source": "observation_1"}</grounding>'
    assert read_call(turn, mine) == Asked((0.1, 0.2, 0.3, 0.4), 1)
    assert read_call(turn, CALL) is None


def test_a_control_writes_a_call_that_reads_back():
    box, view = Box(250, 25, 350, 75), View((200, 0, 400, 100), (400, 200))
    for frame, numbers in (
        (PIXEL, (100, 50, 300, 150)),
        (UNIT, (0.25, 0.25, 0.75, 0.75)),
        (grid(1000), (250, 250, 750, 750)),
    ):
        found = read_call(write_call(box, frame, view, RULES, 0), RULES.call)
        assert found == Asked(tuple(map(float, numbers)))
        assert placed(found.numbers, frame, view, 100) == box


def test_what_is_shown():
    assert Shown().size(50, 20) == (50, 20)
    assert Shown(scale=2).size(50, 20) == (100, 40)
    assert Shown(min_side=60).size(50, 20) == (150, 60)  # the shorter side, 20, times 3
    assert Shown(scale=4, min_side=60).size(50, 20) == (200, 80)


def test_texts_are_filled_and_other_braces_stay():
    assert filled('{"name": "{tool}"} {left} {x}', tool="zoom", left=3) == '{"name": "zoom"} 3 {x}'
    assert in_words(PIXEL) == "pixels of the picture"
    assert in_words(grid(1000)) == "steps from 0 to 1000 along the picture"
    assert in_words(UNIT) == "fractions of the sides of the picture, from 0 to 1"
