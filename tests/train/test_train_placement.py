"""Where boxes of training rows lie: one step for every format, with sizes from the headers of pictures where rows give none."""

import io
import json
import tracemalloc

import datasets
import pytest
from PIL import Image
from train_made import sample

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box
from visrl.errors import PictureError, UsageError
from visrl.tasks.pictures import decoded, measured
from visrl.train.config.recipe import DataSection, load_recipe
from visrl.train.config.section import DatasetSection
from visrl.train.data import placement
from visrl.train.data.candidates import Candidate, Preference
from visrl.train.data.load import load_demonstrations, load_preferences
from visrl.train.data.questions import QuestionSection, load_questions
from visrl.train.data.rows import size_in
from visrl.train.dpo.losses import stage_terms
from visrl.train.dpo.same_texts import check_differ
from visrl.train.grpo import phase

FRACTIONS, BESIDE, GOOD = [0.2, 0.2, 0.35, 0.35], [900, 900, 990, 990], [100, 100, 150, 150]


@pytest.fixture
def folder(tmp_path):
    """Four pictures of 448 x 448."""
    for i in range(4):
        Image.new("RGB", (448, 448), (i, 0, 0)).save(tmp_path / f"{i}.png")
    return tmp_path


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(i, **more):
    return {"id": f"q{i}", "picture": f"{i}.png", "question": "What?", "answers": ["B"], **more}


def chains(folder, boxes):
    return lines(folder / "c.jsonl", [asked(i, chain={"box": box, "answer": "B"}) for i, box in enumerate(boxes)])


def sft(path, folder, **more):
    return [row.sample.id for row in load_demonstrations(DataSection(path=path, pictures=folder, **more))]


WRONG = [(FRACTIONS, "are smaller than a pixel: fractions"), (BESIDE, "lie outside their pictures")]


@pytest.mark.parametrize(("box", "said"), WRONG)
def test_chains_without_a_size_are_held_against_the_header_of_their_picture(folder, box, said):
    """.35 of a pixel is no box of 448 x 448, and nothing of 900 to 990 lies in it."""
    with pytest.raises(UsageError, match=rf"c\.jsonl: the boxes of 4 of 4 rows {said}.*first: q0"):
        sft(chains(folder, [box] * 4), folder)


@pytest.mark.parametrize(("box", "said"), WRONG)
def test_a_few_boxes_of_another_frame_are_left_out_and_counted(folder, box, said, capsys):
    assert sft(chains(folder, [GOOD, box, GOOD, GOOD]), folder) == ["q0", "q2", "q3"]
    reason = placement.CORNER if box == FRACTIONS else placement.OUTSIDE
    assert f"left out: 1 {reason}\n" in capsys.readouterr().err


def test_a_header_is_read_once_a_picture_and_only_for_boxes_of_unknown_size(folder, monkeypatch):
    """Six rows of two pictures: two headers, not six; rows with a size, or without a box, need none."""
    read = []
    monkeypatch.setattr(placement, "size_in", lambda root, name: read.append(name) or size_in(root, name))
    monkeypatch.setattr("visrl.tasks.pictures.as_rgb", lambda image: pytest.fail("a picture was decoded"))
    rows = [{**asked(i % 2, chain={"box": GOOD, "answer": "B"}), "id": str(i)} for i in range(6)]
    known = asked(2, chain={"box": GOOD, "answer": "B"}, size=[448, 448])
    plain = asked(3, chain={"answer": "B"}, protocol="direct")
    assert len(sft(lines(folder / "m.jsonl", [*rows, known, plain]), folder)) == 8
    assert read == ["0.png", "1.png"]


def test_a_header_says_what_is_decoded_whatever_exif_says(folder):
    """448 x 300 with orientation 6 (turn by 90 degrees): annotations are in raw pixels, so it stays 448 x 300."""
    image = Image.new("RGB", (448, 300))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    data = (folder / "turned.jpg").read_bytes()
    assert measured(data, "x") == measured(folder / "turned.jpg", "x") == decoded(data, "x").size == (448, 300)
    assert size_in(folder, "turned.jpg") == (448, 300) and size_in(folder, "world:rl:1") == (336, 448)
    for bad in (b"", b"no picture", data[:10]):
        with pytest.raises(PictureError, match=r"^x: "):
            measured(bad, "x")


