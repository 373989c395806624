"""Recorded boxes under every frame and parser, and the line a run ends with when its boxes fit another frame."""

import json
import random

import pytest

from visrl.cli.evaluate import main
from visrl.core.box_formats import FORMATS, format_named
from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Episode, Step
from visrl.errors import UsageError
from visrl.evaluation.audit import Looked, audit, audit_file, frame_hint


def documents(n=12):
    """Large pictures, so that no two frames read a box alike; boxes within them."""
    rng = random.Random(0)
    for i in range(n):
        width, height = rng.choice([(4000, 2000), (3000, 3600), (5000, 2500)])
        x, y = rng.uniform(0.05, 0.5) * width, rng.uniform(0.05, 0.5) * height
        yield CoTSample(
            str(i), "t", "rec", f"thing {i}", size=(width, height), box=Box(x, y, x + 0.3 * width, y + 0.4 * height)
        )


def written(form, samples):
    return {s.id: Episode(s.id, "t", box_step=Step("", form.write(s.box, s.size))) for s in samples}


@pytest.mark.parametrize(
    ("truly", "declared", "said"),
    [  # Qwen3-VL, Qwen2.5-VL, PaliGemma and Gemini, each declared as another family writes
        ("json_1000", "json_pixel", "your boxes look like 0..1000: 100.0 there, 0.0 as pixels of the picture"),
        (
            "json_resized,max_pixels=1003520",
            "json_1000",
            "your boxes look like pixels of the resized picture: 100.0 there, 33.3 as 0..1000",
        ),
        ("loc_1024", "json_1000", "your boxes look like 0..1024: 100.0 there, 0.0 as 0..1000"),
        (
            "json_1000_yx",
            "json_pixel",
            "your boxes look like 0..1000, y first: 100.0 there, 0.0 as pixels of the picture",
        ),
    ],
)
def test_the_right_frame_is_named_where_a_wrong_one_is_declared(truly, declared, said):
    samples = list(documents())
    name, _, limit = truly.partition(",max_pixels=")
    form = format_named(name, max_pixels=limit)
    hint = frame_hint(samples, written(form, samples), format_named(declared))
    assert hint == f"{said}; declare `box_format={truly}`"
    assert frame_hint(samples, written(form, samples), form) is None  # rightly declared: not a word


def test_no_more_documents_are_read_than_have_an_output():
    samples = list(documents())
    read = []

    def asked():
        for sample in samples:
            read.append(sample.id)
            yield sample

    frame_hint(asked(), written(format_named("json_1000"), samples[:3]), format_named("json_1000"))
    assert read == ["0", "1", "2"]


def test_a_bad_model_is_not_told_to_change_its_frame():
    samples = list(documents())
    wrong = {s.id: Episode(s.id, "t", box_step=Step("", '{"bbox_2d": [1, 1, 20, 20]}')) for s in samples}
    assert frame_hint(samples, wrong, FORMATS["json_pixel"]) is None
    assert frame_hint(samples, {}, FORMATS["json_pixel"]) is None


def test_readings_by_hand():
    # 1000 x 500; truth (100, 100, 300, 200). Thousandths of it: (100, 200, 300, 400)
    truth = Box(100, 100, 300, 200)
    texts = [
        '{"bbox_2d": [100, 200, 300, 400]}',  # thousandths: right there, no overlap as pixels
        '{"bbox_2d": [100, 100, 300, 200]}',  # pixels: right there; as thousandths (100, 50, 300, 100)
        '{"bbox_2d": [100, 100, 300, 150]}',  # exactly half of it: counts for the two tools, not for us
        "nothing",
    ]
    found = audit([Looked(text, (1000, 500), truth) for text in texts], FORMATS["json_pixel"], "t")
    by = {(reading.box_format, reading.parser): reading.accuracy for reading in found.readings}
    assert (found.readings[0].box_format, found.readings[0].parser) == ("json_pixel", "lenient")
    assert by["json_pixel", "lenient"] == 25.0  # the second
    assert by["json_1000", "lenient"] == 25.0  # the first
    assert by["json_pixel", "lmms_eval"] == 75.0  # all three: of two frames the better one, and half counts
    assert by["json_pixel", "vlmevalkit"] == 25.0  # every number up to 1,000 is thousandths: only the first
    assert by["json_pixel", "vlm_r1"] == 0.0  # no <answer>
    assert [r.note.endswith("not comparable") for r in found.readings if r.parser in ("lmms_eval", "vlmevalkit")] == [
        True,
        True,
    ]
    with pytest.raises(UsageError, match="no output"):
        audit([], FORMATS["json_pixel"], "t")


def data_folder(folder, boxes):
    (folder / "rec").mkdir(parents=True)
    rows = [
        {
            "img_path": f"{i}.jpg",
            "expression": f"thing {i}",
            "bbox": box,
            "width": 4000,
            "height": 2000,
            "image_id": i,
            "sent_id": i,
        }
        for i, box in enumerate(boxes)
    ]
    (folder / "rec/REC_refcoco_unc_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_says_so_at_its_end_and_the_command_names_it(tmp_path, capsys, caplog):
    data = data_folder(tmp_path / "data", [[2000, 500, 3600, 1500], [300, 200, 1300, 1800]])
    # y first, thousandths: 500/2000, 2000/4000, 1500/2000, 3600/4000 and so on
    texts = ['[{"box_2d": [250, 500, 750, 900]}]', '[{"box_2d": [100, 75, 900, 325]}]']
    answers = tmp_path / "a.jsonl"
    answers.write_text("".join(json.dumps({"id": f"{i}_{i}", "text": text}) + "\n" for i, text in enumerate(texts)))
    args = [
        "--model",
        f"replay:{answers}",
        "--tasks",
        "refcoco_val",
        "--data",
        str(data),
        "-q",
        "-o",
        str(tmp_path / "run"),
    ]
    assert main([*args, "--model-args", "box_format=json_1000"]) == 0
    line = "your boxes look like 0..1000, y first: 100.0 there, 0.0 as 0..1000; declare `box_format=json_1000_yx`"
    assert f"refcoco_val: {line}" in caplog.text
    capsys.readouterr()
    for source, more in ((answers, ["--model-args", "box_format=json_1000"]), (tmp_path / "run", [])):
        assert main(["audit", str(source), "--data", str(data), *more]) == 0
        out = capsys.readouterr().out
        assert "refcoco_val, 2 outputs" in out and line in out and "reads the truth; not comparable" in out
    assert main(["audit", str(answers), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["n"] == 2


@pytest.mark.parametrize(
    ("file", "accuracy"),
    [("baseline__refcoco_val", 89.75), ("checkpoint-100__refcocog_val", 83.75), ("baseline__refcocop_val", 85.0)],
)
def test_published_predictions_declared_wrongly_are_told_their_frame(shared, file, accuracy):
    parser = "vlm_r1" if file.startswith("check") else "lenient"
    (found,) = audit_file(
        shared / f"predictions/rec/{file}.json.gz", shared, [], {"box_format": "json_1000", "parser": parser}
    )
    by = {(r.box_format, r.parser): r.accuracy for r in found.readings}
    assert found.n == 2000 and found.hint.endswith("declare `box_format=json_pixel`")
    own = audit_file(shared / f"predictions/rec/{file}.json.gz", shared, [found.task], {"parser": parser})[0]
    assert own.readings[0].accuracy == accuracy and own.hint == "" and by["json_1000", parser] < 1.0
