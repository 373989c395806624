"""What the run.json beside recorded episodes says of how they were made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visrl.core.json_files import read_object

Facts = tuple[str | None, str | None, dict[str, Any]]
"""Protocol, box format, and what looks and pixels were limited to."""


def run_facts(episodes: Path) -> Facts:
    """Of the run that an episodes file is of; nothing where there is no run.json. Raises UsageError for a damaged one."""
    run_file = episodes.parent / "run.json"
    if not run_file.is_file():
        return None, None, {}
    request = read_object(run_file, "put it back as it was, or move episodes.jsonl to a folder of its own").get(
        "request"
    )
    facts = request if isinstance(request, dict) else {}
    name = _inside(facts, "box_format").get("name")
    limits = _inside(facts, "sampling") | _inside(_inside(facts, "model_info"), "pixels")
    whole = {key: value for key, value in limits.items() if type(value) is int}
    return str(facts.get("protocol", "")).split("/")[0] or None, name if isinstance(name, str) else None, whole


def _inside(facts: dict[str, Any], key: str) -> dict[str, Any]:
    value = facts.get(key)
    return value if isinstance(value, dict) else {}
