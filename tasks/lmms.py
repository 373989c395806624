"""What our lmms-eval task files refer to, by absolute name: documents, prompts for foreign models, scores per sample.

lmms-eval holds only each document's id and text; pictures and true answers are looked up in our own samples, which
``visrl.tasks.load`` reads from the folder VISRL_DATA names, or from the hub. Scores are ``visrl.evals``', in its units, so
that plain lmms-eval and visrl-eval print the same numbers. VISRL_JUDGE names the judge of free answers (default: exact).

Our model answers with its whole episode (:func:`serialize_episode`). Other models' plain text is read as the answer, and for
REC as a box in fractions of width and height, which is what :func:`doc_to_text` asks them for.

A sample without a score leaves no value for a metric, so means are over the scored ones; ``unscored`` and ``unparsed``
(percent of the documents) stand beside them. Names are made by ``__getattr__``: ``documents_TASK``, ``results_TASK`` and
``total_TASK__METRIC``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl.core.box_formats import FORMATS
from visrl.core.prompts import P_REC
from visrl.core.types import CoTSample, Episode, Step, Unparsed
from visrl.errors import UsageError
from visrl.evals.benchmarks import TASKS, Benchmark
from visrl.evals.scorers.scoring import scorer_of
from visrl.runs.lines import episode_from_json, episode_to_json
from visrl.tasks import SOURCES, adapt, documents

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

PREFIX = "visrl_"
DATA_VARIABLE = "VISRL_DATA"
JUDGE_VARIABLE = "VISRL_JUDGE"
PLACEHOLDER = str(Path(__file__).with_name("_template_placeholder.jsonl"))
"""lmms-eval must load some dataset before it asks us for documents: one row, of which nothing is kept."""
MEANS: dict[Benchmark, tuple[str, ...]] = {
    "rec": ("acc@0.5", "miou", "acc@0.75", "centre_acc"),
    "viscot": ("answer", "box_acc"),
    "pope": ("accuracy", "yes_ratio"),
    "mme": (),
    "mmbench": ("accuracy",),
    "choice": ("accuracy", "miou"),
    "hrbench": ("accuracy",),
    "refl4": ("acc@0.5", "acc@0.75", "acc@0.9", "macc", "miou"),
    "point": ("click_acc",),
}
TOTALS: dict[Benchmark, tuple[str, ...]] = {
    "rec": (),
    "viscot": (),
    "pope": ("precision", "recall", "f1"),
    "mme": ("perception", "cognition"),
    "mmbench": ("circular",),
    "choice": (),
    "hrbench": ("circular",),
    "refl4": (),
    "point": (),
}
COUNTS = ("unscored", "unparsed")
_WIRE = '{"visrl_episode": '
_REC_FORMAT = FORMATS["wh_norm_3dp"]
_REC_ASK = " Write them as [x1, y1, x2, y2], in fractions of the picture's width and height between 0 and 1."
Doc = Mapping[str, Any]


def data_folder() -> Path | None:
    """The folder VISRL_DATA names, or None for the hub."""
    return _folder(os.environ.get(DATA_VARIABLE))


@cache
def _folder(named: str | None) -> Path | None:
    return Path(named) if named else None


@cache
def _samples(task: str, data: Path | None) -> dict[str, CoTSample]:
    source = SOURCES[task]
    found = (adapt(source, task, document, data, with_pictures=True) for document in documents(task, data))
    return {sample.id: sample for sample in found}


def samples_of(task: str) -> dict[str, CoTSample]:
    """The samples of one of our tasks by id, read once per process. Raises UsageError as ``visrl.tasks.load`` does."""
    return _samples(task, data_folder())


def sample_of(doc: Doc) -> CoTSample:
    """The sample a document of lmms-eval stands for."""
    return samples_of(doc["task"])[doc["id"]]


def is_ours(name: str) -> bool:
    """Whether a task name of lmms-eval's is one of our task files."""
    return name.startswith(PREFIX) and name.removeprefix(PREFIX) in SOURCES


def __getattr__(name: str) -> Any:
    kind, _, rest = name.partition("_")
    task, _, metric = rest.partition("__")
    if task not in SOURCES:
        raise AttributeError(name)
    if kind == "documents":
        return _documents(task)
    if kind == "results":
        return partial(process_results, task)
    if kind == "total" and metric in TOTALS[TASKS[task].benchmark]:
        return lambda items: total(task, metric, items)
    raise AttributeError(name)


def _documents(task: str) -> Callable[[Any], Dataset]:
    """lmms-eval's ``process_docs``. The data are read here, when the task file is: inside, a failure is tried five times."""
    try:
        rows = [_row(sample) for sample in samples_of(task).values()]
    except UsageError as error:
        from loguru import logger

        logger.error(f"{PREFIX}{task}: {error}")  # lmms-eval reports only that an import failed
        raise

    def process_docs(_: Any) -> Dataset:
        from datasets import Dataset

        return Dataset.from_list(rows)

    return process_docs


def _row(sample: CoTSample) -> dict[str, Any]:
    return {"task": sample.task, "id": sample.id, "question": sample.question, "picture": sample.cluster}


