"""Outputs and files that were misread in silence, each with the value that a reader would give it."""

import numpy as np
import pytest
from PIL import Image

from visrl.core.final_answer import final_answer
from visrl.core.outputs import ending_of
from visrl.core.types import Unparsed
from visrl.errors import UsageError
from visrl.evals.equal_words import exact
from visrl.evals.mmbench_tables import options_of
from visrl.evals.scorers.letters import letter
from visrl.evals.scorers.yes_no import yes_or_no
from visrl.policies.recorded.prediction_files import read_predictions
from visrl.tasks.pictures import as_rgb

OPTIONS = {"A": "a lamp", "B": "a jug", "C": "a radio", "D": "a globe"}


@pytest.mark.parametrize(
    "text",
    [
        "The wrong answer is B",
        "Incorrect answer: B",
        "The least likely answer is B",
        "The second best answer is C",
        "I doubt the answer is B",
        "The answer is B, which is wrong",
        "错误答案是B",
        "La mauvaise réponse est B",
        "Неправильный ответ: B",
        "答えはBではありません",
        "정답은 B가 아닙니다",
    ],
)
def test_what_is_called_wrong_is_no_choice(text):
    assert isinstance(letter(text, OPTIONS), Unparsed)


@pytest.mark.parametrize(
    "text",
    [
        "A is the wrong answer. The answer is B",
        "Option A is the wrong answer but B is correct",
        "Unlike the other options, B is correct",
        "There is no doubt that the answer is B",
        "I have no doubt the answer is B",
        "The object which we see is a jug so the answer is B",
        "It's A... wait, actually B.",
        "The answer is A. Actually, it's B.",
        "Answer: A. On second thought, B",
    ],
)
def test_a_choice_beside_what_is_called_wrong(text):
    assert letter(text, OPTIONS) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "A ✗\nB ✓\nC ✗\nD ✗",
        "A: ❌\nB: ✅\nC: ❌\nD: ❌",
        "- [ ] A. a lamp\n- [x] B. a jug\n- [ ] C. a radio\n- [ ] D. a globe",
        "A. a lamp\nB. a jug ✔\nC. a radio\nD. a globe",
        "❌ A\n✅ B\n❌ C",
    ],
)
def test_the_option_that_is_ticked(text):
    assert letter(text, OPTIONS) == "B"


@pytest.mark.parametrize("text", ["A ✓\nB ✓\nC ✗", "A ✗\nB ✗\nC ✗\nD ✗", "A ✗\nB"])
def test_ticks_that_choose_nothing(text):
    """Several, none, or one cross alone."""
    assert isinstance(letter(text, OPTIONS), Unparsed)


def test_a_stated_answer_counts_more_than_ticks():
    assert letter("A ✓ red\nB ✓ blue\nC ✗ green\nThe answer is B.", OPTIONS) == "B"


def test_a_line_end_that_was_escaped_twice():
    assert letter("Answer:\\nB", OPTIONS) == "B" and yes_or_no("Yes\\n") == "yes"
    assert exact("OK", "ＯＫ") == 1.0 and exact("102", "10²") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "I don't think there is a dog",
        "I doubt there is a dog",
        "It is false that there is a dog",
        "There is only a cat, not a dog.",
        "There is a cat but no dog",
        "There is neither a dog nor a cat",
        "There are two men without a dog",
        "Correct, there is no dog.",
        "No answer",
        "No information",
    ],
)
def test_a_presence_with_a_negative_is_not_sure(text):
    assert isinstance(yes_or_no(text, "Is there a dog in the image?"), Unparsed)


def test_a_presence_without_one_is_yes():
    assert yes_or_no("There is a dog in the picture", "Is there a dog in the image?") == "yes"
    assert yes_or_no("There is only one dog", "Is there a dog in the image?") == "yes"


def test_a_comma_between_digits_is_of_a_thousand_or_of_a_list():
    assert exact("1000", "1,000") == 1 and exact("3456789", "3,456,789") == 1
    assert exact("123", "1,2,3") == 0 and exact("1, 2, 3", "1,2,3") == 1
    assert exact("34", "(3,4)") == 0 and exact("125", "12,5") == 0


def test_more_marks_of_thoughts():
    assert final_answer("<rationale>The answer is A</rationale>C") == "C"
    assert final_answer("<unused94>thought\nThe answer is A.<unused95>C") == "C"


def test_a_turn_of_the_user_is_no_answer():
    assert letter("B<|im_end|>\n<|im_start|>user\nA", OPTIONS) == "B"
    assert final_answer("B<|eot_id|><|start_header_id|>user<|end_header_id|>A") == "B"


def test_a_quotation_mark_that_is_never_closed(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text('index\tprediction\n10\t"B\n11\tC\n')
    with pytest.raises(UsageError, match="row 10: an unclosed quotation mark"):
        read_predictions(path)


def test_a_tab_inside_a_prediction(tmp_path):
    """What follows the tab would be lost: the row has three cells under two names. Empty cells at its end lose nothing."""
    path = tmp_path / "p.tsv"
    path.write_text("index\tprediction\n10\tA\n11\tno:\tC\n")
    with pytest.raises(UsageError, match=r"p\.tsv:3: more cells than the header's 2"):
        read_predictions(path)
    path.write_text("index\tprediction\n10\tA\t\n11\tC\t\n")
    assert [row.text for row in read_predictions(path).rows] == ["A", "C"]


def test_a_small_table_inside_a_cell(tmp_path):
    path = tmp_path / "p.tsv"
    path.write_text('index\thint\tprediction\n10\t"Year\tRain\n2001\t5"\tB\n11\t\tC\n')
    assert [row.text for row in read_predictions(path).rows] == ["B", "C"]


def test_an_option_may_be_the_number_zero():
    assert options_of({"A": 0, "B": 1.5, "C": None, "D": float("nan")}) == {"A": "0", "B": "1.5"}


def test_endings_of_rows():
    assert ending_of({"error": {}}, "Yes") is None
    assert ending_of({"error": True}, "") == "True"
    assert ending_of({"reasoning_content": "hm"}, "") == "only a thought came back"
    assert ending_of({}, "Error code: 429 - {}") == "the recorded text is a client's error: Error code: 429"
    assert (
        ending_of({}, "Error code: 43") is None and ending_of({}, "Error code: 404") is None
    )  # what a screen may show


def test_a_document_over_several_lines_with_windows_line_ends(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes(
        b'{\r\n  "results": [\r\n    {"ground_truth": [1, 2, 3, 4], "question": "q", "model_output": "a"}\r\n  ]\r\n}'
    )
    assert [row.text for row in read_predictions(path).rows] == ["a"]


def test_a_row_without_an_output_is_that_row_alone(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "1", "text": null}\n{"id": "2", "text": NaN}\n{"id": "3", "text": "yes"}\n')
    assert [(row.text, bool(row.error)) for row in read_predictions(path).rows] == [
        (None, True),
        (None, True),
        ("yes", False),
    ]


def test_a_picture_of_fractions_with_a_hole():
    greys = np.zeros((8, 8), np.float32)
    greys[0, 0], greys[0, 1] = 200.0, np.inf  # of 0..255: 200 stays 200
    assert np.asarray(as_rgb(Image.fromarray(greys)))[0, 0].tolist() == [200, 200, 200]
