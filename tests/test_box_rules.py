"""Published rules under their sources' names, frames by name, and boxes that no text can make raise."""

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from visrl.core.box_formats import FORMATS, MODES, UNCOMPARABLE, BoxFormat, Brackets, format_named, parser_named
from visrl.core.box_rules import lmms_eval_boxes, vlm_r1
from visrl.core.boxes import PIXEL, Box, iou, iou_arrays, smart_resized
from visrl.core.crops import CROPS, compat_visrl, tight, viscot_square112
from visrl.core.types import Unparsed
from visrl.errors import UsageError

SIZE = (1000, 500)
TRUTH = Box(100, 100, 300, 200)
ALL = [*FORMATS.values(), format_named("json_resized", max_pixels="1003520")]
HUGE = ["1e308", "9" * 308, "-1e308", "1e309", "1e160", "1e-200", "-0.0", "1e20", "0", "5", "999.5"]


@pytest.mark.parametrize("mode", MODES)
@given(numbers=st.lists(st.sampled_from(HUGE), min_size=4, max_size=4), shape=st.sampled_from(range(6)))
@settings(max_examples=60, deadline=None)
def test_no_numbers_make_a_box_raise_or_a_crop_empty(mode, numbers, shape):
    a, b, c, d = numbers
    text = [
        f"[{a}, {b}, {c}, {d}]",
        f'<answer>{{"bbox_2d": [{a}, {b}, {c}, {d}]}}</answer>',
        f'{{"box_2d": [{a}, {b}, {c}, {d}]}}',
        f"({a},{b}),({c},{d})",
        f"<box>{a} {b} {c} {d}</box>",
        f"<loc0000><loc0001><loc1023><loc1023>{a}",
    ][shape]
    for box_format in ALL:
        box = box_format.with_mode(mode).parse(text, SIZE, TRUTH)
        if isinstance(box, Unparsed):
            continue
        assert 0.0 <= iou(box, TRUTH) <= 1.0
        for crop in CROPS.values():
            x1, y1, x2, y2 = crop(box, SIZE)
            assert 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 500


@pytest.mark.parametrize("mode", MODES)
@given(text=st.text(alphabet='[](){}0123456789.,eE+-<>/answerboxlcthink|"_:/ \n`', max_size=200))
@example("<answer>{[1, 2, 3, " + "9" * 400 + "]}</answer>")
@settings(max_examples=60, deadline=None)
def test_hostile_text_is_a_box_or_unparsed(mode, text):
    for box_format in ALL:
        reader = box_format.with_mode(mode)
        assert isinstance(reader.parse(text, SIZE, TRUTH), Box | Unparsed)
        several = reader.parse_all(text, SIZE)
        assert isinstance(several, Unparsed) or (several and all(not box.is_empty for box in several))


SHAPES = [
    "(1,2){}",
    "[1,{}",
    "[1 {}",
    "<box>1{}",
    '{{"bbox_2d": [{}',
    "<answer>{}",
    "<loc0001>{}",
    "answer is {}",
    "[[{}",
]


