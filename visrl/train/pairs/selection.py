"""Which chains of a question become a preference pair: ``code`` as filter.py does it, ``paper`` as the poster defines it.

``code``   the answers' best score >= T_max and worst <= T_min, and not equal. Chosen: the first chain with the best answer
           whose box score >= T_max; rejected: the first with the worst answer whose box score <= T_min. One pair
``paper``  P_win: both scores >= T_max; P_lose: both scores < T_min (poster, Data Generation). The poster does not say how the
           sets are matched: here the best chosen with the worst rejected, by the sum of both scores, and so on

Where neither gives a pair and ``min_difference`` is set: the chain with the best box score of those with the best answer, against
the chain with the worst box score of those with the worst answer, where both scores differ by at least so much. One pair.

"First" is in the order of (attempt, role), never of arrival. A chain with a missing score is in no set. Without the box
critic (an ablation) only the answers' scores are asked.

Of several looks the chains of a question are a tree: those that share their first looks were drawn after the same conversation.
The chosen chain is as above, where each of its looks passes. At each of its looks the rejected one is, likewise, among the other
looks drawn at that very place: a look answers as well as the best chain that goes on from it, and is scored as ``inner`` says:

``best``  a look's crop holds the answer where the critic reads it there, or in what was cut out after it: the highest score of
          the look and of all that followed. What is too small to read in the first crop may be read in the second
``own``   its own crop alone

A look without another that fails has nothing rejected; a pair needs one look that has. The rejected answer is the worst one after
the last rejected look. One look is the special case of a tree of one level.

The box critic is the dear one: it reads a crop nobody has read yet. So selection asks for box scores one by one, and only
for those that can still change the outcome; the pairs are exactly those of scoring everything (tests/train/test_selection.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from visrl.train.critics.judged import Inner
from visrl.train.data.candidates import Candidate

Mode = Literal["code", "paper"]


@dataclass(frozen=True, slots=True)
class Rule:
    """How pairs are chosen. The thresholds are the official ones (docs/method.md d). pairs: at most so many of a question,
    ``paper`` only. inner: how a look before the last is scored. min_difference: of both scores, where no threshold is
    reached; None: there is no pair then."""

    mode: Mode = "code"
    win_box: float = 0.8
    win_answer: float = 0.8
    lose_box: float = 0.2
    lose_answer: float = 0.2
    box_critic: bool = True
    pairs: int = 1
    inner: Inner = "best"
    min_difference: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """pairs: (chosen, rejected) places. looks: of each pair, for each look of the chosen chain, a chain with the rejected one, or
    None. wanted: the chain whose box score is needed before more can be said, of its look number ``look``; None: decided.
    """

    pairs: tuple[tuple[int, int], ...] = ()
    wanted: int | None = None
    look: int = 0
    looks: tuple[tuple[int | None, ...], ...] = ()


class _Wanted(Exception):
    def __init__(self, place: int, look: int) -> None:
        self.place, self.look = place, look


Rejected = tuple[int | None, ...]
"""For each look of a chosen chain a chain with what is rejected there."""
Found = tuple[tuple[int, int, Rejected], ...]
"""(chosen, rejected, by look) of each pair."""


def decide(chains: Sequence[Candidate], rule: Rule) -> Decision:
    """The pairs of one question, or which box score is wanted next."""
    try:
        found = _code(chains, rule) if rule.mode == "code" else _paper(chains, rule)
        if not found and rule.min_difference is not None:
            found = _by_difference(chains, rule, rule.min_difference)
    except _Wanted as wanted:
        return Decision(wanted=wanted.place, look=wanted.look)
    return Decision(tuple((a, b) for a, b, _ in found), looks=tuple(looks for *_, looks in found))


def _code(chains: Sequence[Candidate], rule: Rule) -> Found:
    answers = _answers(chains, rule)
    if not answers:
        return ()
    best, worst = max(answers.values()), min(answers.values())
    if best < rule.win_answer or worst > rule.lose_answer or best == worst:
        return ()
    chosen = next((i for i, a in answers.items() if a == best and _chosen(chains, i, rule)), None)
    if chosen is None:
        return ()
    looks: list[int | None] = []
    for look in range(chains[chosen].depth):
        nodes = _others(chains, chosen, look, rule)
        worst = min((node.answer for node in nodes), default=1.0)
        failing = [node for node in nodes if node.answer == worst <= rule.lose_answer]
        looks.append(next((node.first for node in failing if _rejected(chains, node, rule)), None))
    return _pair(chains, chosen, looks, answers)


def _pair(chains: Sequence[Candidate], chosen: int, looks: Sequence[int | None], answers: Mapping[int, float]) -> Found:
    """The pair, where something is rejected."""
    last = next((look for look in reversed(range(len(looks))) if looks[look] is not None), None)
    if last is None:
        return ()
    place = looks[last]
    assert place is not None, "that is how it was found"
    within = [i for i in answers if i == place or _shares(chains, i, place, last)]
    return ((chosen, min(within, key=lambda i: (answers[i], i)), tuple(looks)),)


@dataclass(frozen=True, slots=True)
class _Node:
    """A look, with the chains that go on from it, in order. answer: the best of theirs."""

    look: int
    members: tuple[int, ...]
    answer: float

    @property
    def first(self) -> int:
        return self.members[0]


def _shares(chains: Sequence[Candidate], one: int, other: int, look: int) -> bool:
    """Whether two chains share their looks up to number ``look``. Chains of one look share none."""
    if one == other:
        return True
    first, second = chains[one].looks, chains[other].looks
    if first is None or second is None or min(len(first), len(second)) <= look:
        return False
    return all(a.place == b.place for a, b in zip(first[: look + 1], second[: look + 1], strict=True))


def _others(chains: Sequence[Candidate], chosen: int, look: int, rule: Rule) -> list[_Node]:
    """The other looks that were drawn where the chosen chain took its look, with answers that have scores.

    One after which a box score is missing is left out whole: whether it holds the answer is not known.
    """
    nodes: list[list[int]] = []
    scores = {i: c.answer_score.value for i, c in enumerate(chains) if c.answer_score is not None}
    answers = {i: value for i, value in scores.items() if value is not None}
    for place in answers:
        beside = look == 0 or _shares(chains, place, chosen, look - 1)
        if place == chosen or not beside or chains[place].depth <= look or _shares(chains, place, chosen, look):
            continue
        known = next((node for node in nodes if _shares(chains, node[0], place, look)), None)
        if known is None:
            nodes.append([place])
        else:
            known.append(place)
    whole = [node for node in nodes if not any(_lost(chains[i], rule) for i in node)]
    return [_Node(look, tuple(node), max(answers[i] for i in node)) for node in whole]


def _answers(chains: Sequence[Candidate], rule: Rule) -> dict[int, float]:
    """Place -> answer score, of the chains that have one."""
    scores = {i: c.answer_score for i, c in enumerate(chains) if not _lost(c, rule)}
    return {i: score.value for i, score in scores.items() if score is not None and score.value is not None}


def _lost(chain: Candidate, rule: Rule) -> bool:
    """Asked for the last look's score in vain: filter.py drops such chains before it looks for best and worst."""
    score = chain.look_score(chain.depth - 1) if chain.depth else None
    return rule.box_critic and score is not None and score.value is None


