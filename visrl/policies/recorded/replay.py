"""Replay: anyone's recorded outputs through our scoring, as a policy that looks nothing up but files.

Rows find their document by id or by (picture, question), never by position: POPE random exists with 2,910 and 3,000 rows in
another order, and pairing by position gives F1 .457 instead of .871. What is read (``read_predictions`` tells which):

==========================  =====================================================================================
our ``episodes.jsonl``      or the run folder that holds it; matched by task and sample id
VLM-R1 REC json             ``{"results": [{"image", "question", "ground_truth", "model_output"}]}``
LLaVA answer jsonl          ``{"question_id", "prompt", "text"}``; where the id alone does not name the document, with its
                            question file, ``questions=FILE`` (``{"question_id", "image", "text"}``)
MME                         a folder of ``<subtask>.txt`` (picture, question, truth, answer), or LLaVA's MME jsonl, whose
                            question_id is ``subtask/picture``
MMBench                     the official xlsx or tsv with ``index`` and ``prediction``
generic jsonl               ``{"id", "text"}`` or ``{"id", "box_text", "text"}``; optional ``"task"``
trajectories                ``{"id", "messages"}``: conversations of several looks (trajectories.py)
==========================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from visrl.core.box_formats import RESIZED, BoxFormat, Mode, format_named
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.policies.arguments import ModelArguments
from visrl.policies.protocol import Output, Policy, Request, Sampling, Unmatched
from visrl.policies.recorded.matching import leftovers, match
from visrl.policies.recorded.prediction_files import Prediction, PredictionFile, read_predictions
from visrl.world.chat_format import BOX_FORMAT as SMALL_WORLD

_DEFAULT_FORMAT = {"vlm-r1": "json_pixel"}  # Qwen2.5-VL's JSON, already in pixels of the original picture


class AmbiguousPredictions(UsageError):
    """Recorded rows that answer documents of several tasks: not one of the tasks' numbers is known."""


class ReplayArguments(ModelArguments):
    """How recorded outputs are read. questions: a question file. parser, box_format: how boxes are (core/box_formats.py).

    min_pixels, max_pixels, or resized (``1400x700``): for boxes in pixels of the resized picture, ``box_format=json_resized``.
    """

    kind: ClassVar[str] = "replay"

    questions: str = ""
    parser: Mode = "lenient"
    box_format: str = ""
    min_pixels: str = ""
    max_pixels: str = ""
    resized: str = ""
    name: str = ""