@pytest.mark.parametrize("mode", MODES)
def test_long_texts_are_read_in_linear_time(mode):
    # the shape that took over 15 s at 100 kB; a quadratic rule would need 100 times that here
    begin = time.perf_counter()
    for shape in SHAPES:
        for filling in (" ", "1", "[", "1 ", "{[1,2,3,4]"):
            text = shape.format(filling * (200_000 // len(filling)))
            for name in ("json_pixel",) if mode in UNCOMPARABLE else ("json_pixel", "point_pairs_1000", "box_tag_1000"):
                box_format = FORMATS[name]
                assert isinstance(box_format.with_mode(mode).parse(text, SIZE, TRUTH), Box | Unparsed)
    assert time.perf_counter() - begin < 60  # 135 texts: under half a second each on a busy machine


def test_extreme_boxes_have_the_iou_of_their_shape():
    # half of the union: areas 2 and 1, one inside the other, whatever the scale
    for scale in (1e160, 1e-200, 1e300, 1e-320, 1.0):
        a, b = Box(0, 0, 2 * scale, scale), Box(0, 0, scale, scale)
        assert iou(a, b) == pytest.approx(0.5, rel=1e-3), scale
    assert iou(Box(-1e308, -1e308, 1e308, 1e308), Box(-1e308, -1e308, 1e308, 1e308)) == 1.0
    assert iou(Box(0, 0, 1e-200, 1e-200), Box(0, 0, 1e200, 1e200)) == 0.0


def test_iou_arrays_agrees_with_iou_on_extremes():
    import numpy as np

    rows = [(0, 0, 2e160, 1e160), (0, 0, 2e-200, 1e-200), (0, 0, 4, 1), (-1e308, -1e308, 1e308, 1e308)]
    others = [(0, 0, 1e160, 1e160), (0, 0, 1e-200, 1e-200), (0, 0, 1, 1), (-1e308, -1e308, 1e308, 1e308)]
    assert iou_arrays(np.array(rows), np.array(others)).tolist() == pytest.approx([0.5, 0.5, 0.25, 1.0])


def test_crops_of_boxes_that_reach_far_out():
    # half side 5e19: the square is larger than the picture, so it is the whole picture
    assert viscot_square112(Box(0, 0, 1e20, 1e20), (400, 300)) == (0, 0, 400, 300)
    # a box of 10 x 10 far to the right: 224 px at the right edge, 112 above and below its centre (155 - 112 = 43)
    assert viscot_square112(Box(1e20, 150, 1e20 + 10, 160), (400, 300)) == (176, 43, 400, 267)
    # square frame: side 400, pad 50 above; x: (2^40 / 400) * 400 -> 400, y: ((10 + 50) / 400) * 300 = 45
    assert compat_visrl(Box(0, 10, 1e308, 1e308), (400, 300)) == (0, 45, 400, 300)
    assert tight(Box(-1e308, -1e308, 1e308, 1e308), (400, 300)) == (0, 0, 400, 300)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<answer>{"bbox_2d": [1, 2, 3, 4]}</answer>', (1, 2, 3, 4)),
        ("<answer>{the box: [1, 2, 3, 4] here}</answer>", (1, 2, 3, 4)),  # JSON or not
        ('<answer>{"a": [9, 9, 9, 9], "b": [1, 2, 3, 4]}</answer>', (1, 2, 3, 4)),  # the last
        ('<answer>{"a": [1, 2, 3, 4]} [5, 6, 7, 8]</answer>', (1, 2, 3, 4)),  # no } behind the second
        ("<answer>[5, 6, 7, 8] {x} [1, 2, 3, 4] }</answer>", (1, 2, 3, 4)),
        ('<answer>{"bbox_2d": [1.5, 2, 3, 4]}</answer>', None),  # whole numbers only
        ("<answer>[1, 2, 3, 4]</answer>", None),  # no braces
        ('{"bbox_2d": [1, 2, 3, 4]}', None),  # no <answer>
        ('<ANSWER>{"bbox_2d": [1, 2, 3, 4]}</ANSWER>', None),  # their tags are small
    ],
)
def test_vlm_r1(text, expected):
    found = vlm_r1(text)
    assert (None if isinstance(found, Unparsed) else found) == expected


def test_lmms_eval_reads_the_truth():
    reader = FORMATS["json_pixel"].with_mode("lmms_eval")
    # (100, 200, 300, 400) thousandths of 1000 x 500 are (100, 100, 300, 200): the truth; as pixels it does not touch it
    assert reader.parse('[{"bbox_2d": [100, 200, 300, 400]}]', SIZE, TRUTH) == TRUTH
    assert reader.parse('{"location": [100, 100, 300, 200]}', SIZE, TRUTH) == TRUTH  # and so are these pixels
    # a grid of boxes answers anything: the one nearest to the truth counts, wherever it stands
    assert reader.parse(json.dumps([[0, 0, 9, 9], [100, 100, 300, 200], [1, 1, 5, 5]]), SIZE, TRUTH) == TRUTH
    assert reader.parse("four numbers: 100 100 300 200", SIZE, TRUTH) == TRUTH
    assert isinstance(reader.parse("[1, 2, 3, 4]", SIZE), Unparsed)  # nothing to read it by
    assert lmms_eval_boxes('```json\n{"a": {"box": [1, 2, 3, 4]}}\n```') == [(1, 2, 3, 4)]


