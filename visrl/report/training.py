"""A training folder as a page: curves, the phases' settings, what pair generation threw away, and chosen and rejected boxes.

Reads what it finds at any depth up to ``DEPTH`` and says nothing of the rest, for runs that are still going on have only some:
``metrics.json`` (how a phase of a loop was scored), ``history.json`` (a list of logged steps), ``training.json`` (the same under
``log``), ``settings.json``, ``manifest.json`` (request, funnel, right and wrong boxes of pair generation), ``pairs*.jsonl``
(visrl.train.data.rows.PairRow).
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from visrl.core.json_files import read_json
from visrl.core.records import write_atomically
from visrl.errors import PictureError, UsageError
from visrl.report.figures import HEIGHT, WIDTH, polyline
from visrl.report.page import render
from visrl.report.pictures import encoded
from visrl.report.text import clip, line
from visrl.tables.phase_tables import order

DEPTH = 4
PAIRS_SHOWN = 60
STUB = 6.0
DASHES = ("", "7 3", "2 3", "9 3 2 3", "1 2")
"""Lines of one curve are told apart by dashes as well as by colour."""


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: str
    dash: str
    colour: int
    last: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Quantities of one scale over steps. low, high: the ends of the y axis; steps: the last step."""

    title: str
    low: str
    high: str
    steps: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class PhasePage:
    """One folder's part of the page."""

    title: str
    settings: tuple[tuple[str, str], ...]
    curves: tuple[Curve, ...]
    funnel: tuple[tuple[str, int, float], ...]
    boxes: tuple[tuple[str, str], ...]
    counts: tuple[tuple[str, str], ...]
    pairs: tuple[PairCard, ...]
    n_pairs: int


@dataclass(frozen=True, slots=True)
class PairCard:
    """A preference pair. chosen, rejected: x, y, width, height in pixels, or None; picture: a data URI or ""."""

    question: str
    size: tuple[int, int] | None
    picture: str
    chosen: tuple[float, float, float, float] | None
    rejected: tuple[float, float, float, float] | None
    chosen_answer: str
    rejected_answer: str
    chosen_scores: str
    rejected_scores: str


def is_training(folder: Path) -> bool:
    """Whether a folder has something of training in it, and no run of an evaluation."""
    return not (folder / "episodes.jsonl").is_file() and any(True for _ in _phases(folder))


def write_training_page(folder: Path, out: Path) -> None:
    """Write the page. Raises UsageError for a damaged file, OSError where ``out`` cannot be written."""
    phases = [_phase(place, folder) for place in _phases(folder)]
    title = line(f"Training · {folder.resolve().name}")
    shown = {"title": title, "ends": _ends(folder), "phases": phases, "width": WIDTH, "height": HEIGHT}
    html = render("training.html.j2", (), served=False, **shown)
    write_atomically(out, html)


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
    for part in (manifest.get("funnel", {}).get("questions", {}), dict(_boxes(manifest.get("boxes")))):
        if part:
            yield line(" · ".join(f"{key} {value}" for key, value in part.items()), 200)
    history = _json(place / "history.json", []) or training.get("log", [])
    if history:
        shown = (f"{key} {value:g}" for key, value in history[-1].items() if isinstance(value, (int, float)))
        yield line(" · ".join(shown), 200)
    elif not manifest:
        yield "not finished"


def _ends(folder: Path) -> tuple[tuple[str, str], ...]:
    """How each phase of a loop ended, in its order: name, and the line of its scoring (train/loop/scoring.py)."""
    found = [*folder.glob("*/metrics.json"), *folder.glob("*/*/metrics.json")]
    files = {str(file.parent.relative_to(folder)): file for file in found if file.parent.parent.name != "old"}
    names = sorted(files, key=lambda name: (order(name), name))
    return tuple((line(name), line(str(_json(files[name], {}).get("line", "")))) for name in names)


def _phases(folder: Path) -> Iterator[Path]:
    """The folders that hold something to show, outermost first, checkpoints left out."""
    names = ("history.json", "training.json", "manifest.json", "pairs*.jsonl")
    places = [folder]
    for _ in range(DEPTH):
        yield from (place for place in places if any(any(place.glob(name)) for name in names))
        places = sorted(
            child
            for place in places
            if place.is_dir()
            for child in place.iterdir()
            if child.is_dir() and not child.name.startswith(("checkpoint-", "."))
        )


