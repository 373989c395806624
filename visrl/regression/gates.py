"""``visrl-eval check``: runs what a suite's gates judge (evals/gates.py) and collects their findings.

The replay gate goes the whole way of a run: documents -> samples -> rollout -> episodes on disk -> scores -> records.
paired.py has the paired gate.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict

from visrl.core.boxes import Box
from visrl.core.json_files import read_object
from visrl.core.records import read_records, write_atomically
from visrl.core.types import Episode, Unparsed
from visrl.errors import Interrupted, UsageError
from visrl.evals import gates
from visrl.evals.benchmarks import UPSTREAM, resolve
from visrl.evals.gates import Finding, Gate
from visrl.evals.suite import Suite
from visrl.regression.paired import Place, check_paired
from visrl.regression.prompt_snapshots import data_folder, prompts_file, read_prompts, render_all
from visrl.rollout.config import check_names
from visrl.runs.lines import read_episodes
from visrl.runs.store import fresh_folder

if TYPE_CHECKING:
    from visrl.evaluation.evaluate import Outcome

_RECORDED = (
    *("task", "metric", "value", "se", "ci", "unit", "n", "n_expected", "n_clusters", "n_unscored", "n_unparsed"),
    *("n_missing", "unscored_reasons", "judge", "notes", "task_version", "protocol", "box_format"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked of ``check``. runs: finished runs to use for the suite's paired gates, in their order.

    data: folder of the benchmark files for the runs that are made, in place of the gates' own.
    """

    suite: Suite
    baselines: Path
    scratch: Path
    runs: tuple[Path, ...] = ()
    records: Path = Path("results/records")
    data: Path | None = None


def run_suite(request: Request) -> Iterator[Finding]:
    """Findings of every gate of the suite, as they come. Raises UsageError for wrong use, before the first of them, not for what
    a gate finds; an error in a gate is a finding, too.
    """
    suite = request.suite
    if request.runs and len(request.runs) != len(suite.paired):
        raise UsageError(
            f"{len(request.runs)} runs for {len(suite.paired)} paired gates", "give --run once for each paired gate"
        )
    check_suite(suite, runs_are_made=not request.runs)
    if suite.prompts:
        yield from _kept("prompt", "prompts", _check_prompts)
    for origin in suite.exact:
        yield from _kept("replay", origin, partial(check_replays, origin, request.scratch))
    for number, gate in enumerate(suite.paired):
        finished = request.runs[number] if request.runs else None
        place = Place(request.baselines, request.scratch, request.data)
        yield from _kept("paired", gate.baseline, partial(check_paired, gate, place, finished))
    for table in suite.paper:
        yield from _kept("paper", table, partial(check_paper, table, request.records))


def check_suite(suite: Suite, *, runs_are_made: bool) -> None:
    """Raises UsageError for names in a suite that nobody knows: of tasks, protocols, crops and boxes."""
    for gate in suite.paired:
        if runs_are_made:
            resolve(gate.tasks.split(","))
        given = {"protocol": gate.protocol, "focus": gate.focus, "crop": gate.crop}
        check_names(**given)
        for task in (task for cell in gate.cells for task, _ in cell.whats):
            if not task.startswith(UPSTREAM):
                resolve([task])


