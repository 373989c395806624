"""``kind: loop``: SFT -> pairs -> RL1 -> RL2, again and again, every phase scored by itself (docs/method.md d-f).

    visrl-train recipes/world.yaml

``base/ sft/ iter1/pairs/ iter1/rl1/ iter1/rl2/ iter2/…``  a folder per phase: its recipe, what decided it
(phase_config.json), what it left (outputs.json), its scoring (score/, metrics.json); see phase_state.py and scoring.py
``records/``                                             TaskResults of every phase, for ``visrl-eval tables``
``old/``                                                 phases that a changed recipe made stale

The same command resumes. What is finished stays while its hashes hold; what a changed recipe makes
stale is named, and redone only with ``--set redo=true``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter

from visrl.core.json_files import read_as
from visrl.core.plugins import include_options
from visrl.core.records import dump_json, read_results, write_atomically
from visrl.errors import EXIT_DONE, Incomplete, UsageError
from visrl.train.common.exclusive import exclusive
from visrl.train.config.protocols import identity
from visrl.train.config.recipe import Kind, Resolved
from visrl.train.loop.before import check, check_scoring, own_looks
from visrl.train.loop.cost import cpu_seconds, tokens_of
from visrl.train.loop.looks import check_looks, scoring_of
from visrl.train.loop.phase_state import (
    CONFIG,
    OUTPUTS,
    PhaseState,
    archive,
    begin,
    config_of,
    end,
    examine,
    file_hash,
    is_finished,
    ready_config,
    reuse,
    stored,
)
from visrl.train.loop.phases import Phase, State, Weights, critic_of, final_of, phase_recipe, phases
from visrl.train.loop.recipe import LoopRecipe
from visrl.train.loop.scoring import conclude, free, prune, publish, score_phase
from visrl.train.pairs.command import generate_pairs, what_helps, why_failed, why_none
from visrl.train.pairs.recipe import PairsRecipe


@dataclass(slots=True)
class PreparedPhase:
    """A phase about to run. resolved: None where it only scores a model."""

    phase: Phase
    resolved: Resolved | None
    config: Mapping[str, Any]
    state: PhaseState


def run(recipe: LoopRecipe) -> int:
    """Everything that is missing. Raises UsageError, before anything runs where a changed recipe would redo something."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            "a recipe of kind loop runs in one process, and a launcher started several",
            "start it without one; `launch: accelerate launch … --no_python` in the recipe starts its training phases",
        )
    _same_arithmetic()
    check_scoring(recipe)
    with exclusive(recipe.output):
        if said := _check_looks(recipe):
            print(said, file=sys.stderr)
        if not recipe.redo:
            _refuse_stale(recipe)
        prune(recipe)
        state, before = start(recipe), None
        for phase in phases(recipe):
            prepared = prepare(recipe, phase, state)
            execute(recipe, prepared)
            state = after(recipe, prepared, state)
            before = _score(recipe, phase, state, before)
    where = shlex.quote(str(recipe.output))
    published = any(name.removeprefix("world_").startswith("viscot") for name in recipe.score.tasks.split(","))
    table = f"tables --paper viscot {where}" if published else f"leaderboard {where}"
    print(f"as a table: visrl-eval {table}\nas a page: visrl-eval view {where}", file=sys.stderr)
    return EXIT_DONE


def start(recipe: LoopRecipe) -> State:
    """M_org and nothing else."""
    base = Weights(recipe.base)
    return State(base, base, base)


def prepare(recipe: LoopRecipe, phase: Phase, state: State) -> PreparedPhase:
    """The phase's recipe with its inputs' hashes, and how its folder stands to that."""
    folder = recipe.output / phase.name
    if phase.what == "ready":
        config = ready_config(_of_ready(recipe, phase))
        return PreparedPhase(phase, None, config, examine(folder, config, None))
    resolved, overrides = phase_recipe(recipe, phase, state)
    config = config_of(resolved.recipe, overrides, state, critic_of(recipe, state))
    return PreparedPhase(phase, resolved, config, examine(folder, config, outputs_of(phase, folder, resolved)))


def _of_ready(recipe: LoopRecipe, phase: Phase) -> Weights:
    return (
        Weights(recipe.sft.model) if phase.name == "sft" and recipe.sft and recipe.sft.model else Weights(recipe.base)
    )


def outputs_of(phase: Phase, folder: Path, resolved: Resolved) -> dict[str, Any]:
    """Hashes of what the phase left, as outputs.json has them."""
    if phase.what == "pairs":
        return {"pairs_sha256": file_hash(folder / "pairs.jsonl")}
    from visrl.policies.hf.hashes import weights_hash

    return {"weights_sha256": weights_hash(final_of(phase, folder, resolved.recipe))}


