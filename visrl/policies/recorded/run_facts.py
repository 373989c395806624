"""What the run.json beside recorded episodes says of how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def run_facts(episodes: Path) -> tuple[str | None, str | None, dict[str, Any]]:
    """Protocol, box format and limits from the run.json beside an episodes file, if it is there."""
    run_file = episodes.parent / "run.json"
    if not run_file.is_file():
        return None, None, {}
    request = json.loads(run_file.read_text(encoding="utf-8")).get("request", {})
    limits = {**request.get("sampling", {}), **(request.get("model_info", {}).get("pixels") or {})}
    box_format = request.get("box_format", {}).get("name")
    return str(request.get("protocol", "")).split("/")[0] or None, box_format, limits
