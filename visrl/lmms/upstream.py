"""lmms-eval's own tasks from ``visrl-eval --tasks lmms:NAME``: a table, or rows of JSON with standard errors, also in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from visrl.core.records import dump_json, write_atomically
from visrl.evaluation.evaluate import Options, config_of
from visrl.lmms.model import run_upstream
from visrl.policies.protocol import Policy
from visrl.runs.distributed import init
from visrl.tasks.lmms import DATA_VARIABLE

FILE = "lmms.json"
"""In a run's folder: what :func:`rows` gives."""


def evaluate_upstream(tasks: Sequence[str], policy: Policy, options: Options) -> dict[str, Any]:
    """lmms-eval's results of its tasks; with ``options.output`` their rows are written there. What a task prints goes to stderr:
    stdout is for results.
    """
    if options.data is not None:
        os.environ[DATA_VARIABLE] = str(options.data)  # our own task files read it
    if options.quiet:
        _hush()
    with redirect_stdout(sys.stderr):
        config = config_of(policy, options)
        found = run_upstream(tasks, policy, config, limit=options.limit, batch_size=options.batch_size)
    if options.output is not None and init().is_main:
        about = {"model": options.name or policy.name, "model_info": dict(policy.describe()), "results": rows(found)}
        write_atomically(options.output / FILE, dump_json(about))
    return found


def _hush() -> None:
    """Nothing of lmms-eval's below a warning."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per task and metric: its value, its standard error as lmms-eval has it (null: it has none), and how many samples
    there were and failed.
    """
    return [row for task, values in found.get("results", {}).items() for row in _rows(task, values, found)]


def _rows(task: str, values: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    n = found.get("n-samples", {}).get(task, {}).get("effective")
    for key, value in values.items():
        metric, _, how = key.partition(",")
        if "_stderr" in metric or not how or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{how}")
        yield {
            "task": f"lmms:{task}",
            "metric": metric,
            "filter": how,
            "value": value,
            "se": error if isinstance(error, int | float) else None,
            "n": n,
            "n_failed": len(found["failures"].get(task, ())),
        }


def print_upstream(found: Mapping[str, Any]) -> None:
    """lmms-eval's own table, by the first process."""
    from lmms_eval.utils import make_table

    if not init().is_main:
        return
    print(make_table(found))
    if "groups" in found:
        print(make_table(found, "groups"))


def failed(found: Mapping[str, Any]) -> int:
    """How many samples failed, in all processes."""
    return init().total(sum(map(len, found["failures"].values())))