def after(recipe: LoopRecipe, prepared: PreparedPhase, state: State) -> State:
    """What the phases up to this one have left."""
    phase, folder = prepared.phase, recipe.output / prepared.phase.name
    if prepared.resolved is None:
        now = _of_ready(recipe, phase)
    elif phase.what == "pairs":
        data: Any = prepared.resolved.recipe.data  # type: ignore[attr-defined]  # of kind pairs
        return replace(state, pairs=folder / "pairs.jsonl", pictures=data.pictures)
    else:
        now = state.now.after(final_of(phase, folder, prepared.resolved.recipe))
    return replace(state, now=now, label=phase.label, sft=now if phase.name == "sft" else state.sft)


def execute(recipe: LoopRecipe, prepared: PreparedPhase) -> None:
    """Run, resume, copy or skip one phase."""
    phase, folder = prepared.phase, recipe.output / prepared.phase.name
    found = prepared.state.status
    if found == "done":
        return
    if found == "stale":
        place = archive(recipe.output, phase.name)
        print(f"{phase.name}: {prepared.state.why}; redone, the old one is {place}", file=sys.stderr)
    elif found == "new" and folder.exists():
        archive(recipe.output, phase.name)  # killed before it said what it was for, or not ours
    if found != "resume":

        def outputs(copy: Path) -> Mapping[str, Any]:
            return {} if prepared.resolved is None else outputs_of(phase, copy, prepared.resolved)

        if any(reuse(folder, other / phase.name, prepared.config, outputs) for other in recipe.reuse):
            print(f"{phase.name}: copied, its hashes are the same", file=sys.stderr)
            return
        begin(folder, prepared.config)
    if prepared.resolved is not None:
        word = _how_it_goes_on(prepared) if found == "resume" else "begins"
        print(f"{phase.name}: {word}", file=sys.stderr, flush=True)
    began, spent = time.monotonic(), cpu_seconds()
    hashes = {} if prepared.resolved is None else _run_phase(recipe, prepared, folder)
    whole = {} if found == "resume" else {"cpu_seconds": round(cpu_seconds() - spent, 1)}
    cost = {} if prepared.resolved is None else {"tokens": tokens_of(folder)}
    end(folder, {**hashes, **cost, **whole, "seconds": round(time.monotonic() - began, 1)})


def _how_it_goes_on(prepared: PreparedPhase) -> str:
    """What the same command does with a phase that began and did not end."""
    whole = prepared.resolved is not None and prepared.resolved.recipe.kind == "small_model"
    return "begins again (it has no checkpoints)" if whole else "goes on where it stopped"


