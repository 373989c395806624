"""What went in and came out of making pairs: the funnel, the tokens, right and wrong boxes (poster, table 4), the manifest.

All of it is a function of the finished chains: interruptions, batches and the order of arrival leave no trace, and when and
how long stand in run.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from visrl.core.boxes import Box, iou
from visrl.core.records import TaskResult
from visrl.core.types import Score
from visrl.evals.scorers.measure import commonest
from visrl.evals.stats import mean
from visrl.policies.protocol import Tokens
from visrl.rollout.retry import total
from visrl.train.data.candidates import Candidate, CandidateLook
from visrl.train.data.rows import PairRow, chain_of
from visrl.train.pairs.sampling import QuestionState, Stage, true_box
from visrl.train.pairs.selection import Rule

STAGES: tuple[Stage, ...] = ("boxes", "answers", "answer_critic", "box_critic")
KINDS = ("wp_lp", "wp_ln", "wn_lp", "wn_ln")
RIGHT = 0.5  # IoU with the true box above which a box is right (statistic_bbox.py), strictly
PUBLISHED_PAIRS = 30_000
"""Pairs behind the poster's row VisRL-Full: what a record's n is held against."""


def pairs_of(state: QuestionState, rule: Rule) -> list[tuple[Candidate, Candidate]]:
    """(chosen, rejected) chains of a question; none where it failed. Of several looks the rejected one is no chain, but what was
    rejected at each of the chosen's looks.
    """
    if state.error is not None:
        return []
    decision = state.decision(rule)
    return [
        (state.candidates[chosen], _rejected(state.candidates, rejected, looks))
        for (chosen, rejected), looks in zip(decision.pairs, decision.looks, strict=True)
    ]


def _rejected(candidates: Sequence[Candidate], place: int, looks: Sequence[int | None]) -> Candidate:
    found = candidates[place]
    if found.looks is None:
        return found
    there = [None if i is None else candidates[i].all_looks[look] for look, i in enumerate(looks)]
    return replace(found, looks=tuple(CandidateLook(None) if look is None else look for look in there))


def pair_rows(states: Iterable[QuestionState], rule: Rule, protocol: str) -> list[PairRow]:
    """The trainer's rows, in the order of the questions. Ids of second pairs of a question end in ``#2``."""
    rows = []
    for state in states:
        for number, (chosen, rejected) in enumerate(pairs_of(state, rule), 1):
            sample = state.sample
            rows.append(
                PairRow(
                    id=sample.id if number == 1 else f"{sample.id}#{number}",
                    picture=sample.picture.ref if sample.picture else "",
                    size=sample.size,
                    question=sample.question,
                    instruction=sample.instruction,
                    protocol=protocol,  # type: ignore[arg-type]  # checked when the recipe was read
                    answers=sample.answers,
                    chosen=chain_of(chosen),
                    rejected=chain_of(rejected),
                )
            )
    return rows


# --- the funnel


def funnel(states: Sequence[QuestionState], rule: Rule) -> dict[str, Any]:
    """Counts after each filter. ``questions``: how many still have what it takes for a pair; the rest counts boxes or chains."""
    done = [state for state in states if state.error is None]
    attempts = [reason for state in done for reason in (attempt.dropped for attempt in state.attempts)]
    chains = [chain for state in done for chain in state.candidates]
    return {
        "questions": {
            "asked": len(states),
            "answered": len(done),
            "parsed": sum(bool(state.candidates) for state in done),
            "distinct": sum(len(state.candidates) > 1 for state in done),
            "scored": sum(sum(_value(c.answer_score) is not None for c in state.candidates) > 1 for state in done),
            "above_and_below_by_answer": sum(_both_sides(state, rule) for state in done),
            "paired": sum(bool(pairs_of(state, rule)) for state in done),
        },
        "attempts": {"made": len(attempts), "dropped": _counted(_kind(reason) for reason in attempts if reason)},
        "chains": {
            "distinct": len(chains),
            "repeated": sum(state.repeats for state in done),
            "by_source": _counted(look.source for state in done for look in _looks(state)),
        },
        "answer_scores": _scores([c.answer_score for c in chains], rule.win_answer, rule.lose_answer, rule),
        "box_scores": _scores(_look_scores(done), rule.win_box, rule.lose_box, rule),
        "pairs": sum(len(pairs_of(state, rule)) for state in done),
        **_by_difference(done, rule),
        "failed": commonest(Counter(state.error or "" for state in states if state.error is not None)),
    }


def _by_difference(states: Sequence[QuestionState], rule: Rule) -> dict[str, int]:
    """How many of the pairs no threshold would have given; nothing where none are looked for."""
    if rule.min_difference is None:
        return {}
    thresholds = replace(rule, min_difference=None)
    return {"pairs_by_difference": sum(len(pairs_of(s, rule)) for s in states if not pairs_of(s, thresholds))}


def _looks(state: QuestionState) -> list[CandidateLook]:
    """Every look that was drawn, once."""
    found = {id(look): look for chain in state.candidates for look in chain.looks or chain.all_looks}
    return list(found.values())


def _look_scores(states: Sequence[QuestionState]) -> list[Score | None]:
    return [look.score for state in states for look in _looks(state)]


