"""Any vision-language model of transformers as a policy: batched, and a picture is never computed twice.

One call takes many requests. Each picture goes through the processor and the vision tower once per pair of calls (box turn,
answer turn), whatever number of prompts show it. Prompts are sorted by length, prefilled in batches and branched into k samples
(decoding.py); the cache of a box turn is kept for the next call, whose prompts go on from the part they share. None of this
may change an output: everything kept is found by content (tokens and picture bytes), never by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import Field

from visrl.core.box_formats import BoxFormat
from visrl.core.chat_format import LayoutError
from visrl.errors import PictureError
from visrl.policies.families.base import Chat, EncodedImage, Features
from visrl.policies.hf.decoding import (
    Branch,
    OutputText,
    Prefix,
    beyond_window,
    decode,
    prefill,
    resume,
    shared_length,
    shared_prefixes,
)
from visrl.policies.hf.loading import CheckpointArguments, Loaded, load_checkpoint, model_type
from visrl.policies.hf.remote_code import CHAT_TYPES, RemoteChatPolicy
from visrl.policies.hf.text_scoring import TextScorer
from visrl.policies.protocol import LogLikelihood, Output, Policy, Request, Sampling

log = logging.getLogger(__name__)

Encode = Callable[[Sequence[EncodedImage]], list[Features]]
WORTH_RESUMING = 16  # shared tokens below which a prompt is read anew


@dataclass(frozen=True, slots=True)
class _Job:
    """One request as tokens. index: its place in the call. row, shared: where an earlier cache helps."""

    index: int
    request: Request
    chat: Chat
    row: int = -1
    shared: int = 0


class HFArguments(CheckpointArguments):
    """How a checkpoint is loaded and answers. rows: conversations per forward pass; 0: 32 on a GPU, 8 elsewhere."""

    box_format: str = "native"
    rows: int = Field(default=0, ge=0)


class HFPolicy(Policy):
    """A loaded model behind the policy contract.

    rows: conversations per forward pass; halved for good when memory runs out. batch_size: requests a caller had best pass
    at once, several times ``rows`` so that sorting by length pays. encode: how pictures become features; training passes
    its own, which computes those of a frozen tower once.
    """

    scores_texts = True

    def __init__(
        self, name: str, loaded: Loaded, *, box_format: str = "native", rows: int = 0, encode: Encode | None = None
    ) -> None:
        self.name = name
        self.loaded = loaded
        self.model, self.family = loaded.model, loaded.family
        self.box_format: BoxFormat = self.family.box_format(box_format)
        self.default_protocol = self.family.default_protocol
        self.default_crop = self.family.default_crop
        self.max_pictures = self.family.max_pictures
        self.rows = rows or (32 if self.model.device.type == "cuda" else 8)
        self._encode: Encode = encode or (lambda pictures: self.family.encode(self.model, pictures))
        self._text = OutputText(self.family, self.box_format)
        self._seen: dict[str, EncodedImage] = {}  # by digest, of this call and the one before
        self._features: dict[str, Features] = {}
        self._kept: list[
            tuple[Prefix, tuple[str, ...]]
        ] = []  # the caches of the last box turn, and whose rows they hold

    @classmethod
    def load(cls, path: str, **arguments: Any) -> HFPolicy | RemoteChatPolicy:
        """``--model hf:PATH --model-args …`` (HFArguments). Raises UsageError for what a user can mend.

        A model that only its own repository's code can run (MiniCPM-o) comes as another policy, see remote_code.py.
        """
        args = HFArguments.read(arguments)
        if model_type(path, args.revision) in CHAT_TYPES:
            return RemoteChatPolicy.load(path, args, args.box_format)
        return cls(path, load_checkpoint(path, args), box_format=args.box_format, rows=args.rows)

    def rename(self, name: str) -> None:
        about = self.loaded.about
        self.name = about["path"] = name
        if about["adapter"] is not None:
            about["adapter"] = {**about["adapter"], "path": name}

    @property
    def batch_size(self) -> int:
        return 4 * self.rows

    def describe(self) -> Mapping[str, Any]:
        """What a record says of this model; the same for the same files and arguments, wherever it runs."""
        reuse = "kept" if self.family.keeps_prefix else f"recomputed: {self.family.why_not}"
        return {"kind": "hf", **self.loaded.about, "box_format": self.box_format.name, "second_turn_cache": reuse}

    @torch.inference_mode()
    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        """One Output per request, in order; what goes wrong with one request is its Output's ``error``."""
        outputs: list[Output | None] = [None] * len(requests)
        earlier, self._kept = self._kept, []
        jobs = []
        looked: dict[str, EncodedImage] = {}
        for index, request in enumerate(requests):
            try:
                jobs.append(_Job(index, request, self._chat(request, looked)))
            except (PictureError, LayoutError) as error:
                outputs[index] = Output(error=f"{type(error).__name__}: {error}", retry=False)
        self._seen = looked
        self._features = {d: f for d, f in self._features.items() if d in looked}
        for job, output in self._all(jobs, earlier, sampling):
            outputs[job.index] = output
        return [output if output is not None else Output(error="nothing was generated") for output in outputs]

    def loglikelihood(self, requests: Sequence[Request], completions: Sequence[str]) -> list[LogLikelihood]:
        return TextScorer(self.model, self.family, self.rows).loglikelihood(requests, completions)

    def _chat(self, request: Request, looked: dict[str, EncodedImage]) -> Chat:
        rendered = self.family.render(request.turns)
        pictures = []
        for picture in rendered.pictures:
            image = picture.open()
            digest = self.family.digest(image)
            if digest not in looked:
                looked[digest] = self._seen.get(digest) or self.family.encode_image(image)
            pictures.append(looked[digest])
        return self.family.chat(rendered, pictures)

    def _all(
        self, jobs: list[_Job], earlier: list[tuple[Prefix, tuple[str, ...]]], sampling: Sampling
    ) -> list[tuple[_Job, Output]]:
        """Every job's output: first those that go on from an earlier cache, cache by cache, then the others by length."""
        done: list[tuple[_Job, Output]] = []
        left = jobs
        while earlier:
            prefix, keys = earlier.pop(0)
            helped = self._helped(left, prefix, keys, sampling) if self.family.keeps_prefix else []
            chosen = {job.index for job in helped}
            left = [job for job in left if job.index not in chosen]
            done += self._in_batches(helped, prefix, sampling)
        return done + self._in_batches(left, None, sampling)

    def _helped(self, jobs: list[_Job], prefix: Prefix, keys: tuple[str, ...], sampling: Sampling) -> list[_Job]:
        rows = {key: row for row, key in enumerate(keys)}
        found = [
            _Job(job.index, job.request, job.chat, row, shared_length(job.chat, prefix.signatures[row]))
            for job in jobs
            if (row := rows.get(job.request.key, -1)) >= 0
        ]
        held = prefix.visible.shape[1]
        return [j for j in found if j.shared >= WORTH_RESUMING and not self._beyond(held + len(j.chat.ids), sampling)]

    def _beyond(self, slots: int, sampling: Sampling) -> bool:
        """Whether a cache with hidden slots would not do: a window counts slots, and they must be tokens."""
        return beyond_window(self.model, slots + sampling.n * sampling.max_tokens)

    def _in_batches(self, jobs: list[_Job], prefix: Prefix | None, sampling: Sampling) -> list[tuple[_Job, Output]]:
        """Longest first, so that memory runs out at once or not at all; on running out, half as many rows from then on.
        Prompts that begin alike stay together."""
        first, rows = shared_prefixes([job.chat for job in jobs])
        longest = [0] * len(first)
        for job, row in zip(jobs, rows, strict=True):
            longest[row] = max(longest[row], len(job.chat.ids) - job.shared)
        place = {
            job.index: (-longest[row], row, job.shared - len(job.chat.ids)) for job, row in zip(jobs, rows, strict=True)
        }
        waiting = sorted(jobs, key=lambda job: place[job.index])
        done: list[tuple[_Job, Output]] = []
        while waiting:
            batch = waiting[: self.rows]
            try:
                outputs = self._batch(batch, prefix, sampling)
            except torch.OutOfMemoryError:
                if prefix is None and not self._kept and self.rows == 1:
                    raise
                self._free()
                if prefix is not None:
                    anew = [replace(job, row=-1, shared=0) for job in waiting]
                    return done + self._in_batches(anew, None, sampling)
                self.rows = max(1, min(self.rows, len(batch)) // 2)
                log.warning("out of memory with %d conversations at once: going on with %d", len(batch), self.rows)
                continue
            done += zip(batch, outputs, strict=True)
            waiting = waiting[len(batch) :]
        return done

    def _free(self) -> None:
        self._kept = []
        self._features = {}
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _batch(self, jobs: Sequence[_Job], prefix: Prefix | None, sampling: Sampling) -> list[Output]:
        chats = [job.chat for job in jobs]
        self._look(chats, [job.shared for job in jobs])
        read = self._read(jobs, prefix, sampling)
        keys = [f"{job.request.key}:{job.request.step}{job.request.stream}" for job in jobs]
        ended = self._text.ender(sampling)
        texts = decode(self.model, self.family, chats, read, sampling, keys, ended)
        if jobs[0].request.keep_cache and self.family.keeps_prefix:
            self._kept.append((read, tuple(job.request.key for job in jobs)))
        return [self._output(job, row, sampling) for job, row in zip(jobs, texts, strict=True)]

    def _read(self, jobs: Sequence[_Job], prefix: Prefix | None, sampling: Sampling) -> Prefix:
        """Read prompts behind an earlier cache, or from the start; then what several begin with is read once for all."""
        chats = [job.chat for job in jobs]
        if prefix is not None:
            rows, shared = [job.row for job in jobs], [job.shared for job in jobs]
            return resume(self.model, self.family, chats, self._features, prefix, rows, shared)
        first, rows = shared_prefixes(chats)
        known = [len(first[row].ids) for row in rows]
        apart = not self.family.keeps_prefix or self._beyond(2 * max(len(chat.ids) for chat in chats), sampling)
        if len(first) == len(chats) or apart or min(known) < WORTH_RESUMING:
            return prefill(self.model, self.family, chats, self._features)
        begun = prefill(self.model, self.family, first, self._features)
        return resume(self.model, self.family, chats, self._features, begun, rows, known)

    def _look(self, chats: Sequence[Chat], shared: Sequence[int]) -> None:
        """Features of the pictures that will be read and have none yet, one pass of the vision tower per ``rows`` pictures."""
        needed = {
            p.digest: p
            for chat, n in zip(chats, shared, strict=True)
            for p, start in zip(chat.pictures, chat.starts, strict=True)
            if start >= n and p.digest not in self._features
        }
        missing = list(needed.values())
        for at in range(0, len(missing), self.rows):
            part = missing[at : at + self.rows]
            for seen, features in zip(part, self._encode(part), strict=True):
                self._features[seen.digest] = features

    def _output(self, job: _Job, branches: Sequence[Branch], sampling: Sampling) -> Output:
        if any(branch.broken for branch in branches):
            kind = str(self.model.dtype).removeprefix("torch.")
            narrow = "; bfloat16 and float32 hold larger numbers" if self.model.dtype == torch.float16 else ""
            return Output(error=f"NotFinite: the model's logits are NaN in {kind}{narrow}", retry=False)
        texts = tuple(self._text.final(b.ids, sampling) for b in branches)
        written = sum(len(b.ids) for b in branches)
        sizes = [self.family.seen_size(picture) for picture in job.chat.pictures]
        return Output(
            texts,
            prompt_tokens=len(job.chat.ids),
            output_tokens=written,
            cached_tokens=job.shared,
            seen_sizes=tuple(size for size in sizes if size is not None) or None,
            token_ids=tuple(tuple(b.ids) for b in branches),
        )
