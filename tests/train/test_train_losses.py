"""The poster's equations against arithmetic done by hand."""

import math

import pytest
import torch

from visrl.train.dpo.losses import LN2, Term, log_preference, stage_terms, weighted_sum

OFFICIAL = {"beta_box": 0.1, "beta_answer": 0.2, "lambda_box": 0.5, "lambda_answer": 0.25}


def test_p_is_the_log_sigmoid_of_the_scaled_difference_of_log_ratios():
    # win: -10 against -12 of the reference, ratio +2; lose: -20 against -19, ratio -1; beta .1: .1 * (2 - -1) = .3
    p = log_preference(*(torch.tensor([v]) for v in (-10.0, -20.0, -12.0, -19.0)), beta=0.1)
    assert p.item() == pytest.approx(math.log(1 / (1 + math.exp(-0.3))), abs=1e-6)


def test_a_policy_that_is_its_reference_has_loss_ln2():
    x, y = torch.tensor([-3.0, -7.0]), torch.tensor([-5.0, -1.0])
    assert -log_preference(x, y, x, y, beta=0.7).mean().item() == pytest.approx(LN2)


def test_stage_one_is_the_box_alone_and_stage_two_both_with_their_own_beta():
    assert stage_terms(1, **OFFICIAL) == (Term("box", 1.0, 0.1),)
    assert stage_terms(2, **OFFICIAL) == (Term("box", 0.5, 0.1), Term("answer", 0.25, 0.2))
    with pytest.raises(ValueError, match="stages 1 and 2"):
        stage_terms(3, **OFFICIAL)


def test_stage_two_minimises_minus_lambda_p_not_plus():
    # P_B = -.6, P_R = -.2: L = -(.5 * -.6 + .25 * -.2) = .35; the poster's printed sign would give -.35
    terms = stage_terms(2, **OFFICIAL)
    assert weighted_sum(terms, {"box": torch.tensor(0.6), "answer": torch.tensor(0.2)}).item() == pytest.approx(0.35)


def test_the_scale_is_the_difference_of_both_ratios():
    # ratios +2 and +5: .5 * (2 - 5) = -1.5
    p = log_preference(*(torch.tensor([v]) for v in (-10.0, -20.0, -12.0, -25.0)), beta=0.5)
    assert p.item() == pytest.approx(math.log(1 / (1 + math.exp(1.5))), abs=1e-6)


def test_three_terms_are_added():
    terms = (Term("box", 0.5, 0.1), Term("answer", 0.25, 0.2), Term("answer", 2.0, 0.2))
    assert weighted_sum(terms, {"box": torch.tensor(1.0), "answer": torch.tensor(3.0)}).item() == pytest.approx(
        0.5 + 0.75 + 6
    )
