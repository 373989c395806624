"""A policy that is shown grey pictures: what can be had from words alone. ``blind:MODEL``, for any model but a recorded one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

from visrl.core.types import Picture, Turn
from visrl.errors import UsageError
from visrl.policies.protocol import LogLikelihood, Output, Policy, Request, Sampling

GREY = (127, 127, 127)


class Blind(Policy):
    """``policy`` with every picture, whole or crop, replaced by a grey one of its size; all else is the policy's own.

    Raises UsageError for a policy that looks at no picture: nothing would change.
    """

    def __init__(self, policy: Policy) -> None:
        if not policy.needs_pictures:
            raise UsageError(f"blind: {policy.name} does not use pictures", "name a model that does")
        self.policy, self.name, self.box_format = policy, f"blind:{policy.name}", policy.box_format
        self.default_protocol, self.default_crop = policy.default_protocol, policy.default_crop
        self.scores_texts = policy.scores_texts
        self.native_tools, self.max_pictures = policy.native_tools, policy.max_pictures

    @property
    def rows(self) -> int:  # type: ignore[override]  # the policy's own
        return self.policy.rows

    @rows.setter
    def rows(self, rows: int) -> None:
        self.policy.rows = rows

    @property
    def batch_size(self) -> int:
        return self.policy.batch_size

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        return self.policy.generate(_blinded(requests), sampling)

    def loglikelihood(self, requests: Sequence[Request], completions: Sequence[str]) -> list[LogLikelihood]:
        return self.policy.loglikelihood(_blinded(requests), completions)

    def rename(self, name: str) -> None:
        self.policy.rename(name)
        self.name = f"blind:{name}"

    def use_adapter(self, folder: str) -> None:
        self.policy.use_adapter(folder)

    def require_reachable(self) -> None:
        self.policy.require_reachable()

    def close(self) -> None:
        self.policy.close()

    def describe(self) -> Mapping[str, Any]:
        return {**self.policy.describe(), "pictures": "blank"}


def _blinded(requests: Sequence[Request]) -> list[Request]:
    return [replace(request, turns=tuple(map(_blanked, request.turns))) for request in requests]


def _blanked(turn: Turn) -> Turn:
    def blank(picture: Picture) -> Picture:
        return Picture(f"{picture.ref}#blank", lambda: Image.new("RGB", picture.open().size, GREY))

    return Turn(turn.role, tuple(blank(part) if isinstance(part, Picture) else part for part in turn.parts))
