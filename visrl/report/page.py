"""One run, or two, as one HTML file: no network, no build step, nothing in it that runs but its own script.

The page is a head with the numbers, an index (a few hundred bytes a sample: what grid, filters and search need), details in
blocks of ``BLOCK`` samples that the script parses when a sample is opened, and pictures. Details and pictures go through files,
so memory holds the index and nothing else. A Content-Security-Policy forbids every script and style but ours, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from visrl import __version__
from visrl.core.boxes import Box
from visrl.core.final_answer import final_answer
from visrl.core.looking.calls import FAULTS
from visrl.core.types import CoTSample, Episode, Step, Unparsed
from visrl.report.figures import HeatMap, RunFigures, TaskFigures
from visrl.report.head import Header, differences, header
from visrl.report.pictures import Album, choose, side_for
from visrl.report.rows import Outcome, RunView, flip
from visrl.report.summary import first_sentence, summary_rows
from visrl.report.text import clip, json_block, line

if TYPE_CHECKING:
    from jinja2 import Environment

BLOCK = 100
FILES = Path(__file__).parent
SCRIPTS = ("base.js", "grid.js", "looks.js", "sample.js", "keys.js")
_BOX_DIGITS = 1
_FAULTS: dict[str, str] = {str(kind): text for kind, text in FAULTS.items()}
_RUN_COLUMNS = (
    *("status", "boxRight", "right", "answerRight", "quality"),
    *("iou", "unparsed", "box", "looked", "output"),
)


@dataclass(slots=True)
class Index:
    """What the script holds of every sample, as columns of equal length; ``runs`` has the columns of each run."""

    shared: dict[str, list[Any]] = field(default_factory=dict)
    runs: tuple[dict[str, list[Any]], ...] = ()
    kinds: dict[str, list[int]] = field(default_factory=dict)
    """kind of outcome -> picture numbers of its samples, for :func:`visrl.report.pictures.choose`"""

    def add(self, shared: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> None:
        for columns, row in zip((self.shared, *self.runs), (shared, *runs), strict=True):
            for name, value in row.items():
                columns.setdefault(name, []).append(value)

    def __len__(self) -> int:
        return len(self.shared.get("id", ()))


@dataclass(slots=True)
class Gathered:
    """All of a page but its pictures."""

    views: list[RunView]
    index: Index
    album: Album
    figures: list[RunFigures]


def write_page(folders: Sequence[Path], out: Path, *, album: Album | None = None) -> Gathered:
    """Write the page of one run, or of two side by side, to ``out``.

    album: filled with the pictures, which a server then shows; without it, those that fit are embedded. Raises UsageError for
    a folder that is not a run, or a damaged file in it.
    """
    with tempfile.TemporaryFile() as details, tempfile.TemporaryFile() as pictures, _replacing(out) as page:
        gathered = gather(folders, details, Album() if album is None else album)
        embedded: list[int] = []
        if album is None:
            chosen = choose(gathered.index.kinds)
            embedded = gathered.album.write(chosen, pictures, side_for(len(chosen)))
        _assemble(gathered, embedded, page, details, pictures, served=album is not None)
    return gathered


def gather(folders: Sequence[Path], details: IO[bytes], album: Album) -> Gathered:
    """Read the runs once, sample by sample; details go to ``details`` as blocks."""
    views = [RunView(folder) for folder in folders]
    index = Index(runs=tuple({} for _ in views))
    figures = [RunFigures() for _ in views]
    block: list[dict[str, Any]] = []
    for sample in views[0].samples():
        outcomes = [view.outcome(sample) for view in views]
        picture = album.number(sample.picture)
        index.add(_shared_row(sample, picture), [_run_row(outcome) for outcome in outcomes])
        if picture is not None:
            index.kinds.setdefault(_kind(outcomes), []).append(picture)
        for of_run, outcome in zip(figures, outcomes, strict=True):
            _count(of_run, sample, outcome)
        block.append(_detail(sample, outcomes, [view.seen_side for view in views]))
        if len(block) == BLOCK:
            _write_block(details, len(index) // BLOCK - 1, block)
            block = []
    if block:
        _write_block(details, len(index) // BLOCK, block)
    return Gathered(views, index, album, figures)


def _kind(outcomes: Sequence[Outcome | None]) -> str:
    """Samples of one kind share the pictures: flips first where there are two runs, then unscored, unparsed, wrong, right."""
    first = outcomes[0]
    if len(outcomes) > 1 and (changed := flip(*outcomes)) in ("fixed", "broken"):
        return changed
    if first is None or first.right is None:
        return "unscored"
    return "unparsed" if first.unparsed else f"{first.box_right} {first.answer_right}"


def _count(figures: RunFigures, sample: CoTSample, outcome: Outcome | None) -> None:
    if outcome is None:
        return
    figures.add(sample.task, outcome.overlap, outcome.quality, unparsed=bool(outcome.unparsed))
    if sample.size is not None:
        if sample.box is not None:
            figures.true.add(sample.box.xyxy, sample.size)
        if isinstance(outcome.episode.box, Box):
            figures.predicted.add(outcome.episode.box.xyxy, sample.size)


def _numbers(box: Box | None) -> list[float] | None:
    return None if box is None else [round(value, _BOX_DIGITS) for value in box.xyxy]


def _shared_row(sample: CoTSample, picture: int | None) -> dict[str, Any]:
    return {
        "id": line(sample.id, 120),
        "task": sample.task,
        "question": line(sample.question),
        "answers": line(" | ".join(sample.answers), 80),
        "size": sample.size,
        "box": _numbers(sample.box),
        "picture": picture,
    }


def _run_row(outcome: Outcome | None) -> dict[str, Any]:
    """Columns of one run. status: 0 not run, 1 unscored, 2 scored."""
    if outcome is None:
        return dict.fromkeys(_RUN_COLUMNS) | {"status": 0}
    step = outcome.episode.answer_step or outcome.episode.box_step
    box = outcome.episode.box
    return {
        "status": 1 if outcome.right is None else 2,
        "boxRight": None if outcome.box_right is None else int(outcome.box_right),
        "right": None if outcome.right is None else int(outcome.right),
        "answerRight": None if outcome.answer_right is None else int(outcome.answer_right),
        "quality": None if outcome.quality is None else round(outcome.quality, 3),
        "iou": None if outcome.overlap is None else round(outcome.overlap, 3),
        "unparsed": line(outcome.unparsed, 160),
        "box": _numbers(box) if isinstance(box, Box) else None,
        "looked": outcome.episode.looked_at,
        "output": "" if step is None else line(_said(step.output), 120),
    }


def _said(output: str) -> str:
    """The answer in an output, without thought and tags; the whole output where there is none."""
    answer = final_answer(output)
    return output if isinstance(answer, Unparsed) else answer


def _detail(sample: CoTSample, outcomes: Sequence[Outcome | None], sides: Sequence[int | None]) -> dict[str, Any]:
    """What the page of one sample shows besides its row of the index. sides: per run, the one size at which its model sees."""
    runs = [
        None if outcome is None else _run_detail(outcome, side) for outcome, side in zip(outcomes, sides, strict=True)
    ]
    return {
        "question": clip(sample.question),
        "instruction": clip(sample.instruction, 500),
        "answers": [clip(answer, 500) for answer in sample.answers[:20]],
        "cluster": line(sample.cluster, 200),
        "group": line(sample.group, 80),
        "runs": runs,
    }


def _run_detail(outcome: Outcome, side: int | None) -> dict[str, Any]:
    episode = outcome.episode
    return {
        "look": _step(episode.box_step, side),
        "reply": _step(episode.answer_step, side),
        **_looks(episode, side),
        "padded": side is not None,
        "error": clip(episode.error or "", 1000),
        "scores": [
            [name, None if value is None else round(value, 4), line(outcome.reasons.get(name, ""), 200)]
            for name, value in outcome.scores.items()
        ],
        "reason": line(outcome.reason, 300) if outcome.right is None else "",
    }


def _looks(episode: Episode, side: int | None) -> dict[str, Any]:
    """The looks of an episode of several, and why it ended; nothing of any other."""
    if not episode.looks:
        return {}
    found = [
        {
            "step": _step(look.step, side),
            "box": _numbers(look.box),
            "region": look.looked_at,
            "fault": _FAULTS.get(look.fault, look.fault),
        }
        for look in episode.looks
    ]
    return {"looks": found, "ended": episode.ended}


def _step(step: Step | None, side: int | None) -> dict[str, Any] | None:
    """seen: width and height of each picture of the prompt as the model saw it, None where that is not known."""
    if step is None:
        return None
    fixed = None if side is None else [(side, side)] * step.prompt.count("<image>")
    return {
        "prompt": clip(step.prompt),
        "output": clip(step.output),
        "tokens": [step.prompt_tokens, step.output_tokens],
        "ended": step.finish_reason,
        "seen": step.seen_sizes or fixed,
    }


def _write_block(out: IO[bytes], number: int, block: Sequence[Mapping[str, Any]]) -> None:
    out.write(f'<script type="application/json" id="d{number}">{json_block(block)}</script>\n'.encode())


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, scripts: Sequence[str], *, served: bool, **values: Any) -> str:
    """A template with our style and scripts in it and a policy that lets nothing else run or load.

    scripts: files beside this one that run as one script, in order. served: pictures come from the server of the page.
    """
    style = (FILES / "page.css").read_text("utf-8")
    parts = [(FILES / script).read_text("utf-8") for script in scripts]
    code = "\n".join(["(() => {", *parts, "})();"]) if parts else ""
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(code) if code else _NONE}",
            f"style-src {_hash(style)}",
            f"img-src data: {_SELF if served else ''}".rstrip(),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page: str = (
        _environment()
        .get_template(template)
        .render(style=style, code=code, policy=policy, served=served, version=__version__, **values)
    )
    return page


_NONE, _SELF = "'none'", "'self'"


def _hash(text: str) -> str:
    """A CSP source expression for an inline element of exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _assemble(
    gathered: Gathered,
    embedded: Sequence[int],
    page: IO[bytes],
    details: IO[bytes],
    pictures: IO[bytes],
    *,
    served: bool,
) -> None:
    """Head, data, pictures, end: the template is split where the data belongs."""
    index, views = gathered.index, gathered.views
    changes = differences(views)  # may leave a notice for the headers
    heads = [header(view, letter) for view, letter in zip(views, "AB", strict=False)]
    tasks = list(dict.fromkeys(index.shared.get("task", ())))
    rows = summary_rows(heads, changes, tasks)
    data = {
        "n": len(index),
        "block": BLOCK,
        "served": served,
        "shared": index.shared,
        "runs": index.runs,
        "groups": {row.task: row.tasks for row in rows if row.group and row.tasks},
        "embedded": None if served else list(embedded),
        "errors": gathered.album.errors,
        "sizes": gathered.album.sizes,
    }
    html = render(
        "page.html.j2",
        SCRIPTS,
        served=served,
        heads=heads,
        sentence=first_sentence(views, heads, changes),
        summary=rows,
        n=len(index),
        n_pictures=len(gathered.album.pictures),
        n_embedded=len(embedded),
        figures=_figures(gathered.figures, heads),
        heat=_heat(gathered.figures, heads),
        differences=changes,
        boxes=[any(run.get("box", ())) for run in index.runs],
        looks=any(value is not None for run in index.runs for value in run.get("looked", ())),
        tasks=[row.task for row in rows if row.group and row.tasks] + tasks,
    )
    before, _, after = html.partition("<!--data-->")
    page.write(before.encode(errors="backslashreplace"))
    page.write(f'<script type="application/json" id="index">{json_block(data)}</script>\n'.encode())
    for part in (details, pictures):
        part.seek(0)
        shutil.copyfileobj(part, page, 1 << 20)
    page.write(after.encode(errors="backslashreplace"))


def _figures(found: Sequence[RunFigures], heads: Sequence[Header]) -> list[tuple[TaskFigures, Header]]:
    """All tasks together, then task by task; the runs of one side by side; those without boxes left out."""
    of_runs = [{figures.task: figures for figures in run.shown()} for run in found]
    names = dict.fromkeys(name for tasks in of_runs for name in tasks)
    return [(tasks[name], head) for name in names for tasks, head in zip(of_runs, heads, strict=True) if name in tasks]


def _heat(found: Sequence[RunFigures], heads: Sequence[Header]) -> list[tuple[HeatMap, str]]:
    """The true boxes once, then the predicted ones of each run, with its letter."""
    maps = [(found[0].true, ""), *((run.predicted, head.letter) for run, head in zip(found, heads, strict=True))]
    return [(heat, letter if len(heads) > 1 else "") for heat, letter in maps if heat.n]


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside ``path`` that takes its place when all went well. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        beside = Path(file.name)
        try:
            yield file
            file.flush()
            beside.chmod(0o644)
            beside.replace(path)
        except BaseException:
            with suppress(OSError):  # its folder may be gone; the first error is the one to be said
                beside.unlink(missing_ok=True)
            raise
