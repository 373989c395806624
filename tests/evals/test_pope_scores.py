import gzip
import json

import pytest
from made import failed, numbers, said, sample, score

from visrl.evals.benchmarks import GROUPS
from visrl.evals.scorers.pope import says
from visrl.evals.scorers.scoring import score_group


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("No", "no"),
        ("No, there is no dog.", "no"),
        ("Yes, there is", "yes"),
        ("There is not a dog in it. Yes.", "no"),
        ("Yes. There is no dog", "yes"),  # only the first sentence counts
        ("Nothing", "yes"),  # whole words
        ("NO", "yes"),  # the official rule knows No, not, no
        ("", "yes"),
        ("1.no", "yes"),
    ],
)
def test_the_official_rule(text, answer):
    assert says(text) == answer


def pairs(*rows, cluster=None):
    """(truth, answer) rows."""
    return [
        (sample(str(i), answer=truth, cluster=cluster or str(i)), said(str(i), answer))
        for i, (truth, answer) in enumerate(rows)
    ]


def test_every_number_by_hand():
    # TP 2, FN 1, FP 1, TN 2
    rows = [("yes", "Yes"), ("yes", "Yes"), ("yes", "No"), ("no", "Yes"), ("no", "No"), ("no", "No")]
    found = {name: m.value for name, m in numbers(score("pope_coco_popular", pairs(*rows))).items()}
    assert found == pytest.approx(
        {"accuracy": 400 / 6, "precision": 200 / 3, "recall": 200 / 3, "f1": 100 * 4 / 6, "yes_ratio": 50.0}
        | {"accuracy_careful": 400 / 6}
    )


def test_always_no_has_no_precision_recall_zero_and_a_yes_ratio_of_zero():
    found = numbers(score("pope_coco_popular", pairs(("yes", "No"), ("no", "No"))))
    assert found["precision"].value is None
    assert found["precision"].notes == ("undefined: 0 / 0",)
    assert (found["recall"].value, found["f1"].value, found["yes_ratio"].value) == (0.0, 0.0, 0.0)
    assert found["accuracy"].value == 50.0


def test_answers_that_are_neither_enter_recall_as_yes_and_are_told():
    found = numbers(score("pope_coco_popular", pairs(("yes", "maybe"), ("no", ""), ("yes", "No"))))
    assert found["recall"].value == 50.0
    assert found["accuracy"].notes == ("2 answers say neither yes nor no: the rule counts them as yes",)


def test_what_the_rule_cannot_see_is_told_and_read_carefully_beside_it():
    # truths no, no, no, no, yes: the rule takes the first four for yes, a careful reader does not
    rows = [("no", "No!"), ("no", "**No**"), ("no", "no\nI see only grass"), ("no", "不"), ("yes", "Yes\n")]
    found = numbers(score("pope_coco_popular", pairs(*rows)))
    assert (found["accuracy"].value, found["yes_ratio"].value) == (20.0, 100.0)
    assert found["accuracy"].notes == ("odd: 4 answers say no and count as yes",)
    assert found["accuracy_careful"].value == 100.0
    assert numbers(score("pope_coco_popular", pairs(("yes", "Yes no doubt"))))["accuracy"].notes == (
        "odd: 1 answers say yes and count as no",
    )


def test_the_thought_is_not_the_answer():
    # by the thought's words alone, the rule would read no, yes
    thoughts = [
        ("yes", "<think>At first there is no kite here. Behind the fence there is.</think><answer>Yes</answer>"),
        ("no", "<think>Something has the shape of a chair. A shadow.</think>\n\nNo"),
    ]
    found = numbers(score("pope_coco_popular", pairs(*thoughts)))
    assert (found["accuracy"].value, found["f1"].value, found["yes_ratio"].value) == (100.0, 100.0, 50.0)
    assert found["accuracy"].notes == ()


def test_a_thought_that_never_ends_is_wrong_and_counted():
    # truths yes and no, both wrong: TP 0, FP 1, FN 1
    found = numbers(score("pope_coco_popular", pairs(("yes", "<think>Yes"), ("no", "<think>No"))))
    assert [found[name].value for name in ("accuracy", "precision", "recall", "accuracy_careful")] == [0.0] * 4
    assert [found[name].n_unparsed for name in ("accuracy", "f1", "accuracy_careful")] == [2, 2, 2]


def test_failures_are_left_out_everywhere():
    mixed = [*pairs(("yes", "Yes"), ("no", "Yes")), (sample("x", answer="yes"), failed("x", "server"))]
    for measured in score("pope_coco_popular", mixed).metrics:
        assert (measured.n, measured.n_unscored, measured.unscored_reasons) == (2, 1, {"server": 1})
    assert score("pope_coco_popular", [mixed[-1]]).metrics[3].value is None


def test_higher_is_better_but_not_for_the_yes_ratio():
    found = numbers(score("pope_coco_popular", pairs(("yes", "Yes"))))
    assert found["f1"].higher_is_better
    assert not found["yes_ratio"].higher_is_better


