"""Training files: schema, errors with line numbers, importers against VisCoT's real files."""

import gzip
import json
from pathlib import Path

import pytest
from PIL import Image

from visrl.core.box_formats import FORMATS
from visrl.errors import PictureError, UsageError
from visrl.train.config.recipe import DataSection
from visrl.train.data.importers import import_chains, import_pairs
from visrl.train.data.load import load_demonstrations, load_preferences
from visrl.train.data.placement import Placement, boxes_of_chain
from visrl.train.data.rows import Chain, PairRow, picture_in, read_rows, write_rows

ROW = PairRow(
    id="a", picture="x.png", question="what?", chosen=Chain(box=(1, 2, 3, 4), answer="yes", scores={"box": 0.9}),
    rejected=Chain(box=(5, 6, 7, 8), box_text="[0.1, 0.2, 0.3, 0.4]", answer="no"),
)  # fmt: skip


def test_rows_survive_the_disk_and_keep_on_policy_box_text(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_rows(path, [ROW])
    assert list(read_rows(path, PairRow)) == [ROW]
    assert json.loads(path.read_text())["lose"]["box_text"] == "[0.1, 0.2, 0.3, 0.4]"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"win": {"box": [3, 2, 1, 4], "answer": "y"}}, r"win\.box: .*x2 <= x1"),
        ({"protocol": "visrl"}, "protocol: "),
        ({"colour": "red"}, "colour: "),
        ({"win": {"box": [1, 2, float("nan"), 4]}}, "win.box"),
        ({"size": [30, 0]}, r"size\.1"),
        ({"size": [30, 10**400]}, r"size\.1"),
    ],
)
def test_a_bad_row_names_file_line_and_field(tmp_path, change, message):
    path = tmp_path / "pairs.jsonl"
    good = ROW.model_dump(mode="json", by_alias=True)
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(good | change) + "\n")
    with pytest.raises(UsageError, match=rf"pairs\.jsonl:3: {message}"):
        list(read_rows(path, PairRow))


def test_a_picture_cannot_lie_outside_its_folder(tmp_path):
    with pytest.raises(UsageError, match="lies outside"):
        picture_in(tmp_path / "pictures", "../secret.png")
    with pytest.raises(PictureError, match=r"none\.png"):
        picture_in(tmp_path, "none.png").open()


def test_rows_without_their_picture_are_left_out_counted_and_named(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "there.png")
    rows = [ROW.model_copy(update={"id": f"r{i}", "picture": name}) for i, name in enumerate(["there.png", "gone.png"])]
    write_rows(tmp_path / "p.jsonl", rows)
    found = load_preferences(DataSection(path=tmp_path / "p.jsonl", pictures=tmp_path))
    assert [pair.sample.id for pair in found] == ["r0"]
    assert "1 without their picture: 1 of 2 pictures missing under" in capsys.readouterr().err


