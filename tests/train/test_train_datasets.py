"""Data sets of the ``datasets`` library as rows: folders, files, columns by name, pictures that stay in their rows."""

import json

import datasets
import pytest
import yaml
from PIL import Image
from tiny_models import save

from visrl.cli.train import run
from visrl.errors import PictureError, UsageError
from visrl.train.config.recipe import DataSection
from visrl.train.config.section import DatasetSection
from visrl.train.data.dataset_rows import dataset_rows
from visrl.train.data.load import load_demonstrations
from visrl.train.data.questions import QuestionSection, load_questions
from visrl.train.data.rows import is_there, picture_in

SIZES = ((40, 30), (20, 50), (60, 20))
COLUMNS = {"question": "query", "answer": "label", "box": "bbox", "image": "photo"}


def made():
    """Three rows: boxes as x, y, width, height; the last one has none."""
    rows = [
        {"query": f"What is {i}?", "label": i % 2, "bbox": box, "photo": Image.new("RGB", SIZES[i], (i, 0, 0))}
        for i, box in enumerate(([1, 2, 10, 20], [0, 0, 20, 25], None))
    ]
    features = datasets.Features(
        query=datasets.Value("string"),
        label=datasets.ClassLabel(names=["no", "yes"]),
        bbox=datasets.List(datasets.Value("float32")),
        photo=datasets.Image(),
    )
    return datasets.Dataset.from_list(rows, features=features)


@pytest.fixture
def places(tmp_path):
    """The same rows in every way in which people have them."""
    made().save_to_disk(tmp_path / "disk")
    datasets.DatasetDict(train=made(), test=made().select([0])).save_to_disk(tmp_path / "dict")
    (tmp_path / "parquet").mkdir()
    made().to_parquet(tmp_path / "parquet/train-00000.parquet")
    return tmp_path


def asked(path, **more):
    return {"path": path, "format": "datasets", "dataset": DatasetSection(columns=COLUMNS, boxes="xywh", **more)}


@pytest.mark.parametrize("name", ["disk", "dict", "parquet", "parquet/train-00000.parquet"])
def test_rows_of_a_data_set_are_chains_and_questions(places, name, capsys):
    """[1, 2, 10, 20] as x, y, width, height is 1, 2 to 11, 22; class label 0 is called "no"."""
    rows = load_demonstrations(DataSection(**asked(places / name)))
    found = [(r.sample.id, r.sample.question, r.chain.answer, r.protocol, r.chain.box.xyxy) for r in rows]
    assert found == [
        ("0", "What is 0?", "no", "visrl_train", (1, 2, 11, 22)),
        ("1", "What is 1?", "yes", "visrl_train", (0, 0, 20, 25)),
    ]
    assert [r.sample.picture.open().size for r in rows] == [SIZES[0], SIZES[1]]
    assert "left out: 1 no box" in capsys.readouterr().err
    questions = load_questions(QuestionSection(**asked(places / name), skip=1))
    assert [(q.question, q.answers) for q in questions] == [("What is 1?", ("yes",)), ("What is 2?", ("no",))]
    again = questions[1].picture.ref
    assert is_there(again, places) and picture_in(places, again).open().getpixel((0, 0)) == (2, 0, 0)


def test_a_box_in_fractions_is_of_its_own_picture(tmp_path):
    """.5 .5 1 1 of 40 x 30: 20, 15 to 40, 30."""
    row = {"question": "q", "answer": 3, "image": Image.new("RGB", (40, 30)), "box": [0.5, 0.5, 1.0, 1.0]}
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "d")
    section = DataSection(path=tmp_path / "d", format="datasets", dataset=DatasetSection(frame="unit"))
    (found,) = load_demonstrations(section)
    assert found.chain.box.xyxy == (20, 15, 40, 30) and found.chain.answer == "3"


@pytest.mark.parametrize("frame", ["pixel", "unit"])
@pytest.mark.parametrize("width", [float("inf"), 2e62, 0.0, -5.0, 12.7])
def test_a_size_that_no_picture_has_names_the_row(tmp_path, width, frame):
    row = {"question": "q", "answer": "a", "image": "x.png", "box": [0.1, 0.2, 3.0, 4.0]}
    datasets.Dataset.from_list([{**row, "size": [w, 50.0]} for w in (40.0, width)]).save_to_disk(tmp_path / "d")
    section = DataSection(path=tmp_path / "d", format="datasets", dataset=DatasetSection(frame=frame))
    with pytest.raises(UsageError, match=r"d \(train\): row 1: size\.0: "):
        load_demonstrations(section)


