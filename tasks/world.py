"""The small world as tasks: documents that are drawn, not read. Never comparable with a published number.

``world_rec``, ``world_viscot_<domain>``, ``world_pope_<variant>``, ``world_mme`` and ``world_mmbench`` are of the ``test`` split;
so is ``world_deep``, which takes one look or two (visrl/world/deep). ``world_textured_*`` ask the same over textured grounds
(visrl/world/textured). ``world_heldout_*`` ask for combinations of colour, shape and relation that no training split asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visrl.core.types import CoTSample
from visrl.evals.benchmarks import TASKS
from visrl.tasks.common import Document, Row, Source
from visrl.world.textured.scenery import PLAIN, TEXTURED, Scenery


def sample(row: Row, task: str) -> CoTSample:
    """One row of visrl/world/questions.py as a sample of ``task``, its picture included."""
    from visrl.world.samples import sample_of

    return sample_of(dict(row), task)


@dataclass(frozen=True, slots=True)
class Drawn(Source):
    """Documents of ``kind`` (visrl/world/questions.py) from the pictures of ``split`` over ``scenery``; as many as ``n``."""

    kind: str = ""
    split: str = "test"
    scenery: Scenery = PLAIN
    n: int = 0

    def files_in(self, data: Path) -> dict[str, Path]:
        """None: whatever the data folder holds, this is drawn."""
        return {}

    def read(self, data: Path | None) -> Iterator[Document]:
        from visrl.world.questions import documents

        return (Document(f"{row['id']} (drawn)", row) for row in documents(self.kind, self.split, self.n, self.scenery))

    def hub_facts(self) -> dict[str, Any]:
        from visrl.world import VERSION

        apart = {} if self.scenery == PLAIN else {"scenery": self.scenery}
        return {"origin": "drawn", "world": VERSION, "split": self.split, **apart}

    def require_pictures(self, data: Path | None) -> None:
        """They are drawn when they are opened."""

    def sample(self, name: str, document: Document, data: Path | None, *, with_pictures: bool) -> CoTSample:
        made = sample(document.row, name)
        return made if with_pictures else replace(made, picture=None)


def _kind(name: str) -> str:
    """``world_viscot_doc``, ``world_textured_viscot_doc`` -> ``doc``; ``world_heldout_rec`` -> ``rec``."""
    return name.removeprefix("world_").removeprefix("textured_").removeprefix("viscot_").removeprefix("heldout_")


def _source(name: str, n: int) -> Drawn:
    split: str = "heldout" if "heldout" in name else "test"
    scenery: Scenery = TEXTURED if name.startswith("world_textured_") else PLAIN
    return Drawn((), _none, sample, kind=_kind(name), split=split, scenery=scenery, n=n)


def _none(*_: Path) -> Iterator[Document]:
    return iter(())


SOURCES: dict[str, Source] = {name: _source(name, spec.n) for name, spec in TASKS.items() if spec.small_world}