def test_one_id_twice_is_an_error(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    write_rows(tmp_path / "p.jsonl", [ROW, ROW])
    with pytest.raises(UsageError, match="id 'a' occurs twice"):
        load_preferences(DataSection(path=tmp_path / "p.jsonl", pictures=tmp_path))


def test_chains_are_no_pairs():
    with pytest.raises(UsageError, match="holds preference pairs, not demonstrations"):
        load_demonstrations(DataSection(format="official"))


def test_viscot_chains_keep_their_question_and_take_the_raw_pixels(tmp_path):
    human = "<image>\nIs it red? Please provide the bounding box coordinate of the region that can help you answer the question better."
    item = {
        "dataset": "cub", "question_id": 7, "image": ["a.jpg", "a.jpg###[141, 87, 397, 298]"],
        "conversations": [
            {"from": "human", "value": human}, {"from": "gpt", "value": "[0.282, 0.316, 0.794, 0.738]"},
            {"from": "human", "value": "<image>"}, {"from": "gpt", "value": "No"},
        ],
    }  # fmt: skip
    flat = item | {"image": ["a.jpg", "a.jpg###[5, 5, 5, 9]"]}
    plain = {"image": "b.jpg", "conversations": item["conversations"][:2]}
    (tmp_path / "v.json").write_text(json.dumps([item, flat, plain]))
    rows, tally = import_chains(tmp_path / "v.json", "viscot")
    assert [(r.question, r.chain.box, r.chain.answer, r.protocol) for r in rows] == [
        ("Is it red?", (141.0, 87.0, 397.0, 298.0), "No", "visrl_train")
    ]
    assert tally.left_out == {"empty box": 1, "no second picture with ###[x1, y1, x2, y2]": 1}


def test_official_pairs_are_measured_on_the_padded_square(tmp_path):
    """200 x 100: pad 50 above. Square [.25, .5, .5, .625] is x .25*200 = 50..100, y .5*200 - 50 = 50..75."""
    Image.new("RGB", (200, 100)).save(tmp_path / "p.png")
    item = {
        "images": ["p.png"], "conversations": [{"from": "human", "value": "<image>\nWhere?"}],
        "chosen_step": {"from": "gpt", "value": "[0.250, 0.500, 0.500, 0.625]"}, "rejected_step": "[0.000, 0.300, 0.100, 0.400]",
        "chosen": "here", "rejected": {"from": "gpt", "value": "there"},
    }  # fmt: skip
    (tmp_path / "o.json").write_text(
        json.dumps([item, item | {"images": ["gone.png"]}, item | {"chosen_step": "no box"}])
    )
    rows, tally = import_pairs(tmp_path / "o.json", tmp_path)
    assert rows[0].chosen.box == (50.0, 50.0, 100.0, 75.0)
    assert (rows[0].chosen.answer, rows[0].rejected.answer, rows[0].size) == ("here", "there", (200, 100))
    assert tally.left_out == {"picture not readable": 1, "no box in chosen_step or rejected_step": 1}


@pytest.mark.parametrize("key", ["chosen", "rejected", "chosen_step"])
@pytest.mark.parametrize("value", [["here"], None, {"value": 3}], ids=["a list", "null", "a number"])
def test_what_is_no_text_in_an_official_pair_names_item_and_key(tmp_path, key, value):
    Image.new("RGB", (200, 100)).save(tmp_path / "p.png")
    item = {
        "image": "p.png", "conversations": [{"from": "human", "value": "Where?"}], "chosen": "here", "rejected": "there",
        "chosen_step": "[0.250, 0.500, 0.500, 0.625]", "rejected_step": "[0.000, 0.300, 0.100, 0.400]",
    }  # fmt: skip
    (tmp_path / "o.json").write_text(json.dumps([item, {**item, key: value}]))
    with pytest.raises(UsageError, match=rf"item 2 is not of layout official: {key}: .*, not text"):
        import_pairs(tmp_path / "o.json", tmp_path)


def test_a_file_of_another_layout_names_the_item(tmp_path):
    (tmp_path / "x.json").write_text('[{"question": "?"}]')
    with pytest.raises(UsageError, match="item 1 is not of layout cot: no 'bboxs'"):
        import_chains(tmp_path / "x.json", "cot")
    (tmp_path / "x.jsonl").write_text('\n{"bboxs": []}\n{"bboxs": [')
    with pytest.raises(UsageError, match=r"x\.jsonl:3: not JSON"):
        import_chains(tmp_path / "x.jsonl", "cot")


@pytest.mark.parametrize("width", ["1" + "0" * 400, "0", "-5", "1e400", "12.7", "null", "[]"])
def test_a_size_that_no_picture_has_names_the_item_and_the_field(tmp_path, width):
    item = '{"dataset": "d", "image": "a.png", "width": %s, "height": 50, "bboxs": [[1, 2, 10, 40]], "question": "q", "answer": "a"}\n'
    (tmp_path / "c.jsonl").write_text(item % 20 + item % width)
    with pytest.raises(UsageError, match=r"c\.jsonl: item 2 is not of layout cot: size\.0: Input should be"):
        import_chains(tmp_path / "c.jsonl", "cot")


def test_an_official_pair_without_a_persons_turn_is_named(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "p.png")
    step = "[0.250, 0.500, 0.500, 0.625]"
    turns = [{"from": "gpt", "value": "x"}]
    item = {"images": ["p.png"], "conversations": turns, "chosen_step": step, "rejected_step": step}
    (tmp_path / "o.json").write_text(json.dumps([item]))
    with pytest.raises(UsageError, match="item 1 is not of layout official: no turn of a person"):
        import_pairs(tmp_path / "o.json", tmp_path)


@pytest.mark.parametrize("name", ["cub", "vsr", "sroie", "dude"])
def test_real_viscot_boxes_in_pixels_are_the_padded_square_numbers_of_the_text(shared, name):
    """All rows: ### pixels and box text say the same once the frame is right, to a pixel (the pixels were truncated to whole
    ones) and half a unit of the third decimal of the longer side. One chain of dude has an empty answer, and is left out."""
    folder = shared / "viscot_benchmark"
    rows, tally = import_chains(folder / f"{name}.json.gz", "viscot")
    items = json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))
    with gzip.open(folder / f"det_{name}.jsonl.gz", "rt") as file:
        sizes = [(row["width"], row["height"]) for row in map(json.loads, file)]
    told = [(item["conversations"], size) for item, size in zip(items, sizes, strict=True)]
    texts = [(turns[1]["value"], size) for turns, size in told if turns[3]["value"]]
    assert tally.left_out == ({"empty answer": 1} if name == "dude" else {})
    for row, (text, size) in zip(rows, texts, strict=True):
        told = FORMATS["padded_square_3dp"].parse(text, size)
        assert max(abs(a - b) for a, b in zip(told.xyxy, row.chain.box, strict=True)) <= 1 + 0.0005 * max(size), row.id


