"""The small world: procedurally drawn pictures in the shape of every benchmark, and small models that learned to look.

Everything here is a function of (split, index): no file is downloaded and every machine draws the same pixels. Numbers
measured on it are numbers of the small world, never to be set beside a published one.

rng -> scenes, forms_and_charts (what is where) -> rendering (pixels); expressions, general_questions (words) -> questions
(rows) -> samples; deep/: pictures that take two looks; textured/: the same over other grounds; vision_tower, model: the small
LLaVA; checkpoints/: trained ones (recipes/world-*.yaml; visrl/train/small_model/run.py)
"""

from __future__ import annotations

from pathlib import Path

from visrl.errors import UsageError, nearest

CHECKPOINTS = ("tiny", "sft", "base", "deep")
IMAGE_SIZE = 64
"""Pixels of the square at which the small models see a picture or a crop, padded with the mean colour."""
VERSION = "1"
"""Of pictures and questions: changing a pixel or a word needs a new one (tests/world/test_scenes.py)."""


def checkpoint_path(name: str) -> Path:
    """The folder of a shipped checkpoint. Raises UsageError for another name, and for one that is not there."""
    if name not in CHECKPOINTS:
        raise UsageError(f"unknown bundled model {name!r}", nearest(name, CHECKPOINTS))
    folder = Path(__file__).parent / "checkpoints" / name
    if not folder.is_dir():
        raise UsageError(
            f"the bundled model {name!r} is not installed: {folder} is missing",
            f"train it: visrl-train recipes/world-{name}.yaml",
        )
    return folder