def test_the_group_is_the_mean_of_the_splits_f1_not_the_pooled_one():
    # f1 of three splits: 1, 1 and 2*1/(2+1+1) = .5 -> mean .8333; pooled: TP 21, FP 1, FN 1 -> .9545
    easy, hard = [("yes", "Yes")] * 10, [("yes", "Yes"), ("yes", "No"), ("no", "Yes")]
    names = GROUPS["pope"]
    tasks = {names[0]: easy, names[1]: easy, names[2]: hard}
    scored = {name: score(name, pairs(*rows)) for name, rows in tasks.items()}
    found = {m.metric: m for m in score_group("pope", scored)}
    assert found["f1"].value == pytest.approx(100 * (1 + 1 + 0.5) / 3)
    assert (found["f1"].n, found["f1"].n_expected) == (23, 9000)
    assert found["accuracy"].n_clusters == 10  # pictures shared by the splits count once
    assert score_group("pope", {names[0]: scored[names[0]]}) == []


def test_llava_s_published_answers_give_its_published_numbers(shared):
    def rows(path):
        with gzip.open(shared / path, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def key(picture, question):  # LLaVA's question file has 44 times "imange"
        return picture, question.split("\n")[0].replace("imange", "image")

    asked = {row["question_id"]: row for row in rows("predictions/pope/llava_pope_popular_questions.jsonl.gz")}
    answers = {
        key(asked[row["question_id"]]["image"], asked[row["question_id"]]["text"]): row["text"]
        for row in rows("predictions/pope/answers_llava-v1.5-13b_popular.jsonl.gz")
    }
    made = [
        (
            sample(str(row["question_id"]), answer=row["label"], cluster=row["image"]),
            said(str(row["question_id"]), answers[key(row["image"], row["text"])]),
        )
        for row in rows("pope/coco_pope_popular.json.gz")
    ]
    found = numbers(score("pope_coco_popular", made))
    assert found["accuracy"].value == pytest.approx(87.4333, abs=5e-5)
    assert found["f1"].value == pytest.approx(86.2459, abs=5e-5)
    assert (found["f1"].n, found["f1"].n_clusters, found["f1"].n_missing) == (3000, 500, 0)
    assert 0.3 < found["accuracy"].se < 1.0


def test_yes_or_no_at_the_length_up_to_which_presence_is_an_answer():
    from visrl.core.types import Unparsed
    from visrl.evals.scorers.yes_no import yes_or_no

    for length, read in ((300, True), (301, False)):
        text = "There is a dog." + " x" * 142 + "."  # 15 + 284 + 1 = 300
        text = text if length == 300 else text + "."
        assert len(text) == length
        assert (yes_or_no(text) == "yes") is read and isinstance(yes_or_no(text), Unparsed) is not read


@pytest.mark.parametrize(
    ("text", "question", "said"),
    [
        ("There is a dog", "Is there a dog?", "yes"),
        ("There is a man", "Is there a dog?", None),  # another thing
        ("There are dogs", "Is there a dog?", "yes"),
        ("There is a dog", "Are there dogs?", "yes"),
        ("There is one", "Is there a dog?", "yes"),
        ("I cannot see it", "Is there a dog?", "no"),
        ("There is no dog, but there is a cat", "Is there a dog?", None),  # both
        ("A dog and a cat", "Is there a dog?", None),  # neither
        ("There might be a dog, there is a dog", "Is there a dog?", None),
        ("Yes, not sure", "", None),
        ("Yes\nI was not sure", "", "yes"),  # only the first line takes it back
        ("The answer is no. Hm, the answer is yes.", "", "yes"),  # the last stated
        ("没有", "Is there a dog?", "no"),
    ],
)
def test_a_careful_reading(text, question, said):
    from visrl.core.types import Unparsed
    from visrl.evals.scorers.yes_no import yes_or_no

    found = yes_or_no(text, question)
    assert found == said or (said is None and isinstance(found, Unparsed))


def test_only_samples_without_an_answer_are_unscored_and_unparsed_ones_are_wrong():
    rows = [(sample("a", answer="yes"), said("a", "<think>hm")), (sample("b", answer="no"), said("b", "<think>hm"))]
    rows += [(sample("c", answer="no"), failed("c", "boom")), (sample("d", answer="no"), said("d", None))]
    found = numbers(score("pope_coco_popular", rows))
    # an endless thought is the wrong one of yes and no: no for a, yes for b
    assert (found["accuracy"].value, found["accuracy"].n, found["accuracy"].n_unparsed) == (0.0, 2, 2)
    assert (found["yes_ratio"].value, found["accuracy_careful"].value, found["accuracy_careful"].n_unparsed) == (
        50.0,
        0.0,
        2,
    )
    assert found["f1"].unscored_reasons == {"boom": 1, "no answer was given": 1}
    assert (found["f1"].n, found["f1"].n_unparsed, found["f1"].value) == (2, 2, 0.0)


def test_what_the_rule_cannot_see_is_told_both_ways():
    found = numbers(score("pope_coco_popular", pairs(("no", "No!"), ("no", "**No**"), ("yes", "Yes, no doubt"))))
    assert found["accuracy"].notes == (
        "odd: 2 answers say no and count as yes",
        "odd: 1 answers say yes and count as no",
    )
    assert (found["accuracy"].value, found["accuracy_careful"].value) == (0.0, 100.0)
    assert found["yes_ratio"].value == pytest.approx(200 / 3) and not found["yes_ratio"].notes
    assert found["yes_ratio"].se == pytest.approx(100 / 3)  # 1, 1, 0: s^2 = 1/3, / 3


def test_a_question_without_a_true_answer_is_unscored():
    found = numbers(score("pope_coco_popular", [(sample("a"), said("a", "Yes")), *pairs(("yes", "Yes"))]))["accuracy"]
    assert (found.value, found.n, found.unscored_reasons) == (100.0, 1, {"the sample has no true answer": 1})