def test_a_picture_without_a_readable_header_is_named_when_it_is_opened(folder):
    (folder / "0.png").write_bytes(b"no picture")
    assert sft(chains(folder, [BESIDE, GOOD]), folder) == ["q0", "q1"]


@pytest.mark.parametrize(("box", "said"), WRONG)
def test_viscot_and_data_sets_are_checked_likewise(folder, box, said):
    turns = [{"from": who, "value": "x"} for who in ("human", "gpt", "human", "gpt")]
    whole = [round(number) for number in box] if box == BESIDE else [0, 0, 1, 1]
    items = [{"image": [f"{i}.png", f"{i}.png###{whole}"], "conversations": turns} for i in range(4)]
    (folder / "v.json").write_text(json.dumps(items))
    for load, section in ((load_demonstrations, DataSection), (load_questions, QuestionSection)):
        with pytest.raises(UsageError, match=rf"4 of 4 rows {said}"):
            load(section(path=folder / "v.json", pictures=folder, format="viscot"))
    rows = [{"image": f"{i}.png", "question": "q", "answer": "a", "box": list(map(float, box))} for i in range(4)]
    lines(folder / "d.jsonl", rows)
    images = [{**row, "image": Image.open(folder / row["image"])} for row in rows]
    datasets.Dataset.from_list(images).save_to_disk(folder / "disk")
    for name in ("d.jsonl", "disk"):
        for load, section in ((load_demonstrations, DataSection), (load_questions, QuestionSection)):
            with pytest.raises(UsageError, match=rf"4 of 4 rows {said}") as caught:
                load(section(path=folder / name, pictures=folder, format="datasets", dataset=DatasetSection()))
            assert "frame: unit" in caught.value.hint


def pairs(folder, win, lose):
    rows = [asked(i, win={"box": win, "answer": "B"}, lose={"box": lose, "answer": "A"}) for i in range(4)]
    return DataSection(path=lines(folder / "p.jsonl", rows), pictures=folder)


def test_pairs_without_a_size_are_checked_and_know_it_afterwards(folder):
    with pytest.raises(UsageError, match="4 of 4 rows are smaller than a pixel"):
        load_preferences(pairs(folder, FRACTIONS, [0.6, 0.6, 0.8, 0.9]))
    with pytest.raises(UsageError, match="4 of 4 rows lie outside"):
        load_preferences(pairs(folder, GOOD, BESIDE))
    few = [pairs(folder, GOOD, [1, 2, 30, 40]).path.read_text().splitlines()[i] for i in range(3)]
    tiny = asked(3, win={"box": GOOD, "answer": "B"}, lose={"box": [0, 0, 0.9, 0.9], "answer": "A"})
    (folder / "p.jsonl").write_text("\n".join([*few, json.dumps(tiny)]))  # a policy's own box, however small, stays
    assert len(load_preferences(DataSection(path=folder / "p.jsonl", pictures=folder))) == 4
    assert {pair.sample.size for pair in load_preferences(pairs(folder, GOOD, [1, 2, 30, 40]))} == {(448, 448)}


