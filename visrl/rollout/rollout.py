"""look, then answer: the one place where it happens, for every benchmark, model and training phase.

box turn -> parse -> crop -> answer turn -> Episode. REC ends after the box turn; ``direct`` skips it; a control box source
(gold, random, centre, full) replaces the model's box without asking for one. The steps themselves are steps.py's. Under a
protocol of several looks the conversation is several_looks.py's.

Departure 1 from the paper's sources: an output without a box is answered from the whole picture as "crop" (VisCoT's intention;
its code crashes first), and stays Unparsed in the Episode.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from visrl.core.boxes import Box, Size
from visrl.core.crops import control_box, whole
from visrl.core.prompts import answer_turns, box_turns
from visrl.core.types import CoTSample, Episode, Picture, Step, Turn
from visrl.errors import PictureError
from visrl.policies.protocol import Output, Policy, Request
from visrl.rollout.config import RolloutConfig
from visrl.rollout.retry import ask
from visrl.rollout.several_looks import dialogue_of, hold
from visrl.rollout.steps import PictureCache, ask_where, crop_picture, open_picture, parse_box, region_of

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(slots=True)
class _Rollout:
    """One sample on its way through the turns. size: None where neither picture nor annotation tells it (recorded outputs)."""

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
    policy: Policy, samples: Iterable[CoTSample], config: RolloutConfig, *, batch_size: int = 8
) -> Iterator[Episode]:
    """An Episode per sample, in order, yielded as its batch finishes. Lazy: holds one batch of pictures at a time.

    A sample that fails (picture, server, missing prediction) yields an Episode with ``error``; the others go on.
    """
    for batch in batches(samples, batch_size):
        yield from _run_batch(policy, batch, config)


def _run_batch(policy: Policy, batch: Sequence[CoTSample], config: RolloutConfig) -> Iterator[Episode]:
    cache = PictureCache()
    rollouts = [_open(policy, sample, cache) for sample in batch]
    if config.protocol.several is not None:
        yield from _several(policy, rollouts, config)
        return
    _box_turn(policy, rollouts, config)
    _answer_turn(policy, rollouts, config)
    for rollout in rollouts:
        yield rollout.episode


def _several(policy: Policy, rollouts: Sequence[_Rollout], config: RolloutConfig) -> Iterator[Episode]:
    opened = {id(r): dialogue_of(policy, r.sample, r.picture, r.size, config) for r in rollouts if r.alive}
    hold(policy, list(opened.values()), config)
    for rollout in rollouts:
        yield opened[id(rollout)].episode() if rollout.alive else rollout.episode


def _open(policy: Policy, sample: CoTSample, cache: PictureCache) -> _Rollout:
    rollout = _Rollout(sample, sample.picture or _NO_PICTURE, sample.size, Episode(sample.id, sample.task))
    if policy.needs_pictures:
        try:
            rollout.picture, rollout.size = open_picture(sample, cache)
        except PictureError as error:
            rollout.fail(f"picture: {error}")
    return rollout


def _no_picture() -> Image:
    raise PictureError("no picture was loaded for this sample")


_NO_PICTURE = Picture("", _no_picture)


def _box_turn(policy: Policy, rollouts: Sequence[_Rollout], config: RolloutConfig) -> None:
    asking = [r for r in rollouts if r.alive and _asks_for_box(r.sample, config)]
    prompts = [box_turns(config.protocol, r.sample, r.picture) for r in asking]
    requests = [Request(r.sample.id, "box", turns, r.size) for r, turns in zip(asking, prompts, strict=True)]
    for rollout, turns, output in zip(asking, prompts, ask_where(policy, requests, config.sampling), strict=True):
        if output.error is not None:
            rollout.fail(output.error)
            continue
        rollout.box_text = output.texts[0]
        box = parse_box(policy.box_format, rollout.box_text, rollout.size, rollout.sample)
        rollout.episode = Episode(rollout.sample.id, rollout.sample.task, _step(turns, output), box)


def _asks_for_box(sample: CoTSample, config: RolloutConfig) -> bool:
    return sample.kind == "rec" or (config.protocol.looks and config.box_source == "predicted")


def _answer_turn(policy: Policy, rollouts: Sequence[_Rollout], config: RolloutConfig) -> None:
    asking = [r for r in rollouts if r.alive and r.sample.kind == "qa"]
    crops = [_crop(policy, r, config) if config.protocol.looks else None for r in asking]
    pairs = [(r, crop) for r, crop in zip(asking, crops, strict=True) if r.alive]
    prompts = [answer_turns(config.protocol, r.sample, r.picture, crop, r.box_text) for r, crop in pairs]
    requests = [Request(r.sample.id, "answer", turns, r.size) for (r, _), turns in zip(pairs, prompts, strict=True)]
    for (rollout, _), turns, output in zip(pairs, prompts, ask(policy, requests, config.sampling), strict=True):
        if output.error is not None:
            rollout.fail(output.error)
        else:
            rollout.episode = replace(rollout.episode, answer_step=_step(turns, output))


def _crop(policy: Policy, rollout: _Rollout, config: RolloutConfig) -> Picture | None:
    """The second picture; records the region in the episode, and the box text that the conversation will hold."""
    if rollout.size is None:  # recorded text without pictures: nothing to cut, and the recorded answer does not need it
        return _NO_PICTURE
    if config.box_source == "predicted":
        box = rollout.episode.box if isinstance(rollout.episode.box, Box) else whole(rollout.size)
    else:
        try:
            rng = random.Random(f"{config.seed}:{rollout.sample.task}:{rollout.sample.id}")
            box = control_box(config.box_source, rollout.sample.box, rollout.size, rng)
        except ValueError as error:
            rollout.fail(str(error))
            return None
        rollout.box_text = policy.box_format.write(box, rollout.size)
    region = region_of(box, rollout.size, config.crop)
    rollout.episode = replace(rollout.episode, looked_at=region)
    return crop_picture(rollout.picture, region)


def _step(turns: tuple[Turn, ...], output: Output) -> Step:
    prompt = output.prompt or "\n".join(f"{turn.role}: {turn.text()}" for turn in turns)
    tokens = output.prompt_tokens, output.output_tokens
    return Step(prompt, output.texts[0], *tokens, output.finish_reason, output.seen_sizes)
