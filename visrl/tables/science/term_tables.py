"""Step-level DPO with a term per look against terms for the last look alone: recipes/world-deep-terms.yaml's records as a table.

Answers, also of the signs that take one look and two, and boxes look by look (IoU > 0.5 with the true box of that look, of the
samples that need it), at the end of the warm-up and of each variant's reinforcement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from visrl.core.records import TaskResult
from visrl.tables.ablation_tables import FULL, Numbers, plus_minus, summary, table_of
from visrl.tables.formats import Table
from visrl.tables.phase_tables import is_phase, order, phase_of

METRICS = {
    "answer": "answers",
    "answer/takes=1": "of one look",
    "answer/takes=2": "of two",
    "box_acc/look=1": "box 1",
    "box_acc/look=2": "box 2",
}
ANSWERS = ("answers", "of one look", "of two")
TASKS = ("world_deep",)
WARM_UP = "sft"


def ends(
    results: Sequence[TaskResult], metrics: Mapping[str, str] = METRICS, scale: float = 100.0
) -> dict[str, Numbers]:
    """The warm-up (that of ``full``), then variant by variant -> metric -> seed -> value, at the last phase of each.

    scale: times what records hold; 100 gives percent.
    """
    results = [result for result in results if is_phase(result)]
    last: dict[tuple[str, str], str] = {}
    for result in results:
        about = phase_of(result)
        of_seed = about["run"], str(about["seed"])
        last[of_seed] = max(last.get(of_seed, WARM_UP), about["phase"], key=order)
    found: dict[str, Numbers] = {}
    for result in results:
        about, seed = phase_of(result), str(phase_of(result)["seed"])
        warm_up = about["run"] == FULL and about["phase"] == WARM_UP
        ended = about["phase"] == last[about["run"], seed] != WARM_UP
        if result.metric in metrics and result.value is not None and (warm_up or ended):
            row = found.setdefault(WARM_UP if warm_up else about["run"], {})
            row.setdefault(metrics[result.metric], {})[seed] = scale * result.value
    return {name: found[name] for name in sorted(found, key=lambda name: (name != WARM_UP, name != FULL, name))}


def terms_table(found: Mapping[str, Numbers], title: str = "Terms on walls") -> Table:
    """A row per end, two columns per metric: its value, and its difference to ``full``, paired by seed."""
    return table_of(summary(found), title)


def looks_taken(results: Sequence[TaskResult]) -> str:
    """``- Looks per question …``: a bullet of Markdown, the number at each end, mean ± standard error over seeds."""
    lines = summary(ends(results, {"looks": "looks"}, scale=1.0))
    said = (f"`{line['variant']}` {plus_minus(line['value'], line['se'], digits=2)}" for line in lines)
    return f"- Looks per question: {', '.join(said)}."