def test_official_boxes_are_fractions_of_the_padded_square(folder, capsys):
    """Pixels read as fractions: 120 of a square of 448 is 53,760. In 200 x 100, y .1 to .2 of the square is 20 to 40, less the pad
    of 50: above the picture, but in the square, so that a policy may have written it.
    """
    Image.new("RGB", (200, 100)).save(folder / "wide.png")
    turns = [{"from": "human", "value": "Where?"}]
    item = {"conversations": turns, "chosen": "B", "rejected": "A", "rejected_step": "[0.100, 0.100, 0.300, 0.200]"}
    pixels = [{**item, "id": i, "image": f"{i}.png", "chosen_step": "[120, 100, 200, 180]"} for i in range(4)]
    right = {**item, "image": "wide.png", "chosen_step": "[0.250, 0.500, 0.500, 0.625]"}
    section = DataSection(path=folder / "o.json", pictures=folder, format="official")
    (folder / "o.json").write_text(json.dumps(pixels))
    with pytest.raises(UsageError, match="4 of 4 rows lie outside their pictures") as caught:
        load_preferences(section)
    assert caught.value.hint == placement.ON_SQUARE
    (folder / "o.json").write_text(json.dumps([{**right, "id": "a"}, {**right, "id": "b"}, pixels[0]]))
    found = load_preferences(section)
    assert [pair.rejected.box.xyxy for pair in found] == [(20, -30, 60, -10)] * 2
    assert "left out: 1 box outside the picture" in capsys.readouterr().err


# --- pairs that say the same


def preferred(*boxes, answers=("B", "A")):
    chosen, rejected = (Candidate(Box(*box), answer=answer) for box, answer in zip(boxes, answers, strict=True))
    return Preference(sample(0), "visrl_train", chosen, rejected)


def terms(stage):
    return stage_terms(stage, beta_box=0.1, beta_answer=0.1, lambda_box=0.5, lambda_answer=0.5)


def test_pairs_that_say_one_thing_are_counted_and_nothing_else_is_refused(capsys):
    """In 40 x 30 pixels, padded to 40 x 40, 10 and 10.01 are both .250: one text, though the boxes differ."""
    near, far = preferred((10, 10, 20, 20), (10.01, 10, 20, 20)), preferred((10, 10, 20, 20), (1, 2, 30, 20))
    paper = FORMATS["padded_square_3dp"]
    check_differ([near, near], terms(1), None)  # which text they become is not known yet
    with pytest.raises(UsageError, match=r"win and lose say the same \(box of 2 of 2 pairs\)"):
        check_differ([near, near], terms(1), paper)
    with pytest.raises(UsageError, match=r"box of 1 of 1 pairs"):
        check_differ([preferred((1, 2, 3, 4), (1, 2, 3, 4))], terms(1), None)
    check_differ([near, far, far], terms(1), paper)
    assert "teaches nothing: box of 1 of 3 pairs\n" in capsys.readouterr().err
    check_differ([near, near], terms(2), paper)  # the answers differ
    assert "box of 2 of 2 pairs\n" in capsys.readouterr().err
    same = preferred((10, 10, 20, 20), (10.01, 10, 20, 20), answers=("B", "B"))
    with pytest.raises(UsageError, match=r"box of 1 of 1 pairs; answer of 1 of 1 pairs"):
        check_differ([same], terms(2), paper)
    check_differ([same], terms(2), paper, own_crop=True)  # one answer after two crops


# --- questions


def questions(folder, **more):
    return QuestionSection(path=lines(folder / "q.jsonl", [asked(i, **more) for i in range(4)]), pictures=folder)


def test_true_boxes_of_questions_are_checked_as_those_of_chains(folder):
    for size in ({}, {"size": [448, 448]}):
        for box, said in WRONG:
            for true in ({"box": box}, {"boxes": [GOOD, box]}):
                with pytest.raises(UsageError, match=rf"q\.jsonl: the boxes of 4 of 4 rows {said}"):
                    load_questions(questions(folder, **true, **size))
    with pytest.raises(UsageError, match=r"q\.jsonl:1: box: .*x2 <= x1"):
        load_questions(questions(folder, box=[300, 300, 100, 100]))
    with pytest.raises(UsageError, match=r"q\.jsonl:1: boxes: .*box 2: x2 <= x1"):
        load_questions(questions(folder, boxes=[GOOD, [300, 300, 300, 310]]))
    found = load_questions(questions(folder, box=GOOD))
    assert [question.size for question in found] == [None] * 4  # what is asked is what the file says