def test_vlmevalkit_guesses_by_size():
    reader = FORMATS["json_pixel"].with_mode("vlmevalkit")
    assert reader.parse("[0.1, 0.2, 0.3, 0.4]", SIZE) == TRUTH  # up to 1.5: fractions
    assert reader.parse("[100 200 300 400]", SIZE) == TRUTH  # up to 1,000: thousandths
    # a pixel box of a large picture is read as thousandths as long as it stays below 1,000
    assert reader.parse("[100, 100, 300, 200]", (4000, 2000)) == Box(400, 200, 1200, 400)
    assert reader.parse("[100, 100, 1200, 200]", (4000, 2000)) == Box(100, 100, 1200, 200)  # pixels
    assert reader.parse("[300, 400, 100, 200]", SIZE) == TRUTH  # reversed: turned round
    assert reader.parse("first 100, then 200, 300 and 400", SIZE) == TRUTH  # the first four numbers


def test_which_of_several_boxes_is_read():
    reader = FORMATS["json_1000"]
    two = '[{"bbox_2d": [100, 200, 300, 400]}, {"bbox_2d": [0, 0, 1000, 1000]}]'
    assert reader.parse(two, SIZE) == TRUTH  # lenient: the first of a list
    assert reader.with_mode("strict").parse(two, SIZE) == Box(0, 0, 1000, 500)  # strict: the last
    assert reader.parse_all(two, SIZE) == [TRUTH, Box(0, 0, 1000, 500)]
    cut = '[{"bbox_2d": [100, 200, 300, 400], "label": "a"}, {"bbox_2d": [0, 0, 1000, 1000], "la'
    assert reader.parse(cut, SIZE) == TRUTH  # still a list
    prose = "The picture spans [0, 0, 1000, 1000]. The thing is at [100, 200, 300, 400]."
    assert reader.parse(prose, SIZE) == Unparsed("several different boxes in prose")
    assert reader.parse("It is [100, 200, 300, 400]. Yes, [100, 200, 300, 400].", SIZE) == TRUTH  # twice the same


def test_the_box_of_an_unfinished_thought_is_none_and_tags_have_any_case():
    reader = FORMATS["json_1000"]
    assert isinstance(reader.parse("<think>At first [100, 200, 300, 400] comes to mind, but", SIZE), Unparsed)
    assert reader.parse("<THINK>[1, 1, 9, 9]</THINK> <ANSWER>[100, 200, 300, 400]</ANSWER>", SIZE) == TRUTH


@pytest.mark.parametrize(
    ("name", "text", "size"),
    [
        # (2000, 500, 3600, 1500) of 4000 x 2000; Gemini: y first, thousandths
        ("json_1000_yx", '[{"box_2d": [250, 500, 750, 900], "label": "x"}]', {}),
        # pixels of the picture at 1400 x 700: 2000 * 1400 / 4000 = 700, 500 * 700 / 2000 = 175, ...
        ("json_resized", '[{"bbox_2d": [700, 175, 1260, 525], "label": "x"}]', {"resized_to": "1400x700"}),
        ("json_resized", '[{"bbox_2d": [700, 175, 1260, 525], "label": "x"}]', {"max_pixels": "1003520"}),
        ("json_unit", '{"bbox_2d": [0.5, 0.25, 0.9, 0.75]}', {}),
        ("brackets_1024", "[512, 256, 921.6, 768]", {}),
        ("loc_1024", "<loc0256><loc0512><loc0768><loc0922>", {}),
    ],
)
def test_every_frame_has_a_name(name, text, size):
    box = format_named(name, **size).parse(text, (4000, 2000))
    assert box.xyxy == pytest.approx((2000, 500, 3600, 1500), abs=2)


def test_smart_resized_is_the_processors():
    theirs = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl").smart_resize
    for size in [(640, 480), (4000, 2000), (20, 30), (101, 999), (5000, 40), (1, 150)]:
        for low, high in ((3136, 12_845_056), (3136, 1_003_520), (65_536, 262_144)):
            height, width = theirs(size[1], size[0], 28, low, high)
            assert smart_resized(size, 28, low, high) == (width, height)
    assert isinstance(
        format_named("json_resized").parse("[1, 1, 2, 2]", (640, 1)), Unparsed
    )  # 640 times as long as wide