def _kind(reason: str) -> str:
    return reason.partition(":")[0]


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value


def _both_sides(state: QuestionState, rule: Rule) -> bool:
    values = [v for c in state.candidates if (v := _value(c.answer_score)) is not None]
    if values and rule.min_difference is not None and round(max(values) - min(values), 6) >= rule.min_difference:
        return True
    return any(v >= rule.win_answer for v in values) and any(_below(v, rule.lose_answer, rule) for v in values)


def _below(value: float, threshold: float, rule: Rule) -> bool:
    return value <= threshold if rule.mode == "code" else value < threshold


def _scores(scores: Sequence[Score | None], high: float, low: float, rule: Rule) -> dict[str, Any]:
    """asked; above and below the thresholds; missing, and what was read with reservations, by reason."""
    asked = [score for score in scores if score is not None]
    values = [score.value for score in asked if score.value is not None]
    return {
        "not_needed": len(scores) - len(asked),
        "asked": len(asked),
        "above": sum(value >= high for value in values),
        "below": sum(_below(value, low, rule) for value in values),
        "missing": commonest(Counter(score.reason for score in asked if score.value is None)),
        "reservations": _counted(
            score.reason.split(" from")[0] for score in asked if score.value is not None and score.reason
        ),
    }


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(reasons).items()))


# --- what it cost


def cost(states: Sequence[QuestionState], n_pairs: int) -> dict[str, Any]:
    """Model tokens, per stage and per pair; null where a policy does not count. Failed questions are not in it."""
    done = [state for state in states if state.error is None]
    stages = {stage: total(state.tokens.get(stage, Tokens()) for state in done) for stage in STAGES}
    whole = total(stages.values())
    per_pair = None if whole is None or not n_pairs else round(whole.computed / n_pairs, 1)
    return {
        **{stage: _tokens(count) for stage, count in stages.items()},
        "all": _tokens(whole),
        "computed_per_pair": per_pair,
    }


def _tokens(count: Tokens | None) -> dict[str, int] | None:
    if count is None:
        return None
    return {"prompt": count.prompt, "cached": count.cached, "output": count.output, "computed": count.computed}


# --- right and wrong boxes


def outcomes(states: Sequence[QuestionState], rule: Rule, look: int | None = None) -> list[tuple[str, str]]:
    """(kind, picture) of each preferred box whose question has a true one; kind: one of KINDS. look: of look number
    ``look``, from 1, alone; else of every look.
    """
    found = []
    for state in states:
        for number, chosen, rejected in _preferences(state, rule):
            truth = true_box(state.sample, number - 1) if chosen.looks is not None else state.sample.box
            if truth is not None and look in (None, number):
                boxes = (chosen.all_looks[number - 1].box, rejected.all_looks[number - 1].box)
                first, second = ("p" if _overlap(box, truth) > RIGHT else "n" for box in boxes)
                found.append((f"w{first}_l{second}", state.sample.cluster or state.sample.id))
    return found


def _preferences(state: QuestionState, rule: Rule) -> Iterator[tuple[int, Candidate, Candidate]]:
    """(number from 1, chosen, rejected) of every look at which something is rejected."""
    for chosen, rejected in pairs_of(state, rule):
        for number, look in enumerate(rejected.all_looks, 1):
            if look.box is not None:
                yield number, chosen, rejected


def preferred(states: Sequence[QuestionState], rule: Rule, look: int) -> int:
    """How many pairs prefer a box at look number ``look``, from 1."""
    return sum(number == look for state in states for number, *_ in _preferences(state, rule))


def _overlap(box: Box | None, truth: Box) -> float:
    assert box is not None, "it was drawn"
    return iou(box, truth)


def table(found: Sequence[tuple[str, str]]) -> dict[str, dict[str, float | int | None]]:
    """Percent of the pairs of each kind, and of chosen boxes that are right (``wp``), with standard errors by picture."""
    clusters = [cluster for _, cluster in found]
    rows = {}
    for name in (*KINDS, "wp"):
        estimate = mean([float(kind.startswith(name)) for kind, _ in found], clusters).scaled(100.0)
        rows[name] = {"percent": _rounded(estimate.value), "se": _rounded(estimate.se), "n": estimate.n}
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def results(found: Sequence[tuple[str, str]], context: Mapping[str, Any]) -> list[TaskResult]:
    """Records for ``visrl-eval tables --paper datagen``; empty where no true box is known.

    context: TaskResult's fields that are the run's (protocol, model, versions, …).
    """
    clusters = [cluster for _, cluster in found]
    records = []
    for name in KINDS if found else ():
        what = mean([float(kind == name) for kind, _ in found], clusters).scaled(100.0)
        ends = None if what.ci is None else (round(what.ci[0], 4), round(what.ci[1], 4))
        records.append(
            TaskResult(
                task="datagen",
                task_version="1",
                metric=name,
                value=_rounded(what.value),
                se=_rounded(what.se),
                ci=ends,
                unit="percent",
                higher_is_better=name == "wp_ln",
                n=what.n,
                n_expected=PUBLISHED_PAIRS,
                n_clusters=what.n_clusters,
                n_missing=max(0, PUBLISHED_PAIRS - what.n),
                focus="predicted",
                **context,
            )
        )
    return records
