from dataclasses import replace

import pytest
from made import failed, numbers, said, sample, score

from visrl.core.types import Score, Unparsed
from visrl.evals.scorers.letters import letter

OPTIONS = {"A": "a finance chart", "B": "a banana", "C": "dog", "D": "a big dog"}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        (" B\n", "B"),
        ("<answer>B</answer>", "B"),
        ("I think <answer> (B) </answer> is it, not A.", "B"),
        ("The answer is A", "A"),
        ("The answer is A.", "A"),
        ("The answer is **B**.", "B"),
        ("The correct answer is option C", "C"),
        ("Answer: C", "C"),
        ("Option B is right.", "B"),
        ("The correct choice is (D).", "D"),
        ("B. a banana", "B"),
        ("B) a banana", "B"),
        ("B: because it is yellow", "B"),
        ("The answer could be A. But the answer is B.", "B"),  # the last one stated
        ("The answer is A? No, the answer is B.", "B"),
        ("It is a banana", "B"),
        ("A banana", "B"),  # an article is no letter
        ("A dog is shown.", "C"),
        ("A dog is shown, I cannot tell which", None),  # not for sure
        ("The answer is a banana.", "B"),
        ("a big dog", "D"),  # not C, whose text stands inside D's
        ("a dog and a banana", None),
        ("the refinance charts", None),  # whole words only
        ("E", None),  # no such option
        ("The answer is E", None),
        ("A's banana", "B"),
        ("", None),
        ("I do not know", None),
    ],
)
def test_letters(text, chosen):
    found = letter(text, OPTIONS)
    assert found == chosen or (chosen is None and isinstance(found, Unparsed))


def test_absent_options_are_not_there_and_e_may_be():
    assert letter("It is nan", {"A": "x", "B": "y"}) == Unparsed("no option is named")
    assert letter("The answer is E", {**OPTIONS, "E": "none"}) == "E"


def test_a_megabyte_is_read_at_its_ends():
    assert letter("9" * 1_000_000 + " The answer is B", OPTIONS) == "B"
    assert letter("(" * 1_000_000, OPTIONS) == Unparsed("no option is named")


def test_the_letter_is_that_of_the_answer_not_of_the_thought():
    # each thought ends on another letter than its answer; the last thought never ends: wrong, and unparsed
    thoughts = ["<think>It is B.</think>\nA", "<THINK>C?</THINK><Answer>A</Answer>", "<think>The answer is A"]
    found = numbers(score("mmbench", circle(1, *thoughts)))
    assert found["accuracy"].value == pytest.approx(100 * 2 / 3)
    assert (found["accuracy"].n_unparsed, found["circular"].value) == (1, 0.0)
    judge = Judge("model")
    assert numbers(score("mmbench", circle(1, *thoughts), judge))["accuracy"].n_unparsed == 1
    assert judge.asked == []  # nobody is asked about a thought


def test_what_cannot_be_scored_is_unscored_with_the_reason():
    broken = [(sample("x", answer="A", group="1"), said("x", "A"))]  # no options
    found = numbers(score("mmbench", broken + circle(2, "A", "A")))["accuracy"]
    assert (found.value, found.n, found.n_unscored) == (100.0, 2, 1)
    assert found.unscored_reasons == {"could not be scored: KeyError: 'options'": 1}


def circle(base, *texts, n_options=None, errors=()):
    """A question with a rotation per text; the right letter is always A."""
    options = {chr(65 + i): f"option{i}" for i in range(n_options or len(texts))}
    return [
        (
            sample(f"{base}/{i}", answer="A", group=str(base), options=options),
            failed(f"{base}/{i}", "boom") if i in errors else said(f"{base}/{i}", text),
        )
        for i, text in enumerate(texts)
    ]


def test_all_rotations_must_be_right():
    found = numbers(score("mmbench", circle(1, "A", "A") + circle(2, "A", "A", "B", "A")))
    assert found["accuracy"].value == pytest.approx(100 * 5 / 6)
    assert found["circular"].value == 50.0  # of questions, not of rows
    assert found["circular"].notes == ("2 questions with all rotations",)
    assert (found["circular"].n, found["circular"].n_expected, found["circular"].n_clusters) == (6, 4329, 2)


def test_incomplete_circles_are_counted_not_scored():
    pairs = circle(1, "A", "A") + circle(2, "A", "A", n_options=4) + circle(3, "A", "A", errors=[1])
    scores = score("mmbench", pairs)
    found = numbers(scores)
    assert (found["circular"].value, found["circular"].n, found["circular"].n_unscored) == (100.0, 2, 4)
    assert found["circular"].unscored_reasons == {"not all rotations of the question have a score": 3, "boom": 1}
    assert (found["accuracy"].n, found["accuracy"].n_unscored) == (5, 1)
    for measured in found.values():
        assert measured.n + measured.n_unscored + measured.n_missing == measured.n_expected


def test_what_cannot_be_read_is_wrong_and_counted():
    found = numbers(score("mmbench", circle(1, "A", "who knows")))
    assert (found["accuracy"].value, found["accuracy"].n_unparsed) == (50.0, 1)
    assert (found["circular"].value, found["circular"].n_unparsed) == (0.0, 1)


class Judge:
    description = "says yes to everything it is asked"

    def __init__(self, kind, score=1.0):
        self.name, self.kind, self.asked, self.score = kind, kind, [], score

    def judge_many(self, items):
        self.asked += items
        return [Score(None, "judge: down") if self.score is None else Score(self.score) for _ in items]


