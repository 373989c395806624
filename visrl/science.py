"""docs/science.md: what of the paper's claims reproduced on the small world, written from results/records alone.

    visrl-eval science            writes it, and its figure
    visrl-eval science --check    exit code 1 where the file is not what the records give

No number is typed by hand and none is kept that the records do not have: where nothing was measured, the page says so. Claims are
decided by one rule, said on the page: beyond two standard errors, over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from visrl.evals import stats
from visrl.evals.benchmarks import GROUPS
from visrl.phase_tables import METRICS, draw_iterations, in_order, longest, of_loops, order, phase_table, runs, series
from visrl.records import TaskResult, read_records, write_atomically
from visrl.render import render

FIGURE = "figures/iterations.svg"
BEYOND = 2.0
"""Standard errors."""
_HEAD = """<!-- Generated from results/records by `visrl-eval science`; `visrl-eval science --check` compares. -->

# What reproduced, and what did not

The paper's claims, tested on the small world ([world.md](world.md)) by the loop ([loop.md](loop.md)). A claim counts as
reproduced where the difference is beyond two standard errors over seeds in its direction, as contradicted where it is beyond two
in the other, else as undecided. Differences are paired by seed; of one seed nothing is decided.
"""
_LIMITS = """## Limits

Models have about a million parameters, pictures are drawn, questions come from a grammar. What holds here may not hold for a
model of seven billion, and what fails here may work there. The critic is a likelihood, because a model of this size cannot judge
in words. No number on this page may be set beside a published one.
"""
_NOTHING = """No run of the loop is among the records yet: **nothing has been measured, so nothing is claimed**.

