"""``--include FILE.py``: a user's own file, run before anything else, and what others offer, for ``visrl-eval ls``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from visrl.errors import UsageError

IncludeOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--include",
        help="a Python file that registers your own task, judge, … (docs/adding-a-task.md); may be repeated",
    ),
]


def include_files(files: Sequence[Path] | None, ray: int | None = None) -> None:
    """Run the files. Raises UsageError for one that fails, and on Ray, whose workers would not have run it."""
    if not files:
        return
    if ray:
        raise UsageError(
            "--include and --ray: the workers have not run the file", "make it a package and install it there"
        )
    from visrl.core.plugins import include

    include(files)


def lines_of_others() -> Iterator[str]:
    """A line for each thing that packages and included files offer: kind, name, whose it is, and why it cannot be used."""
    from visrl.core.plugins import KINDS, registry_of

    for kind in KINDS:
        for offer, trouble in registry_of(kind).others():
            yield f"  {kind:<9} {offer.name:<22} {offer.source}{f'  ({trouble})' if trouble else ''}"
