"""Which protocol a row or a recipe means: one of visrl's or of a package, or a file, with a limit of looks behind a colon.

``visrl_train``, ``zoom``, ``zoom:2`` (two looks at most), ``my.yaml``, ``my.yaml:2``: as ``--protocol`` takes them. The name is
what training keeps; it says all of how one looks, so that two phases look alike where their names are equal.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import AfterValidator

from visrl.core.crops import CropName
from visrl.core.prompts import PROTOCOLS, Protocol
from visrl.errors import UsageError
from visrl.rollout.config import protocol_named

_from_a_file = cache(protocol_named)
"""Read once: a run goes by the file as it was when it began."""


def protocol_of(name: str) -> Protocol:
    """The protocol of a name that was checked. Raises UsageError for a file that is not there, or is no protocol."""
    return PROTOCOLS[name] if name in PROTOCOLS else _from_a_file(name)


def _known(name: str) -> str:
    try:
        protocol_of(name)
    except UsageError as error:
        said = error.message.removeprefix("--protocol: ")
        raise ValueError(f"{said} ({error.hint})" if error.hint else said) from error
    return name


ProtocolChoice = Annotated[str, AfterValidator(_known)]


def several(name: str) -> bool:
    """Whether a protocol is one of several looks."""
    return protocol_of(name).several is not None


def identity(name: str) -> str:
    """A protocol's name for hashes; of a user's file with the hash of what it says."""
    protocol = protocol_of(name)
    return f"{name}@{protocol.sha256}" if protocol.sha256 else name


def protocol_id(name: str) -> str:
    """As records have it: name and version, and the limit of looks where the name says one."""
    before, colon, looks = name.rpartition(":")
    return protocol_of(name).id + (f":{looks}" if colon and before and looks.isdecimal() else "")


def most_looks(name: str) -> int:
    """How many looks a chain of the protocol may have."""
    protocol = protocol_of(name)
    return int(protocol.looks) if protocol.several is None else protocol.several.limits.looks


def check_pictures(name: str, takes: int | None, who: str) -> None:
    """Raises UsageError where the protocol may show more pictures than ``who`` takes in one conversation; None: any number."""
    if takes is not None and several(name) and takes <= (most := most_looks(name)):
        raise UsageError(
            f"{who} takes {takes} pictures, and {name} may look {most} times",
            f"protocol {name.partition(':')[0]}:{takes - 1}, or a server with a larger limit_mm_per_prompt",
        )


def crop_under(name: str, crop: CropName) -> CropName:
    """What is cut out: a recipe's ``crop``; a protocol of several looks says itself what comes back."""
    rules = protocol_of(name).several
    return crop if rules is None else rules.shown.crop


def check_crop(name: str, crop: CropName, given: bool) -> None:
    """Raises UsageError where a recipe gives another crop than its protocol of several looks shows."""
    if given and crop_under(name, crop) != crop:
        raise UsageError(
            f"crop {crop}: protocol {name} says itself what comes back: {crop_under(name, crop)}", "leave the key out"
        )
