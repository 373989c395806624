"""Sections of docs/science.md whose runs are on file apart from the ablations: results/methods, results/terms and so on.

Each has a text on what was run, and its tables; where there is no record, it says that nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from visrl.core.records import TaskResult, read_records
from visrl.tables.ablation_tables import FULL, summary, table_of
from visrl.tables.claims import BEYOND, HEADER, RECIPES, claims, holm, last_by_seed
from visrl.tables.cost_tables import (
    NAMES,
    Cost,
    Progress,
    costs_table,
    draw_costs,
    paths,
    read_costs,
    rerun,
    runs_of,
)
from visrl.tables.csv_files import read_lines
from visrl.tables.formats import render
from visrl.tables.phase_tables import (
    METRICS,
    draw_iterations,
    in_order,
    of_loops,
    phase_ends,
    phase_table,
    points,
    runs,
    short,
)
from visrl.tables.science.label_tables import FIGURE as LABELS_FIGURE
from visrl.tables.science.label_tables import arms, draw_labels, section
from visrl.tables.science.margin_tables import FIGURE as MARGIN_FIGURE
from visrl.tables.science.margin_tables import domains_table, draw_margin, verdict
from visrl.tables.science.margin_tables import ends as ends_by_domain
from visrl.tables.science.method_verdicts import verdicts
from visrl.tables.science.saturation_tables import Errors, ceiling, errors_table, iterations_table, saturates
from visrl.tables.science.term_tables import ANSWERS, TASKS, ends, looks_taken, terms_table
from visrl.tables.science.term_tables import METRICS as WALL_METRICS

METHODS_FIGURE = "figures/methods.svg"
METHODS = "methods"
"""Below results: what recipes/world-methods.yaml leaves, apart from the ablations, whose `full` is another one."""
METHODS_ON_WALLS = "methods-deep"
"""Below results: what recipes/world-deep-methods.yaml leaves."""
WALLS_FIGURE = "figures/methods-deep.svg"
SATURATION_FIGURE = "figures/saturation.svg"
SATURATION, MARGIN, LABELS = "saturation", "margin", "labels"
"""Below results: what recipes/world-saturation.yaml, world-margin.yaml and world-labels.yaml leave."""
TERMS = "terms"
"""Below results: what recipes/world-deep-terms.yaml leaves."""
TEXTURED = "textured"
"""Below results: what recipes/world-textured.yaml leaves."""
FOLDERS = {METHODS: "methods", METHODS_ON_WALLS: "deep-methods", TERMS: "deep-terms"} | {
    name: name for name in (SATURATION, MARGIN, LABELS, TEXTURED)
}
"""Folder -> recipe, without ``world-``."""
_METHODS = """Each method starts from the same warm-up (the bundled `sft`), by `recipes/world-methods.yaml`, with the best
of three learning rates on `val` (`recipes/world-methods-lr.yaml`): `full` is step-level DPO as in the paper, `online` the
same with pairs sampled anew from the newest model in five parts, `sft_chosen` fine-tuning on the chosen chains,
`grpo_critic` step-level GRPO with the box-free critic, `grpo_answer` GRPO with the answer reward only, `grpo_oracle`
step-level GRPO with the IoU with the true box, which the paper's setting does not have. Tokens: all that policy,
critic and reference computed, or training differentiated. CPU: time on one core, without scoring, both cores being busy.
`online` and the `grpo` methods did best with the lowest rate tried; of these `grpo_critic` alone was tried below it, and did
worse.
"""
_TOLD_APART = "Beyond two standard errors over three seeds or more, in points:\n"
_NO_METHODS = """**Not measured, so nothing is claimed.** `recipes/world-methods.yaml` defines the comparison:
step-level DPO, the same with newly sampled pairs, fine-tuning on the chosen chains, GRPO per step with the box-free critic,
GRPO on the answer reward only, GRPO with the oracle's IoU, each from the same warm-up. For GRPO, the correctness of
losses and gradients and the speed of a step have been tested ([training-grpo.md](training-grpo.md),
[performance.md](performance.md)), but not its accuracy.
"""
_ON_WALLS = """The same over several looks, on walls ([world.md](world.md)), by `recipes/world-deep-methods.yaml`, each seed with
its own warm-up on 100 labelled walls: `full` is step-level DPO with a term per look, on pairs of 2,000 questions; GRPO, on
1,000 questions, rewards each look (`grpo_critic`: by the critic, `grpo_oracle`: by the IoU with its true box) or the answer
only (`grpo_answer`). Learning rates are those found for one look. Answers also of the signs that take one look, and two.
n = 1,000 walls of `test`.
"""
_STOPPING = """
A sign takes one look or two. Rewards per look compare looks with looks: whether to look again or to answer has no reward
of its own ([training-grpo.md](training-grpo.md#several-looks)). Whether answers fall because of the further looks has not been
tested.
"""
_NO_WALLS = "**Not measured, so nothing is claimed.** `recipes/world-deep-methods.yaml` defines the comparison.\n"
_SATURATION = """Eight iterations of 900 questions, each seed with its own warm-up on 40 labelled pictures
(`recipes/world-saturation.yaml`); then 64 further samples of each question whose box is still wrong
(`tests/studies/remaining_errors.py`).
"""
_NO_SATURATION = "**Not measured, so nothing is claimed.** `recipes/world-saturation.yaml` defines the runs.\n"
_MARGIN = """Four iterations from the bundled `sft` with the likelihood critic (`full`) and with a critic by margin on yes-or-no
questions ([pairs.md](pairs.md#margin)), by `recipes/world-margin.yaml`. The latter is calibrated anew in each iteration on 200
questions of `val` with their true boxes: labels that `full` does not have.
"""
_NO_MARGIN = """**Not measured, so nothing is claimed.** `recipes/world-margin.yaml` defines the runs
([pairs.md](pairs.md#margin)).
"""
_TERMS = """The method over several looks, on walls ([world.md](world.md)), by `recipes/world-deep-terms.yaml`: a warm-up on 100
labelled walls (`sft` here, one per seed), pairs of 2,000 questions whose looks each have candidates and a critic, then
step-level DPO with a term per look (`full`) or with the last look's alone (`last_look`), each with the answer's. Answers
also of the signs that take one look, and two; boxes 1 and 2: those of the first look, and of the second where the sign takes
one. n = 1,000 walls of `test`.
"""
_NO_TERMS = "**Not measured, so nothing is claimed.** `recipes/world-deep-terms.yaml` defines the comparison.\n"

CLAIMS_AGAIN = (
    "SFT answers better than the base",
    "SFT predicts better boxes than the base",
    "RL2 predicts better boxes than SFT",
    "RL2 answers better than SFT",
    "Box critics help",
    "With box critics more winning boxes are right",
    "Reinforcement beats continued SFT with the same compute",
)
"""Of tables/claims.py's, those that the recipe's variants decide."""
_TEXTURED = """The same questions, splits, sizes and settings over textured and photograph-like grounds, with clutter and things
partly covered ([world.md](world.md#another-world)), by `recipes/world-textured.yaml`, from a base that continued its own lessons
over such pictures (`recipes/world-textured-base.yaml`). p is corrected by Holm's method among the claims of this section; those
of the other sections neither count here nor change by it. `world_textured_viscot`, n = 1,250.
"""
_NO_TEXTURED = "**Not measured, so nothing is claimed.** `recipes/world-textured.yaml` defines the comparison.\n"


@dataclass(frozen=True, slots=True)
class Apart:
    """What is on file apart from the ablations: paths of methods (tables/cost_tables.py) on the small world and on walls, records
    of the latter, those of terms per look, of iterations to the end with their remaining errors, of the critic by margin, of
    labels and of the textured world; and what runs cost, by recipe (also those of claims).
    """

    methods: Mapping[str, Mapping[int, Progress]] = field(default_factory=dict)
    on_walls: Mapping[str, Mapping[int, Progress]] = field(default_factory=dict)
    walls: Sequence[TaskResult] = ()
    terms: Sequence[TaskResult] = ()
    saturation: Sequence[TaskResult] = ()
    errors: Sequence[Errors] = ()
    margin: Sequence[TaskResult] = ()
    labels: Sequence[TaskResult] = ()
    textured: Sequence[TaskResult] = ()
    costs: Mapping[str, Sequence[Cost]] = field(default_factory=dict)

    def again(self, folder: str, runs_: Collection[tuple[str, int]]) -> str:
        """A paragraph: the command that makes what is in ``folder`` again, and what its runs took."""
        recipe = recipe_of(folder)
        return rerun(recipe, runs_, self.costs.get(recipe, ()))


def recipe_of(folder: str) -> str:
    """Whose runs a folder below results has."""
    return f"recipes/world-{FOLDERS[folder]}.yaml"


def sections(apart: Apart) -> list[str]:
    """Them all, as lines of Markdown."""
    parts = ["## Iterations to the end", "", *_saturation(apart)]
    parts += ["## A critic by margin", "", *_margin(apart)]
    parts += ["## Labels against reinforcement", "", *section(apart.labels, apart.costs.get(recipe_of(LABELS), ()))]
    parts += ["## Step-level DPO against GRPO", "", *_methods(apart)]
    parts += ["## Step-level DPO against GRPO over several looks", "", *_methods_on_walls(apart)]
    parts += ["## A term per look", "", *_terms(apart)]
    again = apart.again(TEXTURED, runs_of(apart.textured))
    return [*parts, "## Another world", "", *another_world(apart.textured, again)]


def _saturation(apart: Apart) -> list[str]:
    results, errors = apart.saturation, apart.errors
    if not results:
        return [_NO_SATURATION]
    said = []
    for name in ("box", "answers"):
        last = saturates(results, FULL, name)
        said.append(f"{name} after " + ("none of them" if last is None else f"iteration {last}"))
    ended = f"Two iterations in a row add at most two standard errors: {'; '.join(said)}.\n"
    shown = ["Of the remaining errors nothing is on file.\n"]
    if errors:
        shown = [render(errors_table(errors), "md"), f"{ceiling(errors)}\n"]
    made = apart.again(SATURATION, runs_of(results))
    figure = f"![Eight iterations]({SATURATION_FIGURE})"
    return [_SATURATION, made, render(iterations_table(results, FULL), "md"), ended, figure, "", *shown]


def _margin(apart: Apart) -> list[str]:
    if not apart.margin:
        return [_NO_MARGIN]
    found = of_loops(apart.margin)
    parts = [_MARGIN, apart.again(MARGIN, runs_of(found))]
    if {FULL, MARGIN} <= set(runs(found)):
        rows = ends_by_domain(found)
        parts += [render(domains_table(rows), "md"), f"{verdict(rows)}\n"]
    parts += [f"`{run}`: {fallen(found, run)}\n" for run in runs(found)]
    return [*parts, f"![Yes-or-no answers with two critics]({MARGIN_FIGURE})", ""]


def _methods(apart: Apart) -> list[str]:
    found = apart.methods
    if not found:
        return [_NO_METHODS]
    return [
        _METHODS,
        apart.again(METHODS, {(run, seed) for run, by_seed in found.items() for seed in by_seed}),
        *_compared(found, NAMES, "Methods on equal compute", METHODS_FIGURE),
    ]


def _compared(found: Mapping[str, Mapping[int, Progress]], names: Sequence[str], title: str, figure: str) -> list[str]:
    """The table of equal compute, its figure, and what they say."""
    shown = [render(costs_table(found, names, title), "md"), f"![Scores over model tokens]({figure})", ""]
    return [*shown, _TOLD_APART, *verdicts(found, names), ""]


def _methods_on_walls(apart: Apart) -> list[str]:
    if not apart.on_walls:
        return [_NO_WALLS]
    return [
        _ON_WALLS,
        apart.again(METHODS_ON_WALLS, runs_of(apart.walls)),
        render(terms_table(ends(apart.walls), "Methods on walls, each at its end"), "md"),
        looks_taken(apart.walls),
        _STOPPING,
        *_compared(apart.on_walls, ANSWERS, "Methods on walls on equal compute", WALLS_FIGURE),
    ]


def _terms(apart: Apart) -> list[str]:
    if not apart.terms:
        return [_NO_TERMS]
    return [_TERMS, apart.again(TERMS, runs_of(apart.terms)), render(terms_table(ends(apart.terms)), "md")]


def another_world(results: Sequence[TaskResult], again: str = "") -> list[str]:
    """The main claims again in another world, as Markdown: claims, the phases of ``full``, and what each variant is worth.

    results: records of the recipe; where they hold no phase of a loop, the section says that nothing was measured. again: how to
    make them again.
    """
    found = in_order(of_loops(results))
    if not found:
        return [_NO_TEXTURED]
    names = runs(found)
    parts = [_TEXTURED, again, *_claims_again(results), ""]
    parts += [render(phase_table(found, FULL), "md")] if FULL in names else []
    variants = {name: last_by_seed(found, name) for name in sorted(names, key=lambda name: (name != FULL, name))}
    return [*parts, render(table_of(summary(variants), "Variants in the textured world"), "md")]


def _claims_again(results: Sequence[TaskResult]) -> list[str]:
    """A row for each claim that the records speak to, and a line that names the others. p is corrected among these alone: a claim
    more or less here changes no verdict of the page's first section.
    """
    made = [claim for claim in claims(results) if claim.text in CLAIMS_AGAIN]
    chances = holm([claim.p for claim in made])
    rows = [claim.row(p) for claim, p in zip(made, chances, strict=True)]
    lines = [*HEADER, *filter(None, rows)] if any(rows) else []
    silent = [claim.text for claim, row in zip(made, rows, strict=True) if not row]
    return [*lines, *(["", f"Not measured: {'; '.join(silent)}."] if silent else [])]


def fallen(found: Sequence[TaskResult], run: str) -> str:
    """What a run's last iteration does worse than its warm-up, beyond two standard errors."""
    ends = {int(number): label for label, number in phase_ends(found, run).items()}
    rows = points(found, run)
    if 0 not in ends:
        return ""
    before, after = rows[ends[0]], rows[ends[max(ends)]]
    lines = []
    for (task, metric), then in before.items():
        now = after.get((task, metric))
        if now is not None and then.value - now.value > BEYOND * math.hypot(then.se or 0.0, now.se or 0.0):
            lines.append(f"{short(task)} {METRICS[metric]} {then.value:.1f} → {now.value:.1f}")
    if not lines:
        return "No domain ends below the warm-up by more than two standard errors."
    return f"Below the warm-up at the end, by more than two standard errors: {'; '.join(lines)}."


def records_of(folder: Path) -> list[TaskResult]:
    return read_records(folder / "records") if (folder / "records").is_dir() else []


def apart_of(results: Path) -> Apart:
    """All of it, read from below ``results``; costs of claims from ``records/<recipe's name>/costs.csv``."""
    costs = {recipe_of(folder): read_costs(results / folder / "costs.csv") for folder in FOLDERS}
    costs |= {recipe: read_costs(results / "records" / Path(recipe).stem / "costs.csv") for recipe in RECIPES}
    walls = records_of(results / METHODS_ON_WALLS)
    return Apart(
        methods=paths(records_of(results / METHODS), costs[recipe_of(METHODS)]),
        on_walls=paths(walls, costs[recipe_of(METHODS_ON_WALLS)], WALL_METRICS, TASKS),
        walls=walls,
        terms=records_of(results / TERMS),
        saturation=records_of(results / SATURATION),
        errors=read_lines(results / SATURATION / "errors.csv", Errors),
        margin=records_of(results / MARGIN),
        labels=records_of(results / LABELS),
        textured=records_of(results / TEXTURED),
        costs=costs,
    )


def draw(apart: Apart, docs: Path) -> None:
    """The figures of these sections."""
    if apart.methods:
        draw_costs(apart.methods, docs / METHODS_FIGURE)
    if apart.on_walls:
        draw_costs(apart.on_walls, docs / WALLS_FIGURE, ANSWERS, "walls")
    if apart.saturation:
        draw_iterations(apart.saturation, FULL, docs / SATURATION_FIGURE)
    if apart.margin:
        draw_margin(of_loops(apart.margin), docs / MARGIN_FIGURE)
    if labels := arms(apart.labels):
        draw_labels(labels, docs / LABELS_FIGURE)