@pytest.mark.parametrize(("name", "n"), [("cub", 10056), ("sroie", 2486), ("vsr", 3376), ("dude", 11735)])
def test_real_cot_files_import_what_lies_in_its_picture(shared, name, n):
    chains, tally = import_chains(shared / "viscot_train" / f"{name}_cot_train.jsonl.gz", "cot")
    placement = Placement(name, boxes_of_chain, shared, tally.left_out)
    rows = list(placement.kept(chains))
    placement.check(())
    assert len(rows) + sum(tally.left_out.values()) == n
    # dude: of 11,735 rows 4 have an empty box and 701 one of which less than half lies in the picture
    assert n - len(rows) == (705 if name == "dude" else 0)
    assert len({row.id for row in rows}) == len(rows)


def cot(tmp_path, boxes, name="c.jsonl", mark=b""):
    rows = [
        {
            "dataset": "d",
            "image": "a.png",
            "width": 100,
            "height": 50,
            "bboxs": [box],
            "question": "?",
            "answer": "x\u2028y",
        }
        for box in boxes
    ]
    path = tmp_path / name
    path.write_bytes(mark + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    return path


def test_training_boxes_outside_their_picture_are_left_out_and_counted(tmp_path, capsys):
    # 100 x 50: inside; half of it inside (25 of 50 wide): stays; less than half (24 of 50): left out; empty: left out
    boxes = [[10, 10, 40, 40], [75, 10, 125, 40], [76, 10, 126, 40], [5, 5, 5, 9]]
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    rows = load_demonstrations(DataSection(path=cot(tmp_path, boxes), pictures=tmp_path, format="cot"))
    assert [row.sample.id for row in rows] == ["d-1", "d-2"]
    assert "left out: 1 box outside the picture; 1 empty box\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.9, 0.4]], "fractions"),
        ([[200, 100, 400, 300]] * 2, "lie outside their pictures"),
    ],
)
def test_training_boxes_of_another_frame_are_an_error(tmp_path, boxes, said):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=rf"2 of 2 rows .*{said}"):
        load_demonstrations(DataSection(path=cot(tmp_path, boxes), pictures=tmp_path, format="cot"))


