"""Which chains of a question become a preference pair: ``code`` as filter.py does it, ``paper`` as the poster defines it.

``code``   the answers' best score >= T_max and worst <= T_min, and not equal. Chosen: the first chain with the best answer
           whose box score >= T_max; rejected: the first with the worst answer whose box score <= T_min. One pair
``paper``  P_win: both scores >= T_max; P_lose: both scores < T_min (poster, Data Generation). The poster does not say how the
           sets are matched: here the best chosen with the worst rejected, by the sum of both scores, and so on

"First" is in the order of (attempt, role), never of arrival. A chain with a missing score is in no set. Without the box
critic (an ablation) only the answers' scores are asked.

The box critic is the dear one: it reads a crop nobody has read yet. So selection asks for box scores one by one, and only
for those that can still change the outcome; the pairs are exactly those of scoring everything (tests/train/test_selection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from visrl.train.data.candidates import Candidate

Mode = Literal["code", "paper"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How pairs are chosen. The thresholds are the official ones (docs/method.md d). pairs: at most so many of a question,
    ``paper`` only."""

    mode: Mode = "code"
    win_box: float = 0.8
    win_answer: float = 0.8
    lose_box: float = 0.2
    lose_answer: float = 0.2
    box_critic: bool = True
    pairs: int = 1


@dataclass(frozen=True, slots=True)
class Decision:
    """pairs: (chosen, rejected) places. wanted: the chain whose box score is needed before more can be said; None: decided."""

    pairs: tuple[tuple[int, int], ...] = ()
    wanted: int | None = None


class _Wanted(Exception):
    def __init__(self, place: int) -> None:
        self.place = place


def decide(chains: Sequence[Candidate], rule: Rule) -> Decision:
    """The pairs of one question, or which box score is wanted next."""
    try:
        return Decision(_code(chains, rule) if rule.mode == "code" else _paper(chains, rule))
    except _Wanted as wanted:
        return Decision(wanted=wanted.place)


def _code(chains: Sequence[Candidate], rule: Rule) -> tuple[tuple[int, int], ...]:
    answers = _answers(chains, rule)
    if not answers:
        return ()
    best, worst = max(answers.values()), min(answers.values())
    if best < rule.win_answer or worst > rule.lose_answer or best == worst:
        return ()
    chosen = _first(chains, [i for i, a in answers.items() if a == best], lambda box: box >= rule.win_box, rule)
    if chosen is None:
        return ()
    rejected = _first(chains, [i for i, a in answers.items() if a == worst], lambda box: box <= rule.lose_box, rule)
    return () if rejected is None else ((chosen, rejected),)


def _answers(chains: Sequence[Candidate], rule: Rule) -> dict[int, float]:
    """Place -> answer score, of the chains that have one."""
    scores = {i: c.answer_score for i, c in enumerate(chains) if not _lost(c, rule)}
    return {i: score.value for i, score in scores.items() if score is not None and score.value is not None}


def _lost(chain: Candidate, rule: Rule) -> bool:
    """Asked for its box score in vain: filter.py drops such chains before it looks for best and worst."""
    return rule.box_critic and chain.box_score is not None and chain.box_score.value is None


def _first(
    chains: Sequence[Candidate], places: Sequence[int], passes: Callable[[float], bool], rule: Rule
) -> int | None:
    if not rule.box_critic:
        return places[0]
    return next((place for place in places if passes(_box(chains, place))), None)


def _box(chains: Sequence[Candidate], place: int) -> float:
    """The box score of a chain. Raises _Wanted where it has not been asked for yet."""
    score = chains[place].box_score
    if score is None:
        raise _Wanted(place)
    assert score.value is not None, "chains without a score were dropped"
    return score.value


def _paper(chains: Sequence[Candidate], rule: Rule) -> tuple[tuple[int, int], ...]:
    answers = _answers(chains, rule)
    chosen = [i for i, answer in answers.items() if answer >= rule.win_answer]
    rejected = [i for i, answer in answers.items() if answer < rule.lose_answer]
    if not chosen or not rejected:
        return ()
    if rule.box_critic:
        chosen = [i for i in chosen if _box(chains, i) >= rule.win_box]
        rejected = [i for i in rejected if chosen and _box(chains, i) < rule.lose_box]

    def total(place: int) -> float:
        return answers[place] + (_box(chains, place) if rule.box_critic else 0.0)

    chosen.sort(key=lambda i: (-total(i), i))
    rejected.sort(key=lambda i: (total(i), i))
    return tuple(zip(chosen, rejected, strict=False))[: rule.pairs]
