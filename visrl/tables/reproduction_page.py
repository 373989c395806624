"""docs/science.md: what of the paper's claims reproduced on the small world, written from results/records alone.

    visrl-eval reproduction-page          writes it, and its figure
    visrl-eval reproduction-page --check    exit code 1 where the file is not what the records give

No number is typed by hand and none is kept that the records do not have: where nothing was measured, the page says so. Claims are
decided by one rule, said on the page: p over seeds, corrected for the number of claims.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from visrl.core.records import TaskResult, write_atomically
from visrl.errors import UsageError
from visrl.tables.ablation_tables import FULL, Numbers, pairs_table, summary, table_of
from visrl.tables.claims import HEADER, RECIPES, WHY, Claim, claims, holm, last_by_seed, main_run, pairs_by_seed
from visrl.tables.cost_tables import NOT_RECORDED, Cost, cost_of
from visrl.tables.formats import render
from visrl.tables.phase_tables import (
    draw_iterations,
    in_order,
    longest,
    of_loops,
    phase_of,
    phase_table,
    runs,
    series,
)
from visrl.tables.science.sections import Apart, apart_of, draw, fallen, records_of, sections
from visrl.world import checkpoint_path

FIGURE = "figures/iterations.svg"
ITERATIONS = (
    "; by recipes/world-iterations.yaml, which starts from the bundled `sft` and weights the winners' SFT term by 3 instead"
    " of 1: its rows are comparable with each other, not with those of the ablations. Its seeds share the warm-up and the test"
    " questions, so the standard errors cover only pairs and reinforcement learning."
)
YES_OR_NO = (
    "Questions of `fine` have yes-or-no answers, which are half right by chance and likely given any crop, so that"
    " few give a pair (docs/pairs.md): their answers drift while those of the other domains are trained."
)
KINDS = ("wp_lp", "wp_ln", "wn_lp", "wn_ln")
_HEAD = """<!-- Generated from results/records by `visrl-eval reproduction-page`; with --check it compares. -->

# What reproduced, and what did not

The paper's claims, tested on the small world ([world.md](world.md)) with the loop ([loop.md](loop.md)). Differences are in
percentage points, paired by seed, ± one standard error over seeds. p is two-sided, from Student's t over seeds, and corrected for
all claims of a section by Holm's method: a claim counts as reproduced if its corrected p is below .05 in the claimed direction,
as contradicted if it is so in the opposite direction, and as undecided otherwise; a note says if the difference alone exceeds two
standard errors. With fewer than three seeds a claim is undecided, except for one seed with a standard error over pictures.
Terms such as M_org, RL1 and WP-LN are in the [glossary](glossary.md).
"""
_COST = "CPU: processor minutes of the runs that a claim is read from, scoring left out; a phase that they share counts once."
_POWER = (
    "Differences that the tests of claims within two errors would find with a power of 80 % (in points; t-test at .05 over as"
    " many seeds with the error above, uncorrected):"
)
_LIMITS = """## Limits

The models have about a million parameters, the pictures are synthetic, and the questions come from a grammar. Results
may not transfer to a model with seven billion parameters, and a method that fails here may work there. The critic is a
likelihood, because a model of this size cannot judge in words. No number on this page is comparable with a published one.
"""
_NOTHING = """The records contain no run of the loop yet: **nothing has been measured, so nothing is claimed**.

`visrl-train recipes/world.yaml`, `recipes/world-iterations.yaml` and `recipes/world-ablations.yaml` write records; this
page is generated from their `records/` folders, copied below `results/records/`.
"""


def text(results: Sequence[TaskResult], apart: Apart | None = None) -> str:
    """The page, as Markdown ending in a newline."""
    apart = apart or Apart()
    small = [r for r in results if r.small_world]
    found = in_order(of_loops(small))
    if not found:
        return "\n".join([_HEAD, _NOTHING, _LIMITS])
    parts = [_HEAD, "## Claims", "", *_claims(small, apart.costs), "", *_tables(small, found)]
    if has_figure(found):
        parts += [
            "## Iterations",
            "",
            f"![VisRL over multiple iterations]({FIGURE})",
            "",
            *_end(found),
            "",
        ]
    return "\n".join([*parts, *sections(apart), _LIMITS])


def has_figure(found: Sequence[TaskResult]) -> bool:
    """Whether any run has more than one iteration."""
    loops = of_loops(found)
    return bool(loops) and any(len(line) > 2 for line in series(loops, longest(loops)).values())


def _claims(results: Sequence[TaskResult], costs: Mapping[str, Sequence[Cost]]) -> list[str]:
    """A line per claim that the records speak to, one that names those they do not, and what is known of those that failed."""
    made = list(claims(results))
    chances = holm([claim.p for claim in made])
    verdicts = [claim.verdict(p) for claim, p in zip(made, chances, strict=True)]
    silent = [claim.text for claim, verdict in zip(made, verdicts, strict=True) if not verdict]
    lines = []
    for recipe, what in zip(RECIPES, ("a run per variant and seed", "a run per seed"), strict=True):
        of = [(claim, p) for claim, p in zip(made, chances, strict=True) if claim.recipe == recipe]
        lines += _claims_of(recipe, what, of, costs.get(recipe, ()))
    lines += [f"Not measured: {'; '.join(silent)}."] if silent else []
    failed: dict[str, list[str]] = {}
    for claim, verdict in zip(made, verdicts, strict=True):
        if verdict and verdict != "reproduced" and claim.text in WHY:
            failed.setdefault(WHY[claim.text], []).append(claim.text)
    if failed:
        lines += ["", "Undecided or contradicted, with likely reasons:", ""]
        lines += [f"- *{'*; *'.join(texts)}*: {why.format(**_reading())}" for why, texts in failed.items()]
    could = [
        f"*{claim.text}* {claim.detectable:.1f}"
        for claim, verdict in zip(made, verdicts, strict=True)
        if verdict == "undecided" and claim.detectable is not None
    ]
    return [*lines, "", f"{_POWER} {'; '.join(could)}."] if could else lines


def _claims_of(recipe: str, what: str, found: Sequence[tuple[Claim, float | None]], costs: Sequence[Cost]) -> list[str]:
    """The table of the claims that one recipe's runs decide, by their corrected p; what it takes to run them again."""
    rows = [claim.row(p, cost_of(costs, claim.run_seeds) if costs else "") for claim, p in found]
    if not any(rows):
        return []
    header, line = HEADER if not costs else (HEADER[0] + " CPU, min |", HEADER[1] + " ---: |")
    said = _COST if costs else f"Their processor time: {NOT_RECORDED}."
    again = f"`visrl-train {recipe}` ({what}) measures these again. {said}"
    return [again, "", header, line, *filter(None, rows), ""]


