"""A training folder as a page, in order of time: how each phase ended, then phase by phase curves, settings and pairs.

Reads what it finds at any depth up to ``DEPTH`` and says nothing of the rest, for runs that are still going on have only some:
``records/`` and ``metrics.json`` (how a phase of a loop was scored), ``summary.json`` (of ablations), ``history.json`` (a list of
logged steps), ``training.json`` (the same under ``log``), ``settings.json``, ``manifest.json`` (request, funnel, right and wrong
boxes of pair generation), ``chains.jsonl`` (critics' scores), ``pairs*.jsonl`` (visrl.train.data.rows.PairRow), ``rollouts/``
(groups of chains that policy gradients were trained on).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrl.core.json_files import read_json
from visrl.core.records import read_records, write_atomically
from visrl.errors import UsageError
from visrl.report.figures import HEIGHT, WIDTH
from visrl.report.page import render
from visrl.report.text import line
from visrl.report.training_figures import Chart, Curve, curve_of, curves, forest, number, phase_chart, score_histogram
from visrl.report.training_pairs import AT_FIRST, PairCard, cards
from visrl.report.training_rollouts import GroupCard, group_cards
from visrl.runs.lines import read_lines
from visrl.tables.phase_tables import order, runs

DEPTH = 4
KINDS = {
    "WP-LN": "chosen box right, rejected box wrong: what training wants",
    "WP-LP": "both boxes right",
    "WN-LN": "both boxes wrong: only the answers differ",
    "WN-LP": "chosen box wrong, rejected box right: teaches the wrong box",
    "WP": "chosen box right",
}
"""The poster's names for right (P) and wrong (N) boxes of the chosen (W, win) and the rejected (L, lose) chain."""


@dataclass(frozen=True, slots=True)
class PhasePage:
    """One folder's part of the page."""

    title: str
    settings: tuple[tuple[str, str], ...]
    curves: tuple[Curve, ...]
    funnel: tuple[tuple[str, int, float], ...]
    boxes: tuple[tuple[str, str, str], ...]
    scores: tuple[Curve, ...]
    counts: tuple[tuple[str, str], ...]
    pairs: tuple[PairCard, ...]
    n_pairs: int
    groups: tuple[GroupCard, ...]


def is_training(folder: Path) -> bool:
    """Whether a folder has something of training in it, and no run of an evaluation."""
    if (folder / "episodes.jsonl").is_file():
        return False
    return (folder / "summary.json").is_file() or any(True for _ in _phases(folder))


def is_one_phase(folder: Path) -> bool:
    """Whether a folder is a phase of training itself: the run of its scoring, which lies in it, makes it no folder of runs."""
    return is_training(folder) and ((folder / "phase_config.json").is_file() or folder in _phases(folder))


def write_training_page(folder: Path, out: Path) -> None:
    """Write the page. Raises UsageError for a damaged file, OSError where ``out`` cannot be written."""
    summary = _json(folder / "summary.json", [])
    # ablations are many loops: each has a page of its own
    phases = [] if summary else [_phase(place, folder) for place in _phases(folder)]
    shown = {
        "title": line(f"Training · {folder.resolve().name}"),
        "charts": _charts(folder, summary),
        "ends": _ends(folder),
        "loops": [line(str(place.relative_to(folder))) for place in _loops(folder)] if summary else [],
        "phases": phases,
        "width": WIDTH,
        "height": HEIGHT,
        "at_first": AT_FIRST,
    }
    write_atomically(out, render("training.html.j2", (), served=False, **shown))


def _charts(folder: Path, summary: list[Any]) -> list[Chart]:
    """Phases by their records, of ablations the differences to the full method."""
    if summary:
        return [found for found in [forest(summary)] if found is not None]
    results = read_records(folder) if (folder / "records").is_dir() else []
    return [found for run in runs(results) if (found := phase_chart(results, run)) is not None]


def _loops(folder: Path) -> list[Path]:
    """The loops of an ablation's folder: ``variant/seed``."""
    return sorted({file.parents[1] for file in folder.glob("*/*/*/metrics.json")})


def phase_lines(folder: Path) -> list[str]:
    """The phases of a training folder, a line each: how it scored, what its pairs came to, and what was logged last."""
    lines = [f"{name}: {said}" for name, said in _ends(folder)]
    for place in _phases(folder):
        name = line(str(place.relative_to(folder)) if place != folder else folder.resolve().name)
        lines += [f"{name}: {said}" for said in _facts(place)]
    return lines


def _facts(place: Path) -> Iterator[str]:
    """Of one phase's folder: the funnel of its pairs, right and wrong boxes, the last step logged."""
    manifest, training = _json(place / "manifest.json", {}), _json(place / "training.json", {})
    boxes = {name: value for name, value, _ in _boxes(manifest.get("boxes"))}
    stages = {name: count for name, count, _ in _stages(_mapping(manifest.get("funnel")).get("questions", {}))}
    for part in (stages, boxes):
        if part:
            yield line(" · ".join(f"{key} {value}" for key, value in part.items()), 200)
    logged = _json(place / "history.json", []) or training.get("log", [])
    if history := [row for row in logged if isinstance(row, Mapping)]:
        # TRL's last row sums up a phase and has none of its figures
        row = next((row for row in reversed(history) if any(map(curve_of, row))), history[-1])
        named = {key: row[key] for key in ("step", *filter(curve_of, row)) if key in row} or row
        numbers = (f"{key} {value:.4g}" for key, value in named.items() if isinstance(value, (int, float)))
        yield line(" · ".join(numbers), 200)
    elif not manifest:
        yield "not finished"


