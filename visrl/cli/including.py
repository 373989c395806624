"""``--include FILE.py``: a user's own file, run before anything else, and what others offer, for ``visrl-eval ls``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

IncludeOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--include",
        help="a Python file that registers your own task, judge, … (docs/adding-a-task.md); may be repeated",
    ),
]


def include_files(files: Sequence[Path] | None) -> None:
    """Run the files. Raises UsageError for one that fails."""
    if files:
        from visrl.core.plugins import include

        include(files)


def lines_of_others() -> Iterator[str]:
    """A line for each thing that packages and included files offer: kind, name, whose it is, and why it cannot be used."""
    from visrl.core.plugins import KINDS, all_offers, registry_of

    for kind in filter(all_offers, KINDS):  # a table without guests need not be imported
        for offer, trouble in registry_of(kind).others():
            yield f"  {kind:<9} {offer.name:<22} {offer.source}{f'  ({trouble})' if trouble else ''}"