def recipe(folder, section, **grpo):
    text = {"kind": "grpo", "output": str(folder / "out"), "model": {"path": str(folder / "none")}, "grpo": grpo}
    text["data"] = {"path": str(section.path), "pictures": str(section.pictures)}
    (folder / "grpo.yaml").write_text(json.dumps(text))
    return load_recipe(folder / "grpo.yaml").recipe


IMPOSSIBLE = {
    "no true box": ({}, {"box": {"iou": 1.0}, "answer": {}}, "iou: it needs a true box"),
    "no true box at .5": ({}, {"box": {"acc@0.5": 1.0}}, "acc@0.5: it needs a true box"),
    "no look": ({"box": GOOD}, {"box": {"iou": 1.0}, "protocol": "direct"}, "iou: it needs a true box .* asks for one"),
    "no answers": ({"box": GOOD, "answers": []}, {"box": {"iou": 1.0}}, "answer: it needs standard answers"),
    "expressions": ({"box": GOOD, "kind": "rec"}, {"box": {"iou": 1.0}}, "answer: it needs standard answers"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_reward_that_no_question_can_have_is_refused_before_a_model_is_loaded(folder, name):
    """The model's folder does not exist: whoever loaded it first would say so."""
    fields, grpo, said = IMPOSSIBLE[name]
    with pytest.raises(UsageError, match=f"none of the 4 questions can have the reward {said}"):
        phase.run(recipe(folder, questions(folder, **fields), **grpo))


def test_rewards_that_some_question_can_have_pass(folder):
    def check(section, **grpo):
        found = recipe(folder, section, **grpo)
        phase.check_rewards_of(found, load_questions(found.data))

    check(questions(folder, box=GOOD), box={"iou": 1.0})
    check(questions(folder, boxes=[GOOD, GOOD]), box={"iou": 1.0}, protocol="zoom:2")
    check(questions(folder), box={"iou": 0.0, "format": 1.0})  # measured, not rewarded
    check(questions(folder, box=GOOD, kind="rec"), box={"iou": 1.0}, answer={}, protocol="direct")
    rows = [asked(0), asked(1, box=GOOD)]
    check(QuestionSection(path=lines(folder / "some.jsonl", rows), pictures=folder), box={"iou": 1.0})


def test_measuring_holds_no_pictures(tmp_path):
    """200 rows of a shard with 12 kB pictures: 2.4 MB in all, read one at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(noise, "PNG")
    rows = [
        {"question": "q", "answers": ["B"], "box": [1.0, 2.0, 30.0, 40.0], "image": noise.getvalue()}
        for _ in range(200)
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "s.parquet", row_group_size=10)
    section = QuestionSection(path=tmp_path / "s.parquet")
    load_questions(section)  # imports and caches
    placement._measured.cache_clear()
    tracemalloc.start()
    assert len(load_questions(section)) == 200
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1e6 < 200 * len(noise.getvalue())


@pytest.mark.parametrize("limit", [1, 2, None])
def test_a_frame_is_judged_by_more_rows_than_a_small_limit(folder, limit, capsys):
    """Three odd rows before twelve good ones: 3 of 15 are no other frame, whatever the limit; only those before the limit count as
    left out.
    """
    boxes = list(enumerate([BESIDE] * 3 + [GOOD] * 12))
    rows = [asked(i, picture=f"{i % 4}.png", chain={"box": box, "answer": "B"}) for i, box in boxes]
    path = lines(folder / "c.jsonl", rows)
    assert sft(path, folder, limit=limit) == [f"q{i}" for i in range(3, 15)][:limit]
    assert "left out: 3 box outside the picture" in capsys.readouterr().err
    questions = lines(folder / "q.jsonl", [asked(i, picture=f"{i % 4}.png", box=box) for i, box in boxes])
    found = load_questions(QuestionSection(path=questions, pictures=folder, limit=limit))
    assert [question.id for question in found] == [f"q{i}" for i in range(3, 15)][:limit]