def _reading() -> dict[str, str]:
    """What M_org and M_SFT answer when shown the true crop alone: from the cards of the shipped models."""
    found = {}
    for name in ("base", "sft"):
        rows = json.loads((checkpoint_path(name) / "measured.json").read_text(encoding="utf-8"))
        (row,) = [r for r in rows if (r["task"], r["condition"]) == ("world_viscot", "crop alone")]
        found[name] = f"{100 * row['value']:.1f} ± {100 * row['se']:.1f} %"
    return found


def _tables(results: Sequence[TaskResult], found: Sequence[TaskResult]) -> list[str]:
    """Phases of the main run and of the one with several iterations, then what each variant is worth, and its pairs."""
    names = runs(found)
    shown = (main_run(names), *([longest(found)] if has_figure(found) else []))
    parts = ["## Phases", "", *(_made_of(found, name) for name in dict.fromkeys(shown)), ""]
    parts += [render(phase_table(found, name), "md") for name in dict.fromkeys(shown)]
    if FULL in names:
        names = [FULL, *(name for name in names if name not in shown)]
        variants = {name: last_by_seed(found, name) for name in names}
        parts += ["## Ablations", "", render(table_of(summary(variants)), "md")]
    pairs = {name: {kind: pairs_by_seed(results, name, (kind,)) for kind in KINDS} for name in names}
    shared = pairs.get(FULL)  # variants that change only training have the very same pairs
    if made := {
        n: kinds for n, kinds in pairs.items() if any(kinds.values()) and (n == FULL or _differ(kinds, shared))
    }:
        parts += ["## Pairs", "", render(pairs_table(made), "md")]
    return parts


def _differ(kinds: Numbers, shared: Numbers | None) -> bool:
    """Whether two variants' pairs differ in a seed that both have, or have none in common."""
    both = [(values, (shared or {}).get(kind, {}), seed) for kind, values in kinds.items() for seed in values]
    same = [a[seed] == b[seed] for a, b, seed in both if seed in b]
    return not same or not all(same)


def _end(found: Sequence[TaskResult]) -> list[str]:
    """How the longest run's last iteration compares with its warm-up."""
    said = fallen(found, longest(found))
    return [f"{said} {YES_OR_NO}" if said.startswith("Below") else said]


def _made_of(found: Sequence[TaskResult], name: str) -> str:
    """Which seeds a run's numbers are of, and what sets its recipe apart."""
    seeds = sorted({str(phase_of(r)["seed"]) for r in found if phase_of(r)["run"] == name})
    apart = ITERATIONS if name == "world-iterations" else ""
    return f"- {name}: seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}{apart}"


def write(results: Path, docs: Path) -> Path:
    """Write the page and its figure from ``results/records``. Returns the page. Raises UsageError where that folder is not."""
    if not (results / "records").is_dir():
        raise UsageError(f"{results / 'records'}: no such folder", "run this in visrl's repository, or name --results")
    found = records_of(results)
    if has_figure(found):
        loops = of_loops(found)
        draw_iterations(loops, longest(loops), docs / FIGURE)
    apart = apart_of(results)
    draw(apart, docs)
    write_atomically(docs / "science.md", text(found, apart))
    return docs / "science.md"


def is_stale(results: Path, docs: Path) -> bool:
    """Whether the page on file is not what the records give."""
    page = docs / "science.md"
    return not page.is_file() or page.read_text(encoding="utf-8") != text(records_of(results), apart_of(results))
