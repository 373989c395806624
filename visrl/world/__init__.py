"""The small world: procedurally drawn pictures in the shape of every benchmark, and small models that learned to look.

Everything here is a function of (split, index): no file is downloaded and every machine draws the same pixels. Numbers
measured on it are numbers of the small world, never to be set beside a published one.

dice -> scenes, papers (what is where) -> drawing (pixels); language, general (words) -> documents (rows) -> samples;
vision, model: the small LLaVA; checkpoints/: trained ones (recipes/world-*.yaml; visrl/train/small_model/run.py)
"""

from __future__ import annotations

from pathlib import Path

from visrl.errors import UsageError, nearest

CHECKPOINTS = ("tiny", "sft", "base")
VERSION = "1"
"""Of drawing and language: changing a pixel or a question needs a new one (tests/world/test_same_everywhere.py)."""


def checkpoint_path(name: str) -> Path:
    """The folder of a shipped checkpoint. Raises UsageError for another name, and for one that is not there."""
    if name not in CHECKPOINTS:
        raise UsageError(f"no shipped model {name!r}", nearest(name, CHECKPOINTS))
    folder = Path(__file__).parent / "checkpoints" / name
    if not folder.is_dir():
        raise UsageError(f"{name} has not been trained yet", f"visrl-train recipes/world-{name}.yaml makes it")
    return folder
