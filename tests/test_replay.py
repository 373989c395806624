"""Published prediction layouts find their documents by id or by (picture, question)."""

import gzip
import io
import json

import openpyxl
import pandas
import pytest

from visrl.core.boxes import Box
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.evals.mmbench_tables import NOTHING, table_rows
from visrl.policies.protocol import Request, Sampling
from visrl.policies.recorded.prediction_files import picture_key, question_key
from visrl.policies.recorded.replay import AmbiguousPredictions, ReplayPolicy
from visrl.policies.registry import load_policy, parse_model_args
from visrl.tasks import mmbench, zoom


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
        (
            "side.jsonl",
            b'{"id": "0", "messages": [{"role": "assistant", "content": "a"}], "size": [1' + b"0" * 400 + b", 3]}",
            r"side\.jsonl:1: .*is not a width and a height in pixels",
        ),
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


def pope(i, question, task, picture="p.jpg"):
    return CoTSample(str(i), task, "qa", question, cluster=picture, meta={"picture": picture, "raw_question": question})


def test_pope_answers_go_to_the_split_of_their_question(tmp_path):
    # one question stands in two splits; the file answers it twice, differently, under their own numbers
    rows = [
        {
            "question_id": 1,
            "image": "p.jpg",
            "text": "Is it?\\nAnswer the question using a single word or phrase.",
            "category": "popular",
        },
        {"question_id": 2, "image": "p.jpg", "text": "Is it?", "category": "adversarial"},
    ]
    questions = write(tmp_path / "q.jsonl", rows)
    answers = write(tmp_path / "a.jsonl", [{"question_id": 1, "text": "No"}, {"question_id": 2, "text": "Yes"}])
    policy = ReplayPolicy.load(answers, questions=questions)
    for task, text in (("pope_coco_adversarial", "Yes"), ("pope_coco_popular", "No")):
        (sample,) = policy.match_samples([pope(1, "Is it?", task)], task)
        assert texts(policy, [sample]) == [text]
    with pytest.raises(UsageError, match="no prediction"):
        policy.match_samples([pope(1, "Is it?", "pope_coco_random")], "pope_coco_random")
    assert policy.unmatched().unused == policy.unmatched().duplicates == 0


def test_the_same_prediction_twice_is_no_problem(tmp_path):
    policy = ReplayPolicy.load(write(tmp_path / "g.jsonl", [{"id": 1, "text": "a"}, {"id": 1, "text": "a"}]))
    policy.match_samples([rec(1)], "refcoco_val")
    assert (policy.unmatched().unused, policy.unmatched().duplicates) == (0, 0)


def mmbench_sample(index, question="Which animal?", options=("a cat", "a dog")):
    meta = {"index": index, "raw_question": question, "options": dict(zip("AB", options, strict=True))}
    return CoTSample(str(index), "mmbench", "qa", question, meta=meta)


@pytest.mark.parametrize(
    "row",
    ["7\tWelches Tier?\ta cat\ta dog\tA\n", "7\tWhich animal?\ta bird\ta dog\tA\n", "7\tWhich animal?\ta cat\t\tA\n"],
)
def test_predictions_of_another_question_under_the_same_index_are_refused(tmp_path, row):
    header = "index\tquestion\tA\tB\tprediction\n"
    (tmp_path / "p.tsv").write_text(header + row)
    with pytest.raises(UsageError, match="no prediction"):
        ReplayPolicy.load(str(tmp_path / "p.tsv")).match_samples([mmbench_sample(7)], "mmbench")
    (tmp_path / "p.tsv").write_text(header + "7\tWhich  animal?\ta cat\tA DOG\tA\n")
    assert ReplayPolicy.load(str(tmp_path / "p.tsv")).match_samples([mmbench_sample(7)], "mmbench")


