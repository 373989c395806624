"""From a critic's margin, in nats, to a score in 0..1: s = σ(slope · margin + offset), fitted on questions nobody trains on.

``answer``   a temperature: slope 1 / T, offset 0, so that given the *true* crop the standard answer is the likelier one as often
             as the score says: T minimises the mean of log(1 + exp(-margin / T)) (Guo et al. 2017)
``box``      slope and offset per kind of answer (rivals.py), so that a box of the policy is right (IoU above .5 with the true
             one) as often as the score says: logistic regression (Platt 1999)

Per kind, because a margin does not mean the same in each: "no" is likely given any crop that does not show what is asked for, so
that a high margin speaks *for* a crop where the answer is "yes" and says nothing, or speaks against it, where it is "no".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from visrl.errors import UsageError

Target = Literal["answer", "box"]
ANY = "any"
"""The kind of answer that stands for all, and for those that are too few to have a line of their own."""
LEAST, LEAST_OF_BOTH = 40, 8
"""Looks that a line of its own takes, and right ones and wrong ones among them."""
LARGEST = 20.0
"""Of a margin (both ways), a slope and an offset: beyond, a score is 0 or 1 to all digits kept."""
COOLEST, HOTTEST = 0.05, 20.0
DIGITS = 4


@dataclass(frozen=True, slots=True)
class Look:
    """A crop that the critic read. margin: the critic's, in nats. right: whether its box is."""

    kind: str
    margin: float
    right: bool


@dataclass(frozen=True, slots=True)
class Line:
    """slope: per nat. looks: that it was fitted on; right: of those, the boxes (the standard answers, for ``answer``)."""

    slope: float = 1.0
    offset: float = 0.0
    looks: int = 0
    right: int = 0


@dataclass(frozen=True, slots=True)
class Calibration:
    """lines: by kind of answer, ``any`` always among them. target: None where nothing was fitted."""

    lines: Mapping[str, Line] = field(default_factory=lambda: {ANY: Line()})
    target: Target | None = None

    @classmethod
    def of_temperature(cls, temperature: float) -> Calibration:
        """T above 0; 1 leaves odds as the critic gives them."""
        return cls({ANY: Line(1.0 / temperature)})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """The inverse of :meth:`to_json`."""
        return cls({kind: Line(**line) for kind, line in value["lines"].items()}, value["target"])

    def to_json(self) -> dict[str, Any]:
        """JSON values, with the temperature where that is all there is."""
        found: dict[str, Any] = {
            "target": self.target,
            "lines": {kind: asdict(line) for kind, line in self.lines.items()},
        }
        return found if self.target == "box" else {**found, "temperature": round(1.0 / self.lines[ANY].slope, DIGITS)}

    def score(self, kind: str, margin: float) -> float:
        """In 0..1."""
        line = self.lines.get(kind, self.lines[ANY])
        return 1.0 / (1.0 + math.exp(-(line.slope * _cut(margin) + line.offset)))


def fit(looks: Sequence[Look], target: Target) -> Calibration:
    """Raises UsageError where there is too little to fit on, or nothing that a critic's margin says."""
    if target == "answer":
        return Calibration({ANY: _temperature(looks)}, target)
    whole = _line(looks)
    if whole is None:
        right = sum(look.right for look in looks)
        said = (
            f"{len(looks)} looks with a true box, {right} of them right; it takes {LEAST} with {LEAST_OF_BOTH} of each"
        )
        raise UsageError(
            f"critic.calibration: {said}", "a larger critic.calibration.data.limit, questions with true boxes"
        )
    kinds = sorted({look.kind for look in looks})
    own = {kind: _line([look for look in looks if look.kind == kind]) for kind in kinds}
    return Calibration({ANY: whole, **{kind: line for kind, line in own.items() if line is not None}}, target)


def _cut(margin: float) -> float:
    return min(max(margin, -LARGEST), LARGEST)


def _temperature(looks: Sequence[Look]) -> Line:
    from scipy.optimize import minimize_scalar

    margins = np.array([_cut(look.margin) for look in looks])
    if len(margins) < LEAST:
        raise UsageError(
            f"critic.calibration: {len(margins)} true crops, and a temperature takes {LEAST}",
            "a larger critic.calibration.data.limit, questions with true boxes",
        )
    if margins.mean() <= 0:  # the hotter the better: no temperature is best
        raise UsageError(
            "critic.calibration: even given the true crop the critic does not prefer the standard answer to others",
            "another critic, or critic.calibration.target=box",
        )
    bounds = (math.log(COOLEST), math.log(HOTTEST))
    found = minimize_scalar(lambda t: np.logaddexp(0.0, -margins / math.exp(t)).mean(), bounds=bounds, method="bounded")
    return Line(round(math.exp(-found.x), DIGITS), 0.0, len(margins), int((margins > 0).sum()))


def _line(looks: Sequence[Look]) -> Line | None:
    """None where there are too few."""
    from scipy.optimize import minimize

    right = np.array([float(look.right) for look in looks])
    if len(looks) < LEAST or min(right.sum(), len(looks) - right.sum()) < LEAST_OF_BOTH:
        return None
    margins = np.array([_cut(look.margin) for look in looks])

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        odds = line[0] * margins + line[1]
        off = 1.0 / (1.0 + np.exp(-odds)) - right
        return float((np.logaddexp(0.0, odds) - right * odds).mean()), np.array([(off * margins).mean(), off.mean()])

    bounds = [(-LARGEST, LARGEST)] * 2
    found = minimize(
        loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-9}
    )
    slope, offset = (round(float(value), DIGITS) for value in found.x)
    return Line(slope, offset, len(looks), int(right.sum()))
