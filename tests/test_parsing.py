import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visrl.core.box_formats import FORMATS, BoxFormat, BoxTag, Brackets, JsonObject, LocTokens, PointPairs, unfenced
from visrl.core.boxes import PIXEL, SQUARE, UNIT, Box, grid, iou, resized
from visrl.core.types import Unparsed

UNITS = BoxFormat("unit", Brackets(3), UNIT)
PIXELS = BoxFormat("pixels", JsonObject(), PIXEL)
STRICT = PIXELS.with_mode("strict")
SIZE = (1000, 500)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[0.1, .2, 0.300, 4e-1]", (100, 100, 300, 200)),
        ("The region is [0.1,0.2,0.3,0.4].", (100, 100, 300, 200)),
        ("[[0.1, 0.2, 0.3, 0.4]]", (100, 100, 300, 200)),
        ("<think>[0, 0, 1, 1] maybe</think> [0.1, 0.2, 0.3, 0.4]", (100, 100, 300, 200)),
        ("[0, 0, 1, 1] <answer>[0.1, 0.2, 0.3, 0.4]</answer>", (100, 100, 300, 200)),
        ("[+0.1, 0.2, 0.3, 0.4] [0, 0, 1, 1]", (100, 100, 300, 200)),  # lenient: the first
        ('["0.1", "0.2", "0.3", "0.4"]', (100, 100, 300, 200)),
        ("[0.1，0.2，0.3，0.4]", (100, 100, 300, 200)),
        ("［０.１、０.２、０.３、０.４］", (100, 100, 300, 200)),
        (r"\[0.1, 0.2, 0.3, 0.4\]", (100, 100, 300, 200)),
        (r"[0.1, 0.2, 0.3, 0.4\n]", (100, 100, 300, 200)),
    ],
)
def test_brackets(text, expected):
    # x is .1 * 1000 px, y is .2 * 500 px
    assert UNITS.parse(text, SIZE).xyxy == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty output"),
        ("no idea", "no list of four numbers"),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", "a list of 5 numbers, not four"),
        ("[0.1, 0.2, 0.3]", "a list of 3 numbers, not four"),
        ("[nan, 0, 1, 1]", "no list of four numbers"),
        ("[0.5, 0.2, 0.1, 0.4]", "empty box: x2 <= x1 or y2 <= y1"),
        ("[0.5, 0.2, 0.5, 0.4]", "empty box: x2 <= x1 or y2 <= y1"),
        ("[0, 0, 1, " + "9" * 5000 + "]", "a number is too large"),
        ("[0.1, 0.2", "no list of four numbers"),
    ],
)
def test_what_is_not_a_box_has_a_reason(text, reason):
    assert UNITS.parse(text, SIZE) == Unparsed(reason)


def test_scale_is_never_guessed():
    # pixel numbers in a unit format stay units: far outside, an IoU of 0, visible in the score; not silently rescaled
    assert UNITS.parse("[100, 100, 300, 200]", SIZE).xyxy == (100_000, 50_000, 300_000, 100_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<answer>{"bbox_2d": [1, 2, 3, 4]}</answer>', (1, 2, 3, 4)),
        ('<answer>\n```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]\n```json\n</answer>', (1, 2, 3, 4)),
        ('```json\n{"bbox_2d": [1, 2, 3, 4]}\n```', (1, 2, 3, 4)),  # the final answer is the whole text
        ('<think>[5, 5, 6, 6]</think>{"bbox_2d": [1, 2, 3, 4]}', (1, 2, 3, 4)),
        ('<answer>[{"bbox_2d": [9, 9, 11, 11]}, {"bbox_2d": [1, 2, 3, 4]}]</answer>', (1, 2, 3, 4)),  # the last
    ],
)
def test_strict_reads_json_in_answer(text, expected):
    assert STRICT.parse(text, SIZE).xyxy == expected


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2, 3, 4]",  # a list is another syntax than the declared one
        '<answer>{"bbox": [1, 2, 3, 4]}</answer>',
        "<answer>the box is [1, 2, 3, 4]</answer>",
        "<answer>[1, 2, 3]</answer>",
        '<answer>{"bbox_2d": "1,2,3,4"}</answer>',
        "<answer>" + "[" * 1_000_000 + "</answer>",
        "<answer>[NaN, 0, 1, 1]</answer>",
    ],
)
def test_strict_refuses_the_rest(text):
    assert isinstance(STRICT.parse(text, SIZE), Unparsed)


