"""What of a loop is done, and what a changed recipe or a changed file makes stale: every phase is known by its hashes.

``phase_config.json``  what decides a phase: its recipe with all values, and the hashes of what it starts from; written when it
                       begins. (A ``config.json`` may lie beside it: of the model, where the phase's folder is a checkpoint.)
``outputs.json``       what it left, by hash (weights, or pairs); written when it ends
``metrics.json``       how its end scored, and the paired difference to the phase before

Places decide nothing: a folder may be moved, and a phase is the same when the bytes it starts from are. Folders of earlier
versions, where the first two are ``asked.json`` and ``phase.json``, are read as well.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visrl.core.json_files import read_object
from visrl.core.records import dump_json, write_atomically
from visrl.errors import UsageError
from visrl.train.config.protocols import identity
from visrl.train.config.recipe import Recipe, flat, upgrade
from visrl.train.data.shards import SUFFIXES, is_sharded, shards_of
from visrl.train.loop.phases import Overrides, State, Weights
from visrl.world import CHECKPOINTS

PhaseStatus = Literal["done", "new", "resume", "stale"]
CONFIG, OUTPUTS = "phase_config.json", "outputs.json"
OLD_NAMES = {CONFIG: "asked.json", OUTPUTS: "phase.json"}
NAMED = 3  # differences said of a stale phase


@dataclass(frozen=True, slots=True)
class PhaseState:
    """How a phase stands on disk, and why it cannot stay."""

    status: PhaseStatus
    why: str = ""


def ready_config(weights: Weights) -> dict[str, Any]:
    """Of a phase that only scores a model."""
    return {"kind": "ready", "weights": weights.sha256()}


def config_of(found: Recipe, overrides: Overrides, state: State, critic: Weights) -> dict[str, Any]:
    """What decides a phase. Values that the loop put there stand as the hashes of what they name; so does its own critic."""
    asked = found.model_dump(
        mode="json", exclude={"output", "batch_size", "ray"} if found.kind == "pairs" else {"output"}
    )
    for key in overrides:
        if not key.startswith(("data.skip", "step.", "grpo.")):
            _take(asked, key)
    inputs: dict[str, Any] = {"weights": state.now.sha256()}
    if any(str(overrides.get(f"{who}.model", "")).startswith("vllm:") for who in ("policy", "critic")):
        inputs["answering"] = "vllm"  # other draws than transformers'
    if "critic.model" in overrides:
        inputs["critic"] = critic.sha256()
    elif named := _on_disk(asked.get("critic") or {}):
        inputs["critic"] = named.sha256()
    if "data.path" in overrides:
        assert state.pairs is not None, "a stage follows its pairs"
        inputs["data"] = file_hash(state.pairs)
        _take(asked, "data.pictures")
    elif path := (asked.get("data") or {}).get("path"):
        inputs["data"] = data_hash(Path(path))
    fitted_on = ((asked.get("critic") or {}).get("calibration") or {}).get("data") or {}
    if path := fitted_on.get("path"):
        inputs["calibration"] = data_hash(Path(path))
    names = [tree.get("protocol") for tree in (asked, asked.get("data") or {}, asked.get("grpo") or {})]
    if file := next((name for name in names if name and identity(name) != name), None):
        inputs["protocol"] = identity(file)  # with the hash of what the file says
    return {"recipe": asked, **inputs}


def _on_disk(critic: Mapping[str, Any]) -> Weights | None:
    """A critic that the recipe names, where its weights are files here: a server has none to hash."""
    spec = (critic.get("model") or "").removeprefix("hf:")
    here = spec in CHECKPOINTS or (spec and Path(spec).is_dir())
    return Weights(spec, critic["args"].get("adapter")) if here else None


def _take(tree: dict[str, Any], key: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.get(parent) or {}
    tree.pop(last, None)


def file_hash(path: Path) -> str | None:
    """sha256 of a file, None where there is none."""
    if not path.is_file():
        return None
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total.update(block)
    return total.hexdigest()


def data_hash(path: Path) -> str | None:
    """sha256 of a file, or of the names and bytes of shards or of a data set's files; None where there is nothing."""
    if not is_sharded(path):
        return file_hash(path)
    whole = path.is_dir() and not any(file.suffix in SUFFIXES for file in path.iterdir())
    total = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file()) if whole else shards_of(path):
        total.update(f"{file.name} {file_hash(file)} ".encode())
    return total.hexdigest()


def stored(folder: Path, name: str) -> Path:
    """Where a phase's CONFIG or OUTPUTS is: under the name of an earlier version where that is there."""
    old = folder / OLD_NAMES[name]
    return old if old.is_file() else folder / name


