"""How a run looks and answers, and the one place where a default protocol or crop is resolved, whoever calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from visrl.core.crops import CROPS, FOCUSES, CropName, Focus
from visrl.core.prompts import PROTOCOLS, Protocol
from visrl.errors import UsageError, nearest
from visrl.policies.protocol import Sampling

if TYPE_CHECKING:
    from visrl.policies.protocol import Policy


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """Everything besides model and data that changes an episode.

    box_source: whose box is looked at: the model's own (``predicted``) or a control's. seed: of random boxes.
    """

    protocol: Protocol
    box_source: Focus = "predicted"
    crop: CropName = "viscot_square112"
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    seed: int = 0


def rollout_config(
    policy: Policy,
    *,
    protocol: str | None = None,
    box_source: str = "predicted",
    crop: str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> RolloutConfig:
    """The names checked; None becomes what the policy was made with. Raises UsageError naming the nearest known value."""
    protocol, crop = protocol or policy.default_protocol, crop or policy.default_crop
    check_names(protocol=protocol, focus=box_source, crop=crop)
    return RolloutConfig(
        PROTOCOLS[protocol], cast("Focus", box_source), cast("CropName", crop), sampling or Sampling(seed=seed), seed
    )


def check_names(**named: str | None) -> None:
    """named: of protocol, focus and crop those that were given. Raises UsageError for one that is unknown."""
    known: dict[str, Collection[str]] = {"protocol": PROTOCOLS, "focus": FOCUSES, "crop": CROPS}
    for name, value in named.items():
        if value is not None and value not in known[name]:
            names = PROTOCOLS.names() if name == "protocol" else known[name]
            raise UsageError(f"--{name}: unknown {value!r}", nearest(value, names))
