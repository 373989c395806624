"""One protocol, one crop and one way of writing boxes through a loop: what SFT teaches is what is sampled and scored.

A model that was taught one wording writes few boxes under another, and boxes that are read in another frame are wrong, so a
loop whose phases differ stops, unless ``mixed: true`` says that it is meant; then the phases are listed. ``protocol`` and
``crop`` of the loop go into every phase whose own recipe (and ``set``) names none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from visrl.core.crops import TRAINED_CROP
from visrl.core.prompts import DEFAULT_PROTOCOL
from visrl.errors import UsageError
from visrl.train.config.protocols import crop_under, protocol_of, several
from visrl.train.config.recipe import Resolved
from visrl.train.loop.recipe import LoopRecipe, ScoreSection

KEYS: Mapping[str, Mapping[str, str]] = {
    "sft": {"protocol": "data.protocol", "crop": "chain.crop"},
    "pairs": {"protocol": "protocol", "crop": "crop"},
    "grpo": {"protocol": "grpo.protocol", "crop": "grpo.crop"},
    "dpo": {"crop": "step.crop"},  # pairs have their protocol
}
"""Kind of recipe -> where it says how one looks. A small model's lessons are what they are."""
BOXES: Mapping[str, str] = {
    "sft": "model.box_format",
    "pairs": "policy.args.box_format",
    "grpo": "model.box_format",
    "dpo": "model.box_format",
}
"""Likewise where it says how boxes are written; left out: as the family does."""
Formats = Callable[[str], str]
"""A format as recipes name it (``native``, ``paper``, …) -> its own name, by which two are the same."""


@dataclass(frozen=True, slots=True)
class Look:
    """How a phase asks and what it cuts out. protocols: all that its rows are asked by; none where that is not known.

    boxes: how it writes them; "" where nobody asked.
    """

    phase: str
    protocols: frozenset[str]
    crop: str
    boxes: str = ""

    def __str__(self) -> str:
        asked = f"protocol {' and '.join(sorted(self.protocols))}, " if self.protocols else ""
        return f"{self.phase}: {asked}crop {self.crop}" + (f", boxes {self.boxes}" if self.boxes else "")


def shared(recipe: LoopRecipe, own: Resolved) -> dict[str, str]:
    """Dotted key -> the loop's protocol or crop, where a phase's own recipe names none."""
    keys = KEYS.get(own.recipe.kind, {})
    given = {"protocol": recipe.protocol, "crop": recipe.crop}
    return {key: value for what, key in keys.items() if (value := given[what]) is not None and key not in own.sources}


def scored(recipe: LoopRecipe, formats: Formats | None = None) -> Look:
    """How phases are scored: as ``score`` says, else as the loop does."""
    boxes = "" if formats is None else formats(recipe.score.args.get("box_format") or "native")
    protocol = recipe.score.protocol or recipe.protocol or DEFAULT_PROTOCOL
    crop = recipe.score.crop or recipe.crop or crop_under(protocol, TRAINED_CROP)
    return Look("score", frozenset({protocol}), crop, boxes)


def scoring_of(recipe: LoopRecipe) -> ScoreSection:
    """``score`` with the protocol and the crop that count."""
    look = scored(recipe)
    return recipe.score.model_copy(update={"protocol": next(iter(look.protocols)), "crop": look.crop})


def look_of(
    name: str,
    resolved: Resolved,
    taught: Collection[str] = (),
    formats: Formats | None = None,
    among: Collection[str] = (),
) -> Look | None:
    """How a phase looks. taught: the protocols of its rows, where they have been read; among: else those that they may have.

    None for a kind that has no such keys.
    """
    keys = KEYS.get(resolved.recipe.kind)
    if keys is None:
        return None
    values = {what: _value(resolved, key) for what, key in keys.items()}
    named = values.get("protocol")
    if resolved.recipe.kind in ("pairs", "grpo"):
        named = named or DEFAULT_PROTOCOL
    asked = taught or ([named] if named is not None else [])
    looking = {protocol for protocol in asked if protocol_of(protocol).looks}
    crop = str(values["crop"])
    if shown := {crop_under(protocol, TRAINED_CROP) for protocol in (looking or among) if several(protocol)}:
        crop = " and ".join(sorted(shown))
    boxes = "" if formats is None else formats(_value(resolved, BOXES[resolved.recipe.kind]) or "native")
    return Look(name, frozenset(looking), crop, boxes)


def _value(resolved: Resolved, key: str) -> str | None:
    node: object = resolved.recipe.model_dump(mode="json")
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return None if node is None else str(node)


def check_looks(recipe: LoopRecipe, looks: Collection[Look]) -> str:
    """How the phases look, a line each, where they differ; "" where they do not. Raises UsageError where SFT differs from those
    that follow it, and nobody said that it is meant.
    """
    ways = {(look.crop, look.boxes) for look in looks}
    if len(ways) == 1 and len(frozenset().union(*(look.protocols for look in looks))) <= 1:
        return ""
    wrong = list(_differences(looks))
    said = "\n".join(f"  {look}" for look in looks)
    if wrong and not recipe.mixed:
        raise UsageError(
            f"SFT and the other phases of the loop look in different ways: {'; '.join(wrong)}\n{said}",
            "give the loop one `protocol:` and one `crop:`, every phase one `box_format`; `mixed: true` if this is meant",
        )
    return f"phases look in more than one way:\n{said}"


def _differences(looks: Collection[Look]) -> Iterator[str]:
    """What is taught by SFT against what is sampled and scored."""
    for taught in (look for look in looks if look.phase in ("sft", "more")):
        for used in (look for look in looks if look.phase not in ("sft", "more")):
            if taught.protocols and used.protocols and taught.protocols != used.protocols:
                a, b = (" and ".join(sorted(one.protocols)) for one in (taught, used))
                yield f"{taught.phase} teaches protocol {a}, {used.phase} asks by {b}"
            if taught.crop != used.crop:
                yield f"{taught.phase} shows crop {taught.crop}, {used.phase} shows {used.crop}"
            if taught.boxes != used.boxes:
                yield f"{taught.phase} writes boxes as {taught.boxes}, {used.phase} as {used.boxes}"