`visrl-train recipes/world.yaml`, `recipes/world-iterations.yaml` and `recipes/world-ablations.yaml` make records; their
`records/` folders, copied below `results/records/`, are what this page is written from.
"""
# claim, phase after, phase before, metric
_STEPS = (
    ("SFT answers better than the base", "SFT", "base", "answers"),
    ("SFT points better than the base", "SFT", "base", "box"),
    ("RL1 points better than SFT", "SFT+RL1", "SFT", "box"),
    ("RL2 points better than SFT", "SFT+RL1+RL2", "SFT", "box"),
    ("RL2 answers better than SFT", "SFT+RL1+RL2", "SFT", "answers"),
    ("RL2 answers at least as well as RL1", "SFT+RL1+RL2", "SFT+RL1", "answers"),
)
# claim, variant that should be worse than `full`, metric
_ABLATIONS = (
    ("Box critics help", "no-box-critic", "box"),
    ("The diversity controller helps", "no-diversity", "box"),
    ("M_org is the better critic than M_SFT", "sft-as-critic", "box"),
    ("Stage 1 before stage 2 helps", "stage-2-only", "box"),
    ("Preferences over boxes help, not only over answers", "answer-only", "box"),
    ("The winning box's crop is the better context of the losing answer", "own-crop", "answers"),
    ("Crops in the frame of the boxes help", "compat-crop", "box"),
    ("The losing chain helps beyond fine-tuning on the winning one", "winners-only", "box"),
    ("Reinforcement beats as many further labelled examples", "more-sft", "box"),
)
BySeed = dict[str, float]


def text(results: Sequence[TaskResult]) -> str:
    """The page, as Markdown ending in a newline."""
    found = [r for r in in_order(of_loops(results)) if r.small_world]
    if not found:
        return "\n".join([_HEAD, _NOTHING, _LIMITS])
    names = runs(found)
    parts = [_HEAD, "## Claims", "", *_claims(found, names), "", "## Phases", ""]
    for name in names:
        parts += [render(phase_table(found, name), "md")]
    if has_figure(found):
        parts += ["## Iterations", "", f"![VisRL over multiple iterations]({FIGURE})", ""]
    return "\n".join([*parts, _LIMITS])


def has_figure(found: Sequence[TaskResult]) -> bool:
    """Whether any run has more than one iteration."""
    loops = of_loops(found)
    return bool(loops) and any(len(line) > 2 for line in series(loops, longest(loops)).values())


def _claims(found: Sequence[TaskResult], names: Sequence[str]) -> list[str]:
    """A line per claim that the records can speak to, and one that names those they cannot."""
    lines, silent = [], []
    main = "full" if "full" in names else names[0]
    for claim, after, before, metric in _STEPS:
        a, b = (by_seed(found, main, label, metric) for label in (before, after))
        line = verdict(claim, a, b)
        lines += [line] if line else []
        silent += [] if line else [claim]
    full = last_by_seed(found, "full")
    for claim, variant, metric in _ABLATIONS:
        line = verdict(claim, last_by_seed(found, variant).get(metric, {}), full.get(metric, {}))
        lines += [line] if line else []
        silent += [] if line else [claim]
    rest = [f"\nNot measured: {'; '.join(silent)}."] if silent else []
    return ["| claim | from | to | difference | verdict |", "| --- | ---: | ---: | ---: | --- |", *lines, *rest]


def verdict(claim: str, before: BySeed, after: BySeed) -> str:
    """A row of the table, over the seeds that both have; empty where they share none."""
    seeds = [seed for seed in before if seed in after]
    if not seeds:
        return ""
    a, b = [before[s] for s in seeds], [after[s] for s in seeds]
    change = stats.paired_difference(a, b, seeds)
    assert change.value is not None, "there are seeds"
    error = "" if change.se is None else f" ± {change.se:.1f}"
    means = [stats.mean(values, seeds).value or 0.0 for values in (a, b)]
    word = decided(change.value, change.se)
    how = f"{word}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    return f"| {claim} | {means[0]:.1f} | {means[1]:.1f} | {change.value:+.1f}{error} | {how} |"


def decided(change: float, se: float | None) -> str:
    """``reproduced``, ``contradicted`` or ``undecided``."""
    if se is None or abs(change) <= BEYOND * se:
        return "undecided"
    return "reproduced" if change > 0 else "contradicted"


def by_seed(found: Sequence[TaskResult], run: str, label: str, metric: str) -> BySeed:
    """seed -> percent of a phase; a group's mean where there is one, else the only task's."""
    values: dict[str, dict[str, float]] = {}
    for r in found:
        about = r.model_info["phase"]
        if (about["run"], about["label"]) == (run, label) and METRICS[r.metric] == metric and r.value is not None:
            percent = 100.0 * r.value if r.unit == "fraction" else r.value
            values.setdefault(str(about["seed"]), {})[r.task] = percent
    means = {
        seed: [v for task, v in of_seed.items() if task in GROUPS or len(of_seed) == 1]
        for seed, of_seed in values.items()
    }
    return {seed: mean[0] for seed, mean in means.items() if mean}


def last_by_seed(found: Sequence[TaskResult], run: str) -> dict[str, BySeed]:
    """metric -> seed -> percent of a run's last phase."""
    about = [r.model_info["phase"] for r in found if r.model_info["phase"]["run"] == run]
    if not about:
        return {}
    label = max(about, key=lambda phase: order(phase["phase"]))["label"]
    return {metric: by_seed(found, run, label, metric) for metric in dict.fromkeys(METRICS.values())}


def write(results: Path, docs: Path) -> Path:
    """Write the page and its figure from ``results/records``. Returns the page."""
    found = _read(results)
    if has_figure(found):
        loops = of_loops(found)
        draw_iterations(loops, longest(loops), docs / FIGURE)
    write_atomically(docs / "science.md", text(found))
    return docs / "science.md"


def is_stale(results: Path, docs: Path) -> bool:
    """Whether the page on file is not what the records give."""
    page = docs / "science.md"
    return not page.is_file() or page.read_text(encoding="utf-8") != text(_read(results))


def _read(results: Path) -> list[TaskResult]:
    return read_records(results / "records") if (results / "records").is_dir() else []