def test_a_model_judge_decides_only_what_cannot_be_read():
    judge = Judge("model")
    found = numbers(score("mmbench", circle(1, "A", "the first"), judge))
    assert [item.id for item in judge.asked] == ["1/1"]
    assert judge.asked[0].standard == ("A. option0",)
    assert "B. option1" in judge.asked[0].question
    assert (found["accuracy"].value, found["circular"].value, found["circular"].judge) == (100.0, 100.0, "model")


def test_a_rule_is_no_judge_of_letters_and_a_failed_judge_leaves_the_circle_open():
    rule = Judge("rule")
    assert numbers(score("mmbench", circle(1, "A", "the first"), rule))["accuracy"].value == 50.0
    assert rule.asked == []
    found = numbers(score("mmbench", circle(1, "A", "the first"), Judge("model", None)))
    assert (found["accuracy"].value, found["circular"].value, found["circular"].n_unscored) == (100.0, None, 2)


def test_a_standard_error_by_question():
    pairs = [p for i in range(40) for p in circle(i, "A", "A" if i % 2 else "B")]
    found = numbers(score("mmbench", pairs))["circular"]
    assert found.value == 50.0
    assert found.se == pytest.approx(100 * 0.5 / 40**0.5, rel=0.1)  # sqrt(p (1 - p) / 40), by bootstrap


def test_nothing():
    found = numbers(score("mmbench", []))
    assert [(m.value, m.n) for m in found.values()] == [(None, 0), (None, 0)]


def test_a_judge_is_right_from_a_half_on():
    for value, right in ((0.5, 100.0), (0.49, 50.0), (0.0, 50.0)):
        assert numbers(score("mmbench", circle(1, "A", "the first"), Judge("model", value)))["accuracy"].value == right


def test_every_question_counts_alike_whatever_its_rotations():
    # questions of 2, 3 and 4 rotations; only that of 4 is right throughout: 1 of 3
    pairs = circle(1, "A", "B") + circle(2, "A", "A", "B") + circle(3, "A", "A", "A", "A")
    found = numbers(score("mmbench", pairs))
    assert found["circular"].value == pytest.approx(100 / 3)
    assert found["accuracy"].value == pytest.approx(100 * 7 / 9)
    assert (found["circular"].n, found["circular"].n_clusters) == (9, 3)


def test_more_rows_than_options_are_a_whole_circle():
    found = numbers(score("mmbench", circle(1, "A", "A", "A", n_options=2)))["circular"]
    assert (found.value, found.n) == (100.0, 3)


def test_pictures_are_the_clusters_where_the_data_name_them():
    pairs = circle(1, "A", "A") + circle(2, "A", "B")
    same = [(replace(made, cluster="p"), episode) for made, episode in pairs]
    assert numbers(score("mmbench", pairs))["circular"].n_clusters == 2
    assert numbers(score("mmbench", same))["circular"].n_clusters == 1


def test_unread_rows_of_an_open_circle_are_not_counted_as_unparsed_there():
    pairs = circle(1, "A", "who knows", n_options=3)
    found = numbers(score("mmbench", pairs))
    assert (found["accuracy"].n_unparsed, found["circular"].n_unparsed) == (1, 0)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("I choose B", "B"),
        ("I choose B. I choose C.", None),  # judgements must agree
        ("The answer is B. So C.", None),  # a later judgement on another letter
        ("So C. The answer is B.", "B"),  # an earlier one is corrected
        ("The answer is not A but B", "B"),
        ("The answer is A or B", None),
        ("The answer is B. dog", None),  # C's text behind B
        ("Option B is wrong", None),
        ("If the answer is A, it is small", None),
        ("B is not correct", None),
        ("A. a finance chart\nB. a banana", None),  # lists the options
        ("It is yellow\nB", "B"),  # the last line
        ("It is yellow\nE", None),
        ("(E) none", None),
        ("A is correct", "A"),
        ("the answer is a", "A"),
        ("the answer is a thing", None),  # an article
        ("answer: I", None),
        ("not a banana", None),
        ("The answer is A dog", "C"),
        ("The answer is A thing", None),
        ("The answer is B thing", "B"),
        ("The answer is A because it is one", "A"),
        ("The answer is B or A because both fit", None),
        ("The answer is B and A dog is beside it", "B"),  # an article, no second letter
        ("It is a big dog. A dog.", None),  # C and D, in two sentences
    ],
)
def test_statements_judgements_and_ends(text, chosen):
    found = letter(text, OPTIONS)
    assert found == chosen or (chosen is None and isinstance(found, Unparsed))


def test_reasons_of_letters():
    assert letter("", OPTIONS) == Unparsed("empty output")
    assert letter(" . ", OPTIONS) == Unparsed("no option is named")
    assert letter("E", OPTIONS) == Unparsed("E is no option")
    assert letter("The answer is E", OPTIONS) == Unparsed("E is no option")
    assert letter("I choose B. I choose C.", OPTIONS) == Unparsed("more than one option is stated")
    assert letter("B. dog", OPTIONS) == Unparsed("B with another option's text")
    assert letter("a banana, a dog", OPTIONS) == Unparsed("more than one option is named")


def test_an_option_s_text_chooses_in_short_answers_only():
    # up to 200 characters, or twice what the options hold together where that is more
    short = {"A": "cat", "B": "dog"}
    assert letter("It is the dog." + " x" * 93, short) == "B"  # 14 + 186 = 200
    assert letter("It is the dog." + " x" * 93 + "y", short) == Unparsed("no option is named")
    long = {"A": "c" * 150, "B": "dog"}
    assert letter("It is the dog." + " x" * 146, long) == "B"  # 14 + 292 = 306 = 2 * 153
    assert letter("It is the dog." + " x" * 146 + "y", long) == Unparsed("no option is named")
