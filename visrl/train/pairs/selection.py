"""Which chains of a question become a preference pair: ``code`` as filter.py does it, ``paper`` as the poster defines it.

``code``   the answers' best score >= T_max and worst <= T_min, and not equal. Win: the first chain with the best answer
           whose box score >= T_max; lose: the first with the worst answer whose box score <= T_min. One pair
``paper``  P_win: both scores >= T_max; P_lose: both scores < T_min (poster, Data Generation). The poster does not say how the
           sets are matched: here the best win with the worst lose, by the sum of both scores, then the second with the second

"First" is in the order of (attempt, role), never of arrival. A chain with a missing score is in no set. Without the box
critic (an ablation) only the answers' scores are asked.

The box critic is the dear one: it reads a crop nobody has read yet. So selection asks for box scores one by one, and only
for those that can still change the outcome; the pairs are exactly those of scoring everything (tests/train/test_selection.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from visrl.core.types import Score

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
class Scored:
    """A chain's two scores; ``box`` None: not asked yet. A Score of None: asked, and not to be had."""

    answer: Score
    box: Score | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """pairs: (win, lose) places. wanted: the chain whose box score is needed before more can be said; None: decided."""

    pairs: tuple[tuple[int, int], ...] = ()
    wanted: int | None = None


class _Wanted(Exception):
    def __init__(self, place: int) -> None:
        self.place = place


def decide(chains: Sequence[Scored], rule: Rule) -> Decision:
    """The pairs of one question, or which box score is wanted next."""
    try:
        return Decision(_code(chains, rule) if rule.mode == "code" else _paper(chains, rule))
    except _Wanted as wanted:
        return Decision(wanted=wanted.place)


def _code(chains: Sequence[Scored], rule: Rule) -> tuple[tuple[int, int], ...]:
    answers = {i: c.answer.value for i, c in enumerate(chains) if c.answer.value is not None and not _lost(c, rule)}
    if not answers:
        return ()
    best, worst = max(answers.values()), min(answers.values())
    if best < rule.win_answer or worst > rule.lose_answer or best == worst:
        return ()
    win = _first(chains, [i for i, a in answers.items() if a == best], lambda box: box >= rule.win_box, rule)
    if win is None:
        return ()
    lose = _first(chains, [i for i, a in answers.items() if a == worst], lambda box: box <= rule.lose_box, rule)
    return () if lose is None else ((win, lose),)


def _lost(chain: Scored, rule: Rule) -> bool:
    """Asked for its box score in vain: filter.py drops such chains before it looks for best and worst."""
    return rule.box_critic and chain.box is not None and chain.box.value is None


def _first(chains: Sequence[Scored], places: Sequence[int], passes: Callable[[float], bool], rule: Rule) -> int | None:
    if not rule.box_critic:
        return places[0]
    return next((place for place in places if passes(_box(chains, place))), None)


def _box(chains: Sequence[Scored], place: int) -> float:
    """The box score of a chain. Raises _Wanted where it has not been asked for yet."""
    box = chains[place].box
    if box is None:
        raise _Wanted(place)
    assert box.value is not None, "chains without a score were dropped"
    return box.value


def _paper(chains: Sequence[Scored], rule: Rule) -> tuple[tuple[int, int], ...]:
    answers = {i: c.answer.value for i, c in enumerate(chains) if c.answer.value is not None and not _lost(c, rule)}
    wins = [i for i, answer in answers.items() if answer >= rule.win_answer]
    loses = [i for i, answer in answers.items() if answer < rule.lose_answer]
    if not wins or not loses:
        return ()
    if rule.box_critic:
        wins = [i for i in wins if _box(chains, i) >= rule.win_box]
        loses = [i for i in loses if wins and _box(chains, i) < rule.lose_box]

    def total(place: int) -> float:
        return answers[place] + (_box(chains, place) if rule.box_critic else 0.0)

    wins.sort(key=lambda i: (-total(i), i))
    loses.sort(key=lambda i: (total(i), i))
    return tuple(zip(wins, loses, strict=False))[: rule.pairs]
