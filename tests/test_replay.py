"""Published prediction layouts find their documents by id or by (picture, question)."""

import gzip
import json

import openpyxl
import pytest

from visrl.core.boxes import Box
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.policies.protocol import Request, Sampling
from visrl.policies.recorded.prediction_files import picture_key, question_key
from visrl.policies.recorded.replay import ReplayPolicy
from visrl.policies.registry import load_policy, parse_model_args


def rec(i, question="the cat", picture="p.jpg", box=(0, 0, 10, 10)):
    return CoTSample(str(i), "refcoco_val", "rec", question, size=(20, 20), box=Box(*box), cluster=picture)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(policy, samples, step="answer"):
    outputs = policy.generate([Request(s.id, step, ()) for s in samples], Sampling())
    return [output.texts[0] if output.error is None else output.error for output in outputs]


def test_keys():
    assert question_key("<image>\nIs it?\nAnswer the question using a single word or phrase.") == "is it"
    assert question_key("Is there an umbrella in the imange?") == question_key("Is there an umbrella in the image?")
    ours = "Locate the region this sentence describes: The Cat."
    theirs = "Please provide the bounding box coordinate of the region this sentence describes: the cat."
    assert question_key(ours) == question_key(theirs) == question_key("the cat")
    assert picture_key("code_reasoning/0020.png") == picture_key("0020.txt") == "0020"


def test_generic_rows_by_id_whatever_their_order(tmp_path):
    file = write(tmp_path / "g.jsonl", [{"id": 2, "text": "b"}, {"id": "1", "text": "a"}])
    policy = ReplayPolicy.load(file)
    samples = policy.match_samples([rec(1), rec(2), rec(3)], "refcoco_val")
    assert [s.id for s in samples] == ["1", "2"]  # the third has no prediction and is left out
    assert texts(policy, samples, "box") == ["a", "b"]


def test_generic_rows_with_a_box_turn(tmp_path):
    policy = ReplayPolicy.load(write(tmp_path / "g.jsonl", [{"id": "1", "box_text": "[0, 0, 1, 1]", "text": "cat"}]))
    assert policy.default_protocol == "viscot_eval"
    sample = CoTSample("1", "viscot_gqa", "qa", "?")
    policy.match_samples([sample], "viscot_gqa")
    assert texts(policy, [sample], "box") == ["[0, 0, 1, 1]"] and texts(policy, [sample]) == ["cat"]


def test_twins_get_one_row_each_and_extra_rows_are_duplicates(tmp_path):
    def row(box, text):
        return {"image": "train/p.jpg", "question": "the cat", "ground_truth": box, "model_output": text}

    rows = [
        row([0, 0, 10, 10], "a"),
        row([5, 5, 9, 9], "other object"),
        row([0, 0, 10, 10], "b"),
        row([0, 0, 10, 10], "c"),
    ]
    (tmp_path / "v.json").write_text(json.dumps({"accuracy": 1, "results": rows}))
    policy = ReplayPolicy.load(str(tmp_path / "v.json"))
    samples = [rec(1), rec(2), rec(3, box=(5, 5, 9, 9))]
    assert policy.match_samples(samples, "refcoco_val") == samples
    assert texts(policy, samples, "box") == ["a", "b", "other object"]
    rest = policy.unmatched()
    assert (rest.unused, rest.duplicates) == (0, 1) and rest.examples == (f"{tmp_path}/v.json:4",)


def test_rows_without_a_document_are_counted(tmp_path):
    policy = ReplayPolicy.load(write(tmp_path / "g.jsonl", [{"id": "1", "text": "a"}, {"id": "9", "text": "z"}]))
    policy.match_samples([rec(1)], "refcoco_val")
    assert (policy.unmatched().unused, policy.unmatched().duplicates) == (1, 0)


def test_a_file_for_another_split_is_an_error(tmp_path):
    policy = ReplayPolicy.load(write(tmp_path / "g.jsonl", [{"id": "9", "text": "z"}]))
    with pytest.raises(UsageError, match=r"no prediction .* belongs to a document of refcoco_val"):
        policy.match_samples([rec(1)], "refcoco_val")


def test_llava_answers_need_their_question_file(tmp_path):
    answers = write(tmp_path / "a.jsonl", [{"question_id": 20000001, "prompt": "Is it?\nAnswer…", "text": "No"}])
    questions = write(tmp_path / "q.jsonl", [{"question_id": 20000001, "image": "x/p.jpg", "text": "Is it?"}])
    sample = CoTSample("1", "pope", "qa", "Is it?", cluster="p.jpg")
    with pytest.raises(UsageError, match="no prediction"):
        ReplayPolicy.load(answers).match_samples([sample], "pope")
    policy = ReplayPolicy.load(answers, questions=questions)
    assert texts(policy, policy.match_samples([sample], "pope")) == ["No"]


