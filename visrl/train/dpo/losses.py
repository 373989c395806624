"""The poster's equations of step-level DPO (arXiv 2503.07523, Step-level DPO; docs/method.md e).

    P_B = log sigma( beta_1 log pi(B_win|x)/pi_ref(B_win|x) - beta_1 log pi(B_lose|x)/pi_ref(B_lose|x) )
    P_R = the same with beta_2, R and x^ = (picture, crop of the *win* box, prompt)
    L_stage1 = -E[P_B]                  L_stage2 = -(lambda_B E[P_B] + lambda_R E[P_R])

log pi(B|x) is the sum of the log-probabilities of B's tokens. pi_ref is the policy as it was when the stage began.

Departures from the poster:
1. its L_stage2 has L_B and L_R where only P_B and P_R give the right sign (its own figure has them); the official
  code minimises
   0.5 DPO(box) + 0.5 DPO(answer), which is the equation above with lambda_B = lambda_R = .5.
2. in place of -P any of TRL's DPO losses may stand, or several with weights (``trainer.loss_type``): ``[sigmoid,
   sft]`` adds an RPO-style term. :func:`log_preference` then still guards the start of a phase.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

TermName = Literal["box", "answer"]
LN2 = math.log(2.0)


@dataclass(frozen=True, slots=True)
class Term:
    """One step's part of the loss: its lambda (``weight``) and its beta."""

    name: TermName
    weight: float
    beta: float


def stage_terms(
    stage: int, *, beta_box: float, beta_answer: float, lambda_box: float, lambda_answer: float
) -> tuple[Term, ...]:
    """The terms of stage 1 (box alone, weight 1) or stage 2 (box and answer). Raises ValueError for another stage."""
    if stage == 1:
        return (Term("box", 1.0, beta_box),)
    if stage == 2:
        return (Term("box", lambda_box, beta_box), Term("answer", lambda_answer, beta_answer))
    raise ValueError(f"step-level DPO has stages 1 and 2, not {stage}")


def log_preference(win: Tensor, lose: Tensor, ref_win: Tensor, ref_lose: Tensor, beta: float) -> Tensor:
    """P of one term, per pair. All arguments are summed log-probabilities [B]; returns [B], at most 0."""
    import torch.nn.functional as F

    return F.logsigmoid(beta * (win - ref_win) - beta * (lose - ref_lose))


def weighted_sum(terms: Sequence[Term], losses: Mapping[TermName, Tensor]) -> Tensor:
    """L of a stage: sum over its terms of lambda times the term's loss (``-E[P]``, or what TRL makes of it)."""
    total = losses[terms[0].name] * terms[0].weight
    for term in terms[1:]:
        total = total + losses[term.name] * term.weight
    return total
