"""``visrl-eval card``: a run's results as the evaluation section of a model card."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from visrl.cli.results.show import check_there


def card(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN…", help="run folders, all of one model")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="a model card (README.md) to put the section into; default: stdout"),
    ] = None,
    name: Annotated[str, typer.Option(help="what the card calls the model; default: as the runs do")] = "",
    all_: Annotated[bool, typer.Option("--all", help="every task and metric, not only the main ones")] = False,
    push: Annotated[str | None, typer.Option(help="ORG/NAME: put the section into that repository's card")] = None,
) -> None:
    """Write a run's results as a model card's evaluation section (`model-index`)."""
    from visrl.core.records import read_records
    from visrl.runs.push import push as push_files
    from visrl.runs.push import read_card
    from visrl.tables.model_index import card_of, chosen, write_card, yaml_of

    check_there(*folders)
    results = chosen({folder: read_records(folder) for folder in folders}, every=all_)
    called = name or results[0].model.removeprefix("hf:").rstrip("/").rpartition("/")[2]
    if output is not None:
        write_card(output, called, results)
        print(output)
    if push is not None:
        text = str(card_of(read_card(push), called, results))
        print(push_files(push, {"README.md": text.encode()}, f"Evaluation by visrl: {len(results)} results"))
    if output is None and push is None:
        sys.stdout.write(yaml_of(called, results))
