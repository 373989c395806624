"""What of a loop is done, and what a changed recipe or a changed file makes stale: every phase is known by its hashes.

``asked.json``   what decides a phase: its recipe with all values, and the hashes of what it starts from; written when it begins
``phase.json``    what it left, by hash (weights, or pairs); written when it ends
``metrics.json``  how its end scored, and the paired difference to the phase before

Places decide nothing: a folder may be moved, and a phase is the same when the bytes it starts from are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visrl.core.records import dump_json, write_atomically
from visrl.errors import UsageError
from visrl.train.config.recipe import Recipe, flat
from visrl.train.data.shards import is_sharded, shards_of
from visrl.train.loop.phases import State, Weights, Wires
from visrl.world import CHECKPOINTS

Stand = Literal["done", "new", "resume", "stale"]
NAMED = 3  # differences said of a stale phase


@dataclass(frozen=True, slots=True)
class Found:
    """How a phase stands on disk, and why it cannot stay."""

    stand: Stand
    why: str = ""


def ready_config(weights: Weights) -> dict[str, Any]:
    """Of a phase that only scores a model."""
    return {"kind": "ready", "weights": weights.sha256()}


def config_of(found: Recipe, wires: Wires, state: State, critic: Weights) -> dict[str, Any]:
    """What decides a phase. Values that the loop wired stand as the hashes of what they name; so does its own critic."""
    asked = found.model_dump(
        mode="json", exclude={"output", "batch_size", "ray"} if found.kind == "pairs" else {"output"}
    )
    for key in wires:
        if not key.startswith(("data.skip", "step.")):
            _take(asked, key)
    inputs: dict[str, Any] = {"weights": state.now.sha256()}
    if "critic.model" in wires:
        inputs["critic"] = critic.sha256()
    elif named := _on_disk(asked.get("critic") or {}):
        inputs["critic"] = named.sha256()
    if "data.path" in wires:
        assert state.pairs is not None, "a stage follows its pairs"
        inputs["data"] = file_hash(state.pairs)
        _take(asked, "data.pictures")
    elif path := (asked.get("data") or {}).get("path"):
        inputs["data"] = data_hash(Path(path))
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
    """sha256 of a file, or of the names and bytes of shards; None where there is nothing."""
    if not is_sharded(path):
        return file_hash(path)
    total = hashlib.sha256()
    for shard in shards_of(path):
        total.update(f"{shard.name} {file_hash(shard)} ".encode())
    return total.hexdigest()


def examine(folder: Path, config: Mapping[str, Any], left: Mapping[str, Any] | None) -> Found:
    """How the phase in ``folder`` stands to what is asked. left: hashes of what is there now, as phase.json names them."""
    began = _read(folder / "asked.json")
    if began is None:
        return Found("new")
    if differences := changes(began, json.loads(dump_json(config))):
        return Found("stale", "; ".join(differences))
    ended = _read(folder / "phase.json")
    if ended is None:
        return Found("resume")
    wrong = [name for name, value in (left or {}).items() if ended.get(name) != value]
    return Found("stale", f"{wrong[0]} is not what phase.json says: the file was changed") if wrong else Found("done")


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """``key was a, is b`` for the first few values that differ."""
    before, after = dict(flat(was)), dict(flat(now))
    keys = [key for key in dict.fromkeys([*after, *before]) if before.get(key) != after.get(key)]
    said = [f"{key} was {_short(before.get(key))}, is {_short(after.get(key))}" for key in keys[:NAMED]]
    return [*said, f"and {len(keys) - NAMED} more"] if len(keys) > NAMED else said


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:16]}…"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", f"delete {path.parent} to run that phase again") from error
    return found


def begin(folder: Path, config: Mapping[str, Any]) -> None:
    """Say what the folder is for, before anything else is written to it."""
    write_atomically(folder / "asked.json", dump_json(dict(config)))


def end(folder: Path, left: Mapping[str, Any]) -> None:
    """The phase is done, and left this."""
    write_atomically(folder / "phase.json", dump_json(dict(left)))


def set_aside(output: Path, name: str) -> Path:
    """Move a stale phase to ``old/``: nothing that was done is lost. Returns where it is now."""
    folder = output / name
    digest = (file_hash(folder / "asked.json") or "unknown")[:8]
    stem = f"{name.replace('/', '-')}-{digest}"
    place = next(p for i in range(1000) if not (p := output / "old" / (stem if i == 0 else f"{stem}-{i}")).exists())
    place.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(place)
    return place


def take_over(
    folder: Path, other: Path, config: Mapping[str, Any], left_by: Callable[[Path], Mapping[str, Any]]
) -> bool:
    """Copy a phase that another loop has finished with the same hashes; whether there was one, with the files it says it left.

    Another process may be scoring it: what is not finished there is not copied, and its files in the making are not looked at.
    """
    asked = json.loads(dump_json(dict(config)))
    ended = _read(other / "phase.json")
    if _read(other / "asked.json") != asked or ended is None:
        return False
    beside = folder.parent / f".{folder.name}.copy"
    if beside.exists():
        shutil.rmtree(beside)
    unfinished = () if (other / "score" / "phase.json").is_file() else ("score", "metrics.json")
    shutil.copytree(other, beside, ignore=shutil.ignore_patterns("checkpoint-*", ".*", *unfinished))
    if any(ended.get(name) != value for name, value in left_by(beside).items()):
        shutil.rmtree(beside)
        return False
    beside.rename(folder)
    return True
