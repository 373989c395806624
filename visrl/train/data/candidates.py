"""What is trained on, in memory: candidates, and the questions they answer. Files have their own forms (rows.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from visrl.core.boxes import Box
from visrl.core.prompts import ProtocolName
from visrl.core.types import CoTSample, Score

Source = Literal["sampled", "spare", "random"]
"""Where a box comes from: of an attempt, an extra sample that took a box's place, or drawn at random."""


@dataclass(slots=True)
class CandidateLook:
    """One look of a candidate of several. box: pixels of the original picture, whatever picture a protocol's numbers lie in; None
    in the rejected side of a preference that has nothing to compare at this look. text: the turn as a model wrote it, trained on
    verbatim; None: no model did. score: the box critic's, 0..1; None: not asked for. place: (attempt, role) among the looks drawn
    after the same looks, so that two candidates with equal places up to a look share it.
    """

    box: Box | None
    text: str | None = None
    score: Score | None = None
    source: Source = "sampled"
    place: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Candidate:
    """One way of answering a question: where it looked and what it said. It stays this from sampling to the gradient.

    box: pixels of the original picture; None only under ``direct``. box_text: the box as a model wrote it, trained on
    verbatim; None: no model did, and the family writes it in its own format. answer: empty for referring expressions.
    answer_score, box_score: the critics', 0..1; None: not asked for. attempt, role: which of a question's attempts, and
    which of that attempt's two boxes.

    looks: under a protocol of several looks, all of them in order; ``box`` is then of referring expressions alone, whose answer
    it is. None: ``box`` is the one look. answer_text: the last turn as a model wrote it under such a protocol, trained on
    verbatim; None: no model did, and ``answer`` is put between its tags.
    """

    box: Box | None = None
    box_text: str | None = None
    answer: str = ""
    answer_score: Score | None = None
    box_score: Score | None = None
    attempt: int = 0
    role: int = 0
    source: Source = "sampled"
    looks: tuple[CandidateLook, ...] | None = None
    answer_text: str | None = None

    @property
    def depth(self) -> int:
        """How many looks it took; one where none are listed."""
        return 1 if self.looks is None else len(self.looks)

    def look_score(self, look: int) -> Score | None:
        """The box critic's score of look number ``look``, from 0."""
        return self.box_score if self.looks is None else self.looks[look].score

    def score_look(self, look: int, score: Score | None) -> None:
        """Set it; candidates that share the look share its score."""
        if self.looks is None:
            self.box_score = score
        else:
            self.looks[look].score = score

    @property
    def all_looks(self) -> tuple[CandidateLook, ...]:
        """Every look in order; ``box`` where it is the only one."""
        if self.looks is not None:
            return self.looks
        return () if self.box is None else (self._only_look(),)

    def _only_look(self) -> CandidateLook:
        return CandidateLook(self.box, self.box_text, self.box_score, self.source, (self.attempt, self.role))


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An SFT example with its picture at hand."""

    sample: CoTSample
    protocol: ProtocolName
    chain: Candidate


@dataclass(frozen=True, slots=True)
class Preference:
    """A preference pair with its picture at hand."""

    sample: CoTSample
    protocol: ProtocolName
    chosen: Candidate
    rejected: Candidate


def last_look_alone(pair: Preference) -> Preference:
    """The pair without what it rejects before the chosen chain's last look."""
    if pair.rejected.looks is None:
        return pair
    last = len(pair.chosen.all_looks) - 1
    looks = (look if k == last else replace(look, box=None, text=None) for k, look in enumerate(pair.rejected.looks))
    return replace(pair, rejected=replace(pair.rejected, looks=tuple(looks)))
