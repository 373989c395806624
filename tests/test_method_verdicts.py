"""Sentences on methods, from paths made by hand: three seeds, .5 apart."""

import pytest

from visrl.tables.cost_tables import Progress
from visrl.tables.science.method_verdicts import verdicts


def path(tokens, *boxes):
    return Progress((0.0, tokens / 2, tokens), (0.0, 1.0, 2.0), {"box": boxes})


@pytest.fixture
def found():
    """full: 40 -> 50 -> 60 over 4 tokens. grpo_answer: 40 -> 42 -> 44 over 8. grpo_critic: as grpo_answer, but seeds go both ways."""
    seeds = (0.0, 0.5, 1.0)
    return {
        "full": {i: path(4, 40.0, 50.0, 60.0 + more) for i, more in enumerate(seeds)},
        "grpo_answer": {i: path(8, 40.0, 42.0 + more, 44.0) for i, more in enumerate(seeds)},
        "grpo_critic": {i: path(8, 40.0, 42.0, 44.0 + more) for i, more in enumerate((-1.0, 0.0, 1.5))},
    }


def test_methods_are_compared_where_the_cheaper_one_ended(found):
    """grpo_answer at 4 of its 8 tokens: 42, 42.5, 43 against 60, 60.5, 61: -18, the same in every seed, no error."""
    lines = verdicts(found, ["box"])
    assert (
        lines[0] == "- `grpo_answer` against `full`, at the tokens of the one that took fewer: box -18.0 ± 0.0, lower."
    )
    # 42 - (60, 60.5, 61) = -18, -18.5, -19: s = .5, over sqrt 3 = .3
    assert lines[1].endswith("box -18.5 ± 0.3, lower.")


def test_what_is_within_two_errors_is_not_told_apart(found):
    """Both end at 8: 43, 44, 45.5 against 44: -1, 0, 1.5, mean .17, s = 1.258, over sqrt 3 = .7."""
    lines = verdicts(found, ["box"])
    assert lines[2] == (
        "- Box critics under GRPO: `grpo_critic` against `grpo_answer`, at the tokens of the one that took fewer:"
        " box +0.2 ± 0.7, not told apart."
    )
    # 40 -> 44 in every seed
    assert lines[3] == "- The answer's reward alone: box +4.0 ± 0.0, higher since the warm-up."
    assert len(lines) == 4


def test_two_seeds_decide_nothing_and_without_the_method_itself_nothing_is_said(found):
    two = {run: {seed: by_seed[seed] for seed in (0, 1)} for run, by_seed in found.items()}
    assert verdicts(two, ["box"])[0].endswith("box -18.0 ± 0.0, too few seeds.")
    assert verdicts({"grpo_answer": found["grpo_answer"]}, ["box"]) == []
    assert "box not measured" in verdicts({"full": found["full"], "online": {7: found["full"][0]}}, ["box"])[0]
