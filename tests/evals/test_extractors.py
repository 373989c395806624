"""Letters, yes and no, and free answers: the table of wordings, outputs as models wrap them, and hostile text."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import said, sample, score

from visrl.core.final_answer import final_answer, tagged_answer
from visrl.core.types import Unparsed
from visrl.evals.judge import JudgeItem, make_judge, read_reply, verdicts
from visrl.evals.scorers import mme, pope
from visrl.evals.scorers.letters import letter
from visrl.evals.scorers.yes_no import yes_or_no

_spec = importlib.util.spec_from_file_location("extractors", Path(__file__).parents[1] / "studies" / "extractors.py")
extractors = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(extractors)

OPTIONS = {"A": "bird", "B": "dog", "C": "cat", "D": "horse"}


@pytest.mark.parametrize(("name", "least"), [("letters", 300), ("yes_no", 130)])
def test_the_table_of_wordings_is_read_as_meant(name, least):
    found = [row for part in ("first", "second") for row in extractors.rows(f"{name}_{part}")]
    got = extractors.figures(found)
    assert got.size >= least
    assert got.precision >= 0.98
    assert got.recall >= 0.95


def test_precision_and_recall_by_hand():
    # three mean something; two of them and one null are read, one of them right: 1 of 3 read, 1 of 3 meant
    rows = [("x", "A", "A"), ("y", "B", "C"), ("z", "D", None), ("v", None, "A"), ("w", None, None)]
    got = extractors.figures(rows)
    assert (got.size, got.precision, got.recall) == (5, pytest.approx(1 / 3), pytest.approx(1 / 3))


THOUGHTS = st.sampled_from(
    [
        "",
        "<think>The answer is {other}. No: it is not.</think>",
        "<THINK>\n{other}?\n</THINK>\n\n",
        "Is it {other}?</think>\n",
        "◁think▷{other}◁/think▷",
        "<reasoning>Answer: {other}</reasoning>",
        "[THINK]so {other}[/THINK]",
    ]
)
LABELS = st.sampled_from(
    [
        "",
        "Answer: ",
        "The answer is ",
        "**Answer:** ",
        "Final answer: ",
        "Antwort: ",
        "Réponse : ",
        "Respuesta: ",
        "Resposta: ",
        "Risposta: ",
        "Ответ: ",
        "答案：",
        "答案是",
        "答え：",
        "정답: ",
        "الإجابة: ",
        "उत्तर: ",
    ]
)
MARKUP = st.sampled_from(
    [
        "{}",
        "**{}**",
        "({})",
        "[{}]",
        "`{}`",
        '"{}"',
        "$\\boxed{{{}}}$",
        "\\boxed{{\\text{{{}}}}}",
        "{}.",
        "（{}）",
        " {}\n",
        "***{}***",
    ]
)
OUTER = st.sampled_from(
    [
        "{}",
        "<answer>{}</answer>",
        "<ANSWER>\n{}\n</ANSWER>",
        "```\n{}\n```",
        "{}</s>",
        "{}<|im_end|>",
        "<|begin_of_box|>{}<|end_of_box|>",
    ]
)


def wrapped(true, other, thought, label, markup, outer):
    return thought.replace("{other}", other) + outer.format(label + markup.format(true))


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"), THOUGHTS, LABELS, MARKUP, OUTER)
@settings(max_examples=600, deadline=None)
def test_a_wrapped_letter_is_read_as_that_letter_or_not_at_all(true, other, thought, label, markup, outer):
    found = letter(wrapped(true, other, thought, label, markup, outer), OPTIONS)
    assert found == true or isinstance(found, Unparsed)


@given(st.sampled_from(["yes", "no", "Yes", "No"]), st.sampled_from(["yes", "no"]), THOUGHTS, LABELS, MARKUP, OUTER)
@settings(max_examples=600, deadline=None)
def test_a_wrapped_yes_or_no_is_read_as_that_or_not_at_all(true, other, thought, label, markup, outer):
    found = yes_or_no(wrapped(true, other, thought, label, markup, outer))
    assert found == true.lower() or isinstance(found, Unparsed)


@given(st.sampled_from(["42", "red", "-5", "C++", "$7"]), THOUGHTS, MARKUP, OUTER)
@settings(max_examples=300, deadline=None)
def test_a_wrapped_free_answer_equals_no_other(true, thought, markup, outer):
    text = wrapped(true, "blue", thought, "", markup, outer)
    others = tuple({"42", "red", "-5", "C++", "$7", "5", "C#", "C", "blue"} - {true})
    assert make_judge("exact").judge_many([JudgeItem("x", "q", others, text)])[0].value == 0.0


@pytest.mark.parametrize("markup", ["{}", "**{}**", "$\\boxed{{{}}}$", "<think>blue</think>{}", "<answer>{}</answer>"])
def test_a_wrapped_free_answer_equals_itself(markup):
    assert make_judge("exact").judge_many([JudgeItem("x", "q", ("red",), markup.format("red"))])[0].value == 1.0


PIECES = (
    "<think>|</think>|<answer>|</answer|answer is |Answer: |option |not | but |A|B|a|I|(|)|\\boxed{|}|$|-|+|#|%|5|.|,|\n|\ud800"
    "|\ue000|ﷺ|是|不|no|yes|score: 1"
)
HOSTILE = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from([*PIECES.split("|"), " " * 50]), max_size=40).map("".join),
)


@given(HOSTILE, HOSTILE)
@settings(max_examples=600, deadline=None)
def test_nothing_that_a_model_writes_raises(text, standard):
    for found in (letter(text, OPTIONS), letter(text, {"A": standard, "B": ""}), yes_or_no(text, standard)):
        assert isinstance(found, Unparsed) or found in {*OPTIONS, "yes", "no"}
    assert isinstance(final_answer(text), str | Unparsed)
    assert tagged_answer(text) is None or isinstance(tagged_answer(text), str | Unparsed)
    assert pope.says(text) in ("yes", "no")
    assert mme.says(text) in ("yes", "no", "other")
    assert read_reply(text).value is None or 0.0 <= read_reply(text).value <= 1.0
    for name in ("exact", "contains", "anls"):
        assert 0.0 <= make_judge(name).judge_many([JudgeItem("x", "q", (standard,), text)])[0].value <= 1.0


@given(HOSTILE)
@settings(max_examples=100, deadline=None)
def test_every_scorer_scores_it(text):
    for task, meta in (("pope_coco_popular", {}), ("mmbench", {"options": OPTIONS})):
        answer = "A" if meta else "yes"
        scores = score(task, [(sample("x", answer=answer, group="1", **meta), said("x", text))])
        assert scores.samples["x"]["accuracy"].value in (0.0, 1.0)
    pairs = [(sample(i, answer=a, cluster="p", group="OCR"), said(i, text)) for i, a in (("x", "yes"), ("y", "no"))]
    assert score("mme", pairs).samples["x"]["correct"].value in (0.0, 1.0)
    judged = score("viscot_cub", [(sample("x", answer="red"), said("x", text))], make_judge("exact"))
    assert judged.samples["x"]["answer"].value in (0.0, 1.0)


class Breaks:
    """A judge that cannot bear one answer."""

    name = description = "breaks"
    kind = "rule"

    def judge_many(self, items):
        if any(item.answer == "bad" for item in items):
            raise RuntimeError("no")
        return [read_reply("score: 1") for _ in items]


def test_a_judge_that_breaks_on_one_answer_keeps_the_others():
    items = [JudgeItem(name, "q", ("x",), name) for name in ("a", "bad", "b")]
    found = verdicts(Breaks(), items)
    assert [one.value for one in found] == [1.0, None, 1.0]
    assert found[1].reason == "judge: RuntimeError: no"
