"""What a family of vision-language models is: one adapter between our nouns and a transformers class.

A family declares its chat layout, how it writes boxes and in which frame, how a picture is prepared, and what its
forward pass needs besides tokens. Everything else (batches, caches, sampling, training) is written once, on top of this.

Departures from calling ``processor(text, images)``: 1. each picture goes through the processor once, alone, and is placed
into any number of prompts; the ids are the same (tests/policies/test_families.py). 2. picture features go into the forward
pass as ``mm_encoder_outputs``, transformers' own argument for features computed before (older.py gives it to 5.16 and 5.17).
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from visrl.core.box_formats import FORMATS, BoxFormat
from visrl.core.boxes import Size
from visrl.core.chat_format import Layout, LayoutError, Rendered, render
from visrl.core.crops import CropName
from visrl.core.types import Turn
from visrl.errors import UsageError, nearest
from visrl.policies.families import older

if TYPE_CHECKING:
    from PIL.Image import Image

PAPER_FORMAT = FORMATS["padded_square_3dp"]
Features = dict[str, Tensor]  # of one picture: name -> [tokens, ...]
_DIGESTS: dict[int, tuple[weakref.ref[Image], str]] = {}  # by id of a picture that lives


def _forget(key: int, _: weakref.ref[Image]) -> None:
    _DIGESTS.pop(key, None)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One picture as the model gets it. ``ids``: its tokens, structure included; ``pixels``: tensors with the pictures'
    dimension first (size 1, or that picture's patches); ``digest``: of the original pixels, the key of every cache."""

    digest: str
    ids: tuple[int, ...]
    pixels: Mapping[str, Tensor] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as tokens. ids [T]; loss_mask [T]: True on tokens of replies; starts: where each picture's ids begin."""

    ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    pictures: tuple[EncodedImage, ...]
    starts: tuple[int, ...]

    @property
    def signature(self) -> tuple[int | str, ...]:
        """The ids, with the digest of its picture in place of each picture token: equal prefixes have equal caches."""
        out: list[int | str] = list(self.ids)
        for seen, start in zip(self.pictures, self.starts, strict=True):
            out[start : start + len(seen.ids)] = [f"{seen.digest}:{i}" for i in range(len(seen.ids))]
        return tuple(out)

    def continued(self, ids: Sequence[int]) -> Chat:
        """The conversation with a reply of ``ids`` behind it, marked as trained."""
        return Chat((*self.ids, *ids), (*self.loss_mask, *([True] * len(ids))), self.pictures, self.starts)


