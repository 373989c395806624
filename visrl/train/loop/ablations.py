"""``kind: ablations``: variants of one loop, each with several seeds, as a queue of jobs that resumes; then one table.

    visrl-train recipes/world-ablations.yaml

A job is a loop's folder, ``<variant>/seed<k>``; a finished one is skipped by its hashes (phase_state.py), and phases that a
variant shares with one before it, of the same seed, are copied. Several processes may run the same command: each takes unclaimed
jobs. ``summary.md`` and ``summary.json``: mean and standard error over the seeds, and the difference to the full
method, paired by seed (evals/stats.py; a seed is a cluster of one).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from visrl.core.records import dump_json, read_records, write_atomically, write_results
from visrl.errors import EXIT_DONE, EXIT_INCOMPLETE, UsageError
from visrl.evals.sample_scores import of_run
from visrl.runs.distributed import say
from visrl.tables.ablation_tables import FULL, Numbers, summary, table_of
from visrl.tables.cost_tables import Cost, write_costs
from visrl.tables.formats import render
from visrl.train.common.exclusive import Busy
from visrl.train.config.recipe import Kind, Recipe, read_yaml, resolve
from visrl.train.loop import before
from visrl.train.loop import run as loop
from visrl.train.loop.phase_state import left_by
from visrl.train.loop.phases import phases
from visrl.train.loop.recipe import LoopRecipe
from visrl.train.loop.scoring import ANSWER, BOX, headline


class AblationsRecipe(Recipe):
    """``seed`` is the first of ``seeds`` that follow one another."""

    kind: Literal["ablations"]
    recipe: Path = Field(description="the loop, relative to this file")
    set: dict[str, Any] = Field(default_factory=dict, description="of every variant: dotted key -> value")
    seeds: int = Field(default=5, ge=1, le=1000)
    variants: dict[str, dict[str, Any]] = Field(
        description="name -> dotted key of the loop -> value; `full` is the method itself"
    )

    @field_validator("recipe")
    @classmethod
    def _beside(cls, path: Path, info: ValidationInfo) -> Path:
        return (info.context or {}).get("folder", Path()) / path

    @field_validator("variants")
    @classmethod
    def _has_full(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if variants.get(FULL) != {}:
            raise ValueError(f"`{FULL}: {{}}`, the method itself, is what the others are compared with")
        for name in variants:
            if "/" in name or name.startswith("."):
                raise ValueError(f"{name!r} is no name of a folder")
        return {FULL: {}, **variants}


@dataclass(frozen=True, slots=True)
class Job:
    """One loop of the queue."""

    variant: str
    seed: int
    recipe: LoopRecipe


def jobs(recipe: AblationsRecipe) -> Iterator[Job]:
    """Seed by seed, the full method first: an interrupted queue has whole comparisons. Raises UsageError for a bad variant."""
    base = read_yaml(recipe.recipe)
    for seed in range(recipe.seed, recipe.seed + recipe.seeds):
        before: list[str] = []
        for variant, changed in recipe.variants.items():
            folder = str(recipe.output / variant / f"seed{seed}")
            own = {"output": folder, "seed": seed, "name": variant, "reuse": list(before)}
            found = resolve(recipe.recipe, {**over(base, merged(recipe.set, changed)), **own}).recipe
            assert isinstance(found, LoopRecipe), "kind loop"
            yield Job(variant, seed, found)
            before.append(folder)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both; where both have a mapping (``pairs.set``), the keys of both."""
    both = {**first, **second}
    for key in first.keys() & second.keys():
        if isinstance(first[key], dict) and isinstance(second[key], dict):
            both[key] = {**first[key], **second[key]}
    return both


