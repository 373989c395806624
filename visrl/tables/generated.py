"""results/tables/*.md: the paper's tables with our records, generated from results/records. Never edited by hand."""

from __future__ import annotations

from pathlib import Path

from visrl.core.records import read_records, write_atomically
from visrl.evals.paper import NAMES
from visrl.tables.formats import render
from visrl.tables.paper_tables import build

_HEADER = (
    "<!-- Generated from results/records by `visrl-eval tables --write`; `visrl-eval tables --check` compares. -->\n\n"
)


def generated(records: Path) -> dict[str, str]:
    """File name -> Markdown of every table of the paper with the results below ``records``.

    The phases of loops on the small world are left out: docs/science.md has them, and no cell here may be compared with them.
    """
    found = read_records(records) if records.is_dir() else []
    results = [r for r in found if not (r.small_world and "phase" in r.model_info)]
    return {f"{name}.md": _HEADER + render(build(name, results), "md") for name in NAMES}


def write_tables(results: Path) -> list[Path]:
    """Write results/tables; returns the files that changed."""
    changed = [results / "tables" / name for name in stale(results)]
    texts = generated(results / "records")
    for path in changed:
        if path.name in texts:
            write_atomically(path, texts[path.name])
        else:
            path.unlink()
    return changed


def stale(results: Path) -> list[str]:
    """Names of the files below results/tables that are not what the records give, are missing, or are left over."""
    texts, folder = generated(results / "records"), results / "tables"
    left_over = {path.name for path in folder.glob("*.md")} - set(texts)
    return sorted(
        left_over
        | {
            name
            for name, text in texts.items()
            if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
        }
    )