def test_an_xlsx_may_understate_its_size_and_says_what_was_cut(tmp_path, caplog):
    import zipfile

    book = openpyxl.Workbook()
    for row in (["index", "prediction"], [1, "A"], [2, "x" * 32_767], [3, "B"]):
        book.active.append(row)
    book.save(tmp_path / "whole.xlsx")
    with zipfile.ZipFile(tmp_path / "whole.xlsx") as whole, zipfile.ZipFile(tmp_path / "p.xlsx", "w") as small:
        for name in whole.namelist():
            small.writestr(name, whole.read(name).replace(b'ref="A1:B4"', b'ref="A1:B2"'))
    policy = ReplayPolicy.load(str(tmp_path / "p.xlsx"))
    assert [row.keys for row in policy.file.rows] == [(("index", str(i)),) for i in (1, 2, 3)]
    assert "1 predictions of exactly 32,767 characters were cut by a spreadsheet" in caplog.text


def test_rec_rows_without_a_picture_by_expression_and_true_box_where_that_is_one_document(tmp_path):
    rows = [
        {"question": "the cat", "ground_truth": [0, 0, 10, 10], "model_output": "one"},
        {"question": "the dog", "ground_truth": [1, 1, 9, 9], "model_output": "two pictures have it"},
    ]
    (tmp_path / "v.json").write_text(json.dumps({"results": rows}))
    samples = [
        rec(1),
        rec(2, box=(5, 5, 9, 9)),
        rec(3, "the dog", "p.jpg", (1, 1, 9, 9)),
        rec(4, "the dog", "q.jpg", (1, 1, 9, 9)),
    ]
    policy = ReplayPolicy.load(str(tmp_path / "v.json"))
    assert [s.id for s in policy.match_samples(samples, "refcoco_val")] == ["1"]
    assert policy.unmatched().unused == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "", "finish_reason": "length"}, "cut before anything was said"),
        ({"text": None, "finish_reason": "content_filter"}, "blocked: finish_reason content_filter"),
        ({"text": "[1, 1", "finish_reason": "FinishReason.SAFETY"}, "blocked: finish_reason safety"),
        ({"text": "[1", "stop_reason": "aborted"}, "broken off: finish_reason aborted"),
        ({"text": "", "refusal": "I cannot help with people."}, "refused: I cannot help with people."),
        ({"text": "Failed to obtain answer via API. "}, "the recorded text is a client's error"),
        ({"text": "[LMMS_EVAL_REQUEST_FAILED after 5 retries] timeout"}, "the recorded text is a client's error"),
        ({"error": {"message": "no quota"}}, "no quota"),
        ({"text": "[1, 1, 9, 9]", "finish_reason": "length"}, "[1, 1, 9, 9]"),  # cut, but it had said its box
        ({"text": [{"type": "thinking", "text": "hm"}, {"type": "text", "text": "[1, 1, "}, "9, 9]"]}, "[1, 1, 9, 9]"),
    ],
)
def test_how_an_output_ended_decides_whether_it_is_scored(tmp_path, row, said):
    policy = ReplayPolicy.load(write(tmp_path / "g.jsonl", [{"id": 1, "text": "", **row}]))
    samples = policy.match_samples([rec(1)], "refcoco_val")
    assert texts(policy, samples, "box")[0].startswith(said)
    assert (policy.file.rows[0].error is None) == said.startswith("[")


def test_u2028_and_a_byte_order_mark_end_no_line(tmp_path):
    folder = tmp_path / "mme"
    folder.mkdir()
    (folder / "OCR.txt").write_text("\ufeff1.jpg\tIs it?\tYes\tyes\u2028no\r\n", encoding="utf-8")
    assert [row.text for row in ReplayPolicy.load(str(folder)).file.rows] == ["yes\u2028no"]
    (tmp_path / "g.jsonl").write_bytes(
        "\ufeff".encode() + json.dumps({"id": 1, "text": "a\u2028b"}, ensure_ascii=False).encode()
    )
    assert ReplayPolicy.load(str(tmp_path / "g.jsonl")).file.rows[0].text == "a\u2028b"