class Family:
    """Base of all adapters. A subclass sets the class variables, :attr:`layout`, and whatever differs.

    name: in records. model_types: ``config.model_type`` (or ``config.visrl_family``) values it serves.
    max_pictures: in one conversation; None: no limit of the architecture.
    keeps_prefix: whether the cache of a shared prefix may be continued by another prompt; if not, ``why_not`` says why and
    the answer turn is computed anew (its picture features are still reused).
    engines_differ: why vLLM's outputs are not its own, where that is known.
    default_protocol, default_crop: what its checkpoints were made with, used when the user names none.
    pixel_limits: what bounds a picture's tokens, as users name it -> the setting of its image processor, ``size.KEY`` or an
    attribute.
    ignored_weights: regexes of tensors that its published files hold and its class has no place for; all others are refused.
    """

    name: ClassVar[str]
    pixel_limits: ClassVar[Mapping[str, str]] = {}
    model_types: ClassVar[tuple[str, ...]]
    max_pictures: ClassVar[int | None] = None
    keeps_prefix: ClassVar[bool] = True
    why_not: ClassVar[str] = ""
    default_protocol: str = "visrl_train"
    default_crop: ClassVar[CropName] = "viscot_square112"
    adds_bos: ClassVar[bool] = False
    engines_differ: ClassVar[str] = ""
    packs: ClassVar[bool] = True  # features of a batch are one list; False: one tensor [1, tokens, hidden]
    end_texts: ClassVar[tuple[str, ...]] = ()  # end a reply where no single token does; not part of it
    ignored_weights: ClassVar[tuple[str, ...]] = ()
    layout: Layout

    def __init__(self, config: Any, processor: Any) -> None:
        self.config = config
        self.processor = processor
        self.tokenizer = processor.tokenizer

    # -- boxes

    @property
    def native(self) -> BoxFormat:
        """How the family's own checkpoints write boxes; the paper's text format where they have no habit of their own."""
        return PAPER_FORMAT

    def box_format(self, which: str = "native") -> BoxFormat:
        """``native``, ``paper``, or the name of a format that needs no model. Raises UsageError for anything else."""
        formats = {"native": self.native, "paper": PAPER_FORMAT, self.native.name: self.native, **FORMATS}
        if which not in formats:
            raise UsageError(f"unknown box format {which!r} for {self.name}", nearest(which, formats))
        return formats[which]

    # -- pictures

    def limit_pixels(self, limits: Mapping[str, int]) -> None:
        """Set bounds of :attr:`pixel_limits`. Raises UsageError for one that the family's pictures do not have."""
        eyes = self.processor.image_processor
        for name, value in limits.items():
            if name not in self.pixel_limits:
                known = ", ".join(self.pixel_limits) or "none: its pictures have one size"
                raise UsageError(f"{self.name} has no {name}", f"of such limits it has {known}")
            attribute, _, key = self.pixel_limits[name].partition(".")
            setattr(eyes, attribute, {**vars_of(eyes.size), key: value} if key else value)

    def pixels(self) -> dict[str, int]:
        """The bounds of :attr:`pixel_limits` in force, for records."""
        eyes = self.processor.image_processor
        found = {}
        for name, place in self.pixel_limits.items():
            attribute, _, key = place.partition(".")
            found[name] = int(vars_of(eyes.size)[key] if key else vars(eyes)[attribute])
        return found

    def limits_as_kwargs(self, names: Collection[str]) -> dict[str, Any]:
        """Bounds in force, those of ``names``, as arguments of a call of the processor: for an engine that loads it anew."""
        eyes, found = self.processor.image_processor, dict[str, Any]()
        for name in names:
            attribute, _, key = self.pixel_limits[name].partition(".")
            found[attribute] = dict(vars_of(eyes.size)) if key else vars(eyes)[attribute]
        return found

    def seen_size(self, encoded: EncodedImage) -> Size | None:
        """(width, height) in pixels at which the model saw a picture, where that differs from picture to picture."""
        return None

    def resized_to(self, size: Size) -> Size | None:
        """The same of a picture of ``size``, by the rule of the family's processor and its limits in force."""
        return None

    def prepare(self, image: Image) -> Image:
        """What is done to a picture before the processor sees it, e.g. padding it to a square."""
        return image

    @cached_property
    def image_token_id(self) -> int:
        return int(self.processor.image_token_id)

    @cached_property
    def image_token(self) -> str:
        return str(self.processor.image_token)

    def encode_image(self, image: Image) -> EncodedImage:
        """One picture through the processor: its tokens and its pixels."""
        rgb = image.convert("RGB")
        batch = self.processor(
            text=[self.image_token],
            images=[[self.prepare(rgb)]],
            return_tensors="pt",
            add_special_tokens=False,
            padding=False,
        )
        pixels = {k: v for k, v in batch.items() if k not in _TEXT_KEYS}
        return EncodedImage(self.digest(image), self._picture_ids(batch["input_ids"][0].tolist()), pixels)

    @staticmethod
    def digest(image: Image) -> str:
        """A name for a picture's pixels: equal pictures, equal digests, whatever file they came from.

        Remembered for as long as the object lives: both turns of a chain, and all questions about a picture, show the same one.
        """
        known = _DIGESTS.get(id(image))
        if known is not None and known[0]() is image:
            return known[1]
        head = f"{image.mode}:{image.size[0]}x{image.size[1]}:".encode()
        digest = hashlib.blake2b(head + image.tobytes(), digest_size=12).hexdigest()
        _DIGESTS[id(image)] = (weakref.ref(image, partial(_forget, id(image))), digest)
        return digest

    def _picture_ids(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids)

    def stack(self, pictures: Sequence[EncodedImage]) -> dict[str, Tensor]:
        """Pixels of several pictures as one batch: joined along the first dimension, the others padded with zeros."""
        return {key: _joined([p.pixels[key] for p in pictures]) for key in pictures[0].pixels}

    # -- conversations

    def render(self, turns: Sequence[Turn], *, add_generation_prompt: bool = True) -> Rendered:
        """The conversation's text. Raises LayoutError beyond ``max_pictures`` or where a text holds a picture's mark."""
        rendered = render(self.layout, turns, add_generation_prompt=add_generation_prompt)
        if self.max_pictures is not None and len(rendered.pictures) > self.max_pictures:
            raise LayoutError(f"{self.name} takes {self.max_pictures} pictures, this has {len(rendered.pictures)}")
        if rendered.text.count(self.image_token) != len(rendered.pictures):
            raise LayoutError(f"a text of this conversation holds the picture mark {self.image_token!r}")
        return rendered

    def chat(self, rendered: Rendered, pictures: Sequence[EncodedImage]) -> Chat:
        """Tokens of a rendered conversation, with each picture's mark replaced by that picture's own tokens."""
        coded = self.tokenizer(rendered.text, add_special_tokens=self.adds_bos, return_offsets_mapping=True)
        ids: list[int] = []
        loss_mask: list[bool] = []
        starts: list[int] = []
        for token, (start, end) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
            if token == self.image_token_id and len(starts) < len(pictures):
                expanded = pictures[len(starts)].ids
                starts.append(len(ids))
                ids.extend(expanded)
                loss_mask.extend([False] * len(expanded))
                continue
            ids.append(token)
            loss_mask.append(any(a <= start and end <= b and end > start for a, b in rendered.replies))
        if len(starts) != len(pictures):
            raise LayoutError(f"{len(pictures)} pictures, but {len(starts)} marks in the text")
        return Chat(tuple(ids), tuple(loss_mask), tuple(pictures), tuple(starts))

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a reply: the tokenizer's end of text and the layout's end of turn."""
        ids = self.tokenizer(self.layout.assistant_end.strip(), add_special_tokens=False)["input_ids"]
        turn_end = set(ids) if len(ids) == 1 else set()
        return frozenset(turn_end | ({self.tokenizer.eos_token_id} - {None}))

    def end_of_reply(self) -> tuple[int, ...]:
        """The ids a trained reply ends with."""
        return tuple(self.tokenizer(self.layout.assistant_end, add_special_tokens=False)["input_ids"])

    # -- the forward pass

    def positions(self, chat: Chat) -> Tensor:
        """Position of each token, [T], or [3, T] for rotary positions with three axes."""
        return torch.arange(len(chat.ids))

    def encode(self, model: Any, pictures: Sequence[EncodedImage]) -> list[Features]:
        """Features of each picture from one pass of the vision tower: {"pooled": [its picture tokens, hidden]}."""
        output = model.model.get_image_features(**self._vision_inputs(model, pictures), return_dict=True)
        counts = [sum(i == self.image_token_id for i in p.ids) for p in pictures]
        return [{"pooled": part} for part in flattened(output.pooler_output).split(counts)]

    def _vision_inputs(self, model: Any, pictures: Sequence[EncodedImage]) -> dict[str, Tensor]:
        older.complete(model)  # features are computed before they are used
        return {key: _to_model(value, model) for key, value in self.stack(pictures).items()}

    def vision_kwargs(self, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        """Forward arguments for the features of each row's pictures (rows x pictures), placed in reading order."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pooled = [f["pooled"] for row in features for f in row]
        if not pooled:
            return {}
        # each picture a list entry, or all of them as one "batch" of one where the class expects a tensor
        joined: Any = pooled if self.packs else torch.cat(pooled).unsqueeze(0)
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=joined)}}

    def token_kwargs(self, chats: Sequence[Chat], width: int, side: str) -> dict[str, Tensor]:
        """Forward arguments that run along the tokens, padded to ``width`` on ``side`` ("left" or "right")."""
        return {}

    def step_kwargs(self, chats: Sequence[Chat], width: int) -> dict[str, Tensor]:
        """The same for ``width`` generated tokens behind the prompts."""
        return {}

    def collate(self, chats: Sequence[Chat], side: str = "right") -> dict[str, Tensor]:
        """A batch for training or for a plain forward pass: input_ids, attention_mask, labels (-100 off the replies) as
        [B, T], the pictures' pixels, and what else the class needs."""
        width = max(len(chat.ids) for chat in chats)
        pad = self.tokenizer.pad_token_id or 0
        labels = [[i if t else -100 for i, t in zip(c.ids, c.loss_mask, strict=True)] for c in chats]
        batch = {
            "input_ids": padded([torch.tensor(c.ids) for c in chats], width, pad, side),
            "attention_mask": padded([torch.ones(len(c.ids), dtype=torch.long) for c in chats], width, 0, side),
            "labels": padded([torch.tensor(row) for row in labels], width, -100, side),
            **self.token_kwargs(chats, width, side),
        }
        return {**batch, **self.pixel_kwargs(chats)}

    def pixel_kwargs(self, chats: Sequence[Chat]) -> dict[str, Tensor]:
        """Pixels of a batch of conversations, in reading order."""
        pictures = [picture for chat in chats for picture in chat.pictures]
        return self.stack(pictures) if pictures else {}


