"""What went in and came out of making pairs: the funnel, the tokens, right and wrong boxes (poster, table 4), the manifest.

All of it is a function of the finished chains: interruptions, batches and the order of arrival leave no trace, and when and
how long stand in run.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from visrl.core.boxes import iou
from visrl.core.records import TaskResult
from visrl.core.types import Score
from visrl.evals.scorers.measure import commonest
from visrl.evals.stats import mean
from visrl.policies.protocol import Tokens
from visrl.rollout.retry import total
from visrl.train.data.rows import Chain, PairRow
from visrl.train.pairs.sampling import Stage, Trial, Work
from visrl.train.pairs.selection import Rule

STAGES: tuple[Stage, ...] = ("boxes", "answers", "answer_critic", "box_critic")
KINDS = ("wp_lp", "wp_ln", "wn_lp", "wn_ln")
RIGHT = 0.5  # IoU with the true box above which a box is right (statistic_bbox.py), strictly
PUBLISHED_PAIRS = 30_000
"""Pairs behind the poster's row VisRL-Full: what a record's n is held against."""


def pairs_of(work: Work, rule: Rule) -> list[tuple[Trial, Trial]]:
    """(win, lose) chains of a question; none where it failed."""
    if work.error is not None:
        return []
    return [(work.trials[win], work.trials[lose]) for win, lose in work.decision(rule).pairs]


def pair_rows(works: Iterable[Work], rule: Rule, protocol: str) -> list[PairRow]:
    """The trainer's rows, in the order of the questions. Ids of second pairs of a question end in ``#2``."""
    rows = []
    for work in works:
        for number, (win, lose) in enumerate(pairs_of(work, rule), 1):
            sample = work.sample
            rows.append(
                PairRow(
                    id=sample.id if number == 1 else f"{sample.id}#{number}",
                    picture=sample.picture.ref if sample.picture else "",
                    size=sample.size,
                    question=sample.question,
                    instruction=sample.instruction,
                    protocol=protocol,  # type: ignore[arg-type]  # checked when the recipe was read
                    answers=sample.answers,
                    win=_scored(win),
                    lose=_scored(lose),
                )
            )
    return rows


def _scored(trial: Trial) -> Chain:
    scores = {"answer": trial.answer_score, "box": trial.box_score}
    known = {name: score.value for name, score in scores.items() if score is not None and score.value is not None}
    return trial.chain.model_copy(update={"scores": known})


# --- the funnel


def funnel(works: Sequence[Work], rule: Rule) -> dict[str, Any]:
    """Counts after each filter. ``questions``: how many still have what it takes for a pair; the rest counts boxes or chains."""
    done = [work for work in works if work.error is None]
    attempts = [reason for work in done for reason in (attempt.dropped for attempt in work.attempts)]
    trials = [trial for work in done for trial in work.trials]
    return {
        "questions": {
            "asked": len(works),
            "answered": len(done),
            "parsed": sum(bool(work.trials) for work in done),
            "distinct": sum(len(work.trials) > 1 for work in done),
            "scored": sum(sum(_value(t.answer_score) is not None for t in work.trials) > 1 for work in done),
            "above_and_below_by_answer": sum(_both_sides(work, rule) for work in done),
            "paired": sum(bool(pairs_of(work, rule)) for work in done),
        },
        "attempts": {"made": len(attempts), "dropped": _counted(_kind(reason) for reason in attempts if reason)},
        "chains": {
            "distinct": len(trials),
            "repeated": sum(work.repeats for work in done),
            "by_source": _counted(trial.look.source for trial in trials),
        },
        "answer_scores": _scores([t.answer_score for t in trials], rule.win_answer, rule.lose_answer, rule),
        "box_scores": _scores([t.box_score for t in trials], rule.win_box, rule.lose_box, rule),
        "pairs": sum(len(pairs_of(work, rule)) for work in done),
        "failed": commonest(Counter(work.error or "" for work in works if work.error is not None)),
    }


def _kind(reason: str) -> str:
    return reason.partition(":")[0]


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value


def _both_sides(work: Work, rule: Rule) -> bool:
    values = [v for t in work.trials if (v := _value(t.answer_score)) is not None]
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


def cost(works: Sequence[Work], n_pairs: int) -> dict[str, Any]:
    """Model tokens, per stage and per pair; null where a policy does not count. Failed questions are not in it."""
    done = [work for work in works if work.error is None]
    stages = {stage: total(work.tokens.get(stage, Tokens()) for work in done) for stage in STAGES}
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


def outcomes(works: Sequence[Work], rule: Rule) -> list[tuple[str, str]]:
    """(kind, picture) of each pair whose question has a true box; kind: one of KINDS."""
    found = []
    for work in works:
        truth = work.sample.box
        for win, lose in pairs_of(work, rule) if truth is not None else []:
            assert truth is not None
            first, second = ("p" if iou(trial.look.box, truth) > RIGHT else "n" for trial in (win, lose))
            found.append((f"w{first}_l{second}", work.sample.cluster or work.sample.id))
    return found


def table(found: Sequence[tuple[str, str]]) -> dict[str, dict[str, float | int | None]]:
    """Percent of the pairs of each kind, and of win boxes that are right (``wp``), with standard errors by picture."""
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