def test_a_table_that_carries_its_questions_needs_no_second_file(tmp_path):
    from visrl.evaluation.evaluate import Options, evaluate

    book = openpyxl.Workbook()
    book.active.append(["index", "question", "A", "B", "C", "answer", "prediction"])
    # two options and one that stays empty; question 5 right in both rotations, 6 in one of two: 3 of 4 rows, 1 of 2 questions
    for index, right, said in ((5, "A", "A"), (1_000_005, "B", "B"), (6, "A", "A"), (1_000_006, "B", "A")):
        book.active.append(
            [index, f"Which of {index % 10}?", "a cat" if right == "A" else "a dog", "x", None, right, said]
        )
    book.save(tmp_path / "p.xlsx")
    outcome = evaluate(
        ReplayPolicy.load(str(tmp_path / "p.xlsx")), ["mmbench"], Options(output=tmp_path / "run", quiet=True)
    )
    found = {result.metric: result.value for result in outcome.results}
    assert (found["accuracy"], found["circular"]) == (75.0, 50.0) and outcome.n_failed == 0


def numbered(i, task, **more):
    return CoTSample(str(i), task, "qa", "Is there a dog?", answers=("yes",), cluster="p.jpg", **more)


def test_rows_by_number_alone_answer_one_task_only(tmp_path):
    """POPE's splits all count from 1: a file of one of them would complete the group with made-up numbers."""
    file = write(tmp_path / "g.jsonl", [{"id": i, "text": "yes"} for i in (1, 2)])
    policy = ReplayPolicy.load(file)
    assert (
        len(
            policy.match_samples([numbered(1, "pope_coco_random"), numbered(2, "pope_coco_random")], "pope_coco_random")
        )
        == 2
    )
    again = policy.match_samples(
        [numbered(1, "pope_coco_random")], "pope_coco_random"
    )  # the same task may be matched twice
    assert len(again) == 1
    with pytest.raises(
        AmbiguousPredictions, match=r"g.jsonl:1: belongs to documents of pope_coco_random and of pope_coco_popular"
    ):
        policy.match_samples([numbered(1, "pope_coco_popular")], "pope_coco_popular")


def test_rows_that_name_their_task_or_their_picture_may_lie_together(tmp_path):
    tasks = ("pope_coco_random", "pope_coco_popular")
    by_task = ReplayPolicy.load(write(tmp_path / "t.jsonl", [{"id": 1, "text": "yes", "task": task} for task in tasks]))
    row = {"image": "p.jpg", "question": "the cat", "ground_truth": [0, 0, 10, 10], "model_output": "[0, 0, 10, 10]"}
    by_picture = ReplayPolicy.load(write(tmp_path / "r.json", [{"results": [row]}]))
    assert [len(by_task.match_samples([numbered(1, task)], task)) for task in tasks] == [1, 1]
    # one sentence of one picture is one question, whichever benchmark asks it
    assert [len(by_picture.match_samples([rec(1)], task)) for task in ("refcoco_val", "refcoco+_val")] == [1, 1]


def book(path, header, *rows):
    sheet = openpyxl.Workbook()
    for row in (header, *rows):
        sheet.active.append(row)
    sheet.save(path)
    return str(path)


def test_a_carriage_return_in_a_workbook(tmp_path):
    """XlsxWriter, which pandas prefers, writes it as _x000D_; a literal "_x000D_" as _x005F_x000D_."""
    book(tmp_path / "p.xlsx", ["index", "prediction"], [1, "B_x000D_\n"], [2, "_x005F_x000D_"])
    assert [row["prediction"] for row in table_rows((tmp_path / "p.xlsx").read_bytes(), tmp_path / "p.xlsx")] == [
        "B\r\n",
        "_x000D_",
    ]


HEADER = ["index", "question", "A", "B", "C", "D", "answer", "prediction"]


