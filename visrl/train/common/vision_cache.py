"""Vision features of a frozen tower: computed once per picture and phase, then handed to the model in the tower's
place.

How features are computed and handed over is the family's business (policies/families/base.py: ``encode``,
``vision_kwargs``). Where the tower is trained, pixels go through the forward pass as usual, so that gradients and
DDP's hooks are where they belong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from visrl.policies.families.base import Chat, EncodedImage, Family, Features

if TYPE_CHECKING:
    from torch import nn


def vision_is_frozen(model: Any) -> bool:
    """Whether nothing but the language model and its output head is trained. ``model``: the bare transformers model."""
    inside = {id(p) for p in model.get_decoder().parameters()}
    head = model.get_output_embeddings()
    inside |= {id(p) for p in head.parameters()} if head is not None else set()
    return not any(p.requires_grad and id(p) not in inside for p in model.parameters())


def freeze_vision(model: Any) -> None:
    """Train nothing but the language model and its output head."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in (model.get_decoder(), model.get_output_embeddings()):
        for parameter in module.parameters() if module is not None else ():
            parameter.requires_grad_(True)


def without_pixels(chat: Chat) -> Chat:
    """The conversation without the pixels of its pictures; their shapes (grids, sizes), which are small, stay."""
    light = tuple(
        replace(p, pixels={k: v for k, v in p.pixels.items() if not k.startswith("pixel_values")})
        for p in chat.pictures
    )
    return replace(chat, pictures=light)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, then every module as it was: what is frozen has no dropout, and its features are
    the same whether the reference pass meets a picture first (in evaluation mode) or a training step.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass(slots=True)
class FeatureStore:
    """Features by picture (its digest), in memory, up to ``limit`` bytes; what does not fit is computed again when
    needed, with the same bits whatever else is asked for.
    """

    limit: int
    used: int = 0
    _held: dict[str, Features] = field(default_factory=dict)

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def kwargs(self, family: Family, model: Any, chats: Sequence[Chat]) -> dict[str, Any]:
        """Forward arguments for the pictures of a batch of conversations."""
        found = self.features(family, model, [picture for chat in chats for picture in chat.pictures])
        return family.vision_kwargs([[found[p.digest] for p in chat.pictures] for chat in chats])

    def features(self, family: Family, model: Any, pictures: Sequence[EncodedImage]) -> dict[str, Features]:
        """Features by digest, on the model's device."""
        import torch

        missing = {p.digest: p for p in pictures if p.digest not in self._held}.values()
        # the policy asks in inference mode, whose tensors no later step could be trained with
        with torch.inference_mode(False), torch.no_grad(), evaluating(model):
            # one by one: a batch's company changes last bits, and a resumed phase meets the pictures in other batches
            found = {p.digest: family.encode(model, [p])[0] for p in missing}
        held = {p.digest: self._held[p.digest] for p in pictures if p.digest in self._held}
        for digest, features in found.items():
            self._keep(digest, features)
        return found | {d: {k: v.to(model.device) for k, v in f.items()} for d, f in held.items()}

    def _keep(self, digest: str, features: Features) -> None:
        size = sum(v.numel() * v.element_size() for v in features.values())
        if self.used + size <= self.limit:
            # a copy of its own: a slice would keep the whole batch's features alive
            self._held[digest] = {k: v.detach().to("cpu", copy=True) for k, v in features.items()}
            self.used += size


def picture_kwargs(
    family: Family, model: nn.Module, chats: Sequence[Chat], store: FeatureStore | None
) -> dict[str, Any]:
    """Forward arguments for the pictures of ``chats``: features where the tower is frozen, else pixels on the model's
    device.
    """
    if store is not None:
        return store.kwargs(family, model, chats)
    device: Any = model.device
    return {name: value.to(device) for name, value in family.pixel_kwargs(chats).items()}
