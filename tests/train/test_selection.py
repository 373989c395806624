"""Which chains become a pair. Scores are written (answer, box); None: the critic failed; "?": not asked yet."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visrl.core.types import Score
from visrl.train.data.candidates import Candidate
from visrl.train.pairs.selection import Decision, Rule, decide

CODE, PAPER = Rule(), Rule("paper")


def score(value):
    return None if value == "?" else Score(value, "" if value is not None else "failed")


def chains(*pairs):
    return [Candidate(answer_score=score(answer), box_score=score(box)) for answer, box in pairs]


def pairs(rule, *scores):
    return decide(chains(*scores), rule).pairs


def test_code_takes_the_first_of_the_best_and_of_the_worst_that_pass():
    #       best, box too low; best, passes; worst, box too high; worst, passes; worst too, but later
    assert pairs(CODE, (1, 0.7), (1, 0.8), (0, 0.3), (0, 0.2), (0, 0.0)) == ((1, 3),)


def test_code_looks_at_the_extremes_only():
    # .9 would pass, but the best answer is 1, and its box fails: no pair (filter.py)
    assert pairs(CODE, (1, 0.1), (0.9, 1), (0, 0)) == ()
    assert pairs(PAPER, (1, 0.1), (0.9, 1), (0, 0)) == ((1, 2),)


@pytest.mark.parametrize("scores", [[(0.79, 1), (0, 0)], [(1, 1), (0.21, 0)], [(1, 1), (1, 0)], [(1, 1)], []])
def test_code_needs_a_good_and_a_bad_answer(scores):
    assert pairs(CODE, *scores) == ()


def test_the_lower_threshold_is_inclusive_in_code_and_strict_in_the_paper():
    assert pairs(CODE, (0.8, 0.8), (0.2, 0.2)) == ((0, 1),)
    assert pairs(PAPER, (0.8, 0.8), (0.2, 0.2)) == ()
    assert pairs(PAPER, (0.8, 0.8), (0.19, 0.19)) == ((0, 1),)


def test_a_missing_score_is_in_no_set():
    assert pairs(CODE, (1, None), (1, 1), (None, 0), (0, 0)) == ((1, 3),)
    # the chain without a box score is dropped before best and worst are looked for: .9 is then the best
    assert pairs(CODE, (1, None), (0.9, 1), (0, 0)) == ((1, 2),)


def test_paper_matches_the_best_win_with_the_worst_lose():
    scores = [(0.8, 0.8), (1, 0.9), (0.1, 0.1), (0, 0), (1, 0.9)]
    # wins by sum: 1 and 4 have 1.9 (the earlier first), 0 has 1.6. Loses: 3 has 0, 2 has .2
    assert pairs(PAPER, *scores) == ((1, 3),)
    assert pairs(Rule("paper", pairs=3), *scores) == ((1, 3), (4, 2))


def test_without_the_box_critic_answers_alone_decide():
    assert pairs(Rule(box_critic=False), (1, "?"), (1, "?"), (0, "?")) == ((0, 2),)
    assert pairs(Rule("paper", box_critic=False), (0.8, "?"), (1, "?"), (0, "?")) == ((1, 2),)


def test_boxes_are_asked_about_one_by_one_and_only_where_it_matters():
    assert decide(chains((1, "?"), (1, "?"), (0, "?")), CODE) == Decision(wanted=0)
    assert decide(chains((1, 0.5), (1, "?"), (0, "?")), CODE) == Decision(wanted=1)
    assert decide(chains((1, 0.5), (1, 0.5), (0, "?")), CODE) == Decision()  # no win: the lose need not be looked at
    assert decide(chains((1, 0.9), (1, "?"), (0, "?")), CODE) == Decision(wanted=2)
    assert decide(chains((1, "?"), (1, "?")), CODE) == Decision()  # all answers are right: nothing to ask
    assert decide(chains((1, "?"), (0.5, "?"), (0, 0)), CODE) == Decision(wanted=0)


values = st.sampled_from([None, 0.0, 0.1, 0.2, 0.5, 0.8, 0.9, 1.0])
rules = st.builds(
    Rule,
    st.just("code") | st.just("paper"),
    box_critic=st.booleans(),
    pairs=st.sampled_from([1, 3]),
    min_difference=st.sampled_from([None, 0.1, 0.3]),
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(values, values), max_size=6), rules)
def test_asking_lazily_gives_the_pairs_of_asking_everything(scores, rule):
    known = chains(*[(answer, "?") for answer, _ in scores])
    asked = 0
    while (place := decide(known, rule).wanted) is not None:
        assert known[place].box_score is None, "asked twice"
        known[place].box_score = score(scores[place][1])
        asked += 1
    assert decide(known, rule).pairs == pairs(rule, *scores)
    assert asked <= len(scores)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(values, values), min_size=2, max_size=6))
def test_a_pair_of_code_is_what_filter_py_would_choose(scores):
    """An independent reading of docs/method.md d, Filter."""
    kept = [(i, a, b) for i, (a, b) in enumerate(scores) if a is not None and b is not None]
    expected = ()
    if kept:
        best, worst = max(a for _, a, _ in kept), min(a for _, a, _ in kept)
        wins = [i for i, a, b in kept if a == best and b >= 0.8]
        loses = [i for i, a, b in kept if a == worst and b <= 0.2]
        if best >= 0.8 and worst <= 0.2 and best != worst and wins and loses:
            expected = ((wins[0], loses[0]),)
    assert pairs(CODE, *scores) == expected


def test_the_official_thresholds():
    assert (CODE.win_box, CODE.win_answer, CODE.lose_box, CODE.lose_answer) == (0.8, 0.8, 0.2, 0.2)
    assert (CODE.mode, CODE.box_critic, CODE.pairs) == ("code", True, 1)


def test_each_threshold_is_its_own():
    rule = Rule(win_box=0.5, win_answer=0.6, lose_box=0.3, lose_answer=0.4)
    assert pairs(rule, (0.6, 0.5), (0.4, 0.3)) == ((0, 1),)
    for wrong in (
        ((0.6, 0.49), (0.4, 0.3)),
        ((0.59, 0.5), (0.4, 0.3)),
        ((0.6, 0.5), (0.41, 0.3)),
        ((0.6, 0.5), (0.4, 0.31)),
    ):
        assert pairs(rule, *wrong) == ()
    paper = Rule("paper", win_box=0.5, win_answer=0.6, lose_box=0.3, lose_answer=0.4)
    assert pairs(paper, (0.6, 0.5), (0.39, 0.29)) == ((0, 1),)
    for wrong in (
        ((0.6, 0.49), (0.39, 0.29)),
        ((0.59, 0.5), (0.39, 0.29)),
        ((0.6, 0.5), (0.4, 0.29)),
        ((0.6, 0.5), (0.39, 0.3)),
    ):
        assert pairs(paper, *wrong) == ()


def test_equal_answers_make_no_pair_even_where_both_thresholds_allow_it():
    assert pairs(Rule(win_answer=0.5, lose_answer=0.5), (0.5, 1), (0.5, 0)) == ()


APART = Rule(min_difference=0.2)


def test_where_no_threshold_is_reached_the_best_and_the_worst_box_are_a_pair():
    #         best answers: boxes .5, .6; worst answers: boxes .45, .4. No box >= .8 or <= .2; .6 - .4 = .2 is enough
    scores = [(1, 0.5), (1, 0.6), (0, 0.45), (0, 0.4)]
    assert pairs(CODE, *scores) == ()
    assert pairs(APART, *scores) == ((1, 3),)
    assert pairs(Rule("paper", min_difference=0.2), *scores) == ((1, 3),)
    assert pairs(Rule(min_difference=0.21), *scores) == ()
    assert pairs(APART, (1, 0.9), (0, 0.7)) == ((0, 1),)  # .9 - .7 is .2, whatever its last bit


def test_of_equal_differences_the_first_chains_are_the_pair():
    assert pairs(APART, (1, 0.6), (1, 0.6), (0, 0.3), (0, 0.3)) == ((0, 2),)


def test_answers_have_to_be_as_far_apart():
    assert pairs(APART, (0.7, 0.6), (0.5, 0.3)) == ((0, 1),)
    assert pairs(APART, (0.7, 0.6), (0.51, 0.3)) == ()
    assert pairs(APART, (0.7, 0.6), (0.5, 0.41)) == ()
    assert pairs(APART, (0.7, 0.6)) == pairs(APART) == ()
    # the second chain's box is worse, but its answer is not the worst: .6 - .5 = .1
    assert pairs(APART, (0.7, 0.6), (0.5, 0.0), (0.4, 0.5)) == ()


def test_a_pair_of_the_thresholds_stays_what_it_is():
    scores = [(1, 0.8), (1, 1.0), (0, 0.2), (0, 0.0)]
    assert pairs(APART, *scores) == pairs(CODE, *scores) == ((0, 2),)


def test_a_difference_of_answers_alone_without_the_box_critic():
    assert pairs(Rule(min_difference=0.2, box_critic=False), (0.7, "?"), (0.6, "?"), (0.3, "?")) == ((0, 2),)


def test_a_missing_score_is_no_difference():
    assert pairs(APART, (1, None), (1, 0.5), (0, None), (0, 0.3)) == ((1, 3),)
    assert pairs(APART, (1, None), (0, 0.3)) == ()


def test_boxes_are_asked_about_for_a_difference_only_once_no_threshold_can_give_a_pair():
    assert decide(chains((1, 0.7), (1, 0.6), (0, "?")), CODE) == Decision()
    assert decide(chains((1, 0.7), (1, 0.6), (0, "?")), APART) == Decision(wanted=2)
    assert decide(chains((1, "?"), (0.9, "?")), APART) == Decision()  # answers .1 apart: nothing to ask
