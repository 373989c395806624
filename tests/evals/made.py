"""Samples and episodes in one line, for the scorers' tests."""

from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Episode, Step, Unparsed
from visrl.evals.benchmarks import TASKS
from visrl.evals.scorers.scoring import score_task

GOLD = Box(0, 0, 100, 100)


def sample(id_, *, answer=None, box=None, cluster="", group="", kind="qa", question="q", **meta):
    answers = () if answer is None else (answer,)
    return CoTSample(id_, "t", kind, question, box=box, answers=answers, cluster=cluster, group=group, meta=meta)


def said(id_, text, box=None):
    return Episode(id_, "t", box=box, answer_step=Step("", text))


def looked(id_, box):
    return Episode(id_, "t", box=Unparsed(box) if isinstance(box, str) else box)


def failed(id_, why):
    return Episode(id_, "t", error=why)


def score(task, pairs, judge=None, extra=()):
    """Scores of (sample, episode) pairs, and of ``extra`` samples that were not run."""
    samples = [s for s, _ in pairs] + list(extra)
    return score_task(TASKS[task], samples, {e.sample_id: e for _, e in pairs}, judge)


def numbers(scores):
    return {m.metric: m for m in scores.metrics}
