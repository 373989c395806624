"""Options whose own texts hold points, signs, letters or "yes": each answer with the option that a reader takes it for."""

import pytest

from visrl.core.types import Unparsed
from visrl.evals.equal_words import exact
from visrl.evals.scorers.letters import letter
from visrl.evals.scorers.yes_no import yes_or_no


def named(*texts):
    return dict(zip("ABCDE", texts, strict=False))


NUMBERS = named("5", "5.5", "6", "6.5")
MONEY = named("$1", "$2", "$2.50", "$3.99")
WEIGHTS = named("2 kg", "2.5 kg", "5 kg", "25 kg")


@pytest.mark.parametrize(
    ("text", "options", "right"),
    [
        ("B. 5.5", NUMBERS, "B"),
        ("The answer is B. 5.5", NUMBERS, "B"),
        ("The answer is B. 5.5.", NUMBERS, "B"),
        ("5.5", NUMBERS, "B"),
        ("It is 6.5.", NUMBERS, "D"),
        ("Answer: C. $2.50", MONEY, "C"),
        ("$3.99", MONEY, "D"),
        ("It costs $2.50.", MONEY, "C"),
        ("0.5", named("0.5", "5"), "A"),
        ("2.5 kg", WEIGHTS, "B"),
        ("It weighs 2.5 kg!", WEIGHTS, "B"),
        ("12.5%", named("12.5%", "5%", "25%"), "A"),
        (".5", named("0.5", "5"), "A"),
    ],
)
def test_a_decimal_point_ends_no_sentence(text, options, right):
    assert letter(text, options) == right


CITIES = named("St. Louis", "Washington, D.C.", "Mr. Smith's farm", "10:30 a.m.", "example.com")


@pytest.mark.parametrize("right", "ABCDE")
@pytest.mark.parametrize(
    "wording", ["{text}", "{letter}. {text}", "The answer is {letter}. {text}", "I see {text}", "It's {text}."]
)
def test_a_point_inside_an_option_ends_no_sentence(right, wording):
    assert letter(wording.format(letter=right, text=CITIES[right]), CITIES) == right


def test_an_option_of_two_sentences():
    options = named("It is red. It is large.", "It is red. It is small.")
    assert letter("B. It is red. It is small.", options) == "B"
    assert letter("It is red. It is small.", options) == "B"
    assert letter("A. It is red. It is small.", options) == Unparsed("A with another option's text")


@pytest.mark.parametrize(
    ("text", "options", "right"),
    [
        ("A+", named("B+", "A+", "O-"), "B"),
        ("The grade is A+.", named("B+", "A+", "O-"), "B"),
        ("C++", named("Java", "C++", "Python"), "B"),
        ("The answer is C++", named("Java", "C++", "Python"), "B"),
        ("It is C#.", named("C", "C++", "C#"), "C"),
        ("°C", named("°F", "°C", "K", "m"), "B"),
        ("3~5", named("3~5", "35"), "A"),
        ("A. 3~5", named("3~5", "35"), "A"),
        ("-5", named("-5", "5", "0"), "A"),
        ("A. -5", named("-5", "5", "0"), "A"),
        ("The answer is B: 5", named("-5", "5", "0"), "B"),
        ("x > 3", named("x < 3", "x > 3"), "B"),
        ("It holds that x < 3.", named("x < 3", "x > 3"), "A"),
        ("E", named("E", "F"), "A"),  # no option is lettered E; the first one's text is "E"
        ("B", named("B", "F"), "B"),  # asked for a letter, a letter is one
        ("Don’t walk", named("Don’t walk", "Walk"), "A"),
        ("Don't walk", named("Don’t walk", "Walk"), "A"),
        ("It’s raining", named("It’s raining", "It’s snowing"), "A"),
        ("10 m²", named("10 m²", "20 m²"), "A"),
        ("½ cup", named("½ cup", "1 cup"), "A"),
    ],
)
def test_signs_that_tell_options_apart(text, options, right):
    assert letter(text, options) == right


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("The value is -3.", named("3", "4", "5")),
        ("A. 5", named("-5", "5", "0")),
        ("C++", named("Java", "C", "Rust")),
    ],
)
def test_another_sign_is_another_answer(text, options):
    assert isinstance(letter(text, options), Unparsed)