def _phase(place: Path, root: Path) -> PhasePage:
    training, manifest = _json(place / "training.json", {}), _json(place / "manifest.json", {})
    settings = _json(place / "settings.json", {}) or training.get("recipe", {}) or manifest.get("request", {})
    history = _json(place / "history.json", []) or training.get("log", [])
    funnel = _mapping(manifest.get("funnel"))
    pairs = [row for path in sorted(place.glob("pairs*.jsonl")) for row in _pairs(path, settings)]
    return PhasePage(
        line(str(place.relative_to(root)) if place != root else root.resolve().name),
        _flat(settings),
        curves(history),
        _stages(funnel.get("questions", {})),
        _boxes(manifest.get("boxes")),
        _flat({k: v for k, v in funnel.items() if k != "questions"}),
        tuple(pairs[:PAIRS_SHOWN]),
        sum(sum(1 for text in path.open("rb") if text.strip()) for path in place.glob("pairs*.jsonl")),
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


def _boxes(tree: Any) -> tuple[tuple[str, str], ...]:
    """Right (P) and wrong (N) boxes of the chosen (W) and the rejected (L) chain, per cent of the pairs: the poster's table 4."""
    found = tree.items() if isinstance(tree, Mapping) else ()
    return tuple(
        (line(name.upper().replace("_", "-"), 20), f"{row['percent']:.1f} ± {row['se']:.1f} %")
        for name, row in found
        if isinstance(row, Mapping) and _number(row.get("percent")) is not None and _number(row.get("se")) is not None
    )


# of stages that let everything through: the order they are passed in
_ORDER = {stage: place for place, stage in enumerate(("asked", "answered", "parsed", "distinct", "scored"))}


def _stages(tree: Any) -> tuple[tuple[str, int, float], ...]:
    """(stage, count, per cent of the first) of a funnel, the widest first: files sort their keys."""
    found = {k: v for k, v in tree.items() if isinstance(v, int)} if isinstance(tree, Mapping) else {}
    most = max(found.values(), default=0) or 1
    ranked = sorted(found.items(), key=lambda item: (-item[1], _ORDER.get(item[0], len(_ORDER))))
    return tuple((line(name.replace("_", " "), 80), n, round(100.0 * n / most, 2)) for name, n in ranked)


# --- curves


def curves(history: Any) -> tuple[Curve, ...]:
    """One curve per kind of quantity: the losses together, the margins together, and so on."""
    logged = history if isinstance(history, list) else []
    rows = [row for row in logged if isinstance(row, Mapping) and _number(row.get("step")) is not None]
    kinds: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for name, value in row.items():
            kind, number = _kind(name), _number(value)
            if kind and number is not None:
                kinds.setdefault(kind, {}).setdefault(name, []).append((float(row["step"]), number))
    return tuple(_curve(kind, lines) for kind, lines in kinds.items())


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _kind(name: str) -> str:
    """Which curve a logged quantity belongs to; "" for none."""
    if name.startswith("loss/") or name.endswith("loss"):
        return "loss"
    for ending, kind in (("margins", "reward margin"), ("accuracies", "reward accuracy")):
        if name.endswith(ending):
            return kind
    if name in ("learning_rate", "grad_norm"):
        return name.replace("_", " ")
    # what a small model is watched by (train/small_model/probes.py): accuracies 0..1
    return "accuracy" if name in ("point", "point_any", "read", "look", "whole", "box", "box_any", "accuracy") else ""


def _stub(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A single point as a short line to it: a line of one point is not drawn."""
    (x, y) = points[0]
    return [(x - STUB, y), (x, y)] if len(points) == 1 else points


def _curve(kind: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> Curve:
    values = [value for points in series.values() for _, value in points]
    low, high = min(*values, 0.0), max(*values, 0.0)
    span = (high - low) or 1.0
    steps = max(step for points in series.values() for step, _ in points) or 1.0
    lines = tuple(
        Line(
            line(name, 40),
            polyline(_stub([(WIDTH * step / steps, HEIGHT * (1 - (value - low) / span)) for step, value in points])),
            DASHES[i % len(DASHES)],
            i % 6,
            f"{points[-1][1]:.4g}",
        )
        for i, (name, points) in enumerate(series.items())
    )
    return Curve(kind, f"{low:.3g}", f"{high:.3g}", int(steps), lines)


# --- pairs


def _pairs(path: Path, settings: Any) -> Iterable[PairCard]:
    from visrl.train.data.rows import PairRow, read_rows

    data = settings.get("data") if isinstance(settings, Mapping) else None
    named = _mapping(data).get("pictures")
    folder = Path(named) if isinstance(named, str) and named else path.parent
    return [_card(row, folder) for row in islice(read_rows(path, PairRow), PAIRS_SHOWN)]


def _card(row: Any, folder: Path) -> PairCard:
    picture, size = _picture(row.picture, folder)
    return PairCard(
        clip(row.question, 400),
        row.size or size,
        picture,
        _rectangle(row.chosen.box),
        _rectangle(row.rejected.box),
        clip(row.chosen.answer, 300),
        clip(row.rejected.answer, 300),
        _scores(row.chosen.scores),
        _scores(row.rejected.scores),
    )


def _picture(name: str, folder: Path) -> tuple[str, tuple[int, int] | None]:
    """A data URI and the original's size; "" and None where there is no such picture below ``folder``."""
    from visrl.train.data.rows import picture_in

    try:
        image = picture_in(folder, name).open()
    except (PictureError, UsageError):
        return "", None
    data = base64.b64encode(encoded(image, 384)).decode()
    return f"data:image/webp;base64,{data}", image.size


def _rectangle(box: Sequence[float] | None) -> tuple[float, float, float, float] | None:
    return None if box is None else (box[0], box[1], box[2] - box[0], box[3] - box[1])


def _scores(scores: Mapping[str, float]) -> str:
    return " · ".join(f"{line(name, 30)} {value:.2g}" for name, value in scores.items())