def test_other_syntaxes_by_hand():
    thousand = grid(1000)
    pairs = BoxFormat("q", PointPairs(), thousand)
    assert pairs.parse("<|box_start|>(100,200),(300,400)<|box_end|>", SIZE).xyxy == (100, 100, 300, 200)
    assert pairs.parse("(100,200),(300,400)", SIZE).xyxy == (100, 100, 300, 200)  # tokens skipped when decoding
    assert BoxFormat("m", BoxTag(), thousand).parse("<box>100 200 300 400</box>", SIZE).xyxy == (100, 100, 300, 200)
    nested = BoxFormat("i", BoxTag(nested=True), thousand)
    assert nested.parse("<ref>x</ref><box>[[100, 200, 300, 400]]</box>", SIZE).xyxy == (100, 100, 300, 200)
    # PaliGemma: y1 x1 y2 x2 on 1024 bins; <loc0512> in y is 512/1024*500 = 250 px
    loc = BoxFormat("p", LocTokens(), grid(1024))
    assert loc.parse("<loc0512><loc0256><loc1023><loc0512> cat", SIZE).xyxy == pytest.approx(
        (250, 250, 500, 1023 / 1024 * 500)
    )
    assert isinstance(loc.parse("<loc0512><loc0256><loc1024><loc0512>", SIZE), Unparsed)
    assert isinstance(loc.parse("<loc0512><loc0256>", SIZE), Unparsed)


CASES = [
    FORMATS["padded_square_3dp"],
    FORMATS["wh_norm_3dp"],
    FORMATS["json_pixel"],
    FORMATS["json_1000"],
    FORMATS["point_pairs_1000"],
    FORMATS["box_tag_1000"],
    FORMATS["box_tag_nested_1000"],
    BoxFormat(
        "resized", JsonObject(), lambda size: resized((round(size[0] / 28) * 28 or 28, round(size[1] / 28) * 28 or 28))
    ),
    BoxFormat("loc", LocTokens(), grid(1024)),
    BoxFormat("loc square", LocTokens(32, "xyxy", 2), grid(32, "square")),
]


@pytest.mark.parametrize("box_format", CASES, ids=lambda f: f.name)
@given(data=st.data())
def test_write_then_parse_is_the_box_to_half_a_step(box_format, data):
    size = data.draw(st.sampled_from([(640, 480), (480, 640), (500, 500), (1695, 2200)]))
    width, height = size
    x1, y1 = data.draw(st.floats(0, 0.7)) * width, data.draw(st.floats(0, 0.7)) * height
    box = Box(x1, y1, x1 + 0.2 * width, y1 + 0.2 * height)
    back = box_format.parse(box_format.write(box, size), size)
    digits = getattr(box_format.syntax, "digits", 0)
    step = [unit * 10.0**-digits for unit in box_format.frame_for(size).unit(size)]
    for a, b, half in zip(back.xyxy, box.xyxy, [s / 2 for s in step] * 2, strict=True):
        assert abs(a - b) <= half * 1.000001


@given(st.text(alphabet='[](){}0123456789.,eE+-<>answerboxlc|"_:/ \n', max_size=300))
def test_parsing_never_raises(text):
    for box_format in [*CASES, STRICT]:
        assert isinstance(box_format.parse(text, SIZE), Box | Unparsed)


@pytest.mark.parametrize(
    "text", ["9" * 1_000_000, "[" + "1" * 1_000_000, "[1," * 300_000, "<answer>" * 100_000, "<box>" + "1 " * 400_000]
)
def test_a_megabyte_is_read_in_linear_time(text):
    # quadratic backtracking would take hours here: finishing at all is the check
    for box_format in [*CASES, STRICT]:
        assert isinstance(box_format.parse(text, SIZE), Unparsed)


def test_unfenced():
    assert unfenced("```json\n[1]\n```") == unfenced("```\n[1]\n```json") == unfenced("[1]") == "[1]"


