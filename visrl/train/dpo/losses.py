"""The poster's equations of step-level DPO (arXiv 2503.07523, Step-level DPO; docs/method.md e).

    P_B = log sigma( beta_1 log pi(B_win|x)/pi_ref(B_win|x) - beta_1 log pi(B_lose|x)/pi_ref(B_lose|x) )
    P_R = the same with beta_2, R and x^ = (picture, crop of the *win* box, prompt)
    L_stage1 = -E[P_B]                  L_stage2 = -(lambda_B E[P_B] + lambda_R E[P_R])

Of several looks (docs/method.md h) B has a term per look k, x_k = the conversation up to it along the *win* chain:
    L = -(sum_k lambda_k E[P_Bk] + lambda_R E[P_R]),   lambda_k = w_k (stage 1) or lambda_B w_k (stage 2), w_k = 1 by default.
One look is the equations above.

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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TermName = str
"""``box`` (the one look), ``look1``, ``look2`` … (of several), ``answer``."""
LN2 = math.log(2.0)


@dataclass(frozen=True, slots=True)
class Term:
    """One step's part of the loss: its lambda (``weight``) and its beta."""

    name: TermName
    weight: float
    beta: float


def look_of(term: TermName) -> int | None:
    """Which look a term is of, from 0; None: the answer's."""
    if term == "answer":
        return None
    return 0 if term == "box" else int(term.removeprefix("look")) - 1


def stage_terms(
    stage: int,
    *,
    beta_box: float,
    beta_answer: float,
    lambda_box: float,
    lambda_answer: float,
    weights: Sequence[float] = (1.0,),
) -> tuple[Term, ...]:
    """The terms of stage 1 (boxes alone, lambda 1) or stage 2 (boxes and answer). weights: w_k of each look; a look of weight 0
    has no term, unless it is the only look. Raises ValueError for another stage.
    """
    if stage not in (1, 2):
        raise ValueError(f"step-level DPO has stages 1 and 2, not {stage}")
    names = ["box"] if len(weights) == 1 else [f"look{k}" for k in range(1, 1 + len(weights))]
    scale = 1.0 if stage == 1 else lambda_box
    boxes = [Term(name, scale * w, beta_box) for name, w in zip(names, weights, strict=True) if w or len(weights) == 1]
    return (*boxes, *((Term("answer", lambda_answer, beta_answer),) if stage == 2 else ()))


def log_preference(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """P of one term, per pair. All arguments are summed log-probabilities [B]; returns [B], at most 0."""
    import torch.nn.functional as F

    return F.logsigmoid(beta * (chosen - ref_chosen) - beta * (rejected - ref_rejected))


def weighted_sum(terms: Sequence[Term], losses: Mapping[TermName, Tensor]) -> Tensor:
    """L of a stage: sum over its terms of lambda times the term's loss (``-E[P]``, or what TRL makes of it). A batch may lack
    a term: none of its pairs has that look.
    """
    present = [term for term in terms if term.name in losses]
    total = losses[present[0].name] * present[0].weight
    for term in present[1:]:
        total = total + losses[term.name] * term.weight
    return total