_TEXT_KEYS = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "cross_attention_mask"}
)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """[n_i, ...] of unequal trailing sizes -> [sum n_i, ...], padded with zeros at the end of each dimension."""
    if len({p.shape[1:] for p in parts}) == 1:
        return torch.cat(list(parts))
    largest = [max(sizes) for sizes in zip(*(p.shape[1:] for p in parts), strict=True)]
    return torch.cat(
        [F.pad(p, [x for d in range(p.dim() - 1, 0, -1) for x in (0, largest[d - 1] - p.shape[d])]) for p in parts]
    )


def flattened(pooled: Any) -> Tensor:
    parts = [pooled] if isinstance(pooled, Tensor) else list(pooled)
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _to_model(value: Tensor, model: Any) -> Tensor:
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)


def padded(rows: Sequence[Tensor], width: int, value: int, side: str) -> Tensor:
    """Rows [..., t_i] padded along their last dimension to ``width`` and stacked, [B, ..., width]."""
    return torch.stack(
        [
            F.pad(row, (width - row.shape[-1], 0) if side == "left" else (0, width - row.shape[-1]), value=value)
            for row in rows
        ]
    )


def vars_of(size: Any) -> dict[str, Any]:
    """An image processor's ``size``, a dict or transformers' SizeDict, without what is not set."""
    return {key: value for key, value in dict(size).items() if value is not None}