def test_importers_read_a_byte_order_mark_and_u2028(tmp_path):
    rows, _ = import_chains(cot(tmp_path, [[1, 1, 9, 9]] * 3, mark=b"\xef\xbb\xbf"), "cot")
    assert [row.chain.answer for row in rows] == ["x\u2028y"] * 3


def test_a_picture_that_the_image_processor_does_not_take_names_its_sample():
    from types import SimpleNamespace

    from visrl.core.types import Picture, Turn
    from visrl.train.common.encoding import ConversationEncoder

    def encode_image(image):
        raise ValueError(f"absolute aspect ratio must be smaller than 200, got {image.width / image.height}")

    thin = Picture("wide.png", lambda: Image.new("RGB", (640, 1)))
    family = SimpleNamespace(
        render=lambda turns, add_generation_prompt: SimpleNamespace(pictures=[thin]),
        encode_image=encode_image,
        chat=None,
    )
    with pytest.raises(UsageError, match=r"sample thin: wide\.png, 640 x 1 pixels: .* got 640\.0"):
        ConversationEncoder(family, FORMATS["json_1000"]).chat([Turn("user", (thin,))], sample="thin")


@pytest.mark.parametrize(("folder", "name"), [("a\0b", "x.png"), (".", "x\0.png"), ("\ud800", "x.png")])
def test_names_that_no_file_can_have_are_errors(folder, name):
    with pytest.raises(UsageError, match="picture 'x"):
        picture_in(Path(folder), name)


def test_pairs_that_are_not_utf8_name_their_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_rows(path, [ROW])
    path.write_bytes(path.read_bytes().replace(b"what?", b"w\xe9?"))
    with pytest.raises(UsageError, match=r"pairs.jsonl: not UTF-8 text"):
        list(read_rows(path, PairRow))


HALVES = {
    "no box": ({"chain": {"answer": "a"}}, "chain.box: missing, and visrl_train looks"),
    "its text alone": ({"chain": {"answer": "a", "box_text": "[0, 0, 1, 1]"}}, "chain.box: missing"),
    "no answer": ({"chain": {"box": [0, 0, 1, 1]}}, "chain.answer: empty"),
    "an answer of spaces": ({"chain": {"box": [0, 0, 1, 1], "answer": " \n"}}, "chain.answer: empty"),
    "no box of an expression": ({"kind": "rec", "chain": {}}, "chain.box: missing"),
    "no answer under direct": ({"protocol": "direct", "chain": {}}, "chain.answer: empty"),
    "no losing box": ({"win": {"box": [0, 0, 1, 1], "answer": "a"}, "lose": {"answer": "b"}}, "lose.box: missing"),
    "no winning box": ({"win": {"answer": "a"}, "lose": {"box": [0, 0, 1, 1], "answer": "b"}}, "win.box: missing"),
}


@pytest.mark.parametrize("half", HALVES)
def test_half_a_chain_is_named_by_file_and_line_before_a_model_is_loaded(half, tmp_path):
    """The model's folder does not exist: whoever loaded it first would say so."""
    fields, said = HALVES[half]
    good = (
        {"win": {"box": [0, 0, 1, 1], "answer": "a"}, "lose": {"box": [1, 1, 2, 2], "answer": "b"}}
        if "win" in fields
        else {"chain": {"box": [0, 0, 1, 1], "answer": "a"}}
    )
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [{"id": str(i), "picture": "a.png", "question": "q", **row} for i, row in enumerate((good, fields))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = DataSection(path=tmp_path / "rows.jsonl", pictures=tmp_path)
    load = load_preferences if "win" in fields else load_demonstrations
    with pytest.raises(UsageError, match=rf"rows\.jsonl:2: {said}"):
        load(section)
