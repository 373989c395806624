"""``visrl-eval ls`` and ``world``: what there is to run, and what the small world looks like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visrl.cli.including import IncludeOption, include_files, lines_of_others
from visrl.cli.numbers import sensible
from visrl.errors import UsageError, nearest
from visrl.world.textured.scenery import PLAIN, Scenery

if TYPE_CHECKING:
    from rich.table import Table


def ls(
    what: Annotated[str, typer.Argument(help="tasks | models | others | all")] = "all",
    path: Annotated[bool, typer.Option("--path", help="only the folder with our lmms-eval task files")] = False,
    include: IncludeOption = None,
) -> None:
    """List tasks, models and plugins."""
    if path:
        from visrl.lmms.plugin import task_folder

        print(task_folder())
        return
    include_files(include)
    from rich.console import Console

    console = Console(highlight=False)
    if what in ("tasks", "all"):
        console.print(_task_table())
    if what in ("models", "all"):
        if what == "all":
            console.print()
        console.print(_model_table())
    if what in ("others", "all") and (lines := list(lines_of_others())):
        console.print("\n".join(["of installed packages and included files", *lines]), markup=False)
    if what not in ("tasks", "models", "others", "all"):
        raise UsageError(f"ls: unknown {what!r}", nearest(what, ["tasks", "models", "others", "all"]))


def world(
    sheet: Annotated[Path, typer.Option("--sheet", help="the PNG to write")],
    split: Annotated[str, typer.Option(help="train | rl | val | test | heldout")] = "test",
    columns: Annotated[int, typer.Option(min=1, max=100, help="pictures per task")] = 4,
    skip: Annotated[int, typer.Option(min=0, callback=sensible, help="number of pictures to skip")] = 0,
    scenery: Annotated[Scenery, typer.Option(help="what pictures are drawn over")] = PLAIN,
) -> None:
    """Draw a contact sheet of the small world.

    It shows pictures, questions, true boxes, and what the model sees.
    """
    from visrl.world.contact_sheet import write_sheet

    write_sheet(sheet, split, columns, skip, scenery)
    print(sheet)


MODELS = {
    "tiny, sft, base, deep": "the bundled models of the small world",
    "hf:ID_OR_PATH": "any transformers image-text-to-text model; a bare path or hub id too",
    "endpoint:URL#NAME": "an OpenAI-compatible server, or several: URL,URL#NAME; the key from OPENAI_API_KEY",
    "openai:NAME": "OpenAI's own service; box_format must be given, as for every server",
    "vllm:ID_OR_PATH": "the same by vLLM in this process (pip install visrl[vllm])",
    "replay:FILE_OR_DIR": "recorded outputs: ours, or a published predictions file (docs/data.md)",
    "constant:TEXT": "always answers TEXT: a chance-level baseline",
    "blind:MODEL": "any of these, shown grey pictures: what the text alone gives away",
}


def _model_table() -> Table:
    from rich.table import Table

    table = Table("model", "about", box=None, pad_edge=False)
    for spec, about in MODELS.items():
        table.add_row(spec, about)
    return table


def _task_table() -> Table:
    from rich.table import Column, Table

    from visrl.evals.benchmarks import GROUPS, TASKS
    from visrl.tables.formats import UNIT_SHOWN

    table = Table("task", Column("n", justify="right"), "unit", "about", box=None, pad_edge=False)
    for group, members in GROUPS.items():
        table.add_row(group, f"{sum(TASKS[m].n for m in members):,}", "", f"group of {len(members)} tasks")
    table.add_row()
    for spec in TASKS.values():
        version = "" if spec.version == "1" else f" (version {spec.version})"
        table.add_row(spec.name, f"{spec.n:,}", UNIT_SHOWN[spec.unit], spec.about + version)
    return table