def test_what_pandas_reads_as_empty():
    """By pandas itself, one word per row; a word that it keeps is no lost option."""
    words = [form(word) for word in sorted(NOTHING) for form in (str, str.upper, str.capitalize)]
    words += ["NaN", "-NaN", "nothing", "none of them", "nil", "0", "-"]
    read = pandas.read_csv(io.StringIO("word\n" + "\n".join(words) + "\n"))["word"]
    lost = {word for word, empty in zip(words, read.isna(), strict=True) if empty}
    assert {word.lower() for word in lost} == NOTHING


def test_an_option_that_pandas_read_as_empty(tmp_path):
    """The cells of options "None" and "N/A" come out of pandas empty: the prediction still is of that question."""
    options = {"A": "a cat", "B": "None", "C": "a dog"}
    sample = CoTSample(
        "7", "mmbench", "qa", "?", ("B",), meta={"index": 7, "options": options, "raw_question": "Which?"}
    )
    fitting = ReplayPolicy.load(
        book(tmp_path / "a.xlsx", HEADER, [7, "Which?", "a cat", None, "a dog", None, "B", "B"])
    )
    other = ReplayPolicy.load(book(tmp_path / "b.xlsx", HEADER, [7, "Which?", "a cat", None, None, None, "B", "B"]))
    assert [s.id for s in fitting.match_samples([sample], "mmbench")] == ["7"]
    with pytest.raises(UsageError, match=r"no prediction in .* belongs"):  # "a dog" is nothing that pandas loses
        other.match_samples([sample], "mmbench")


def test_a_workbook_with_its_questions_keeps_the_options_that_pandas_lost(tmp_path, caplog):
    rows = [
        [1, "Which?", "a cat", None, "a dog", None, "B", "B"],  # before another option
        [2, "Which?", "a cat", "a dog", None, None, "C", "C"],  # the right one, behind the last
        [3, "Which?", "a cat", "a dog", None, None, "A", "A"],  # nothing says that there were more
    ]
    file = tmp_path / "p.xlsx"
    book(file, HEADER, *rows)
    found = [mmbench.sample(document.row, "mmbench") for document in mmbench.documents(file)]
    assert [s.meta["options"] for s in found] == [
        {"A": "a cat", "B": "None", "C": "a dog"},
        {"A": "a cat", "B": "a dog", "C": "None"},
        {"A": "a cat", "B": "a dog"},
    ]
    assert 'p.xlsx: 2 empty cells of options are taken for "None"' in caplog.text


def test_a_numbered_list_in_a_cell_is_no_row(tmp_path):
    (tmp_path / "two.tsv").write_text('index\tprediction\n1\t"1.\tLook closely.\n2.\tAnswer: B"\n2\tA\n')
    assert [row.text for row in ReplayPolicy.load(str(tmp_path / "two.tsv")).file.rows] == [
        "1.\tLook closely.\n2.\tAnswer: B",
        "A",
    ]
    (tmp_path / "open.tsv").write_text('index\tprediction\n1\t"A\n2\tB\n3\tC"\n')
    with pytest.raises(UsageError, match="an unclosed quotation mark"):
        ReplayPolicy.load(str(tmp_path / "open.tsv"))


@pytest.mark.parametrize("task", ["hrbench_4k", "treebench"])
def test_tables_of_hrbench_and_treebench_by_index(tmp_path, task):
    row = {"index": "5", "question": "What colour?", "A": "red", "B": "blue", "answer": "B", "target_instances": "[]"}
    sample = zoom.hrbench(row, task) if task.startswith("hr") else zoom.treebench(row, task)
    file = book(
        tmp_path / "p.xlsx",
        ["index", "question", "A", "B", "answer", "prediction"],
        [5, "What colour?", "red", "blue", "B", "B"],
    )
    assert [s.id for s in ReplayPolicy.load(file).match_samples([sample], task)] == ["5"]
