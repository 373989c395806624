"""The nouns of visrl. Frozen, slotted, free of torch and of lmms_eval.

document -> :class:`CoTSample` -> rollout -> :class:`Episode` -> scorer -> {metric: :class:`Score`} -> TaskResult (records.py)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from visrl.core.boxes import Box, Size

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture by reference: its name for records, and how to open it when pixels are needed.

    ``open`` returns an RGB image or raises :class:`visrl.errors.PictureError`. Two pictures are equal when their names are.
    """

    ref: str
    open: Callable[[], Image] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. ``parts`` are texts and pictures in the order the model gets them."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Picture, ...]

    def text(self, picture: str = "<image>") -> str:
        """The turn as text, each picture replaced by a mark: for records and hashes, never for a model."""
        return "".join(part if isinstance(part, str) else picture for part in self.parts)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclass(frozen=True, slots=True)
class CoTSample:
    """One question about one picture, whatever benchmark it came from.

    id: unique within the task and stable across machines.
    kind: ``"rec"``: the box is the answer (one turn). ``"qa"``: look, then answer.
    question: the question or the referring expression, as the benchmark words it.
    instruction: how to answer, e.g. " Answer with yes or no."; asked only where an answer is asked for, not a box.
    picture: None when only text was loaded (replay); a policy that looks at pictures then fails the sample.
    size: (width, height) in pixels of the original picture; None when unknown.
    box: the true box in pixels of the original picture, if the benchmark has one.
    boxes: all true boxes, in the order of looking, where there are several; ``box`` is then the smallest around them.
    answers: acceptable standard answers, the first is the one a judge is shown.
    cluster: the picture's id: samples that share it are not independent (standard errors).
    group: subtask (MME), base index (MMBench) or "" .
    meta: what scorers or replay need besides: JSON values only.
    """

    id: str
    task: str
    kind: Literal["rec", "qa"]
    question: str
    picture: Picture | None = None
    size: Size | None = None
    box: Box | None = None
    answers: tuple[str, ...] = ()
    instruction: str = ""
    cluster: str = ""
    group: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Unparsed:
    """Text that holds no box, and why. It scores as wrong and is counted; it never becomes a [0, 0, 0, 0]."""

    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """One generation of a rollout: the prompt as text (pictures as ``<image>``), the raw output, and why it ended there (stop,
    length, …), where that is known. seen_sizes: (width, height) in pixels at which the model saw each picture of the prompt.
    """

    prompt: str
    output: str
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    seen_sizes: tuple[Size, ...] | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """One call of a protocol of several looks (core/looking/rules.py).

    step: the turn that called; its prompt is what was said since the turn before. None where a control looked.
    box: in pixels of the original picture; looked_at: the region that was shown, integer pixels x1, y1, x2, y2. Both are None
    where the call could not be carried out: ``fault`` then says of which kind it was (core/looking/calls.py).
    """

    step: Step | None = None
    box: Box | None = None
    looked_at: tuple[int, int, int, int] | None = None
    fault: str = ""


Ended = Literal["answer", "looks", "pictures", "tokens", "call"]
"""Why the last turn of an episode of several looks was the last: the model answered; the limit that was reached, and it answered
when told so; or it was told so and called once more."""


@dataclass(frozen=True, slots=True)
class Episode:
    """What happened to one sample. ``error`` set: the sample failed, is unscored, and its reason is kept.

    box: what was parsed from the box turn, in pixels of the original picture, :class:`Unparsed`, or None if not asked.
    looked_at: the crop that was shown, integer pixels x1, y1, x2, y2; None when nothing was cropped.
    answer: the raw output of the answer turn; None for REC and for failed samples.

    Under a protocol of several looks ``looks`` are all calls in order, ``box`` and ``looked_at`` those of the last look that was
    carried out (of referring expressions, ``box`` is the answer's), and ``box_step`` is None. ended: see :data:`Ended`; None
    under the other protocols. size: (width, height) in pixels of the original, where several looks were allowed.
    """

    sample_id: str
    task: str
    box_step: Step | None = None
    box: Box | Unparsed | None = None
    looked_at: tuple[int, int, int, int] | None = None
    answer_step: Step | None = None
    error: str | None = None
    looks: tuple[Look, ...] = ()
    ended: Ended | None = None
    size: Size | None = None

    @property
    def answer(self) -> str | None:
        return None if self.answer_step is None else self.answer_step.output


@dataclass(frozen=True, slots=True)
class Score:
    """A sample's value of one metric. ``value`` None is *unscored* (excluded and counted), never zero."""

    value: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is not None and self.value != self.value:
            raise ValueError("a score is a number or None with a reason, never NaN")
        if self.value is None and not self.reason:
            raise ValueError("an unscored sample needs a reason")