def test_names_and_limits_that_do_not_fit_are_usage_errors():
    for wrong in (
        {"name": "json_pixels"},
        {"name": "json_pixel", "max_pixels": "5"},
        {"name": "json_resized", "max_pixels": "-3"},
    ):
        with pytest.raises(UsageError):
            format_named(**wrong)
    with pytest.raises(UsageError, match="unknown parser"):
        parser_named("strictly")
    assert set(UNCOMPARABLE) == {"lmms_eval", "vlmevalkit"}


def test_strict_honours_the_declared_syntax():
    texts = {
        "json_pixel": '{"bbox_2d": [1, 2, 3, 4]}',
        "padded_square_3dp": "[0.1, 0.2, 0.3, 0.4]",
        "point_pairs_1000": "<|box_start|>(1,2),(3,4)<|box_end|>",
        "box_tag_1000": "<box>1 2 3 4</box>",
        "loc_1024": "<loc0001><loc0002><loc0003><loc0004>",
    }
    for declared in texts:
        strict = FORMATS[declared].with_mode("strict")
        for name, text in texts.items():
            assert isinstance(strict.parse(text, SIZE), Box) == (name == declared), (declared, name)
            assert isinstance(strict.parse(f"The box is {text}.", SIZE), Unparsed)


def test_records_name_the_rule_and_tables_do_not_compare_it():
    assert BoxFormat("x", Brackets(3), PIXEL, "vlmevalkit").describe()["mode"] == "vlmevalkit"


TWO = [(1, 2, 300, 400), (500, 140, 900, 440)]


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("box_tag_nested_1000", "<box>[[1, 2, 300, 400]]</box>", "<box>[[500, 140, 900, 440]]</box>"),
        ("box_tag_1000", "<box>1 2 300 400</box>", "<box>500 140 900 440</box>"),
        ("point_pairs_1000", "<|box_start|>(1,2),(300,400)<|box_end|>", "<|box_start|>(500,140),(900,440)<|box_end|>"),
        ("padded_square_3dp", "[.001, .002, .3, .4]", "[.5, .14, .9, .44]"),
    ],
)
def test_several_different_boxes_in_sentences_are_no_choice_in_any_syntax(name, one, other):
    read = FORMATS[name].parse
    assert read(f"The dog {one} is left of the cat {other}.", (1000, 1000)) == Unparsed(
        "several different boxes in prose"
    )
    assert read(f"The dog {one}, I say, {one}.", (1000, 1000)) == Box(*TWO[0])  # the same one twice
    assert read(f"{one}\n{other}", (1000, 1000)) == Box(*TWO[0])  # a list: its first


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "box_tag_nested_1000",
            "<ref>dog</ref><box>[[1, 2, 300, 400]]</box>\n<ref>cat</ref><box>[[500, 140, 900, 440]]</box>",
        ),
        ("box_tag_nested_1000", "<ref>pets</ref><box>[[1, 2, 300, 400], [500, 140, 900, 440]]</box>"),
        (
            "point_pairs_1000",
            "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(1,2),(300,400)<|box_end|>"
            "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(500,140),(900,440)<|box_end|>",
        ),
    ],
)
def test_boxes_with_labels_in_the_syntaxs_own_tags_are_a_list(name, text):
    assert FORMATS[name].parse_all(text, (1000, 1000)) == [Box(*box) for box in TWO]


def test_the_declared_key_counts_and_no_other():
    read = FORMATS["json_1000"].parse
    right = Box(158, 140, 473, 440)
    assert read('{"image_size": [0, 0, 640, 480], "bbox_2d": [158, 140, 473, 440]}', (1000, 1000)) == right
    assert read('Of [0, 0, 640, 480] it is {"bbox_2d": [158, 140, 473, 440]}.', (1000, 1000)) == right
    assert read('{"bbox": [158, 140, 473, 440]}', (1000, 1000)) == right  # the only list there is
    several = '{"size": [0, 0, 640, 480], "bbox_2d": [[158, 140, 473, 440], [1, 2, 300, 400]]}'
    assert FORMATS["json_1000"].parse_all(several, (1000, 1000)) == [right, Box(1, 2, 300, 400)]