def doc_to_visual(doc: Doc) -> list[Image]:
    """The document's picture, RGB. Raises PictureError if it cannot be opened."""
    picture = sample_of(doc).picture
    return [] if picture is None else [picture.open()]


def doc_to_text(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """The question as other models than ours are asked it: once, with the frame of the box said in words."""
    sample = sample_of(doc)
    if sample.kind == "rec":
        return P_REC.format(expression=sample.question) + _REC_ASK
    return sample.question + sample.instruction


def doc_to_target(doc: Doc) -> str:
    """The true answer, or the true box as text, for lmms-eval's logs."""
    sample = sample_of(doc)
    if sample.answers:
        return sample.answers[0]
    return "" if sample.box is None else str(list(sample.box.xyxy))


def serialize_episode(episode: Episode) -> str:
    """An episode as the text lmms-eval carries from the model to the scorer, and keeps in its logs."""
    return f"{_WIRE}{json.dumps(episode_to_json(episode), ensure_ascii=False)}}}"


def deserialize_episode(sample: CoTSample, text: str) -> Episode:
    """The episode of our model's text, or one made of another model's plain answer."""
    if text.startswith(_WIRE):
        return episode_from_json(json.loads(text)["visrl_episode"])
    step = Step("", text)
    if sample.kind != "rec":
        return Episode(sample.id, sample.task, answer_step=step)
    box = Unparsed("the picture's size is unknown") if sample.size is None else _REC_FORMAT.parse(text, sample.size)
    return Episode(sample.id, sample.task, box_step=step, box=box)


def process_results(task: str, doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """metric -> this sample's value in the unit of the task; no entry where it has none. Totals get the answer to work on."""
    text, known = _TOGETHER.get((task, doc["id"]), ("", {}))
    if known and text == results[0]:
        return dict(known)
    spec, sample = TASKS[task], sample_of(doc)
    episode = deserialize_episode(sample, results[0])
    scores, estimands = scorer_of(spec.benchmark)(spec, [sample], {sample.id: episode}, _judge())
    scale = 100.0 if spec.unit == "percent" else 1.0
    mine = scores[sample.id]
    found: dict[str, Any] = {
        metric: scale * value
        for metric in MEANS[spec.benchmark]
        if metric in mine and (value := mine[metric].value) is not None
    }
    found |= {metric: {"id": sample.id, **_answer(episode)} for metric in TOTALS[spec.benchmark]}
    found["unscored"] = 100.0 * _is_unscored(spec.benchmark, episode, found)
    found["unparsed"] = 100.0 * any(what.unparsed for what in estimands)
    return found


_TOGETHER: dict[tuple[str, str], tuple[str, Mapping[str, Any]]] = {}
"""(task, document) -> an answer that has been scored, and what came out."""


def score_together(task: str, answers: Sequence[tuple[CoTSample, Episode, str]]) -> None:
    """Score episodes at once, each with the text that stands for it: document by document, as lmms-eval asks, is fifteen times as
    much work. For referring expressions; :func:`process_results` finds them.
    """
    spec = TASKS[task]
    if spec.benchmark != "rec":
        return
    episodes = {sample.id: episode for sample, episode, _ in answers}
    scores, _ = scorer_of(spec.benchmark)(spec, [sample for sample, *_ in answers], episodes, None)
    for sample, episode, text in answers:
        found: dict[str, Any] = {
            metric: 100.0 * score.value for metric, score in scores[sample.id].items() if score.value is not None
        }
        unread = isinstance(episode.box, Unparsed) and bool(found)
        counts = {"unscored": 100.0 * _is_unscored("rec", episode, found), "unparsed": 100.0 * unread}
        _TOGETHER[task, sample.id] = text, {**found, **counts}


def _is_unscored(benchmark: Benchmark, episode: Episode, found: Mapping[str, Any]) -> bool:
    """Without a value for the benchmark's first mean; MME has only totals, whose samples fail when they have no answer."""
    if not MEANS[benchmark]:
        return episode.error is not None or episode.answer is None
    return MEANS[benchmark][0] not in found


def _answer(episode: Episode) -> dict[str, Any]:
    return {"answer": episode.answer} if episode.error is None else {"error": episode.error}


def total(task: str, metric: str, items: Sequence[Mapping[str, Any]]) -> float:
    """A metric that is no mean over samples (f1, perception, circular), by the scorer that visrl-eval uses.

    NaN where it is undefined: lmms-eval averages groups without looking.
    """
    samples, spec = samples_of(task), TASKS[task]
    episodes = {
        item["id"]: Episode(
            item["id"],
            task,
            answer_step=None if item.get("answer") is None else Step("", item["answer"]),
            error=item.get("error"),
        )
        for item in items
    }
    chosen = [sample for key, sample in samples.items() if key in episodes]
    _, estimands = scorer_of(spec.benchmark)(spec, chosen, episodes, _judge())
    value = next((what.estimate().value for what in estimands if what.metric == metric), None)
    return math.nan if value is None else value


@lru_cache(maxsize=1)
def _judge() -> Any:
    from visrl.evals.judge import make_judge

    return make_judge(os.environ.get(JUDGE_VARIABLE, "exact"))
