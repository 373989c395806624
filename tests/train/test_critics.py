"""Reading scores, and the critics that give them."""

import math

import pytest
from pairs_made import SIZE, FakeCritic, FakePolicy, question

from visrl.core.boxes import Box, iou
from visrl.core.types import Picture
from visrl.errors import UsageError
from visrl.policies.protocol import LogLikelihood, Output
from visrl.train.critics.critics import (
    P_ANSWER_CRITIC,
    P_BOX_CRITIC,
    LikelihoodCritic,
    OracleCritic,
    Question,
    ScoreCritic,
    make_critic,
    read_score,
    without_repeats,
)


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ('{"score": 0.8}', 0.8, ""),
        (' {"score": 1}\n', 1.0, ""),
        ('```json\n{"score": 0.8}\n```', 0.8, "lenient"),
        ("0.5", 0.5, "lenient"),
        ("1", 1.0, "lenient"),
        ('Sure! {"score": 0.3} is fair.', 0.3, "lenient"),
        ('{"score": "0.8"}', 0.8, "lenient"),  # a string breaks the official max()
        ("Score: .7", 0.7, "lenient"),
        ('{"score": 85}', 1.0, "cut from 85"),
        ('{"score": -1}', 0.0, "cut from -1"),
    ],
)
def test_scores_are_read_strictly_then_leniently_and_cut(text, value, reason):
    assert (read_score(text).value, read_score(text).reason) == (value, reason)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "good",
        "null",
        "true",
        '{"score": true}',
        '{"score": null}',
        '{"score": NaN}',
        '{"score": 1e999}',
        '{"score": [1]}',
        "[0.8]",
        "score 0.8 or score: 0.2, score: 0.9",
        "[" * 100_000,
        "score: " * 1000,
    ],
)
def test_what_holds_no_score_is_missing_and_never_zero(text):
    found = read_score(text)
    assert found.value is None and found.reason


def picture(name="p.png"):
    return Picture(name, lambda: None)


def about(i=0, answer="", crop=None, box=None):
    sample = question(i)
    return Question(sample, picture(), picture(crop) if crop else None, box, answer)


class Recorder(FakeCritic):
    """Remembers what it was asked; always gives .8."""

    def __init__(self):
        super().__init__("org", [question(i) for i in range(3)])
        self.asked = []

    def generate(self, requests, sampling):
        self.asked += [(request, sampling) for request in requests]
        return [Output(('{"score": 0.8}',), prompt_tokens=10, output_tokens=7) for _ in requests]


def test_the_box_critic_sees_the_crop_alone():
    critic = Recorder()
    (judged,) = ScoreCritic(critic).boxes([about(crop="p.png#xyxy=0,0,9,9")])
    ((request, sampling),) = critic.asked
    assert [p.ref for turn in request.turns for p in turn.pictures] == ["p.png#xyxy=0,0,9,9"]
    text = request.turns[0].text()
    assert question(0).question in text and f"standard answer: {question(0).answers[0]}" in text
    assert sampling.temperature == 0.0 and judged.score.value == 0.8 and judged.tokens.computed == 17


def test_the_answer_critic_sees_the_whole_picture_and_what_differs_comes_last():
    critic = Recorder()
    judged = ScoreCritic(critic).answers([about(0, "A"), about(1, "B"), about(0, "C")])
    assert [j.score.value for j in judged] == [0.8] * 3
    assert [request.key for request, _ in critic.asked] == ["q0", "q1", "q0"]
    # one answer of each question goes ahead, and its cache is kept; the others can go on from it
    assert [request.keep_cache for request, _ in critic.asked] == [True, True, False]
    texts = [request.turns[0].text() for request, _ in critic.asked]
    assert texts[0].removesuffix("A") == texts[2].removesuffix("C") and "answer: B" in texts[1]


def test_prompts_keep_braces_of_questions():
    for prompt in (P_ANSWER_CRITIC, P_BOX_CRITIC):
        text = prompt.format(question="a {b}?", standard="{c}", answer="{d}")
        assert '{"score": 0.8}' in text and "a {b}?" in text and "{c}" in text


class Scorer(FakePolicy):
    scores_texts = True

    def __init__(self, values):
        super().__init__("org", [])
        self.values, self.asked = values, []

    def loglikelihood(self, requests, completions):
        self.asked += zip(requests, completions, strict=True)
        return [
            LogLikelihood(v) if isinstance(v, float) else LogLikelihood(error=v) for v in self.values[: len(requests)]
        ]


def test_the_likelihood_critic_asks_the_question_of_the_crop_and_scores_the_standard_answer():
    scorer = Scorer([math.log(0.25), "no picture"])
    critic = make_critic("likelihood", scorer, "exact")
    good, bad = critic.boxes([about(crop="p.png#xyxy=0,0,9,9"), about(1, crop="p.png#xyxy=0,0,5,5")])
    assert good.score.value == pytest.approx(0.25)
    assert bad.score is None and bad.error == "no picture"
    request, completion = scorer.asked[0]
    assert completion == question(0).answers[0]
    assert request.turns[0].text() == f"<image>\n{question(0).question}"
    assert [p.ref for p in request.turns[0].pictures] == ["p.png#xyxy=0,0,9,9"]