def is_finished(folder: Path) -> bool:
    """Whether a phase, or a scoring, ended here."""
    return stored(folder, OUTPUTS).is_file()


def left_by(folder: Path) -> dict[str, Any] | None:
    """What a finished phase left, as outputs.json has it: hashes, seconds, tokens. None where it has not ended."""
    return _read(stored(folder, OUTPUTS))


def _config_in(folder: Path) -> dict[str, Any] | None:
    """What a phase was begun with, in the keys of now."""
    config = _read(stored(folder, CONFIG))
    if config is not None and "recipe" in config:
        if not isinstance(config["recipe"], dict):
            hint = f"delete {folder} to run that phase again"
            raise UsageError(f"{stored(folder, CONFIG)}: damaged: recipe is not a JSON object", hint)
        upgrade(config["recipe"])
    return config


def examine(folder: Path, config: Mapping[str, Any], outputs: Mapping[str, Any] | None) -> PhaseState:
    """How the phase in ``folder`` stands to what is asked. outputs: hashes of what is there now, as outputs.json names them."""
    began = _config_in(folder)
    if began is None:
        return PhaseState("new")
    if differences := changes(began, json.loads(dump_json(config))):
        return PhaseState("stale", "; ".join(differences))
    ended = left_by(folder)
    if ended is None:
        return PhaseState("resume")
    wrong = [name for name, value in (outputs or {}).items() if ended.get(name) != value]
    return (
        PhaseState("stale", f"{wrong[0]} is not what {stored(folder, OUTPUTS).name} says: the file was changed")
        if wrong
        else PhaseState("done")
    )


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``key was a, is b`` for the first few values that differ."""
    before, after = dict(flat(was)), dict(flat(now))
    keys = [key for key in dict.fromkeys([*after, *before]) if before.get(key) != after.get(key)]
    said = [_change(key, before.get(key), after.get(key)) for key in keys[:NAMED]]
    return [*said, f"and {len(keys) - NAMED} more"] if len(keys) > NAMED else said


def _change(key: str, was: Any, now: Any) -> str:
    before, after = (json.dumps(value, ensure_ascii=False) for value in (was, now))
    pairs = enumerate(zip(before, after, strict=False))
    same = 0 if max(len(before), len(after)) <= 40 else next((at for at, (a, b) in pairs if a != b), 0)
    return f"{key} was {_short(before, same)}, is {_short(after, same)}"


def _short(text: str, same: int) -> str:
    """Long texts from where they differ: what two have in common at their start says nothing."""
    text = f"…{text[same:]}" if same > 12 else text
    return text if len(text) <= 40 else f"{text[:16]}…"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    return read_object(path, f"delete {path.parent} to run that phase again")


def begin(folder: Path, config: Mapping[str, Any]) -> None:
    """Say what the folder is for, before anything else is written to it."""
    write_atomically(stored(folder, CONFIG), dump_json(dict(config)))


def end(folder: Path, outputs: Mapping[str, Any]) -> None:
    """The phase is done, and left this."""
    write_atomically(stored(folder, OUTPUTS), dump_json(dict(outputs)))


def archive(output: Path, name: str) -> Path:
    """Move a stale phase to ``old/``: nothing that was done is lost. Returns where it is now."""
    folder = output / name
    digest = (file_hash(stored(folder, CONFIG)) or "unknown")[:8]
    stem = f"{name.replace('/', '-')}-{digest}"
    place = next(p for i in range(1000) if not (p := output / "old" / (stem if i == 0 else f"{stem}-{i}")).exists())
    place.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(place)
    return place


def reuse(
    folder: Path, other: Path, config: Mapping[str, Any], outputs_of: Callable[[Path], Mapping[str, Any]]
) -> bool:
    """Copy a phase that another loop has finished with the same hashes; whether there was one, with the files it says it left.

    Another process may be scoring it: what is not finished there is not copied, and its files in the making are not looked at.
    """
    ended = _read(stored(other, OUTPUTS))
    began = _config_in(other)
    if ended is None or began is None or changes(began, json.loads(dump_json(dict(config)))):
        return False
    beside = folder.parent / f".{folder.name}.copy"
    if beside.exists():
        shutil.rmtree(beside)
    unfinished = () if is_finished(other / "score") else ("score", "metrics.json")
    shutil.copytree(other, beside, ignore=shutil.ignore_patterns("checkpoint-*", ".*", *unfinished))
    if any(ended.get(name) != value for name, value in outputs_of(beside).items()):
        shutil.rmtree(beside)
        return False
    beside.rename(folder)
    return True
