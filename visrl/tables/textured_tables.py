"""The main claims again in another world: recipes/world-textured.yaml's records as a section of docs/science.md.

The rule is that of the page's claims (claims.py), but p is corrected among the claims of this section alone: a claim more or less
here changes no verdict of the first section.
"""

from __future__ import annotations

from collections.abc import Sequence

from visrl.core.records import TaskResult
from visrl.tables.ablation_tables import FULL, summary, table_of
from visrl.tables.claims import HEADER, claims, holm, last_by_seed
from visrl.tables.formats import render
from visrl.tables.phase_tables import in_order, of_loops, phase_table, runs

RECIPE = "recipes/world-textured.yaml"
CLAIMS = (
    "SFT answers better than the base",
    "SFT predicts better boxes than the base",
    "RL2 predicts better boxes than SFT",
    "RL2 answers better than SFT",
    "Box critics help",
    "With box critics more winning boxes are right",
    "Reinforcement beats continued SFT with the same compute",
)
"""Of claims.py's, those that the recipe's variants decide."""
_ABOUT = f"""The same questions, splits, sizes and settings over textured and photograph-like grounds, with clutter and things
partly covered ([world.md](world.md#another-world)), by `{RECIPE}`, from a base that continued its own lessons
over such pictures (`recipes/world-textured-base.yaml`). p is corrected by Holm's method among the claims of this section; those
of the other sections neither count here nor change by it. `world_textured_viscot`, n = 1,250.
"""
_NOTHING = f"**Not measured, so nothing is claimed.** `{RECIPE}` defines the comparison.\n"


def another_world(results: Sequence[TaskResult]) -> list[str]:
    """The section's parts, as Markdown: claims, the phases of ``full``, and what each variant is worth. results: records of the
    recipe; where they hold no phase of a loop, the section says that nothing was measured.
    """
    found = in_order(of_loops(results))
    if not found:
        return [_NOTHING]
    names = runs(found)
    parts = [_ABOUT, *_claims(results), ""]
    parts += [render(phase_table(found, FULL), "md")] if FULL in names else []
    variants = {name: last_by_seed(found, name) for name in sorted(names, key=lambda name: (name != FULL, name))}
    return [*parts, render(table_of(summary(variants), "Variants in the textured world"), "md")]


def _claims(results: Sequence[TaskResult]) -> list[str]:
    """A row for each claim that the records speak to, and a line that names the others."""
    made = [claim for claim in claims(results) if claim.text in CLAIMS]
    chances = holm([claim.p for claim in made])
    rows = [claim.row(p) for claim, p in zip(made, chances, strict=True)]
    lines = [*HEADER, *filter(None, rows)] if any(rows) else []
    silent = [claim.text for claim, row in zip(made, rows, strict=True) if not row]
    return [*lines, *(["", f"Not measured: {'; '.join(silent)}."] if silent else [])]
