"""V*Bench, HR-Bench, TreeBench, Ref-L4, RefCOCO-M, ScreenSpot: documents in their layouts, constant answers with scores by hand."""

import base64
import io
import json

import pytest
from PIL import Image

from visrl.cli.evaluate import main
from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box
from visrl.core.looking.points import read_point
from visrl.core.records import read_records
from visrl.core.types import CoTSample, Episode, Look, Step, Unparsed
from visrl.errors import UsageError
from visrl.evals.benchmarks import TASKS
from visrl.evals.scorers.scoring import score_task
from visrl.evals.scorers.zoom.choice import mean_best_iou
from visrl.tasks import fingerprint, load


def picture(shade):
    out = io.BytesIO()
    Image.new("RGB", (60, 40), (shade, shade, shade)).save(out, "PNG")
    return out.getvalue()


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    lines = ["\t".join(names), *("\t".join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def numbers(tmp_path, task, said, *more):
    """metric -> value of a constant answer under ``direct``, unless ``more`` says otherwise."""
    command = [
        "--model",
        f"constant:{said}",
        "--tasks",
        task,
        "--data",
        str(tmp_path),
        "-q",
        "-o",
        str(tmp_path / "run"),
    ]
    assert main([*command, *(more or ("--protocol", "direct"))]) == 0
    return {r.metric: r.value for r in read_records(tmp_path / "run")}


# --- V*Bench


@pytest.fixture
def vstar(tmp_path):
    """Three pictures of two kinds; the options, right one first, of two texts each."""
    boxes = {"a1": [[10, 10, 20, 10]], "a2": [[0, 0, 10, 10]], "r1": [[0, 0, 10, 10], [40, 20, 20, 20]]}
    for name, found in boxes.items():
        folder = tmp_path / "images" / "vstar" / ("direct_attributes" if name[0] == "a" else "relative_position")
        folder.mkdir(parents=True, exist_ok=True)
        row = {
            "question": f"Which of {name}?",
            "options": [f"{name} is red", f"{name} is blue"],
            "target_object": ["x"],
            "bbox": found,
        }
        (folder / f"{name}.json").write_text(json.dumps(row))
        (folder / f"{name}.jpg").write_bytes(picture(100))
    return tmp_path


def test_vstar_shuffles_what_its_files_list_right_first(vstar, capsys):
    samples = list(load("vstar", vstar, with_pictures=True))
    assert [s.id for s in samples] == ["direct_attributes/a1", "direct_attributes/a2", "relative_position/r1"]
    assert all(s.meta["options"][s.answers[0]].endswith("is red") for s in samples)
    assert samples[0].boxes == (Box(10, 10, 30, 20),) and samples[2].boxes == (Box(0, 0, 10, 10), Box(40, 20, 60, 40))
    assert samples[2].box == Box(0, 0, 60, 40)  # the smallest around both
    right = [s.answers[0] for s in samples]
    # by SHA-256 of "NAME:OPTION": red d4bc… behind blue 703c…; 66e1… behind 004d…; 967b… before d165…
    assert right == ["B", "B", "A"]
    assert samples == list(load("vstar", vstar, with_pictures=True))  # the same order whenever they are read
    found = numbers(vstar, "vstar", "A")
    assert found["accuracy"] == pytest.approx(100 * right.count("A") / 3)
    assert found["accuracy/direct_attributes"] == pytest.approx(100 * right[:2].count("A") / 2)
    assert found["accuracy/relative_position"] == (100.0 if right[2] == "A" else 0.0)
    assert "miou" not in found  # nobody asked for a box


def test_vstar_looked_at_by_a_constant_call(vstar):
    """The call looks at 10, 10, 30, 20 in every picture, then never answers: IoU 1; 0 with 0..10; of two boxes 0 and 0."""
    turn = '<tool_call>{"name":"image_zoom_in_tool","arguments":{"bbox_2d":[10,10,30,20]}}</tool_call>'
    more = ("--protocol", "zoom", "--max-looks", "1", "--model-args", "box_format=json_pixel")
    from visrl.evaluation.evaluate import Options, evaluate
    from visrl.policies.protocol import FunctionPolicy

    policy = FunctionPolicy("f", lambda r: turn if r.stream == "0" else "B", FORMATS["json_pixel"], needs_pictures=True)
    results = evaluate(
        policy, ["vstar"], Options(data=vstar, protocol="zoom", output=vstar / "run", quiet=True)
    ).results
    found = {r.metric: r.value for r in results}
    assert found["miou"] == pytest.approx(100 / 3) and found["looks"] == 1.0
    assert more


def test_one_hash_stands_for_the_many_files_of_vstar(vstar):
    before = fingerprint("vstar", vstar)
    assert set(before["sha256"]) == {"images/vstar/"}
    file = vstar / "images" / "vstar" / "direct_attributes" / "a1.json"
    file.write_text(file.read_text().replace("Which", "What"))
    assert fingerprint("vstar", vstar) != before
    with pytest.raises(UsageError, match="direct_attributes"):
        list(load("vstar", vstar / "images", with_pictures=False))


def test_the_rule_of_treebench():
    """Two targets: the best overlaps are 1 and 25 / 175 (5 x 5 of 100 + 100): half of 1.142857…; without a box 0."""
    targets = [Box(0, 0, 10, 10), Box(20, 20, 30, 30)]
    predicted = [Box(0, 0, 10, 10), Box(25, 25, 35, 35), Box(90, 90, 99, 99)]
    assert mean_best_iou(predicted, targets) == pytest.approx((1 + 25 / 175) / 2)
    assert mean_best_iou([], targets) == 0.0


# --- HR-Bench


@pytest.fixture
def hrbench(tmp_path):
    """Two questions (single, cross) in four cycles each: the right option is at A, B, C, D in turn. One picture each."""
    rows = []
    for question, (category, shade) in {"What colour?": ("single", 10), "Left of what?": ("cross", 200)}.items():
        for cycle in range(4):
            options = ["right" if letter == cycle else f"wrong{letter}" for letter in range(4)]
            image = base64.b64encode(picture(shade)).decode()
            rows.append(
                {"index": len(rows), "question": question, "answer": "ABCD"[cycle], **dict(zip("ABCD", options, strict=True)),
                 "category": category, "cycle_category": cycle, "image": image}
            )  # fmt: skip
    table(tmp_path / "hrbench" / "hr_bench_4k.tsv", rows)
    return tmp_path


def test_hrbench_by_a_constant_letter_and_by_knowing_one_question(hrbench, capsys):
    found = numbers(hrbench, "hrbench_4k", "A")
    # A is right in one of four cycles of either question: 2 of 8 rows, and no question in all its cycles
    assert found == {"accuracy": 25.0, "circular": 0.0, "accuracy/single": 25.0, "accuracy/cross": 25.0}
    record = next(r for r in read_records(hrbench / "run") if r.metric == "accuracy")
    assert (record.n, record.n_expected, record.n_clusters, record.unit) == (8, 800, 2, "percent")
    samples = list(load("hrbench_4k", hrbench, with_pictures=False))
    said = {s.id: s.answers[0] if s.meta["category"] == "single" else "A" for s in samples}
    episodes = {name: Episode(name, "hrbench_4k", answer_step=Step("", text)) for name, text in said.items()}
    knowing = {m.metric: m.value for m in score_task(TASKS["hrbench_4k"], samples, episodes).metrics}
    # single: 4 of 4, cross: 1 of 4; one of two questions right in all cycles
    assert knowing == {"accuracy": 62.5, "circular": 50.0, "accuracy/single": 100.0, "accuracy/cross": 25.0}


def test_cycles_of_a_question_are_told_by_picture_and_wording(hrbench):
    samples = list(load("hrbench_4k", hrbench, with_pictures=False))
    assert len({s.group for s in samples}) == 2 and {s.meta["rotations"] for s in samples} == {4}


# --- TreeBench


@pytest.fixture
def treebench(tmp_path):
    def row(index, answer, category, targets):
        options = {letter: f"{letter} thing" for letter in "ABCD"}
        image = base64.b64encode(picture(index)).decode()
        return {
            "index": index,
            "question": "Which?",
            **options,
            "answer": answer,
            "category": category,
            "target_instances": targets,
            "image": image,
        }

    rows = [
        row(0, "A", "Perception/OCR", "[[0, 0, 20, 20]]"),
        row(1, "B", "Reasoning/Ordering", "[[0, 0, 10, 20], [30, 0, 40, 10]]"),
    ]
    table(tmp_path / "treebench" / "TreeBench.tsv", rows)
    return tmp_path


def test_treebench_answers_and_boxes(treebench):
    samples = list(load("treebench", treebench, with_pictures=False))
    look = Look(Step("", "call"), Box(0, 0, 20, 20), (0, 0, 20, 20))
    control = Look(None, Box(30, 0, 40, 10), (30, 0, 40, 10))
    said = {
        "0": Episode("0", "treebench", box=Box(0, 0, 20, 20), answer_step=Step("", "A"), looks=(look,), ended="answer"),
        "1": Episode(
            "1",
            "treebench",
            box=Box(0, 0, 20, 20),
            answer_step=Step("", "<answer>A</answer>"),
            looks=(look, control),
            ended="answer",
        ),
    }
    found = {m.metric: m.value for m in score_task(TASKS["treebench"], samples, said).metrics}
    # boxes: 1; and of two targets 200 / 400 and 0, a control's look being no box of the model's: a quarter
    assert found["miou"] == pytest.approx(100 * (1 + 0.25) / 2)
    assert (found["accuracy"], found["accuracy/Perception/OCR"], found["accuracy/Reasoning/Ordering"]) == (
        50.0,
        100.0,
        0.0,
    )
    unread = {
        "0": Episode(
            "0", "treebench", box=Unparsed("it answered without a look"), answer_step=Step("", "A"), ended="answer"
        )
    }
    assert {m.metric: m.value for m in score_task(TASKS["treebench"], samples, unread).metrics}["miou"] == 0.0


def test_treebench_by_a_constant_letter(treebench, capsys):
    found = numbers(treebench, "treebench", "<think>B?</think><answer>A</answer>")
    assert found == {"accuracy": 50.0, "accuracy/Perception/OCR": 100.0, "accuracy/Reasoning/Ordering": 0.0}


@pytest.mark.parametrize("targets", ["{1}", "1 2", "[[1, 2", "[" * 300, "-" * 9000 + "1", "9" * 5000])
def test_a_malformed_target_names_its_row(tmp_path, targets):
    """Python's own reader of such lists says so by SyntaxError, MemoryError or RecursionError."""
    table(
        tmp_path / "treebench" / "TreeBench.tsv",
        [
            {
                "index": 0,
                "question": "W",
                "A": "a",
                "B": "b",
                "answer": "A",
                "category": "c",
                "target_instances": targets,
                "image": "x" * 80,
            }
        ],
    )
    with pytest.raises(UsageError, match=r"TreeBench.tsv:2: .*not a list of boxes"):
        list(load("treebench", tmp_path, with_pictures=False))


# --- Ref-L4 and RefCOCO-M


def test_ref_l4_by_its_rules(tmp_path, capsys):
    """The whole picture of 1000 x 1000 as every answer: IoU .36, .81 and .01 with boxes whose sides are 600, 900 and 100."""
    import pyarrow as pa
    from pyarrow import parquet

    def row(number, side, split):
        return {"id": str(number), "caption": f"thing {number}", "bbox": [0.0, 0.0, float(side), float(side)], "file_name": f"p{number}.jpg",
                "width": 1000, "height": 1000, "ori_category_id": "o365_1", "is_rewrite": number == 1, "split": split}  # fmt: skip

    (tmp_path / "ref_l4").mkdir()
    parquet.write_table(pa.Table.from_pylist([row(1, 600, "val")]), tmp_path / "ref_l4" / "ref-l4-val.parquet")
    parquet.write_table(
        pa.Table.from_pylist([row(2, 900, "test"), row(3, 100, "test")]), tmp_path / "ref_l4" / "ref-l4-test.parquet"
    )
    samples = list(load("ref_l4", tmp_path, with_pictures=False))
    assert [s.meta["rewritten"] for s in samples] == [True, False, False] and samples[1].box == Box(0, 0, 900, 900)
    found = numbers(tmp_path, "ref_l4", "[0.000, 0.000, 1.000, 1.000]")
    third = pytest.approx(100 / 3)
    # .81 passes .5, .55, …, .8: seven of ten thresholds; strictly greater, and .75 but not .9
    assert {k: found[k] for k in ("acc@0.5", "acc@0.75", "acc@0.9")} == {
        "acc@0.5": third,
        "acc@0.75": third,
        "acc@0.9": 0.0,
    }
    assert found["macc"] == pytest.approx(100 * 0.7 / 3) and found["miou"] == pytest.approx(
        100 * (0.36 + 0.81 + 0.01) / 3
    )
    assert (found["large"], found["small"], "medium" in found) == (50.0, 0.0, False)


def test_refcoco_m_is_a_row_per_sentence(tmp_path, capsys):
    one = {
        "id": 7,
        "sentences": ["left cat", "the cat"],
        "bbox": [0, 0, 50, 100],
        "mask": {"counts": "", "size": [100, 100]},
    }
    row = {"file_name": "COCO_train2014_1.jpg", "image_id": 1, "samples": [one]}
    (tmp_path / "refcoco_m").mkdir()
    (tmp_path / "refcoco_m" / "refcoco_m.jsonl").write_text(json.dumps(row) + "\n")
    samples = list(load("refcoco_m", tmp_path, with_pictures=False))
    assert [(s.id, s.question, s.size) for s in samples] == [
        ("1_7000", "left cat", (100, 100)),
        ("1_7001", "the cat", (100, 100)),
    ]
    # the whole picture against its left half: IoU .5, which is not greater than .5
    found = numbers(tmp_path, "refcoco_m", "[0.000, 0.000, 1.000, 1.000]")
    assert (found["acc@0.5"], found["miou"]) == (0.0, 50.0)


# --- screens


def test_screenspot_pro_by_a_constant_point_and_box(tmp_path, capsys):
    folder = tmp_path / "screenspot_pro" / "annotations"
    folder.mkdir(parents=True)

    def row(name, box, kind):
        return {
            "id": name,
            "img_filename": "a.png",
            "bbox": box,
            "img_size": [200, 100],
            "instruction": "Save",
            "ui_type": kind,
            "group": "Office",
        }

    (folder / "word.json").write_text(
        json.dumps([row("w0", [40, 40, 60, 60], "text"), row("w1", [0, 0, 10, 10], "icon")])
    )
    (folder / "excel.json").write_text(json.dumps([row("e0", [50, 50, 99, 99], "icon")]))
    more = ("--protocol", "direct", "--model-args", "box_format=json_pixel")
    # (50, 50) is inside the first, and on the corner of the third; the box's centre is (50, 50), too
    for said in ("(50, 50)", '{"bbox_2d": [40, 40, 60, 60]}', "pyautogui.click(x=50, y=50)"):
        found = numbers(tmp_path, "screenspot_pro", said, *more)
        assert found == {"click_acc": pytest.approx(200 / 3), "click_acc/text": 100.0, "click_acc/icon": 50.0}
        for path in (tmp_path / "run").rglob("*"):
            path.is_file() and path.unlink()
    found = numbers(tmp_path, "screenspot_pro", "over there", *more)
    assert found["click_acc"] == 0.0
    assert read_records(tmp_path / "run")[0].n_unparsed == 3


def test_points_beyond_the_screen_are_said(tmp_path, capsys):
    """200 x 100: a twentieth of the longer side is 10, so that x = 210 may be an overshoot and 211 is not of this frame."""
    folder = tmp_path / "screenspot_pro" / "annotations"
    folder.mkdir(parents=True)
    row = {"id": "w0", "img_filename": "a.png", "bbox": [40, 40, 60, 60], "img_size": [200, 100], "instruction": "Save", "ui_type": "text"}  # fmt: skip
    (folder / "word.json").write_text(json.dumps([row]))
    more = ("--protocol", "direct", "--model-args", "box_format=json_pixel")
    numbers(tmp_path, "screenspot_pro", "(211, 50)", *more)
    assert read_records(tmp_path / "run")[0].notes == ["1 boxes have numbers beyond the frame of their picture: is box_format right?"]  # fmt: skip
    for path in (tmp_path / "run").rglob("*"):
        path.is_file() and path.unlink()
    numbers(tmp_path, "screenspot_pro", "(210, 50)", *more)
    assert read_records(tmp_path / "run")[0].notes == []


def test_boxes_beyond_the_frame_are_said_of_all_of_ref_l4s_numbers_and_of_no_size():
    """1000 x 1000: a box to 1051 is beyond the twentieth; true sides of 100 are small ones."""
    spec = TASKS["ref_l4"]
    sample = CoTSample("1", spec.name, "rec", "thing", size=(1000, 1000), box=Box(0, 0, 100, 100))
    episode = Episode("1", spec.name, Step("", "box"), Box(0, 0, 1051, 100))
    found = {what.metric: what.notes for what in score_task(spec, [sample], {"1": episode}, None).metrics}
    said = ("1 boxes have numbers beyond the frame of their picture: is box_format right?",)
    assert found == dict.fromkeys(("acc@0.5", "acc@0.75", "acc@0.9", "macc", "miou"), said) | {"small": ()}


def test_screenspot_has_boxes_by_corner_and_sides(tmp_path):
    (tmp_path / "screenspot").mkdir()
    row = {
        "img_filename": "web_1.png",
        "bbox": [42, 1102, 197, 70],
        "instruction": "view",
        "data_type": "text",
        "data_source": "shop",
    }
    for kind in ("mobile", "desktop", "web"):
        (tmp_path / "screenspot" / f"screenspot_{kind}.json").write_text(json.dumps([row]))
    samples = list(load("screenspot", tmp_path, with_pictures=False))
    assert [s.id for s in samples] == ["screenspot_mobile:1", "screenspot_desktop:1", "screenspot_web:1"]
    assert samples[0].box == Box(42, 1102, 239, 1172)


@pytest.mark.parametrize(
    "said, point",
    [
        ("[10, 20]", (10, 20)),
        ("Click at (10, 20).", (10, 20)),
        ('{"point_2d": [10, 20], "label": "x"}', (10, 20)),
        ("(10, 20) or [10, 20]", (10, 20)),
        ("<think>(1, 2)</think>(10, 20)", (10, 20)),
        ("(10, 20) or (30, 40)", "several points"),
        ("10 20", "no point"),
        ("<think>(10, 20)", "the thought never ends"),
    ],
)
def test_points(said, point):
    found = read_point(said, FORMATS["json_pixel"].frame_for((200, 100)), (200, 100))
    assert (found.reason if isinstance(found, Unparsed) else found.centre) == point


def test_a_point_is_read_only_where_one_is_asked_for():
    from visrl.rollout.steps import parse_box

    asked = CoTSample("1", "screenspot", "rec", "Save", size=(200, 100), meta={"pointing": True})
    assert parse_box(FORMATS["json_1000"], "(500, 500)", (200, 100), asked) == Box(100, 50, 100, 50)
    assert isinstance(parse_box(FORMATS["json_1000"], "(500, 500)", (200, 100)), Unparsed)