def _box(chains: Sequence[Candidate], place: int, look: int) -> float | None:
    """The box score of a chain's look; None where it was asked for in vain. Raises _Wanted where it has not been asked for."""
    score = chains[place].look_score(look)
    if score is None:
        raise _Wanted(place, look)
    return score.value


def _chosen(chains: Sequence[Candidate], place: int, rule: Rule) -> bool:
    """Whether every look of a chain passes: from the last one, which the looks before it are as good as under ``best``."""
    if not rule.box_critic:
        return True
    last = chains[place].depth - 1
    first = last if rule.inner == "best" else 0
    scores = (_box(chains, place, look) for look in range(last, first - 1, -1))
    return last >= 0 and all(score is not None and score >= rule.win_box for score in scores)


def _ask_last(chains: Sequence[Candidate], node: _Node) -> None:
    """Raises _Wanted where the last look of a chain that goes on from this one has not been asked for: whether the chain counts
    hangs on it (``_lost``), also where an earlier look alone decides the score.
    """
    for place in node.members:
        _box(chains, place, chains[place].depth - 1)


def _below(chains: Sequence[Candidate], node: _Node, rule: Rule) -> Iterator[tuple[int, int]]:
    """(chain, look) of what decides a look's score: itself, and under ``best`` all that followed."""
    yield node.first, node.look
    if rule.inner == "best":
        yield from ((i, look) for i in node.members for look in range(node.look + 1, chains[i].depth))


