"""``visrl-train estimate RECIPE`` and ``visrl-eval estimate``: their command lines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from visrl.core.arguments import LARGEST, Parser, within
from visrl.errors import UsageError
from visrl.estimate.phase import EstimateRequest, Phase
from visrl.estimate.work import GPUS, gpu_of


def estimate_recipe(arguments: Sequence[str]) -> None:
    """``visrl-train estimate RECIPE.yaml [--set a.b=c] --gpus N``. Raises UsageError."""
    args = _parser().parse_args(arguments)
    from visrl.estimate.launch import for_loop
    from visrl.estimate.memory import SHARDED
    from visrl.estimate.phases import recipe_phases
    from visrl.estimate.show import print_estimate
    from visrl.train.config.recipe import load_recipe
    from visrl.train.config.shipped import recipe_path

    if args.sharding not in SHARDED:
        raise UsageError(f"--sharding: unknown {args.sharding!r}", f"one of {', '.join(SHARDED)}")
    gpu = gpu_of(args.gpu, args.tflops, args.bandwidth)
    request = EstimateRequest(gpu, args.gpus, args.sharding, args.samples, args.answer)
    recipe = load_recipe(recipe_path(args.recipe), args.set).recipe
    words = ["visrl-train", args.recipe, *(word for setting in args.set for word in ("--set", setting))]
    loop = recipe.kind == "loop"
    if loop:
        words += for_loop(args.gpus, args.sharding)
    found = recipe_phases(recipe, request)
    print_estimate(found, words, request, trains=recipe.kind != "pairs", json_=args.json, starts_itself=loop)


def _parser() -> Parser:
    parser = Parser(
        prog="visrl-train estimate",
        description="Memory, tokens, hours and disk of a recipe, and the commands that start it.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe file, or the name of a bundled one")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a value of the recipe")
    parser.add_argument("--gpus", type=_several, default=1, metavar="N", help="number of GPUs")
    parser.add_argument("--gpu", default="h100", help=" | ".join(GPUS))
    parser.add_argument("--sharding", default="ddp", help="ddp | zero2 | zero3 | fsdp")
    parser.add_argument("--tflops", type=_rate, help="sustained TFLOP/s of a GPU, instead of the assumption")
    parser.add_argument("--bandwidth", type=_rate, help="sustained GB/s of a GPU's memory, instead of the assumption")
    parser.add_argument("--samples", type=_several, metavar="N", help="number of rows, where there are no data yet")
    parser.add_argument("--answer", type=_several, default=8, metavar="N", help="assumed tokens per answer")
    parser.add_argument("--json", action="store_true", help="print the estimate as JSON")
    return parser


def _several(text: str) -> int:
    if not text.isdecimal() or len(text) > len(str(LARGEST)) or not 1 <= int(text) <= LARGEST:
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a number of at least 1 and at most {LARGEST:.0e}")
    return int(text)


def _rate(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not within(found, 1e-30, LARGEST):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a number above 0, of at most {LARGEST:.0e}")
    return found


def _rows(args: dict[str, str]) -> int:
    text = args.get("rows") or "0"
    if not text.isdecimal() or len(text) > 9:
        raise UsageError(f"--model-args: rows={text[:60]} is not a number", "for example rows=8")
    return int(text)


def estimate_evaluation(
    model: str,
    args: dict[str, str],
    tasks: Sequence[str],
    request: EstimateRequest,
    data: Path | None,
    limit: int | None,
) -> list[Phase]:
    """A phase per task. Raises UsageError for a model that has no config here (an endpoint, recorded answers)."""
    from visrl.estimate.generating import evaluation_phase, task_samples
    from visrl.estimate.shape import describe_model
    from visrl.evals.benchmarks import resolve

    kind, separator, rest = model.partition(":")
    if separator and kind not in ("hf", "vllm", "blind"):
        raise UsageError(f"{model} has no config to estimate from", "hf:ID_OR_PATH, vllm:ID_OR_PATH or a bundled model")
    described = describe_model(rest if separator else model, revision=args.get("revision") or None)
    phases = []
    for spec in resolve(list(tasks)):
        samples, n, notes = task_samples(spec.name, data)
        dtype = args.get("dtype", "bfloat16")
        how = {
            "box_format": args.get("box_format"),
            "dtype": "bfloat16" if dtype == "auto" else dtype,
            "rows": _rows(args),
        }
        phase = evaluation_phase(spec.name, described, samples, min(n, limit or n), request, **how)
        phase.notes.extend(notes)
        phases.append(phase)
    return phases