def _run_phase(recipe: LoopRecipe, prepared: PreparedPhase, folder: Path) -> dict[str, Any]:
    """Train, or make pairs: by the phase's own recipe, which stands in its folder. Returns hashes of what came out."""
    resolved = prepared.resolved
    assert resolved is not None, "a ready model needs no work"
    text = yaml.safe_dump(resolved.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomically(folder / "recipe.yaml", text)
    for named in folder.glob("**/settings.json"):
        named.unlink()  # it names places; phase_config.json, which has been compared, has the bytes that lie there
    if prepared.phase.what == "pairs":
        _make_pairs(recipe, prepared.phase, resolved)
    elif recipe.launch:
        _launch(recipe.launch, prepared.phase, folder / "recipe.yaml")
    else:
        resolved.kind.run(resolved.recipe)
        free()
    if prepared.phase.what != "pairs" and not any(
        final_of(prepared.phase, folder, resolved.recipe).glob("*.safetensors")
    ):
        raise UsageError(
            f"{prepared.phase.name}: training left no weights", f"did the launcher run it? launch: `{recipe.launch}`"
        )
    return outputs_of(prepared.phase, folder, resolved)


def _launch(launch: str, phase: Phase, recipe: Path) -> None:
    """A training phase in processes of its own."""
    command = [*shlex.split(launch), "visrl-train", *include_options(), str(recipe)]
    try:
        code = subprocess.run(command, check=False).returncode  # noqa: S603 - the recipe's own words
    except OSError as error:
        raise UsageError(
            f"launch: {command[0]}: {error.strerror}", "launch must be a command on this machine"
        ) from error
    if code:
        raise UsageError(
            f"{phase.name}: `{shlex.join(command)}` ended with exit code {code}", "the same command resumes"
        )


def _make_pairs(recipe: LoopRecipe, phase: Phase, resolved: Resolved) -> None:
    """Pairs; of questions that fail for good the loop goes on without, up to ``max_failed``."""
    assert isinstance(resolved.recipe, PairsRecipe), "phases.py checks the kind"
    counts = generate_pairs(resolved.recipe)["funnel"]
    free()
    failed, asked = sum(counts.get("failed", {}).values()), counts["questions"]["asked"]
    if failed > recipe.max_failed * asked:
        hint = "the same command tries them again; max_failed says how many the loop may go on without"
        raise UsageError(f"{phase.name}: {failed} of {asked} questions failed: {why_failed(counts)}", hint)
    if not (resolved.recipe.output / "pairs.jsonl").read_bytes():
        raise Incomplete(f"{phase.name}: no question gave a pair: {why_none(counts)}", what_helps(counts))


def _funnel(folder: Path) -> _Funnel:
    hint = f"delete {folder} to make its pairs again"
    return read_as(folder / "manifest.json", TypeAdapter(_Manifest), hint).funnel


class _Funnel(BaseModel):
    """The counts of manifest.json that the loop's line says."""

    pairs: int
    questions: dict[str, int]
    failed: dict[str, int] = {}


class _Manifest(BaseModel):
    funnel: _Funnel


def _score(recipe: LoopRecipe, phase: Phase, state: State, before: Path | None) -> Path | None:
    """Score the phase's end and say how it compares. Returns the folder that the next phase is held against."""
    folder = recipe.output / phase.name
    if phase.what == "pairs":
        print(_pairs_line(recipe, phase), flush=True)
        return before
    place, asked = folder / "score", _score_config(recipe)
    if not _same(stored(place, CONFIG), asked):
        if place.is_dir():
            archive(recipe.output, f"{phase.name}/score")
        begin(place, asked)
    scored = {"weights": state.now.sha256()}
    if not _same(stored(place, OUTPUTS), scored):
        score_phase(place, phase.label, state.now, scoring_of(recipe), recipe.policy)
        end(place, scored)
    print(f"{phase.name}: {conclude(recipe, phase, before)}", flush=True)
    return folder


def _score_config(recipe: LoopRecipe) -> dict[str, Any]:
    """What decides the scoring of a phase."""
    asked = scoring_of(recipe).model_dump(mode="json", exclude={"batch_size"})
    asked["protocol"] = identity(asked["protocol"])
    return asked if recipe.policy == "hf" else {**asked, "policy": recipe.policy}


def _same(path: Path, asked: Mapping[str, Any]) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == dump_json(dict(asked))


def _pairs_line(recipe: LoopRecipe, phase: Phase) -> str:
    """``iter1/pairs: 512 pairs of 3000 questions · win box right 64.5 %``."""
    folder = recipe.output / phase.name
    counts = _funnel(folder)
    said = f"{phase.name}: {counts.pairs} pairs of {counts.questions.get('asked', 0)} questions"
    if failed := sum(counts.failed.values()):
        said += f" · {failed} failed and were left out"
    file = folder / "records" / "datagen.json"
    if not file.is_file():
        return said
    results = read_results(file)
    publish(recipe, phase, results)
    right = sum(r.value or 0.0 for r in results if r.metric in ("wp_lp", "wp_ln"))
    return f"{said} · win box right {right:.1f} %"


# --- what would be done


def status(recipe: LoopRecipe) -> list[str]:
    """A line per phase: what is done, what would run, what would be redone and why. Runs nothing."""
    check_scoring(recipe)
    said = _check_looks(recipe)
    return [f"{name}: {word}" for name, word, _ in _statuses(recipe)] + ([said] if said else [])


def _statuses(recipe: LoopRecipe) -> Iterator[tuple[str, str, bool]]:
    """(phase, what would happen, whether something finished would be redone). Beyond the first phase to run nothing is known of
    what it will leave; phases there that are finished follow from another beginning.
    """
    state, first = start(recipe), ""
    words = {"done": "done", "new": "to run"}
    for phase in phases(recipe):
        if first:
            _check_only(recipe, phase, state)
            finished = is_finished(recipe.output / phase.name)
            word = f"redone, unless {first} comes out as it was" if finished else "to run"
            yield phase.name, word, finished
            continue
        prepared = prepare(recipe, phase, state)
        stale = prepared.state.status == "stale"
        again = (
            prepared.state.status == "done"
            and phase.what != "pairs"
            and not _same(stored(recipe.output / phase.name / "score", CONFIG), _score_config(recipe))
        )
        if prepared.state.status == "resume":
            words["resume"] = _how_it_goes_on(prepared)
        word = "done; to be scored" if again else words.get(prepared.state.status, f"redone: {prepared.state.why}")
        yield phase.name, word, stale
        state = after(recipe, prepared, state)
        if prepared.resolved is not None and prepared.state.status != "done":
            first = phase.name


def _check_looks(recipe: LoopRecipe) -> str:
    """How phases look, where they differ. Raises UsageError where SFT teaches another way than pairs and scores use."""
    return check_looks(recipe, own_looks(recipe))


def _check_only(recipe: LoopRecipe, phase: Phase, state: State) -> None:
    """Errors of a later phase's recipe are worth knowing before the first one runs."""
    if phase.what != "ready":
        phase_recipe(recipe, phase, replace(state, pairs=state.pairs or Path("pairs.jsonl")))


def _refuse_stale(recipe: LoopRecipe) -> None:
    statuses = list(_statuses(recipe))
    if any(stale for _, _, stale in statuses):
        said = "\n".join(f"  {name}: {word}" for name, word, _ in statuses if word != "done")
        hint = f"--set redo=true does it (the old ones go to {recipe.output / 'old'}); or another output"
        raise UsageError(f"{recipe.output} was made with another recipe:\n{said}", hint)


# --- one process, one arithmetic


def _same_arithmetic() -> None:
    """A phase of kind small_model sets these for its process; a loop that is resumed after it must add up in the same order."""
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)


KIND = Kind(LoopRecipe, run, check, status, renamed={"more": "continued_sft"})
