"""``visrl-eval estimate``: what an evaluation will take, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visrl.cli.numbers import positive, sensible


def estimate(
    model: Annotated[str, typer.Option("--model", "-m", help="hf:ID_OR_PATH | vllm:ID | tiny | sft | base")],
    tasks: Annotated[str, typer.Option("--tasks", "-t", help="comma-separated tasks or groups")],
    gpus: Annotated[int, typer.Option(min=1, callback=sensible, help="number of GPUs that share the samples")] = 1,
    gpu: Annotated[str, typer.Option(help="a100-40 | a100 | h100 | h200 | l40s | rtx4090")] = "h100",
    data: Annotated[Path | None, typer.Option("--data", help="folder with the benchmark files; else the hub")] = None,
    model_args: Annotated[str, typer.Option(help="dtype, rows, box_format and revision are used")] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, callback=sensible, help="only the first N samples of each task")
    ] = None,
    answer: Annotated[int, typer.Option(min=1, callback=sensible, help="assumed tokens per answer")] = 8,
    tflops: Annotated[
        float | None, typer.Option(callback=positive, help="sustained TFLOP/s of a GPU, instead of the assumption")
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(callback=positive, help="sustained GB/s of a GPU's memory, instead of the assumption"),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print the estimate as JSON")] = False,
) -> None:
    """Estimate memory, tokens, hours and disk of a run."""
    from visrl.estimate.cli import estimate_evaluation
    from visrl.estimate.phase import EstimateRequest
    from visrl.estimate.show import print_estimate
    from visrl.estimate.work import gpu_of
    from visrl.policies.registry import parse_model_args

    request = EstimateRequest(gpu_of(gpu, tflops, bandwidth), gpus, answer=answer)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    phases = estimate_evaluation(model, parse_model_args(model_args), names, request, data, limit)
    words = ["visrl-eval", "--model", model, "--tasks", tasks]
    for option, value in (("--model-args", model_args), ("--data", data), ("--limit", limit)):
        words += [option, str(value)] if value else []
    print_estimate(phases, words, request, trains=False, json_=json_)
