"""A policy that is shown grey pictures: what can be had from words alone. ``blind:MODEL``, for any model but a replayed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from visrl.core.types import Picture, Turn
from visrl.errors import UsageError
from visrl.policies.protocol import Output, Policy, Request, Sampling
from visrl.policies.registry import load_policy

GREY = (127, 127, 127)


class Blind:
    """``policy`` with every picture, whole or crop, replaced by a grey one of its size."""

    needs_pictures = True

    def __init__(self, policy: Policy) -> None:
        self.policy, self.name = policy, f"blind:{policy.name}"
        self.box_format, self.default_protocol = policy.box_format, policy.default_protocol

    @classmethod
    def load(cls, spec: str, args: Mapping[str, str] | None = None) -> Blind:
        """The policy of ``spec``, blinded. Raises UsageError for one that looks at no picture: nothing would change."""
        policy = load_policy(spec, args)
        if not policy.needs_pictures:
            raise UsageError(f"blind:{spec}: {policy.name} does not use pictures", "name a model that does")
        return cls(policy)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        return self.policy.generate([replace(r, turns=tuple(map(_blanked, r.turns))) for r in requests], sampling)

    def describe(self) -> Mapping[str, Any]:
        return {**self.policy.describe(), "pictures": "blank"}


def _blanked(turn: Turn) -> Turn:
    def blank(picture: Picture) -> Picture:
        return Picture(f"{picture.ref}#blank", lambda: Image.new("RGB", picture.open().size, GREY))

    return Turn(turn.role, tuple(blank(part) if isinstance(part, Picture) else part for part in turn.parts))
