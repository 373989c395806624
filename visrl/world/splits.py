"""Who may see which picture. A picture belongs to a split by its key, so no two splits ever share one.

=========  =========  =====================================================================================
split      pictures   what for
=========  =========  =====================================================================================
pretrain   unbounded  the base only: a pretext of its own; never a question answered by a box
train      9,000      labelled: every question comes with its box. The warm-up uses the first ``SFT_PICTURES``
rl         9,000      questions and answers without boxes: what reinforcement learns from
val        1,800      to choose settings by
test       1,800      reported once
heldout    3,600      asks only for colour x shape x relation combinations that no other split asks for
=========  =========  =====================================================================================

Of six pictures in a row four are scenes, one is a form, one is a chart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from visrl.world.forms_and_charts import lay_out_chart, lay_out_form
from visrl.world.scenes import Kind, Scene, lay_out
from visrl.world.textured.scenery import undressed

SFT_PICTURES = 40
_KINDS: tuple[Kind, ...] = ("scene", "scene", "scene", "scene", "form", "chart")


@dataclass(frozen=True, slots=True)
class Split:
    """labelled: whether documents carry boxes. unseen: signs in handwriting that training never shows."""

    name: str
    pictures: int
    labelled: bool = True
    unseen: bool = False


SPLITS: dict[str, Split] = {
    split.name: split
    for split in (
        Split("pretrain", 6_000_000),
        Split("train", 9000),
        Split("rl", 9000, labelled=False),
        Split("val", 1800, unseen=True),
        Split("test", 1800, unseen=True),
        Split("heldout", 3600, unseen=True),
    )
}


def kind_of(index: int) -> Kind:
    return _KINDS[index % len(_KINDS)]


@lru_cache(maxsize=2048)  # a whole test split, some MB: its documents are read more than once in a run
def picture(split: str, index: int) -> Scene:
    """Picture ``index`` of ``split``, laid out but not drawn. Raises IndexError beyond the split's end."""
    if not 0 <= index < SPLITS[split].pictures:
        raise IndexError(f"split {split} has {SPLITS[split].pictures} pictures, not {index}")
    key, unseen = f"{split}:{index}", SPLITS[split].unseen
    if kind_of(index) == "form":
        return lay_out_form(key, unseen)
    if kind_of(index) == "chart":
        return lay_out_chart(key, unseen)
    return lay_out(key, unseen=unseen)


def indices(split: str, kind: Kind) -> Iterator[int]:
    """The indices of a split's pictures of one kind, in order."""
    return (i for i in range(SPLITS[split].pictures) if kind_of(i) == kind)


def redraw(key: str) -> Scene:
    """The scene of a document's key, ``"split:index"``, in whatever scenery."""
    split, _, index = undressed(key)[1].partition(":")
    return picture(split, int(index))
