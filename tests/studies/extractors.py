"""Size, precision and recall of each extractor on the table of wordings: ``python tests/studies/extractors.py [--misses]``.

precision: of what an extractor reads, the share it reads as meant. recall: of what means something, the share read as meant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from visrl.core.types import Unparsed
from visrl.evals.scorers.letters import letter
from visrl.evals.scorers.yes_no import yes_or_no

TABLE = Path(__file__).parents[1] / "evals" / "data" / "wordings.yaml"
Row = tuple[str, str | None, str | None]
"""A text, what it means, and what is read in it."""


class Figures(NamedTuple):
    """size: wordings. precision, recall: 0..1."""

    size: int
    precision: float
    recall: float


def rows(part: str) -> Iterator[Row]:
    """The wordings of one part of the table, read by its extractor."""
    table: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    for meant, text, *options in table[part]:
        named = table["options"][options[0] if options else "animals"]
        found = letter(text, named) if part.startswith("letters") else yes_or_no(text)
        yield text, meant, None if isinstance(found, Unparsed) else found


def figures(found: list[Row]) -> Figures:
    """Over rows of one or more parts."""
    right = sum(read == meant for _, meant, read in found if meant is not None)
    n_read = sum(read is not None for _, _, read in found)
    return Figures(len(found), right / n_read, right / sum(meant is not None for _, meant, _ in found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--misses", action="store_true", help="print the wordings that are read otherwise than meant")
    misses = parser.parse_args().misses
    print(f"{'part':<16} {'size':>5} {'precision':>9} {'recall':>7}")
    for name in ("letters", "yes_no"):
        parts = {part: list(rows(part)) for part in (f"{name}_first", f"{name}_second")}
        for part, found in {**parts, name: [row for of_one in parts.values() for row in of_one]}.items():
            got = figures(found)
            print(f"{part:<16} {got.size:>5} {got.precision:>9.3f} {got.recall:>7.3f}")
            for text, meant, read in found if misses and part != name else ():
                if meant != read:
                    print(f"    {text!r}: means {meant}, read as {read}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
