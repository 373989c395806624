"""Of the site: pages that lie outside docs/ are pages of it, too, and links to them lead there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of ``OUTSIDE``, their links to docs/ made relative to it."""
    for name, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, beside in OUTSIDE.items():
            text = text.replace(f"]({beside})", f"]({other})")
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links from docs/ to such a page, as the site has it."""
    for name, source in OUTSIDE.items():
        markdown = re.sub(rf"\]\(\.\./{re.escape(source)}(#[^)]*)?\)", rf"]({name}\1)", markdown)
    return markdown