def _kept(gate: Gate, name: str, find: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a gate finds; an error in it is a finding, after those it had."""
    try:
        yield from find()
    except Interrupted:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, what was found before must be published
        yield gates.not_judged(gate, name, error)


def _check_prompts() -> list[Finding]:
    return gates.check_prompts(read_prompts(prompts_file()), render_all())


# --- replay gate


class Replay(BaseModel):
    """A row of suites/data/replays.yaml: recorded outputs and how to score them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    outputs: str
    tasks: str
    questions: str | None = None
    protocol: str | None = None
    focus: str = "predicted"
    crop: str = "viscot_square112"
    box_format: str | None = None
    parser: str = "lenient"
    judge: str = "exact"
    seed: int = 0


def replays(origin: str) -> list[Replay]:
    value = yaml.safe_load((data_folder() / "replays.yaml").read_text(encoding="utf-8"))
    return [Replay.model_validate(item) for item in value[origin]]


def replay_folder(origin: str) -> Path | None:
    """Where the documents and outputs of an origin lie; None where the shared data are not on this machine."""
    if origin == "shipped":
        return data_folder() / "exact"
    shared = os.environ.get("VISRL_SHARED")
    folder = Path(shared) / "data" if shared else Path("../shared/data")
    return folder if folder.is_dir() else None


def recorded_file() -> Path:
    return data_folder() / "recorded.json"


def check_replays(origin: str, scratch: Path) -> Iterator[Finding]:
    """A finding per replay of ``shipped`` or ``shared``; inconclusive where the data are absent."""
    folder = replay_folder(origin)
    path = recorded_file()
    recorded = read_object(path, "visrl-eval accept --exact writes it") if path.exists() else {}
    for replay in replays(origin):
        if folder is None:
            reason = "the published predictions are not here: set VISRL_SHARED"
            yield Finding("replay", replay.name, "inconclusive", reason)
            continue
        fresh = replay_numbers(replay, folder, scratch, whole=origin == "shipped")
        yield gates.check_exact(replay.name, recorded.get(f"{origin}/{replay.name}", {}), fresh)


def replay_numbers(replay: Replay, folder: Path, scratch: Path, *, whole: bool) -> dict[str, Any]:
    """The numbers of a replay as JSON; ``whole``: also every sample's scores, parsed box and crop."""
    from visrl.evaluation.evaluate import Options, evaluate
    from visrl.policies.recorded.replay import ReplayPolicy

    questions = str(folder / replay.questions) if replay.questions else None
    policy = ReplayPolicy.load(
        str(folder / replay.outputs), questions=questions, parser=replay.parser, box_format=replay.box_format
    )
    options = Options(
        data=folder,
        protocol=replay.protocol,
        focus=replay.focus,
        crop=replay.crop,
        judge=replay.judge,
        seed=replay.seed,
        batch_size=512,
        output=fresh_folder(scratch, replay.name),
        quiet=True,
    )
    outcome = evaluate(policy, replay.tasks.split(","), options)
    numbers: dict[str, Any] = {
        "results": [result.model_dump(mode="json", include=set(_RECORDED)) for result in outcome.results]
    }
    found = {**numbers, **_samples(outcome)} if whole else numbers
    return json.loads(json.dumps(found).replace(f"{folder}{os.sep}", ""))  # reasons may name files: not where they lie


def _samples(outcome: Outcome) -> dict[str, Any]:
    """Sample by sample: task, id, scores in their order, the parsed box or why there is none, and the crop."""
    text = (outcome.folder / "scores.jsonl").read_text(encoding="utf-8")
    scores = {
        (row["task"], row["sample_id"]): list(row["scores"].values()) for row in map(json.loads, text.splitlines())
    }
    return {
        "samples": [
            [e.task, e.sample_id, scores[e.task, e.sample_id], _box(e), list(e.looked_at or ())]
            for e in read_episodes(outcome.folder / "episodes.jsonl")
        ]
    }


def _box(episode: Episode) -> Any:
    if isinstance(episode.box, Box):
        return list(episode.box.xyxy)
    return episode.box.reason if isinstance(episode.box, Unparsed) else None


def record_replays(scratch: Path) -> list[str]:
    """Write recorded.json anew from today's scoring; returns the replays whose numbers changed. For ``accept --exact``."""
    path = recorded_file()
    old = read_object(path, "delete it and accept again") if path.exists() else {}
    new: dict[str, Any] = {}
    for origin in ("shipped", "shared"):
        folder = replay_folder(origin)
        for replay in replays(origin):
            key = f"{origin}/{replay.name}"
            if folder is not None:
                new[key] = replay_numbers(replay, folder, scratch, whole=origin == "shipped")
            elif key in old:
                new[key] = old[key]
    write_atomically(path, _lines(new))
    return [key for key in new if list(gates.differences(old.get(key), new[key]))]


def _lines(value: Mapping[str, Any]) -> str:
    """JSON with a line per record or sample: small, and a diff shows which sample changed."""
    blocks = []
    for key in sorted(value):
        parts = [
            f"  {json.dumps(name)}: [\n" + ",\n".join(f"   {_json(item)}" for item in items) + "\n  ]"
            for name, items in value[key].items()
        ]
        blocks.append(f" {_json(key)}: {{\n" + ",\n".join(parts) + "\n }")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


# --- paper gate


def check_paper(table: str, records: Path) -> Iterator[Finding]:
    """A line per cell of ours in one of the paper's tables: never a failure."""
    from visrl.tables.paper_tables import build

    results = read_records(records) if records.exists() else []
    ours = [row for row in build(table, results).tidy if row["source"] == "visrl"]
    if not ours:
        yield Finding("paper", table, "info", f"no record in {records} is of a column of this table")
    for row in ours:
        reason = row["reason"] or row["verdict"] or "nothing published"
        shown = "—" if row["value"] is None else f"{row['value']:.2f}"
        reason = f"{shown}: {reason}"
        yield Finding("paper", f"{table} {row['column']} · {row['row']}", "info", reason, facts=dict(row))
