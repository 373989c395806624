"""How a run looks and answers, and the one place where a default protocol or crop is resolved, whoever calls."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from visrl.core.crops import CROPS, FOCUSES, CropName, Focus
from visrl.core.prompts import PROTOCOLS, SEVERAL, Protocol
from visrl.errors import UsageError, nearest
from visrl.policies.protocol import Sampling

if TYPE_CHECKING:
    from visrl.core.types import CoTSample
    from visrl.policies.protocol import Policy


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """Everything besides model and data that changes an episode.

    box_source: whose box is looked at: the model's own (``predicted``) or a control's. seed: of random boxes.
    later: under a protocol of several looks, the foci of the second look, the third, …; the last one goes on.
    """

    protocol: Protocol
    box_source: Focus = "predicted"
    crop: CropName = "viscot_square112"
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    seed: int = 0
    later: tuple[Focus, ...] = ()

    @property
    def focus(self) -> str:
        """As users write it and records have it: ``gold``, or look by look ``gold,predicted``."""
        return ",".join((self.box_source, *self.later))

    def focus_of(self, look: int) -> Focus:
        """Whose box look number ``look`` (from 0) is."""
        foci = (self.box_source, *self.later)
        return foci[min(look, len(foci) - 1)]

    def planned_looks(self, sample: CoTSample) -> int | None:
        """How many looks there are where controls decide that: of a list as many as it names, else one for each true box, and
        one where there is none, whatever control it is. None where the model decides.
        """
        if self.focus_of(len(self.later)) == "predicted":
            return None
        return 1 + len(self.later) if self.later else max(1, len(sample.boxes))


def rollout_config(
    policy: Policy,
    *,
    protocol: str | Protocol | None = None,
    box_source: str = "predicted",
    crop: str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> RolloutConfig:
    """The names checked; None becomes what the policy was made with. Raises UsageError naming the nearest known value.

    protocol: a name, the path of a protocol file, or the protocol itself. box_source: a focus, or one per look, by commas.
    """
    chosen = protocol if isinstance(protocol, Protocol) else protocol_named(protocol or policy.default_protocol)
    check_names(focus=box_source, crop=crop)
    chosen = fitting(chosen, policy.max_pictures)
    foci = cast("tuple[Focus, ...]", tuple(box_source.split(",")))
    if len(foci) > 1 and chosen.several is None:
        raise UsageError(
            f"--focus {box_source}: protocol {chosen.name} has a single look", "one focus, or --protocol zoom"
        )
    sampling = sampling or Sampling(seed=seed)
    require_room(chosen, sampling.max_tokens)
    own = policy.default_crop if chosen.several is None else chosen.several.shown.crop
    return RolloutConfig(chosen, foci[0], cast("CropName", crop or own), sampling, seed, foci[1:])


def require_room(protocol: Protocol, tokens: int) -> None:
    """Raises UsageError where the limit of new tokens leaves no look besides the answer. tokens: of a turn."""
    limits = protocol.several.limits if protocol.several is not None else None
    if limits is not None and limits.looks and 0 < limits.new_tokens < 2 * tokens:
        raise UsageError(
            f"protocol {protocol.name}: {limits.new_tokens} new tokens in total leave no look with {tokens} tokens per turn",
            "use a smaller --max-tokens, or a protocol file with limits: {new_tokens: 0}",
        )


def protocol_named(name: str) -> Protocol:
    """The protocol of a name, or of a file (``--protocol FILE``), with another limit of looks behind a colon: ``zoom:2``.

    Raises UsageError for neither.
    """
    if name in PROTOCOLS or name in SEVERAL:
        return PROTOCOLS[name] if name in PROTOCOLS else SEVERAL[name]
    before, colon, looks = name.rpartition(":")
    if colon and re.fullmatch(r"\d{1,3}", looks) and (found := protocol_named(before)).several is not None:
        return with_looks(found, int(looks))
    if name.endswith((".yaml", ".yml")):
        from visrl.rollout.protocol_files import read_protocol

        return read_protocol(Path(name))
    raise UsageError(
        f"--protocol: unknown {name!r}", f"{nearest(name, [*PROTOCOLS.names(), *SEVERAL])}; or a file, NAME.yaml"
    )


def with_looks(protocol: Protocol, looks: int) -> Protocol:
    """The protocol with another limit of looks (``--max-looks``). The paper's look once: 0 is ``direct``.

    Raises UsageError for more looks than a protocol can have.
    """
    if protocol.several is not None:
        limits = replace(protocol.several.limits, looks=looks)
        return replace(protocol, several=replace(protocol.several, limits=limits))
    if looks > int(protocol.looks):
        most = "once" if protocol.looks else "never"
        raise UsageError(
            f"--max-looks {looks}: protocol {protocol.name} looks {most}", "--protocol zoom looks several times"
        )
    return protocol if looks else PROTOCOLS["direct"]


def fitting(protocol: Protocol, pictures: int | None) -> Protocol:
    """The protocol within what a model takes: at most so many pictures in one conversation."""
    if protocol.several is None or pictures is None:
        return protocol
    limits = protocol.several.limits
    least = min(limits.pictures or pictures, pictures)
    if limits.looks >= least:
        log.warning(
            "at most %d pictures fit into a conversation: %d looks (docs/protocols-and-frames.md)", least, least - 1
        )
    return replace(protocol, several=replace(protocol.several, limits=replace(limits, pictures=least)))


def check_names(**named: str | None) -> None:
    """named: of protocol, focus and crop those that were given. Raises UsageError for one that is unknown."""
    known: dict[str, Collection[str]] = {"focus": FOCUSES, "crop": CROPS}
    for name, value in named.items():
        if value is not None and name == "protocol":
            protocol_named(value)
            continue
        for part in (value or "").split(",") if name == "focus" else [value]:
            if part is not None and value is not None and part not in known[name]:
                raise UsageError(f"--{name}: unknown {part!r}", nearest(part, known[name]))
