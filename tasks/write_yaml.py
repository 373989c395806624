"""Writes the lmms-eval task files: ``python -m visrl.tasks.write_yaml``. A test holds the files in the tree to this.

A file per task and group, all alike but for names: lmms-eval indexes files, not functions. Settings that silently change an
answer in lmms-eval 0.7 otherwise: ``until: []`` (else answers are cut at the first blank line) and ``reasoning_tags: none``
(else the CLI strips what stands in <think>).
"""

from __future__ import annotations

from pathlib import Path

from visrl.evals.benchmarks import GROUPS, TASKS, TaskSpec, has_mean
from visrl.tasks.lmms import COUNTS, MEANS, PREFIX, TOTALS
from visrl.tasks.sources import SOURCES

_LOWER_IS_BETTER = (*COUNTS, "yes_ratio")
_MAX_NEW_TOKENS = {"mmbench": 1024}  # VisCoT's evaluation (docs/method.md a2); 128 elsewhere


def task_yaml(spec: TaskSpec) -> str:
    """The task file of one of our tasks."""
    here = "visrl.tasks.lmms"
    lines = [
        f"task: {PREFIX}{spec.name}",
        "dataset_path: json",
        f"dataset_kwargs: {{data_files: {{test: !function {here}.PLACEHOLDER}}}}",
        "test_split: test",
        "output_type: generate_until",
        f"process_docs: !function {here}.documents_{spec.name}",
        f"doc_to_visual: !function {here}.doc_to_visual",
        f"doc_to_text: !function {here}.doc_to_text",
        f"doc_to_target: !function {here}.doc_to_target",
        f"process_results: !function {here}.results_{spec.name}",
        "reasoning_tags: none",
        "generation_kwargs:",
        f"  {{until: [], max_new_tokens: {_MAX_NEW_TOKENS.get(spec.benchmark, 128)}, do_sample: false, temperature: 0}}",
        "metric_list:",
    ]
    for metric in (*MEANS[spec.benchmark], *TOTALS[spec.benchmark], *COUNTS):
        mean = metric not in TOTALS[spec.benchmark]
        how = "mean" if mean else f"!function {here}.total_{spec.name}__{metric}"
        better = str(metric not in _LOWER_IS_BETTER).lower()
        lines.append(f'  - {{metric: "{metric}", aggregation: {how}, higher_is_better: {better}}}')
    return "\n".join([*lines, f'metadata: {{version: "{spec.version}"}}', ""])


def group_yaml(name: str, members: tuple[str, ...]) -> str:
    """The file of a group. Only groups that the field averages get an average, over tasks, not over samples."""
    benchmark = TASKS[members[0]].benchmark
    lines = [f"group: {PREFIX}{name}", "task:", *(f"  - {PREFIX}{member}" for member in members)]
    if has_mean(name):
        lines.append("aggregate_metric_list:")
        for metric in (*MEANS[benchmark], *TOTALS[benchmark]):
            lines.append(f"  - {{metric: {metric}, aggregation: mean, weight_by_size: false}}")
    return "\n".join([*lines, 'metadata: {version: "1"}', ""])


def files() -> dict[str, str]:
    """Path below this folder -> content, of every task file."""
    tasks = {f"{TASKS[name].benchmark}/{PREFIX}{name}.yaml": task_yaml(TASKS[name]) for name in SOURCES}
    groups = {
        f"{TASKS[members[0]].benchmark}/{PREFIX}{name}_group.yaml": group_yaml(name, members)
        for name, members in GROUPS.items()
        if all(member in SOURCES for member in members)
    }
    return tasks | groups


if __name__ == "__main__":
    for path, content in files().items():
        place = Path(__file__).parent / path
        place.parent.mkdir(exist_ok=True)
        place.write_text(content, encoding="utf-8")