def over(base: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """``changed`` with what the loop's own file already sets of a phase (``pairs.set``), so that each setting is stated once."""
    found = {}
    for key, value in changed.items():
        section, _, last = key.partition(".")
        own = (base.get(section) or {}).get("set", {}) if last == "set" else {}
        found[key] = {**own, **value} if last == "set" else value
    return found


def run(recipe: AblationsRecipe) -> int:
    """Every job that is not finished and that no other process is running, then the table of what there is. Returns the exit
    code: 3 where jobs failed, which are named."""
    queue, failed = list(jobs(recipe)), list[str]()
    for number, job in enumerate(queue, 1):
        print(f"[{number}/{len(queue)}] {job.variant}, seed {job.seed}", file=sys.stderr)
        try:
            loop.run(job.recipe)
        except Busy:
            print("another process is at it", file=sys.stderr)
        except UsageError as error:  # the others' comparisons do not hang on this one
            say(error)
            failed.append(f"{job.variant}, seed {job.seed}")
    print(summarise(recipe, queue))
    if failed:
        print(
            f"{len(failed)} of {len(queue)} jobs failed: {'; '.join(failed)}; the same command tries them again",
            file=sys.stderr,
        )
    return EXIT_INCOMPLETE if failed else EXIT_DONE


def status(recipe: AblationsRecipe) -> list[str]:
    """Per job what would run."""
    return [f"{job.variant}, seed {job.seed}, {said}" for job in jobs(recipe) for said in loop.status(job.recipe)]


# --- what came out


def outcome(queue: Sequence[Job]) -> dict[str, Numbers]:
    """variant -> its finished seeds' last phases, answers and boxes in percent."""
    found: dict[str, Numbers] = {}
    for job in queue:
        last = [phase for phase in phases(job.recipe) if phase.what != "pairs"][-1]
        folder = job.recipe.output / last.name
        if not (folder / "metrics.json").is_file():
            continue
        rows = of_run(folder / "score")
        for name, metrics in (("answers", ANSWER), ("box", BOX)):
            value = headline(rows, rows, metrics)
            if value is not None and value.after is not None:
                found.setdefault(job.variant, {}).setdefault(name, {})[str(job.seed)] = value.after
    return found


def summarise(recipe: AblationsRecipe, queue: Sequence[Job]) -> str:
    """Write summary.json, summary.md and the records of all jobs. Returns the table as Markdown."""
    lines = summary(outcome(queue))
    write_atomically(recipe.output / "summary.json", dump_json(lines))
    text = render(table_of(lines), "md")
    write_atomically(recipe.output / "summary.md", text)
    _collect(recipe, queue)
    write_costs(recipe.output / "costs.csv", costs(queue))
    return text


def _collect(recipe: AblationsRecipe, queue: Sequence[Job]) -> None:
    for job in queue:
        if (job.recipe.output / "records").is_dir():
            write_results(
                recipe.output / "records" / f"{job.variant}-seed{job.seed}.json", read_records(job.recipe.output)
            )


def costs(queue: Iterable[Job]) -> Iterator[Cost]:
    """What each finished phase that trained or made pairs took; nothing where that is not known: of the time of one that was
    interrupted, of the tokens of one that counts none.
    """
    made: dict[tuple[int, str, str], str] = {}
    for job in queue:
        for phase in phases(job.recipe):
            said = left_by(job.recipe.output / phase.name)
            if said is None or phase.what == "ready":
                continue
            key = job.seed, phase.name, str(said.get("pairs_sha256", said.get("weights_sha256")))
            tokens = said.get("tokens")
            yield Cost(
                run=job.variant,
                seed=job.seed,
                phase=phase.name,
                tokens=sum(tokens.values()) if tokens else None,
                seconds=said.get("cpu_seconds"),
                first=made.get(key, ""),
            )
            made.setdefault(key, job.variant)


def check(recipe: AblationsRecipe) -> None:
    """Raises UsageError for a variant that is no recipe, and for what the method itself lacks; variants share its data."""
    method, *_ = jobs(recipe)
    before.check(method.recipe)


KIND = Kind(AblationsRecipe, run, check, status)