def _ends(folder: Path) -> tuple[tuple[str, str], ...]:
    """How each phase of a loop ended, in its order: name, and the line of its scoring (train/loop/scoring.py)."""
    found = [*folder.glob("*/metrics.json"), *folder.glob("*/*/metrics.json")]
    files = {str(file.parent.relative_to(folder)): file for file in found if file.parent.parent.name != "old"}
    names = sorted(files, key=lambda name: (order(name), name))
    return tuple((line(name), line(str(_json(files[name], {}).get("line", "")))) for name in names)


_STEP = re.compile(r"iter(\d+)/(pairs|rl(\d*))")


def _when(place: Path, root: Path) -> tuple[tuple[int, ...], str]:
    """Phases in the order in which a loop runs them; of an iteration the pairs before what is trained on them."""
    name = str(place.relative_to(root))
    found = _STEP.match(name)
    return ((9, int(found[1]), int(found[3] or found[2] == "rl")) if found else order(name.split("/")[0])), name


def _phases(folder: Path) -> Iterator[Path]:
    """The folders that hold something to show, in order of time, checkpoints and phases set aside left out."""
    names = ("history.json", "training.json", "manifest.json", "pairs*.jsonl")
    places, found = [folder], list[Path]()
    for _ in range(DEPTH):
        found += [place for place in places if any(any(place.glob(name)) for name in names)]
        places = [
            child
            for place in places
            if place.is_dir()
            for child in place.iterdir()
            if child.is_dir() and not child.name.startswith(("checkpoint-", ".")) and child.name != "old"
        ]
    yield from sorted(found, key=lambda place: _when(place, folder))


def _phase(place: Path, root: Path) -> PhasePage:
    training, manifest = _json(place / "training.json", {}), _json(place / "manifest.json", {})
    settings = _json(place / "settings.json", {}) or training.get("recipe", {}) or manifest.get("request", {})
    history = _json(place / "history.json", []) or training.get("log", [])
    funnel = _mapping(manifest.get("funnel"))
    pairs = [row for path in sorted(place.glob("pairs*.jsonl")) for row in cards(path, settings)]
    return PhasePage(
        line(str(place.relative_to(root)) if place != root else root.resolve().name),
        _flat(settings),
        curves(history),
        _stages(funnel.get("questions", {})),
        _boxes(manifest.get("boxes")),
        _critics(place / "chains.jsonl"),
        _flat({k: v for k, v in funnel.items() if k != "questions"}),
        tuple(pairs),
        sum(sum(1 for text in path.open("rb") if text.strip()) for path in place.glob("pairs*.jsonl")),
        group_cards(place, settings),
    )


def _json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    hint = "delete it and run the phase that wrote it again"
    found = read_json(path, hint)
    if type(found) is not type(default):
        raise UsageError(f"{path}: damaged: not a JSON {'list' if default == [] else 'object'}", hint)
    return found


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _flat(tree: Any, prefix: str = "") -> tuple[tuple[str, str], ...]:
    """Dotted names and values of nested mappings, as text."""
    rows: list[tuple[str, str]] = []
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            rows.append((line(f"{prefix}{key}".replace("_", " "), 60), line(shown, 200)))
    return tuple(rows)


def _boxes(tree: Any) -> tuple[tuple[str, str, str], ...]:
    """Right and wrong boxes of pairs, per cent with standard error, and what the name means: the poster's table 4."""
    found = tree.items() if isinstance(tree, Mapping) else ()
    rows = []
    for key, row in found:
        name = line(key.upper().replace("_", "-"), 20)
        if isinstance(row, Mapping) and number(row.get("percent")) is not None and number(row.get("se")) is not None:
            rows.append((name, f"{row['percent']:.1f} ± {row['se']:.1f} %", KINDS.get(name, "")))
    return tuple(sorted(rows, key=lambda row: [*KINDS, row[0]].index(row[0])))


def _critics(path: Path) -> tuple[Curve, ...]:
    """How each critic's scores of the sampled chains are spread. Raises UsageError for a damaged line."""
    if not path.is_file():
        return ()
    from visrl.train.pairs.chain_lines import checked

    found: dict[str, list[float]] = {"scores of answers": [], "scores of boxes": []}
    for row in read_lines(path, checked):
        for trial in row.get("trials", ()):
            for name, key in zip(found, ("answer_score", "box_score"), strict=True):
                value = number((trial.get(key) or {}).get("value"))
                if value is not None:
                    found[name].append(value)
    return tuple(score_histogram(name, values) for name, values in found.items() if values)


_WORDS = {"above_and_below_by_answer": "has a good and a bad answer"}
# of stages that let everything through: the order they are passed in
_ORDER = {stage: place for place, stage in enumerate(("asked", "answered", "parsed", "distinct", "scored"))}


def _stages(tree: Any) -> tuple[tuple[str, int, float], ...]:
    """(stage, count, per cent of the first) of a funnel, the widest first: files sort their keys."""
    found = {k: v for k, v in tree.items() if isinstance(v, int)} if isinstance(tree, Mapping) else {}
    most = max(found.values(), default=0) or 1
    ranked = sorted(found.items(), key=lambda item: (-item[1], _ORDER.get(item[0], len(_ORDER))))
    return tuple(
        (line(_WORDS.get(name, name.replace("_", " ")), 80), n, round(100.0 * n / most, 2)) for name, n in ranked
    )