def mme(subtask, picture, question):
    return CoTSample(
        f"{subtask}/{picture}/{question}", "mme", "qa", question, cluster=f"{subtask}/{picture}", group=subtask
    )


def test_mme_by_subtask_picture_and_question(tmp_path):
    samples = [
        mme("OCR", "0020.jpg", "Is it a?"),
        mme("OCR", "0020.jpg", "Is it b?"),
        mme("color", "0020.jpg", "Is it a?"),
    ]
    (tmp_path / "color.txt").write_text("0020.png\tIs it a? Please answer yes or no.\tYes\tblue\n")
    (tmp_path / "OCR.txt").write_text(
        "0020.txt\tIs it b? Please answer yes or no.\tNo\tbe\n0020.txt\tIs it a? Please answer yes or no.\tYes\teh\n"
    )
    policy = ReplayPolicy.load(str(tmp_path))
    assert texts(policy, policy.match_samples(samples, "mme")) == ["eh", "be", "blue"]
    rows = [
        {
            "question_id": "OCR/0020.png",
            "prompt": "Is it a?\nAnswer the question using a single word or phrase.",
            "text": "eh",
        },
        {"question_id": "color/0020.png", "prompt": "Is it a?", "text": "blue"},
    ]
    policy = ReplayPolicy.load(write(tmp_path / "llava.jsonl", rows))
    assert texts(policy, policy.match_samples(samples, "mme")) == ["eh", "blue"]


@pytest.mark.parametrize("suffix", ["tsv", "xlsx"])
def test_mmbench_predictions_by_index(tmp_path, suffix):
    path = tmp_path / f"p.{suffix}"
    if suffix == "tsv":
        path.write_text("index\tquestion\tprediction\n1000007\tq\tB\n7\tq\tA\n")
    else:
        book = openpyxl.Workbook()
        for row in (["index", "question", "prediction"], [1000007, "q", "B"], [7, "q", "A"]):
            book.active.append(row)
        book.save(path)
    samples = [CoTSample(str(i), "mmbench", "qa", "q", meta={"index": i}) for i in (7, 1000007)]
    policy = ReplayPolicy.load(str(path))
    assert texts(policy, policy.match_samples(samples, "mmbench")) == ["A", "B"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "no such file"),
        ("empty.jsonl", b"", "is empty"),
        ("torn.jsonl", b'{"id": 1, "text": "a"}\n{"id": 2, "te\n', r"torn\.jsonl:2: not JSON"),
        (
            "type.jsonl",
            b'{"id": 1, "text": "a"}\n{"id": 2, "text": 3}\n',
            r"type\.jsonl:2: not a generic row: text is int",
        ),
        (
            "field.jsonl",
            b'{"id": 1, "text": "a"}\n{"text": "b"}\n',
            r"field\.jsonl:2: not a generic row: no field 'id'",
        ),
        ("layout.jsonl", b'{"foo": 1}\n{"foo": 2}\n', "unknown layout"),
        ("list.json", b"[]", "holds no predictions"),
        ("latin.jsonl", b'{"id": 1, "text": "\xe9"}', "not UTF-8"),
        ("cut.json.gz", gzip.compress(b'{"results": []}', mtime=0)[:-6], "cannot be read"),
        ("noise.xlsx", b"PK nonsense", "not an xlsx workbook"),
        (
            "nan.json",
            b'{"results": [{"image": "p", "question": "q", "ground_truth": [NaN,0,1,1], "model_output": ""}]}',
            "finite",
        ),
        ("mme/OCR.txt", b"0001.jpg\tonly two\n", "2 fields instead of 4"),
    ],
)
def test_damaged_files_are_named_with_their_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        ReplayPolicy.load(str(path.parent if name.endswith(".txt") else path))


def test_unknown_names_get_the_nearest_one(tmp_path):
    for spec, hint in (("tinny", "tiny"), ("replai:x", "replay:")):
        with pytest.raises(UsageError) as caught:
            load_policy(spec)
        assert hint in caught.value.hint
    file = write(tmp_path / "g.jsonl", [{"id": 1, "text": "a"}])
    for args, message in (
        ({"parser": "loose"}, "parser=loose: Input should be"),
        ({"box_format": "json_pixle"}, "unknown box format"),
        ({"dtype": "f"}, "has no argument"),
    ):
        with pytest.raises(UsageError, match=message):
            load_policy(f"replay:{file}", args)
    with pytest.raises(UsageError, match="not key=value"):
        parse_model_args("a=b,c")
