"""look, then answer: the one place where it happens, for every benchmark, model and training phase.

box turn -> parse -> crop -> answer turn -> Episode. REC ends after the box turn; ``direct`` skips it; a control focus
(gold, random, centre, full) replaces the model's box without asking for one.

Departure 1 from the paper's sources: an output without a box is answered from the whole picture as "crop" (VisCoT's intention;
its code crashes first), and stays Unparsed in the Episode.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from visrl.core.box_formats import BoxFormat
from visrl.core.boxes import Box, Size
from visrl.core.crops import CROPS, CropName, Focus, Region, control_box, whole
from visrl.core.prompts import Protocol, answer_turns, box_turns
from visrl.core.types import CoTSample, Episode, Picture, Step, Turn, Unparsed
from visrl.errors import PictureError, printable
from visrl.policies.protocol import Output, Policy, Request, Sampling

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Look:
    """How to look: everything besides model and data that changes an episode."""

    protocol: Protocol
    focus: Focus = "predicted"
    crop: CropName = "viscot_square112"
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    seed: int = 0


class _Held:
    """Pictures of one batch, each decoded once for all its turns."""

    def __init__(self) -> None:
        self._images: dict[str, Image] = {}

    def picture(self, picture: Picture) -> Picture:
        return Picture(picture.ref, lambda: self.image(picture))

    def image(self, picture: Picture) -> Image:
        if picture.ref not in self._images:
            self._images[picture.ref] = picture.open()
        return self._images[picture.ref]

    def crop(self, picture: Picture, region: Region) -> Picture:
        ref = f"{picture.ref}#xyxy={','.join(map(str, region))}"
        return Picture(ref, lambda: self.image(picture).crop(region))


@dataclass(slots=True)
class _Work:
    """One sample on its way through the turns."""

    sample: CoTSample
    picture: Picture
    size: Size | None
    episode: Episode
    box_text: str = ""

    def fail(self, reason: str) -> None:
        self.episode = replace(self.episode, error=reason)

    @property
    def alive(self) -> bool:
        return self.episode.error is None


def batches(items: Iterable[CoTSample], n: int) -> Iterator[list[CoTSample]]:
    iterator = iter(items)
    while batch := list(islice(iterator, n)):
        yield batch


def look_then_answer(
    policy: Policy, samples: Iterable[CoTSample], look: Look, *, batch_size: int = 8
) -> Iterator[Episode]:
    """An Episode per sample, in order, yielded as its batch finishes. Lazy: holds one batch of pictures at a time.

    A sample that fails (picture, server, missing prediction) yields an Episode with ``error``; the others go on.
    """
    for batch in batches(samples, batch_size):
        yield from _run_batch(policy, batch, look)


def _run_batch(policy: Policy, batch: Sequence[CoTSample], look: Look) -> Iterator[Episode]:
    held = _Held()
    work = [_prepare(policy, sample, held) for sample in batch]
    _box_step(policy, work, look)
    _answer_step(policy, work, look, held)
    for item in work:
        yield item.episode


def _prepare(policy: Policy, sample: CoTSample, held: _Held) -> _Work:
    episode = Episode(sample.id, sample.task)
    picture = held.picture(sample.picture) if sample.picture else Picture("", _no_picture)
    item = _Work(sample, picture, sample.size, episode)
    if policy.needs_pictures:
        try:
            item.size = item.picture.open().size
        except PictureError as error:
            item.fail(f"picture: {error}")
        if item.alive and sample.size is not None and item.size != sample.size:
            item.fail(
                f"picture: {sample.picture and sample.picture.ref} is {item.size}, the annotations say {sample.size}"
            )
    return item


def _no_picture() -> Image:
    raise PictureError("no picture was loaded for this sample")


def _box_step(policy: Policy, work: Sequence[_Work], look: Look) -> None:
    asking = [w for w in work if w.alive and _asks_for_box(w.sample, look)]
    prompts = [box_turns(look.protocol, item.sample, item.picture) for item in asking]
    # a box ends where its syntax ends: whatever a model would add is not read, and costs time
    stop = (policy.box_format.syntax.stop,) if policy.box_format.syntax.stop else ()
    sampling = replace(look.sampling, stop=look.sampling.stop + stop)
    for item, output, turns in zip(asking, _generate(policy, asking, prompts, "box", sampling), prompts, strict=True):
        if output.error is not None:
            item.fail(output.error)
            continue
        item.box_text = output.texts[0]
        box = parse_box(policy.box_format, item.box_text, item.size, item.sample.box)
        item.episode = replace(item.episode, box_step=_step(turns, output), box=box)


def _asks_for_box(sample: CoTSample, look: Look) -> bool:
    return sample.kind == "rec" or (look.protocol.looks and look.focus == "predicted")


def parse_box(box_format: BoxFormat, text: str, size: Size | None, truth: Box | None = None) -> Box | Unparsed:
    """The box of an output in pixels of the original picture, or why there is none. truth: for the rule that reads it."""
    return Unparsed("the picture's size is unknown") if size is None else box_format.parse(text, size, truth)


def _answer_step(policy: Policy, work: Sequence[_Work], look: Look, held: _Held) -> None:
    asking = [w for w in work if w.alive and w.sample.kind == "qa"]
    crops = [_choose_crop(policy, item, look, held) if look.protocol.looks else None for item in asking]
    pairs = [(item, crop) for item, crop in zip(asking, crops, strict=True) if item.alive]
    prompts = [answer_turns(look.protocol, w.sample, w.picture, crop, w.box_text) for w, crop in pairs]
    asking = [item for item, _ in pairs]
    for item, output, turns in zip(
        asking, _generate(policy, asking, prompts, "answer", look.sampling), prompts, strict=True
    ):
        if output.error is not None:
            item.fail(output.error)
        else:
            item.episode = replace(item.episode, answer_step=_step(turns, output))


def _choose_crop(policy: Policy, item: _Work, look: Look, held: _Held) -> Picture | None:
    """The second picture; records the region in the episode, and the box text that the conversation will hold."""
    if item.size is None:  # replayed text without pictures: nothing to cut, and the recorded answer does not need it
        return Picture("", _no_picture)
    if look.focus == "predicted":
        box = item.episode.box if isinstance(item.episode.box, Box) else whole(item.size)
    else:
        try:
            rng = random.Random(f"{look.seed}:{item.sample.task}:{item.sample.id}")
            box = control_box(look.focus, item.sample.box, item.size, rng)
        except ValueError as error:
            item.fail(str(error))
            return None
        item.box_text = policy.box_format.write(box, item.size)
    region = CROPS[look.crop](box, item.size)
    item.episode = replace(item.episode, looked_at=region)
    return held.crop(item.picture, region)


def _generate(
    policy: Policy, items: Sequence[_Work], prompts: Sequence[tuple[Turn, ...]], step: str, sampling: Sampling
) -> Sequence[Output]:
    """The policy's outputs. A batch that raises is tried again one by one, so that only the culprit fails."""
    requests = [
        Request(item.sample.id, step, turns, item.size)  # type: ignore[arg-type]  # step is a StepName
        for item, turns in zip(items, prompts, strict=True)
    ]
    if not requests:
        return []
    try:
        outputs = policy.generate(requests, sampling)
    except Exception as error:  # noqa: BLE001 - a model may raise anything; the sample fails with it, the run goes on
        if len(requests) == 1:
            log.warning(
                "sample %s failed: %s", printable(requests[0].key), printable(f"{type(error).__name__}: {error}")
            )
            return [Output(error=f"{type(error).__name__}: {error}")]
        return [_generate(policy, [i], [p], step, sampling)[0] for i, p in zip(items, prompts, strict=True)]
    if len(outputs) != len(requests):
        raise RuntimeError(f"{policy.name} returned {len(outputs)} outputs for {len(requests)} requests")
    return outputs


def _step(turns: tuple[Turn, ...], output: Output) -> Step:
    prompt = output.prompt or "\n".join(f"{turn.role}: {turn.text()}" for turn in turns)
    return Step(prompt, output.texts[0], output.prompt_tokens, output.output_tokens)
