"""The margin critic: which answers a standard answer is held against, its score, and what fits it."""

import math

import pytest
from pairs_made import FakePolicy, question

from visrl.core.types import CoTSample, Picture
from visrl.errors import UsageError
from visrl.policies.protocol import LogLikelihood, Tokens
from visrl.train.critics.calibration import ANY, Calibration, Line, Look, fit
from visrl.train.critics.critics import CriticSection, Question, make_critic, uncalibrated
from visrl.train.critics.margin_critic import NO_RIVAL, MarginCritic
from visrl.train.critics.rivals import MOST, rivals_of

LETTERS = "\nAnswer with the option's letter from the given choices directly."
LISTED = "What is it?\nA. dog\nB. cat\nC. a big cow"
INLINE = "What is it? (A) dog (B) cat (C) a big cow"


def asked(text, *answers, instruction=""):
    return CoTSample("q", "pairs", "qa", text, answers=answers, instruction=instruction)


@pytest.mark.parametrize(
    ("text", "standard", "kind", "rivals"),
    [
        ("Is it red?", "yes", "yes", ("no",)),
        ("Is it red?", "No", "no", ("Yes",)),  # CUB's and VSR's spelling
        ("Is it red?", "Yes.", "yes", ("No.",)),
        ("Is it red?", "NO", "no", ("YES",)),
        (LISTED, "B", "option", ("A", "C")),
        (LISTED, "(B)", "option", ("(A)", "(C)")),
        (LISTED, "B.", "option", ("A.", "C.")),
        (LISTED, "cat", "option", ("dog", "a big cow")),
        (INLINE, "a big cow", "option", ("dog", "cat")),
        (INLINE, "B. cat", "option", ("A. dog", "C. a big cow")),
        ("Who is younger, the man or the boy?", "boy", "choice", ("man",)),  # GQA's
        ("What is the dome on, an oven or a microwave?", "oven", "choice", ("microwave",)),
        ("Which is more used - LinkedIn or Facebook?", "facebook", "choice", ("linkedin",)),  # InfographicsVQA's
        ("Which is more direct - email marketing or social media marketing?", "email marketing", "choice",
         ("social media marketing",)),
        ("What share is it, 54%, 90%, or 72%?", "72%", "choice", ("90%",)),
        ("How many kings are there?", "3", "count", tuple("012456789")),
        ("How many kings are there?", "Three", "count",
         ("Zero", "One", "Two", "Four", "Five", "Six", "Seven", "Eight", "Nine")),
    ],
)  # fmt: skip
def test_the_answers_a_question_admits_are_spelled_as_the_standard_answer(text, standard, kind, rivals):
    found = rivals_of(asked(text, standard, instruction=LETTERS if "\nA." in text else ""), ("whatever",))
    assert (found.kind, found.texts) == (kind, rivals)


@pytest.mark.parametrize(
    ("text", "standard"),
    [
        ("What word is on the sign?", "Nice"),
        ("Who is J. Smith?", "B"),  # an initial is no option
        ("Is it connected on the screen or connecting?", "connecting"),  # what the first choice is cannot be told
        ("How many kings are there?", "12"),
        ("Which one?\nA. dog", "A"),  # one option is none
        ("Is it red or blue?", "green"),
    ],
)
def test_an_open_question_s_rivals_are_the_policy_s_wrong_answers_the_commonest_first(text, standard):
    sampled = ("Rice", standard, "mice", "Rice", " ", standard.upper() + ".", "")
    assert rivals_of(asked(text, standard), sampled) == rivals_of(asked(text, standard), ("Rice", "mice"))
    assert rivals_of(asked(text, standard), sampled).texts == ("Rice", "mice")
    assert rivals_of(asked(text, standard), sampled).kind == "open"
    assert rivals_of(asked(text, standard)).texts == ()
    assert len(rivals_of(asked(text, standard), tuple(f"wrong {i}" for i in range(20))).texts) == MOST


def test_an_answer_that_any_standard_answer_calls_right_is_no_rival():
    assert rivals_of(asked("What is it?", "sofa", "couch"), ("couch", "bed")).texts == ("bed",)


