"""``--max-looks A..B``: the curve of the score over the looks allowed, printed and drawn."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

from visrl.core.records import dump_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from visrl.evaluation.evaluate import Engine, Options, Outcome
    from visrl.policies.protocol import Policy

FIGURE = "looks.svg"


def show_curve(
    policy: Policy, tasks: Sequence[str], options: Options, engine: Engine, looks: Sequence[int], *, json_: bool
) -> Outcome:
    """Run a limit after the other, print the table (or the rows as JSON), draw the figure; returns the runs' failures."""
    from visrl.evaluation.looks_curve import rows_of, run_curve
    from visrl.tables.looks_tables import draw, looks_table
    from visrl.tables.paper_tables import print_table

    curve = run_curve(policy, tasks, options, engine, looks)
    if not any(curve.points.values()):  # of several processes only the first has results
        return curve.outcome
    draw(curve.points, curve.folder / FIGURE)
    if json_:
        print(dump_json(rows_of(curve.points)), end="")
    else:
        print_table(looks_table(curve.points), "rich")
        last = shlex.quote(str(curve.folder / f"looks-{looks[-1]}"))
        first = shlex.quote(str(curve.folder / f"looks-{looks[0]}"))
        print(f"\nfigure: {curve.folder / FIGURE}", file=sys.stderr)
        print(f"what the looks changed: visrl-eval compare {first} {last}", file=sys.stderr)
    return curve.outcome