def test_a_file_that_is_no_json_says_what_is_wrong_in_it(tmp_path):
    (tmp_path / "n.jsonl").write_text('{"question": "q"\n')
    with pytest.raises(
        UsageError,
        match=r"cannot load .*n\.jsonl \(train\): .*(JSON parse error: Missing a comma or '}'|Unexpected character)",
    ):
        load_demonstrations(DataSection(path=tmp_path / "n.jsonl", format="datasets"))


def test_conversations_and_names_of_files(tmp_path):
    """A jsonl with pictures by name, and a table with a list of pictures a row, of which one is usable."""
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    chat = [{"role": "user", "content": "<image>Who?"}, {"role": "assistant", "content": "Nobody."}]
    (tmp_path / "c.jsonl").write_text(json.dumps({"image": "a.png", "messages": chat}) + "\n")
    (row,) = load_demonstrations(DataSection(path=tmp_path / "c.jsonl", pictures=tmp_path, format="datasets"))
    assert (row.sample.question, row.chain.answer, row.protocol) == ("Who?", "Nobody.", "direct")
    assert row.sample.picture.open().size == (8, 6)
    one, two = [Image.new("RGB", (5, 4))], [Image.new("RGB", (3, 3)), Image.new("RGB", (2, 2))]
    features = datasets.Features(
        images=datasets.List(datasets.Image()), question=datasets.Value("string"), answer=datasets.Value("string")
    )
    table = datasets.Dataset.from_list(
        [{"images": pictures, "question": "q", "answer": "a"} for pictures in (two, one)], features=features
    )
    table.save_to_disk(tmp_path / "many")
    (row,) = load_demonstrations(DataSection(path=tmp_path / "many", format="datasets"))
    assert row.sample.id == "1" and row.sample.picture.open().size == (5, 4)


def test_what_is_not_there_is_named(places):
    def refused(message, path=places / "dict", columns=COLUMNS, **more):
        with pytest.raises(UsageError, match=message):
            load_demonstrations(DataSection(**{**asked(path), "dataset": DatasetSection(columns=columns, **more)}))

    refused(r"no column 'image': it has query, label, bbox, photo", columns={})
    refused(r"no column 'question': it has", columns={"image": "photo"})
    refused(r"no column 'querry'", columns={"question": "querry"})
    refused(r"columns: unknown field 'questions'", columns={"questions": "query"})
    refused(r"no split 'val'", split="val")
    refused(r"parquet \(val\): Unknown split", places / "parquet", split="val")
    refused(r"cannot load no/data_set_of_this_name \(train\)", "no/data_set_of_this_name")
    refused(
        r"row 0: column 'query' \(box\): 'What is 0\?' \(str\), not a list of four numbers",
        columns={**COLUMNS, "box": "query"},
    )
    with pytest.raises(PictureError, match="#7"):
        picture_in(places, f"dataset:{places}/disk?split=train&column=photo#7").open()


def rows_of(path, *, columns=None):
    return dataset_rows(path, DatasetSection(columns=columns or {}), taught=True)


def jsonl(path, rows):
    path.write_text("".join(json.dumps({"image": "a.png", "question": "q", **row}) + "\n" for row in rows))
    return path


def test_text_of_a_csv_file_is_what_stands_in_the_file(tmp_path):
    """No cell is made a number, a truth or nothing: 007 stays three digits beside a gap, 1.50 has its zero, None and NA are words.
    The gap is an empty answer, and a space is text.
    """
    cells = ["007", "12", "", "1.50", "None", "NA", "null", "nan", "True", " 2012-01-01"]
    text = "image,question,answer\n" + "".join(f"{i}.png,q,{cell}\n" for i, cell in enumerate(cells))
    (tmp_path / "c.csv").write_text(text)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/train.csv").write_text(text)
    for path in (tmp_path / "c.csv", tmp_path / "folder", tmp_path / "c.csv"):  # the last one from the library's cache
        rows, tally = rows_of(path)
        assert [row.chain.answer for row in rows] == [cell for cell in cells if cell]
        assert [row.id for row in rows][:3] == ["0", "1", "3"] and tally.left_out == {"empty answer": 1}
    (tmp_path / "wide.csv").write_text("image,question,answer\na.png,q,x,y\n")
    with pytest.raises(UsageError, match=r"wide\.csv: its rows have more cells than its header has columns"):
        rows_of(tmp_path / "wide.csv")