class Reader(FakePolicy):
    """Says how probable each text is, whatever the crop."""

    scores_texts = True

    def __init__(self, **likely):
        super().__init__("org", [])
        self.likely, self.calls, self.read = likely, 0, []

    def loglikelihood(self, requests, completions):
        self.calls += 1
        self.read += [(r.key, r.turns[0].pictures[0].ref, text) for r, text in zip(requests, completions, strict=True)]
        return [
            LogLikelihood(math.log(self.likely[t]), tokens=Tokens(10))
            if t in self.likely
            else LogLikelihood(error="503")
            for t in completions
        ]


def about(sample, sampled=(), crop="p#c"):
    return Question(sample, Picture("p", lambda: None), Picture(crop, lambda: None), sampled=sampled)


def test_the_score_is_the_standard_answer_s_share_of_it_and_its_best_rival():
    reader = Reader(no=0.3, yes=0.6, B=0.5, A=0.1, C=0.25)
    critic = make_critic("margin", reader, "exact")
    yes, letter = critic.boxes([about(asked("Is it red?", "yes")), about(asked(LISTED, "B"), crop="p#d")])
    assert yes.score.value == pytest.approx(0.6 / 0.9, abs=1e-6)  # .6 against .3
    assert letter.score.value == pytest.approx(0.5 / 0.75, abs=1e-6)  # .5 against .25, the better of A and C
    assert yes.tokens.prompt == 20 and letter.tokens.prompt == 30  # two answers and three, ten tokens each
    assert reader.calls == 1, "all answers of all questions are one call"
    assert reader.read == [("q", "p#c", "yes"), ("q", "p#c", "no")] + [("q", "p#d", letter) for letter in "BAC"]
    assert critic.name == "margin:org" and yes.score.reason == ""


def test_an_open_question_is_held_against_what_the_policy_said_or_else_against_all_else():
    critic = MarginCritic(Reader(Nice=0.2, Rice=0.6, mice=0.05))
    sample = asked("What word?", "Nice")
    against, alone = critic.boxes([about(sample, ("mice", "Rice", "Nice")), about(sample, ("Nice",))])
    assert against.score.value == pytest.approx(0.2 / 0.8, abs=1e-6)
    # alone: log .2 - log .8, so σ = .2: the likelihood, and it says so
    assert (alone.score.value, alone.score.reason) == (pytest.approx(0.2, abs=1e-6), NO_RIVAL)
    (certain,) = MarginCritic(Reader(Nice=1.0)).boxes([about(sample)])
    assert certain.score.value == 1.0


def test_open_answers_may_be_left_to_the_likelihood():
    section = CriticSection(kind="margin", model="base", temperature=0.5, open_answers="likelihood")
    reader = Reader(Nice=0.2, Rice=0.6, yes=0.6, no=0.3)
    margin, likelihood = uncalibrated(section, reader), make_critic("likelihood", reader, "exact")
    word = about(asked("What word?", "Nice"), ("Rice", "Nice"))
    judged, closed = margin.boxes([word, about(asked("Is it red?", "yes"))])
    # the temperature is of what is held against others: yes has 2 to 1, squared 4 to 1; Nice has its own .2
    assert judged.score == likelihood.boxes([word])[0].score and judged.score.value == 0.2
    assert closed.score.value == pytest.approx(4 / 5, abs=1e-6)
    assert ("q", "p#c", "Rice") not in reader.read and margin.describe()["open_answers"] == "likelihood"


def test_one_answer_that_could_not_be_read_is_no_score():
    (judged,) = MarginCritic(Reader(yes=0.6)).boxes([about(asked("Is it red?", "yes"))])
    assert judged.score is None and judged.error == "503"


def test_a_temperature_divides_the_margin():
    section = CriticSection(kind="margin", model="base", temperature=0.5)
    critic = uncalibrated(section, Reader(yes=0.6, no=0.3))
    (judged,) = critic.boxes([about(asked("Is it red?", "yes"))])
    # odds of 2 to 1, squared: 4 to 1
    assert judged.score.value == pytest.approx(4 / 5, abs=1e-6)
    assert critic.describe()["calibration"]["temperature"] == 0.5
    assert make_critic("margin", Reader(), "exact").describe()["calibration"]["temperature"] == 1.0