def test_agreement_is_the_evaluation_s_own_rule():
    right = question(0).answers[0]
    critic = LikelihoodCritic(Scorer([]))
    scores = [judged.score.value for judged in critic.answers([about(0, f"{right.lower()}."), about(0, "Z")])]
    assert scores == [1.0, 0.0]


def test_the_oracle_knows_the_true_box():
    truth = question(0).box
    near = Box(truth.x1 + 10, truth.y1, truth.x2 + 10, truth.y2)
    (judged,) = OracleCritic().boxes([about(box=near)])
    # 80 wide, shifted by 10: 70 / 90
    assert judged.score.value == pytest.approx(iou(near, truth)) == pytest.approx(70 / 90)


def test_repeats_are_asked_about_once():
    questions = [about(0, "A"), about(0, "B"), about(0, "A"), about(1, "A")]
    different, which = without_repeats(questions)
    assert [(q.sample.id, q.answer) for q in different] == [("q0", "A"), ("q0", "B"), ("q1", "A")]
    assert which == [0, 1, 0, 2]


def test_a_critic_that_needs_a_model_says_so():
    with pytest.raises(UsageError, match=r"needs critic\.model"):
        make_critic("score", None, "exact")
    with pytest.raises(UsageError, match="does not report log-probabilities"):
        make_critic("likelihood", FakePolicy("x", []), "exact")
    with pytest.raises(UsageError, match="unknown judge"):
        make_critic("oracle", None, "exactly")
    assert SIZE == (400, 300)


def test_a_blind_critic_scores_texts_and_a_policy_that_only_generates_is_refused():
    from visrl.policies.registry import load_policy

    assert make_critic("likelihood", load_policy("blind:base"), "exact").name == "likelihood:blind:base"
    with pytest.raises(UsageError, match="does not report log-probabilities of texts"):
        make_critic("likelihood", load_policy("constant:A"), "exact")


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ('{"score": 0}', 0.0, ""),
        ('{"score": 1.0}', 1.0, ""),
        ('{"score": 1.01}', 1.0, "cut from 1.01"),
        ('{"score": 0.8, "why": "x"}', 0.8, "lenient"),
        ("```\n0.25\n```", 0.25, "lenient"),
        ('{"score": 1e400}', None, "no score in '{\"score\": 1e400}'"),
        ("score: 0.8.1", None, "no score in 'score: 0.8.1'"),
        ("   ", None, "empty reply"),
        ("x" * 70, None, f"no score in {'x' * 60!r}"),
    ],
)
def test_the_reason_of_a_score(text, value, reason):
    assert (read_score(text).value, read_score(text).reason) == (value, reason)


def test_critics_speak_briefly_and_say_what_they_are():
    critic = Recorder()
    ScoreCritic(critic).boxes([about(crop="c"), about()])
    assert [(s.max_tokens, s.temperature, s.n) for _, s in critic.asked] == [(64, 0.0, 1)] * 2
    assert [request.keep_cache for request, _ in critic.asked] == [False, False]
    assert [request.turns[0].pictures[0].ref for request, _ in critic.asked] == ["c", "p.png"]  # no crop: the picture
    assert (ScoreCritic(critic).name, LikelihoodCritic(Scorer([])).name, OracleCritic().name) == (
        "score:org",
        "likelihood:org",
        "oracle",
    )
    assert (
        ScoreCritic(critic).needs_pictures
        is LikelihoodCritic(critic).needs_pictures
        is critic.needs_pictures
        is not None
    )
    found = ScoreCritic(critic).describe()
    assert (found["kind"], found["prompts"], found["model"]) == ("score", "critics/v1", "org")
    assert OracleCritic("anls").describe() == {"kind": "oracle", "judge": "anls"} and not OracleCritic().needs_pictures
    assert LikelihoodCritic(Scorer([]), "anls").describe()["judge"] == "anls"


def test_likelihoods_are_rounded_to_six_decimals_and_at_most_one():
    critic = make_critic("likelihood", Scorer([math.log(1 / 3), 1e-9, 0.0]), "exact")
    assert [j.score.value for j in critic.boxes([about(i) for i in range(3)])] == [0.333333, 1.0, 1.0]


def test_a_failed_request_is_no_score():
    class Down(Recorder):
        def generate(self, requests, sampling):
            return [Output(error="503", retry=False) for _ in requests]

    (judged,) = ScoreCritic(Down()).boxes([about(crop="c")])
    assert (judged.score, judged.error, judged.tokens) == (None, "503", None)


def test_the_oracle_without_a_box_has_no_score():
    (judged,) = OracleCritic().boxes([about()])
    assert (judged.score.value, judged.score.reason) == (None, "no true box")
    assert judged.tokens.computed == 0 and OracleCritic().answers([about(0, "Z")])[0].tokens.computed == 0


def test_an_online_judge_gives_no_reward():
    with pytest.raises(UsageError, match="not an offline rule"):
        make_critic("oracle", None, "openai:http://h/v1#m")
    assert make_critic("oracle", None, "anls").judge == "anls"


def test_equal_crops_are_asked_about_once_and_no_crop_is_none():
    questions = [about(crop="a"), about(crop="b"), about(crop="a"), about()]
    different, which = without_repeats(questions)
    assert [q.crop.ref if q.crop else "" for q in different] == ["a", "b", ""] and which == [0, 1, 0, 2]
