"""The recipes that ship with visrl, by name: ``visrl-train world`` works wherever visrl is installed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import visrl
from visrl.errors import UsageError, nearest

_PACKAGE = Path(visrl.__file__).parent


def recipes_folder() -> Path:
    """Where the recipes are: inside the installed package, or beside it in a checkout."""
    inside = _PACKAGE / "recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Name -> file, by name."""
    return {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))}


def recipe_path(words: str) -> Path:
    """The recipe a user names: a file, else a name that ships (``qwen2.5-vl-7b-sft`` has a point and is no file of that kind).

    Raises UsageError for a name that is neither.
    """
    path, found = Path(words), shipped_recipes()
    if path.exists():
        return path
    if words in found:
        return found[words]
    if path.suffix in (".yaml", ".yml"):
        own = (
            f"`visrl-train {path.stem}` runs the bundled one"
            if path.stem in found
            else "give a file, or a name of --list"
        )
        raise UsageError(f"{words}: no such file", own)
    if len(path.parts) != 1:
        return path  # what is wrong with it is said where it is read
    raise UsageError(
        f"{words}: no such file, and no bundled recipe has this name", nearest(words, found, "visrl-train --list")
    )


def listing() -> Sequence[str]:
    """A line per shipped recipe, those of the small world first: its name, and what its first comment begins with."""
    found = shipped_recipes()
    width = max(map(len, found), default=0)
    in_order = sorted(found, key=lambda name: (not name.startswith("world"), not name.startswith("pairs"), name))
    return [f"{name:{width}}  {_about(found[name])}" for name in in_order]


def _about(path: Path) -> str:
    """What a recipe's first comment says before its first comma, colon or full stop."""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    return re.split(r"[,:.](?: |$)", first.lstrip("# ").strip(), maxsplit=1)[0] if first.startswith("#") else ""