def test_only_a_margin_has_a_temperature_and_one_way_of_finding_it():
    with pytest.raises(ValueError, match=r"temperature is of critic\.kind margin, and this is likelihood"):
        CriticSection(kind="likelihood", model="base", temperature=0.5)
    data = {"format": "world", "split": "val", "limit": 5}
    with pytest.raises(ValueError, match="one of them"):
        CriticSection(kind="margin", model="base", temperature=0.5, calibration={"data": data})
    with pytest.raises(UsageError, match="does not report log-probabilities"):
        make_critic("margin", FakePolicy("x", []), "exact")
    with pytest.raises(UsageError, match=r"critic\.kind margin needs critic\.model"):
        make_critic("margin", None, "exact")


def test_the_answers_are_scored_as_the_likelihood_critic_scores_them():
    right = question(0).answers[0]
    critic = MarginCritic(Reader())
    scores = critic.answers([Question(question(0), Picture("p", lambda: None), answer=a) for a in (right, "Z")])
    assert [judged.score.value for judged in scores] == [1.0, 0.0]


# --- what is fitted


def test_the_temperature_makes_the_share_of_preferred_answers_what_the_score_says():
    # 30 margins of 2 nats and 10 of -2: σ(2 / T) = 30 / 40, so 2 / T = log 3 and T = 2 / log 3 = 1.8205
    looks = [Look("yes", 2.0, True)] * 30 + [Look("no", -2.0, True)] * 10
    found = fit(looks, "answer")
    assert found.to_json()["temperature"] == pytest.approx(2 / math.log(3), abs=1e-3)
    assert found.score("yes", 2.0) == pytest.approx(0.75, abs=1e-4)
    assert (found.lines[ANY].looks, found.lines[ANY].right) == (40, 30)


def test_each_kind_of_answer_has_a_line_of_its_own_where_its_looks_are_enough():
    # yes: of 40 looks at 1 nat 30 are right, of 40 at -1 ten. log odds log 3 and -log 3: slope log 3, offset 0
    # no: the other way round: slope -log 3. open: too few, so it is scored by the line of all 170 looks
    yes = [Look("yes", m, i < right) for m, right in ((1.0, 30), (-1.0, 10)) for i in range(40)]
    no = [Look("no", m, i < right) for m, right in ((1.0, 10), (-1.0, 30)) for i in range(40)]
    few = [Look("open", 0.0, True)] * 10
    found = fit([*yes, *no, *few], "box")
    assert set(found.lines) == {ANY, "yes", "no"}
    for kind, sign in (("yes", 1), ("no", -1)):
        assert found.lines[kind].slope == pytest.approx(sign * math.log(3), abs=1e-3)
        assert found.lines[kind].offset == pytest.approx(0.0, abs=1e-3)
        assert found.score(kind, sign * 1.0) == pytest.approx(0.75, abs=1e-4)
    # of all 170 looks 90 are right; at 1 nat 40 of 80, at -1 nat 40 of 80, at 0 ten of ten: slope 0, odds 90 to 80
    assert found.lines[ANY].slope == pytest.approx(0.0, abs=1e-3)
    assert found.score("open", 3.0) == pytest.approx(90 / 170, abs=1e-3)
    assert Calibration.from_json(found.to_json()) == found


@pytest.mark.parametrize(("right", "wrong", "enough"), [(8, 32, True), (7, 33, False), (32, 7, False), (33, 8, True)])
def test_a_line_takes_forty_looks_and_eight_of_both_sorts(right, wrong, enough):
    looks = [Look("yes", 1.0, True)] * right + [Look("yes", 0.0, False)] * wrong
    if enough:
        assert fit(looks, "box").lines["yes"].right == right
    else:
        with pytest.raises(UsageError, match=rf"{right + wrong} looks with a true box, {right} of them right"):
            fit(looks, "box")


def test_a_temperature_that_cannot_be_is_refused():
    with pytest.raises(UsageError, match="39 true crops, and a temperature takes 40"):
        fit([Look("yes", 1.0, True)] * 39, "answer")
    with pytest.raises(UsageError, match="does not prefer the standard answer"):
        fit([Look("yes", 1.0, True), Look("yes", -1.0, True)] * 20, "answer")


def test_a_margin_beyond_all_measure_is_a_score_of_0_or_1():
    calibration = Calibration({ANY: Line(20.0, 20.0)})
    assert (calibration.score("open", 1e9), round(calibration.score("open", -1e9), 6)) == (1.0, 0.0)