@dataclass
class ReplayPolicy(Policy):
    """Recorded outputs. ``match_samples`` first: it finds each document's row; ``generate`` then only looks up."""

    source: Path
    file: PredictionFile
    box_format: BoxFormat
    name: str
    needs_pictures: bool = False
    default_protocol: str = "direct"
    default_looks: int | None = None
    max_pictures: int | None = None
    recorded: bool = True
    _matched: dict[str, tuple[Prediction, CoTSample]] = field(default_factory=dict, repr=False)
    _taken: dict[int, str] = field(default_factory=dict, repr=False)  # number of a row -> the task that took it

    @classmethod
    def load(cls, path: str, **arguments: Any) -> ReplayPolicy:
        """Read predictions (ReplayArguments). Raises UsageError naming file and line."""
        args = ReplayArguments.read(arguments)
        source = Path(path)
        file = read_predictions(source, Path(args.questions) if args.questions else None)
        format_name = args.box_format or file.box_format or _DEFAULT_FORMAT.get(file.kind, "padded_square_3dp")
        limits = {"min_pixels": args.min_pixels, "max_pixels": args.max_pixels, "resized_to": args.resized}
        if format_name == RESIZED and not any(limits.values()):  # a run of ours says what its processor was limited to
            limits |= {name: str(file.limits[name]) for name in ("min_pixels", "max_pixels") if name in file.limits}
        # a run of the small models is replayed, too: nobody else writes boxes as they do, so theirs is no format to choose
        world = format_name == SMALL_WORLD.name and not any(limits.values())
        declared = SMALL_WORLD if world else format_named(format_name, **limits)
        looked = any(row.box_text is not None for row in file.rows)
        protocol = file.protocol or ("viscot_eval" if looked else "direct")
        return cls(
            source,
            file,
            declared.with_mode(args.parser),
            args.name or _stem(source),
            default_protocol=protocol,
            default_looks=file.limits.get("max_looks"),
            max_pictures=file.limits.get("max_pictures") or None,
        )

    def match_samples(self, samples: Iterable[CoTSample], task: str) -> list[CoTSample]:
        """The documents of ``task`` that have a row, each given its own; the others are left out.

        Raises UsageError when not one row fits: a file for another split. Raises AmbiguousPredictions where rows by their number
        alone belong to documents of another task, too: POPE's splits all count from 1.
        """
        found = match(self.file.rows, samples, task)
        rows = self.file.rows
        for number, _ in found:
            other = self._taken.setdefault(number, task)
            if other != task and rows[number].task is None and not rows[number].names_a_picture:
                raise AmbiguousPredictions(
                    f"{rows[number].where}: belongs to documents of {other} and of {task}",
                    'evaluate the one task that the file answers, or add "task" to its rows',
                )
        self._matched = {sample.id: (rows[number], _sized(sample, rows[number])) for number, sample in found}
        if not found:
            raise UsageError(
                f"no prediction in {self.source} belongs to a document of {task}",
                "is it a file for another split? Or does it need its question file: --model-args questions=FILE",
            )
        return [sample for _, sample in self._matched.values()]

    def unmatched(self) -> Unmatched:
        without, doubled = leftovers(self.file.rows, self._taken.keys())
        examples = tuple(row.where for row in [*without, *doubled][:3])
        return Unmatched(len(without), len(doubled), examples)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        return [self._output(request) for request in requests]

    def _output(self, request: Request) -> Output:
        if request.key not in self._matched:
            return Output(error="no prediction for this sample", retry=False)
        row, sample = self._matched[request.key]
        if row.error is not None:
            return Output(error=row.error, retry=False)
        if request.step == "look":
            return _turn(row, int(request.stream))
        text, prompt = row.text, row.prompt
        if request.step == "box" and (row.box_text is not None or sample.kind == "qa"):
            text, prompt = row.box_text, row.box_prompt  # a REC row without box_text has the box in its text
        if text is None:
            return Output(error=f"{row.where}: no {request.step} text recorded", retry=False)
        return Output(texts=(text,), prompt=prompt)

    def describe(self) -> Mapping[str, Any]:
        facts = {"kind": "replay", "layout": self.file.kind, "sha256": self.file.sha256, "rows": len(self.file.rows)}
        return facts if self.file.protocol else {**facts, "prompts": "the recording's own, not visrl's"}


def _sized(sample: CoTSample, row: Prediction) -> CoTSample:
    """The sample with the size that the recording says, where the benchmark says none."""
    return replace(sample, size=row.size) if sample.size is None and row.size is not None else sample


def _turn(row: Prediction, number: int) -> Output:
    """A turn of a recording of several looks. One that answered at once may be any recording."""
    turns = row.turns
    if turns is None and row.text is not None:
        turns = ((row.prompt, row.text, None),)
    if turns is None or number >= len(turns):
        return Output(error=f"{row.where}: no turn {number + 1} was recorded", retry=False)
    prompt, text, tokens = turns[number]
    return Output(texts=(text,), prompt=prompt, prompt_tokens=0, output_tokens=tokens or 0)


def own_documents(policy: Policy) -> Path | None:
    """The file of a policy's recorded outputs where it holds the questions too, and stands for a data folder."""
    return policy.source if isinstance(policy, ReplayPolicy) and policy.file.documents else None


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or path.resolve().name
