"""Suites: named sets of gates, ``evals/suites/*.yaml`` or a file of your own. docs/ci.md describes every key."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from visrl.core.arguments import LARGEST_SEED, check_magnitude
from visrl.core.json_files import reason
from visrl.errors import UsageError, nearest
from visrl.evals.benchmarks import GROUPS, LESS_IS_BETTER, NEITHER_IS_BETTER, TASKS, better_of, resolve
from visrl.evals.gates import LEAST_FLOOR
from visrl.evals.plain_yaml import read_plain

_KEYS = "docs/ci.md describes the keys"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _sensible(cls, value: Any) -> Any:
        check_magnitude(value)
        return value


class Cell(_Strict):
    """One gated number. floor: the smallest drop that matters, in the metric's unit. metric: None is the task's primary.

    pool: tasks or groups -> metric in place of ``task``: all their samples as one number, in percent, which sees smaller drops.
    """

    task: str = ""
    metric: str | None = None
    pool: dict[str, str] = {}
    floor: float = Field(ge=LEAST_FLOOR)

    @model_validator(mode="after")
    def _one_of_both(self) -> Cell:
        if bool(self.task) == bool(self.pool) or (self.pool and self.metric):
            raise ValueError("a cell has a task (and metric), or a pool")
        if len({better_of(metric, metric not in LESS_IS_BETTER) for metric in self.pool.values()}) > 1:
            raise ValueError("a pool has metrics of one direction: of all of them more is better, or less, or neither")
        return self

    @property
    def whats(self) -> list[tuple[str, str]]:
        """(task or group, metric) of the cell; of a pool, every task's. Raises UsageError for an unknown task."""
        if self.pool:
            return [(member, m) for t, m in self.pool.items() for member in GROUPS.get(t, (resolve([t])[0].name,))]
        if self.metric is not None:
            return [(self.task, self.metric)]
        first = TASKS[GROUPS[self.task][0]] if self.task in GROUPS else resolve([self.task])[0]
        return [(self.task, first.primary)]

    @property
    def two_sided(self) -> bool:
        """Whether a change in either direction fails: of metrics of which neither is better."""
        return any(metric in NEITHER_IS_BETTER for _, metric in self.whats)

    @property
    def name(self) -> str:
        return " + ".join(" ".join(what) for what in self.pool.items()) or " ".join(self.whats[0])


class Paired(_Strict):
    """A fresh run and the accepted one it is held against.

    model, model_args, tasks, data, limit, protocol, focus, crop, judge, seed, batch_size: as ``visrl-eval run`` takes them.
    max_unscored, max_unparsed: fractions of a cell's samples beyond which it fails whatever its value;
    with more than max_unscored that have no value in one of the two runs it does not pass.
    """

    baseline: str
    model: str
    tasks: str
    cells: tuple[Cell, ...] = Field(min_length=1)
    model_args: dict[str, str] = {}
    data: Path | None = None
    limit: int | None = Field(default=None, ge=1)
    protocol: str | None = None
    focus: str = "predicted"
    crop: str | None = None
    judge: str = "exact"
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    batch_size: int = Field(default=32, ge=1)
    max_unscored: float = Field(default=0.0, ge=0, le=1)
    max_unparsed: float = Field(default=0.05, ge=0, le=1)


class Suite(_Strict):
    """exact: ``shipped`` (inside the package) or ``shared`` (published replays below VISRL_SHARED). paper: names of tables."""

    about: str = ""
    prompts: bool = False
    exact: tuple[Literal["shipped", "shared"], ...] = ()
    paired: tuple[Paired, ...] = ()
    paper: tuple[str, ...] = ()


def load_suite(name: str) -> Suite:
    """A suite by name, or from a file. Raises UsageError for an unknown name or a malformed file."""
    folder = Path(str(files("visrl.evals"))) / "suites"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    path = folder / f"{name}.yaml" if name in known else Path(name)
    if not path.is_file():
        raise UsageError(f"unknown suite {name!r}", f"{nearest(name, known)}\nsuites: {', '.join(known)}, or a file")
    try:
        suite = Suite.model_validate(read_plain(path, _KEYS, said="not a suite") or {})
    except ValidationError as error:
        raise UsageError(f"{path}: not a suite: {reason(error)}", _KEYS) from error
    if not (suite.prompts or suite.exact or suite.paired or suite.paper):
        raise UsageError(
            f"{path}: the suite checks nothing", "a suite has at least one of prompts, exact, paired and paper"
        )
    return suite
