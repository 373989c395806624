"""The end of a phase, scored as ``visrl-eval`` does, and the paired difference to the phase before.

``score/``         an ordinary run folder: ``visrl-eval view`` and ``compare`` take it
``metrics.json``   the line printed, and every difference (evals/compare.py: paired by sample, clustered by picture)
``records/``       of the whole loop: TaskResults per phase, each saying which run, phase, iteration and seed it is of
"""

from __future__ import annotations

import gc
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from visrl.core.records import TaskResult, dump_json, read_results, write_atomically, write_results
from visrl.errors import UsageError
from visrl.evals.benchmarks import GROUPS, TASKS
from visrl.evals.compare import SCALE, Difference, compare, difference, pair_group, pair_task, pool
from visrl.evals.sample_scores import Rows, of_run
from visrl.evaluation.evaluate import Options, evaluate
from visrl.regression.reports import change
from visrl.runs.store import slug
from visrl.train.loop.phase_state import is_finished
from visrl.train.loop.phases import Phase, Weights, phases
from visrl.train.loop.recipe import Answering, LoopRecipe, ScoreSection

_OURS = re.compile(r"(base|sft|more|iter\d+-(pairs|rl\d?))$")
"""What a phase's record is called."""
ANSWER, BOX = ("answer",), ("box_acc", "acc@0.5")
"""The metrics of a phase's line; of a suite without VisCoT boxes, referring expressions'."""


def score_phase(
    folder: Path, label: str, weights: Weights, section: ScoreSection, answering: Answering = "hf"
) -> list[TaskResult]:
    """Run the remaining samples of the phase's scoring: section with protocol and crop filled in (looks.py). Raises UsageError
    where samples failed for good.
    """
    from transformers.utils.logging import disable_progress_bar

    from visrl.policies.registry import fitting, load_policy

    disable_progress_bar()  # one progress line, ours
    args = dict(section.args) | ({"adapter": weights.adapter} if weights.adapter is not None else {})
    spec = weights.spec(answering)
    policy: Any = load_policy(spec, fitting(spec, args)[0])
    policy.rename(label)
    options = Options(
        data=section.data,
        protocol=section.protocol,
        crop=section.crop,
        limit=section.limit,
        batch_size=section.batch_size,
        judge=section.judge,
        output=folder,
        max_tokens=section.max_tokens,
    )
    try:
        outcome = evaluate(policy, [section.tasks], options)
    finally:
        policy.close()
    del policy
    free()
    if outcome.n_failed or outcome.problems:
        said = "; ".join([f"{outcome.n_failed} of {outcome.n_samples} samples failed", *outcome.problems])
        raise UsageError(f"{folder}: {said}", "run the same command to try them again")
    return outcome.results


def free() -> None:
    """Give back what a phase held, so that the next one finds the memory it would find alone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def headline(before: Rows, after: Rows, metrics: Sequence[str]) -> Difference | None:
    """One metric of the whole suite, in percent: a group's unweighted mean where all of it ran, else all samples as one."""
    tasks = {task: pair_task(task, before[task], after[task]) for task in before if task in after}
    for metric in metrics:
        groups = [p for group in GROUPS for p in pair_group(group, tasks) if p.metric == metric]
        single = [p for found in tasks.values() for p in found if p.metric == metric]
        if groups or single:
            return _percent(difference(groups[0] if groups else pool(single)))
    return None


def _percent(found: Difference) -> Difference:
    scale = 100.0 / SCALE[found.unit]

    def times(value: float | None) -> float | None:
        return None if value is None else value * scale

    return replace(
        found,
        unit="percent",
        before=times(found.before),
        after=times(found.after),
        delta=times(found.delta),
        se=times(found.se),
        ci=None if found.ci is None else (found.ci[0] * scale, found.ci[1] * scale),
        worst=(),
    )


def line(rows: Rows, before: Rows | None, results: Sequence[TaskResult]) -> str:
    """``answers 61.2 → 66.9 (+5.7 ± 0.9) · boxes 71.0 → 78.4 (+7.4 ± 1.1) · parsed 99.8 %``; ± is one standard error."""
    parts = []
    for name, metrics in (("answers", ANSWER), ("boxes", BOX)):
        found = headline(rows if before is None else before, rows, metrics)
        if (
            found is None and before is not None
        ):  # the phase before has no such number: a model that was never asked for a box
            found, alone = headline(rows, rows, metrics), True
        else:
            alone = before is None
        if found is not None and alone:
            parts.append(f"{name} {found.after:.1f}" if found.after is not None else f"{name} —")
        elif found is not None:
            parts.append(f"{name} {change(found.before, found.after, found.delta, found.se, 'percent')}")
    parse = parse_rate(results)
    return " · ".join([*parts, *([] if parse is None else [f"parsed {parse:.1f} %"])])


def parse_rate(results: Sequence[TaskResult]) -> float | None:
    """Percent of the boxes asked for that could be read. None where none was asked for."""
    boxes = [r for r in results if r.metric in BOX and r.task in TASKS]
    n = sum(r.n for r in boxes)
    return None if n == 0 else 100.0 * (1.0 - sum(r.n_unparsed for r in boxes) / n)


def differences(before: Rows, after: Rows) -> list[dict[str, Any]]:
    """Every metric's difference, as JSON."""
    return [{k: v for k, v in asdict(d).items() if k != "worst"} for d in compare(before, after)]


def conclude(recipe: LoopRecipe, phase: Phase, before: Path | None) -> str:
    """Write metrics.json and the loop's records of a scored phase. before: the folder of the scored phase before. Returns the
    line.
    """
    folder = recipe.output / phase.name
    rows, earlier = of_run(folder / "score"), None if before is None else of_run(before / "score")
    results = [r for file in sorted((folder / "score" / "records").glob("*.json")) for r in read_results(file)]
    said = line(rows, earlier, results)
    metrics = {"line": said, "differences": [] if earlier is None else differences(earlier, rows)}
    write_atomically(folder / "metrics.json", dump_json(metrics))
    publish(recipe, phase, results)
    return said


def publish(recipe: LoopRecipe, phase: Phase, results: Sequence[TaskResult]) -> None:
    """The phase's results among the loop's records, named after run and phase, with what tables and figures sort by."""
    about = origin(recipe, phase)
    named = [
        r.model_copy(
            update={"model": f"{recipe.run_name} · {phase.label}", "model_info": {**r.model_info, "phase": dict(about)}}
        )
        for r in results
    ]
    if named:
        write_results(_record(recipe, phase), named)


def _record(recipe: LoopRecipe, phase: Phase) -> Path:
    return recipe.output / "records" / f"{slug(phase.name.replace('/', '-'))}.json"


def prune(recipe: LoopRecipe) -> None:
    """Take away records of phases that the recipe no longer has, or that are not finished: tables would show them. Nothing is
    lost, a phase's folder has its own.
    """
    there = {_record(recipe, phase) for phase in phases(recipe) if is_finished(recipe.output / phase.name)}
    for file in (recipe.output / "records").glob("*.json"):
        if file not in there and _OURS.match(file.stem):
            file.unlink()


def origin(recipe: LoopRecipe, phase: Phase) -> Mapping[str, Any]:
    """Which run, phase, iteration and seed a record is of."""
    return {
        "run": recipe.run_name,
        "phase": phase.name,
        "label": phase.label,
        "iteration": phase.iteration,
        "seed": recipe.seed,
    }
