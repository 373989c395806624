"""``visrl-train merge``: a trained adapter and its base as one checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


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
