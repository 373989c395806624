"""``visrl-eval card`` and ``visrl-train merge``: results and weights as others read them, on disk or on the hub."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


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
    from visrl.cli.results import check_there
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


def merge_command(arguments: Sequence[str]) -> None:
    """``visrl-train merge ADAPTER --output DIR [--push ORG/NAME]``. Raises UsageError."""
    args = _parser().parse_args(arguments)
    from visrl.policies.hf.merge import merge
    from visrl.runs.push import push

    facts = merge(args.model, args.output, adapter=args.adapter, dtype=args.dtype, processor=args.processor)
    print(f"weights sha256 {facts['weights_sha256']}, {facts['dtype']}", file=sys.stderr)
    print(f"score them: visrl-eval --model hf:{args.output} --tasks …", file=sys.stderr)
    print(args.output)
    if args.push:
        files: dict[str, Path | bytes] = {file.name: file for file in sorted(args.output.iterdir()) if file.is_file()}
        print(push(args.push, files, f"Merged by visrl: weights {facts['weights_sha256'][:12]}"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visrl-train merge",
        description="Write the weights of a LoRA adapter merged into its base, as evaluation merges them on loading.",
    )
    parser.add_argument(
        "model", metavar="ADAPTER", help="a folder with adapter_config.json, such as RUN/final, or a base"
    )
    parser.add_argument(
        "--adapter", default="", metavar="DIR", help="the adapter, where the first argument is its base"
    )
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="DIR", help="the new folder")
    parser.add_argument("--dtype", default="auto", help="of the merged weights; default: the base's")
    parser.add_argument(
        "--processor", default="", metavar="BASE", help="where the processor is, if not with the weights"
    )
    parser.add_argument(
        "--push", default="", metavar="ORG/NAME", help="upload the folder to that repository of the hub"
    )
    return parser
