"""Ablations as tables: what each variant of a loop is worth beside the method itself, over seeds.

Read by the queue that makes them (train/loop/ablations.py) and by docs/science.md, which has only records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visrl.evals import stats
from visrl.tables.formats import Cell, Row, Table

FULL = "full"
"""The name of the method itself among its variants."""
Numbers = dict[str, dict[str, float]]
"""metric -> seed -> percent."""


def summary(found: Mapping[str, Numbers]) -> list[dict[str, Any]]:
    """Per variant and metric: mean ± standard error over seeds, and the difference to ``full`` over the seeds both have."""
    lines = []
    for variant, numbers in found.items():
        for metric, by_seed in numbers.items():
            full = found.get(FULL, {}).get(metric, {})
            both = [seed for seed in by_seed if seed in full]
            value = stats.mean(list(by_seed.values()), list(by_seed))
            delta = stats.paired_difference([full[s] for s in both], [by_seed[s] for s in both], both)
            line = {"variant": variant, "metric": metric, "value": value.value, "se": value.se, "seeds": value.n}
            if variant != FULL:
                line |= {"difference": delta.value, "difference_se": delta.se, "paired_seeds": delta.n}
            lines.append(line)
    return lines


def table_of(lines: Sequence[Mapping[str, Any]], title: str = "Ablations on the small world") -> Table:
    """A row per variant, two columns per metric."""
    metrics = list(dict.fromkeys(line["metric"] for line in lines))
    by_variant: dict[str, dict[str, Mapping[str, Any]]] = {}
    for line in lines:
        by_variant.setdefault(line["variant"], {})[line["metric"]] = line
    rows = []
    for variant, found in by_variant.items():
        cells = []
        for metric in metrics:
            line = found.get(metric, {})
            cells += [Cell((plus_minus(line.get("value"), line.get("se")),))]
            cells += [Cell((plus_minus(line.get("difference"), line.get("difference_se"), "+"),))]
        seeds = max(line["seeds"] for line in found.values())
        rows.append(Row(variant, (*cells, Cell((str(seeds),)))))
    columns = [(t, t) for m in metrics for t in (m, f"{m}: difference to {FULL}")] + [("seeds", "seeds")]
    note = "Percent, mean ± standard error over seeds; differences are paired by seed."
    return Table(title, "variant", tuple(columns), tuple(rows), (note,))


def plus_minus(value: float | None, se: float | None, sign: str = "", digits: int = 1) -> str:
    """``62.1 ± 0.4``; a dash where there is no value."""
    if value is None:
        return "—"
    return f"{value:{sign}.{digits}f}" + ("" if se is None else f" ± {se:.{digits}f}")


def pairs_table(found: Mapping[str, Numbers]) -> Table:
    """Right and wrong boxes of the pairs: a row per variant, a column per kind; percent over seeds. Rows of a table like the
    poster's table 4, of other data: its numbers do not stand beside these.
    """
    kinds = list(dict.fromkeys(kind for numbers in found.values() for kind in numbers))
    rows = []
    for variant, numbers in found.items():
        over = [stats.mean(list(numbers[kind].values()), list(numbers[kind])) for kind in kinds]
        seeds = max(estimate.n for estimate in over)
        rows.append(Row(variant, (*(Cell((plus_minus(e.value, e.se),)) for e in over), Cell((str(seeds),)))))
    columns = [(t, t) for t in (*(kind.replace("_", "-").upper() for kind in kinds), "seeds")]
    note = (
        "Win (W) and lose (L) box right (P, IoU > 0.5) or wrong (N), in percent of the first iteration's pairs; mean ± standard"
        " error over seeds."
    )
    title = "Pairs on the small world, in the layout of the poster's table 4"
    return Table(
        title,
        "variant",
        tuple(columns),
        tuple(rows),
        (note,),
    )