@pytest.mark.parametrize(
    ("text", "options", "right"),
    [
        ("Solution B is the correct answer.", named("neither", "Solution A", "Solution B"), "C"),
        ("Sample A is the right answer.", named("neither", "sample B", "sample A"), "C"),
        ("Person A is correct.", named("Person B", "Person A"), "B"),
        ("Vitamin C is the correct answer.", named("Vitamin A", "Vitamin C", "Vitamin D"), "B"),
        ("Point B is correct", named("point B", "point C", "point D"), "A"),
        ("E. coli", named("yeast", "E. coli", "C. elegans", "mould", "algae"), "B"),
        ("C. elegans is the one shown.", named("yeast", "E. coli", "C. elegans"), "C"),
        ("The answer is A and B", named("A", "B", "C", "A and B"), "D"),
        ("B. Vitamin C", named("Vitamin A", "Vitamin C", "Vitamin D"), "B"),
    ],
)
def test_a_letter_of_an_options_text_is_no_choice(text, options, right):
    assert letter(text, options) == right


YES_NO = named("yes", "no")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("No, it is not.", "B"),
        ("No, there is no cat.", "B"),
        ("Yes, it is not a problem.", "A"),
        ("yes", "A"),
        ("B. No", "B"),
        ("The answer is no.", "B"),
    ],
)
def test_yes_and_no_as_options(text, right):
    assert letter(text, YES_NO) == right


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("No idea", YES_NO),
        ("There is no way to tell from the image.", YES_NO),
        ("Yes and no", YES_NO),
        ("That's right.", named("left", "right")),
        ("A. No", YES_NO),
    ],
)
def test_what_names_no_option(text, options):
    assert isinstance(letter(text, options), Unparsed)


def test_the_next_question_is_not_the_answer():
    options = named("a lamp", "a jug")
    assert letter("B\n\nQuestion: What is in the picture?\nA. a cat\nB. a dog\nAnswer: A", options) == "B"
    assert letter("B. a jug\nUSER: And now?\nASSISTANT: A", options) == "B"
    assert (
        letter("Let me repeat it.\nQuestion: what stands there?\nAnswer: B", options) == "B"
    )  # nothing is said before


@pytest.mark.parametrize(
    "text",
    [
        "$\\boxed{\\text{(B)}}$",
        "The answer is $\\boxed{\\text{(B)}}$",
        "Answer B.",
        "<b>B</b>",
        "Final: B",
        "Prediction: B",
    ],
)
def test_a_letter_in_other_marks(text):
    assert letter(text, named("a lamp", "a jug")) == "B"


def test_a_number_may_lack_its_zero():
    assert (
        exact(".5", "0.5") == 1
        and exact(".5", "5") == 0
        and exact("-.87", "-0.87") == 1
        and exact("$.50", "$0.50") == 1
    )


REASONING = "The picture has several parts that have to be compared. " * 8
LETTERED = {letter: f"Option {letter}" for letter in "ABCD"}


@pytest.mark.parametrize(
    ("text", "options", "right"),
    [
        ("The answer is Option B.", LETTERED, "B"),
        ("Answer: Option B", LETTERED, "B"),
        ("Option B is correct.", LETTERED, "B"),
        ("Figure B is correct", {letter: f"Figure {letter}" for letter in "ABCD"}, "B"),
        ("The answer is (b).", {letter: f"({letter.lower()})" for letter in "ABCD"}, "B"),
        ("The answer is B. subtilis.", named("E. coli", "B. subtilis"), "B"),
    ],
)
def test_an_option_that_names_its_own_letter_is_chosen_behind_any_reasoning(text, options, right):
    assert letter(text, options) == right
    assert letter(f"{REASONING}\n{text}", options) == right


@pytest.mark.parametrize("text", ["<B>", "Answer: <B>", "The answer is <B>", "<answer><B></answer>", "<b>B</b>"])
def test_a_letter_in_angle_brackets_is_no_markup(text):
    assert letter(text, named("a lamp", "a jug", "a radio")) == "B"


ENDINGS = {
    "Based on the image, yes.": "yes",
    "It is yes.": "yes",
    "The answer to the question is no.": "no",
    "The answer, based on the image, is yes.": "yes",
    "I think yes": "yes",
    "The dog is on the left, so no.": "no",
    "Result: no": "no",
    "Answer yes": "yes",
    "I would not say no.": None,
    "It is hard to say yes.": None,
    "It is one of two: yes, no.": None,
    "I am not sure, so no.": None,
    "There is not. Yes?": None,
    "There is no dog. Yes.": None,
    "There is a dog, so no.": None,
}


@pytest.mark.parametrize("text", ENDINGS)
def test_a_yes_or_no_at_the_end(text):
    found, chosen = yes_or_no(text, "Is there a dog?"), letter(text, YES_NO)
    assert (None if isinstance(found, Unparsed) else found) == ENDINGS[text]
    assert (None if isinstance(chosen, Unparsed) else chosen) == {"yes": "A", "no": "B", None: None}[ENDINGS[text]]
