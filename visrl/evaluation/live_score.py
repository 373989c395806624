"""The running score of an evaluation: the one the benchmark would report, where that costs nothing."""

from __future__ import annotations

from visrl.evals.benchmarks import TASKS
from visrl.evals.judge import make_judge
from visrl.runs.progress import Scorer


def live_scorer(task: str, judge_spec: str) -> Scorer:
    """The task's own scorer; without its judge where that is a model and would cost a call per sample."""
    from visrl.evals.scorers.scoring import scorer_of

    judge, spec = make_judge(judge_spec), TASKS[task]
    rule = judge if judge.kind == "rule" else None
    score = scorer_of(spec.benchmark)
    return lambda samples, episodes: score(spec, samples, episodes, rule)[0]