def _rejected(chains: Sequence[Candidate], node: _Node, rule: Rule) -> bool:
    """Whether a look fails. The poster's bound is strict, filter.py's is not."""
    if not rule.box_critic:
        return True
    scores = (_box(chains, place, look) for place, look in _below(chains, node, rule))
    lose, strict = rule.lose_box, rule.mode == "paper"
    fails = all(score is not None and (score < lose or (score == lose and not strict)) for score in scores)
    _ask_last(chains, node)
    return fails


def _paper(chains: Sequence[Candidate], rule: Rule) -> Found:
    answers = _answers(chains, rule)
    chosen = [i for i, answer in answers.items() if answer >= rule.win_answer]
    if not chosen or min(answers.values()) >= rule.lose_answer:
        return ()
    chosen = [i for i in chosen if _chosen(chains, i, rule)]

    def total(node: _Node) -> float:
        boxes = [_box(chains, i, look) for i, look in _below(chains, node, rule)] if rule.box_critic else []
        return node.answer + max((score for score in boxes if score is not None), default=0.0)

    chosen.sort(key=lambda i: (-total(_Node(chains[i].depth - 1, (i,), answers[i])), i))
    used: set[tuple[int, int]] = set()
    found: list[tuple[int, int, Rejected]] = []
    for place in chosen:
        looks: list[int | None] = []
        for look in range(chains[place].depth):
            nodes = [n for n in _others(chains, place, look, rule) if n.answer < rule.lose_answer]
            failing = [n for n in nodes if (n.first, look) not in used and _rejected(chains, n, rule)]
            worst = min(failing, key=lambda n: (total(n), n.first), default=None)
            looks.append(None if worst is None else worst.first)
        used |= {(i, look) for look, i in enumerate(looks) if i is not None}
        found += _pair(chains, place, looks, answers)
    return tuple(found[: rule.pairs])


def _by_difference(chains: Sequence[Candidate], rule: Rule, least: float) -> Found:
    answers = _answers(chains, rule)
    best = max(answers.values(), default=0.0)
    if not answers or not _apart(best, min(answers.values()), least):
        return ()
    passing = [(i, _lowest(chains, i, rule)) for i, answer in answers.items() if answer == best]
    chosen, _ = max(((i, s) for i, s in passing if s is not None), key=lambda item: item[1], default=(None, 0.0))
    if chosen is None:
        return ()
    looks: list[int | None] = []
    for look in range(chains[chosen].depth):
        nodes = [node for node in _others(chains, chosen, look, rule) if _apart(best, node.answer, least)]
        worst = min((node.answer for node in nodes), default=0.0)
        failing = [(node, _highest(chains, node, rule)) for node in nodes if node.answer == worst]
        ours = _highest(chains, _Node(look, (chosen,), best), rule)
        known = [
            (node, s) for node, s in failing if s is not None and ours is not None and _apart(ours, s, least, rule)
        ]
        node = min(known, key=lambda item: item[1], default=None)
        looks.append(None if node is None else node[0].first)
    return _pair(chains, chosen, looks, answers)


def _apart(high: float, low: float, least: float, rule: Rule | None = None) -> bool:
    """Whether scores differ by enough, to six digits: .9 and .7 differ by .2. rule: box scores, of which none may be asked."""
    return (rule is not None and not rule.box_critic) or round(high - low, 6) >= least


def _lowest(chains: Sequence[Candidate], place: int, rule: Rule) -> float | None:
    """A chain's box score: of its last look, which those before it are as good as under ``best``; of its worst under ``own``."""
    if not rule.box_critic:
        return 0.0
    last = chains[place].depth - 1
    scores = [_box(chains, place, look) for look in range(last, (last if rule.inner == "best" else 0) - 1, -1)]
    known = [score for score in scores if score is not None]
    return min(known) if known and len(known) == len(scores) else None


def _highest(chains: Sequence[Candidate], node: _Node, rule: Rule) -> float | None:
    """A look's box score: the best of what decides it. None where one of them was asked for in vain."""
    if not rule.box_critic:
        return 0.0
    scores = [_box(chains, place, look) for place, look in _below(chains, node, rule)]
    _ask_last(chains, node)
    known = [score for score in scores if score is not None]
    return max(known) if len(known) == len(scores) else None