@pytest.mark.parametrize("name", ["baseline", "checkpoint-100"])
def test_all_published_flags_agree(shared, name):
    """Every one of VLM-R1's 12,000 right/wrong flags, by IoU > 0.5 in pixels and the parser its authors used."""
    box_format = PIXELS.with_mode("vlm_r1") if name == "checkpoint-100" else PIXELS
    files = sorted((shared / "predictions/rec").glob(f"{name}__*.json.gz"))
    assert len(files) == 3
    for file in files:
        results = json.loads(gzip.decompress(file.read_bytes()))["results"]
        assert len(results) == 2000
        for row in results:
            box = box_format.parse(row["model_output"], SIZE)
            right = isinstance(box, Box) and iou(box, Box(*row["ground_truth"])) > 0.5
            assert right == bool(row["correct"]), row


def test_all_viscot_boxes_convert(shared):
    """9,937 chains: the padded-square text is the pixel box of det_* to 0.001 of the square."""
    n = 0
    for file in sorted((shared / "viscot_benchmark").glob("det_*.jsonl.gz")):
        chains = json.loads(gzip.decompress((file.parent / (file.name[4:].replace(".jsonl", ".json"))).read_bytes()))
        rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
        assert len(chains) == len(rows)
        for chain, row in zip(chains, rows, strict=True):
            numbers = json.loads(chain["conversations"][1]["value"])
            truth = Box(*row["bbox"]).to(SQUARE, (row["width"], row["height"]))
            assert max(abs(a - b) for a, b in zip(numbers, truth.xyxy, strict=True)) <= 0.001 + 1e-9
            n += 1
    assert n == 9937


def test_the_frame_of_each_named_format():
    frames = {name: FORMATS[name].frame for name in FORMATS if name.endswith(("_3dp", "_pixel", "_1000", "_1024"))}
    expected = {
        "padded_square_3dp": SQUARE, "wh_norm_3dp": UNIT, "json_pixel": PIXEL, "json_1000": grid(1000),
        "point_pairs_1000": grid(1000), "box_tag_1000": grid(1000), "box_tag_nested_1000": grid(1000), "loc_1024": grid(1024),
    }  # fmt: skip
    assert {name: frames[name] for name in expected} == expected


def test_what_each_named_format_writes_by_hand():
    # a box of pixels 100..300 x 50..400 in 1000 x 500: x .1 .3, y .1 .8; of the square (pad 250 above): y .3 .65
    box = Box(100, 50, 300, 400)
    assert {name: FORMATS[name].write(box, SIZE) for name in FORMATS if name in WRITTEN} == WRITTEN


WRITTEN = {
    "padded_square_3dp": "[0.100, 0.300, 0.300, 0.650]",
    "wh_norm_3dp": "[0.100, 0.100, 0.300, 0.800]",
    "json_pixel": '{"bbox_2d": [100, 50, 300, 400]}',
    "json_1000": '{"bbox_2d": [100, 100, 300, 800]}',
    "point_pairs_1000": "<|box_start|>(100,100),(300,800)<|box_end|>",
    "box_tag_1000": "<box>100 100 300 800</box>",
    "box_tag_nested_1000": "<box>[[100, 100, 300, 800]]</box>",
    "loc_1024": "<loc0102><loc0102><loc0819><loc0307>",  # y x y x: .1, .1, .8, .3 of 1024 are 102.4, 102.4, 819.2, 307.2
}


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_several_boxes_in_one_tag(mode):
    """As InternVL writes several objects. 100 thousandths of 1000 px are 100 px, of 500 px 50 px. Two corners are one box."""
    nested = FORMATS["box_tag_nested_1000"].with_mode(mode)
    found = nested.parse_all("<box>[[100, 200, 300, 400], [500, 600, 700, 800]]</box>", SIZE)
    assert [box.xyxy for box in found] == [(100, 100, 300, 200), (500, 300, 700, 400)]
    assert nested.parse("<box>[100, 200], [300, 400]</box>", SIZE).xyxy == (100, 100, 300, 200)


def test_strict_reads_no_quoted_numbers():
    assert isinstance(UNITS.with_mode("strict").parse('["0.1", "0.2", "0.3", "0.4"]', SIZE), Unparsed)