def test_dates_of_a_jsonl_file_are_the_texts_that_they_were(tmp_path):
    found, _ = rows_of(jsonl(tmp_path / "d.jsonl", [{"answer": f"2012-01-0{i}"} for i in (1, 2)]))
    assert [row.chain.answer for row in found] == ["2012-01-01", "2012-01-02"]
    (found,), _ = rows_of(jsonl(tmp_path / "l.jsonl", [{"answers": ["2012-01-01 10:00:00", "2013-01-01 10:00:00"]}]))
    assert found.answers == ("2012-01-01 10:00:00", "2013-01-01 10:00:00") and found.chain.answer == found.answers[0]


def test_a_text_in_answers_is_one_answer(tmp_path):
    (row,), _ = rows_of(jsonl(tmp_path / "a.jsonl", [{"answers": "red"}]))
    assert (row.chain.answer, row.answers) == ("red", ("red",))
    (row,), _ = rows_of(jsonl(tmp_path / "b.jsonl", [{"answers": ["red", "blue"], "answer": "blue"}]))
    assert (row.chain.answer, row.answers) == ("blue", ("red", "blue"))
    (row,), _ = rows_of(jsonl(tmp_path / "c.jsonl", [{"answer": 7}]))
    assert (row.chain.answer, row.answers) == ("7", ("7",))


SHAPES = {
    "VQAv2": ({"answers": [{"answer": "red", "answer_id": 1}]}, "answers", ", item 0: an object with answer, answer_id, not text"),
    "SQuAD": ({"answers": {"text": ["red"], "answer_start": [3]}}, "answers", ": an object with text, answer_start, not text"),
    "null in a list": ({"answers": ["red", None]}, "answers", ", item 1: null, not text"),
    "a list": ({"answer": ["red", "blue"]}, "answer", ": a list of 2, not text: map it as answers"),
    "a truth": ({"answer": True}, "answer", r": True \(bool\), not text"),
    "a decimal": ({"answer": 2.5}, "answer", r": 2\.5 \(float\), not text"),
    "a question list": ({"question": ["q", "r"], "answer": "x"}, "question", ": a list of 2, not text"),
    "an id list": ({"id": ["q"], "answer": "x"}, "id", ": a list of 1, not text"),
    "digits as a box": ({"answer": "x", "box": "1234"}, "box", r": '1234' \(str\), not a list of four numbers"),
    "a box of keys": ({"answer": "x", "box": {"x": 1, "y": 2, "w": 3, "h": 4}}, "box", ": an object with x, y, w, h, not a list of four"),
    "a box in a list": ({"answer": "x", "box": [[1, 2, 3, 4]]}, "box", ": a list of 1, not a list of four numbers"),
    "a box of text": ({"answer": "x", "box": ["1", "2", "3", "4"]}, "box", ": a list of 4, not a list of four numbers"),
    "looks of numbers": ({"answer": "x", "looks": [1, 2, 3, 4]}, "looks", r": 1 \(int\), not a list of four numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_value_of_another_shape_names_its_row_and_column(tmp_path, name):
    row, column, said = SHAPES[name]
    path = jsonl(tmp_path / "s.jsonl", [row])
    with pytest.raises(UsageError, match=rf"s\.jsonl \(train\): row 0: column '{column}' \({column}\){said}"):
        rows_of(path)


def test_lists_of_class_labels_have_names_and_minus_one_is_no_label(tmp_path):
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features(
        image=datasets.Value("string"), question=datasets.Value("string"), answers=datasets.List(names), answer=names
    )
    rows = [{"image": "a.png", "question": "q", "answers": [1, 0], "answer": label} for label in (1, -1)]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "d")
    found, _ = rows_of(tmp_path / "d")
    assert [(row.chain.answer, row.answers) for row in found] == [("yes", ("yes", "no")), ("yes", ("yes", "no"))]
    datasets.load_from_disk(str(tmp_path / "d")).remove_columns("answers").save_to_disk(tmp_path / "e")
    found, tally = rows_of(tmp_path / "e")
    assert [row.chain.answer for row in found] == ["yes"] and tally.left_out == {"empty answer": 1}


def test_a_phase_is_trained_on_a_data_set(places, monkeypatch):
    monkeypatch.chdir(places)
    save("llava", places / "model")
    recipe = {
        "kind": "sft", "output": "out", "model": {"path": "model", "dtype": "float32"}, "lora": {"r": 4},
        "data": {"path": "disk", "format": "datasets", "dataset": {"boxes": "xywh", "columns": COLUMNS}},
        "trainer": {"num_train_epochs": 1, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 2},
    }  # fmt: skip
    (places / "sft.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["sft.yaml", "--dry-run"]) == 0
    assert run(["sft.yaml"]) == 0 and (places / "out/final/adapter_model.safetensors").is_file()
