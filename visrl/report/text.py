"""Text from models and data files, made fit for a page: what a reader could not see is shown, what is endless is cut.

Nothing here makes HTML safe: that is done where text meets the page, by jinja2's autoescape, by :func:`json_block`, and in the
script by ``textContent``. This is about what a browser would faithfully *do* with legal characters: turn a line around
(bidirectional overrides), hide (zero width), or drop (controls and lone surrogates).
"""

from __future__ import annotations

import json
import re
from typing import Any

LONGEST = 4000
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Controls but tab and newline, bidirectional marks, zero-width characters (joiners stay: scripts and emoji need them)."""


def visible(text: str) -> str:
    """``text`` with every character that would act instead of show written out, e.g. ``⟨U+202E⟩``."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text.replace("\r\n", "\n"))


def clip(text: str, limit: int = LONGEST) -> str:
    """``text`` made visible and cut to ``limit`` characters, with a note of how many were left out."""
    if len(text) <= limit:
        return visible(text)
    return f"{visible(text[:limit])} … [{len(text) - limit:,} more characters, in full in episodes.jsonl]"


def line(text: str, limit: int = 160) -> str:
    """The beginning of ``text`` on one line, for cards and tables."""
    short = visible(" ".join(text[: 4 * limit].split()))
    return short if len(short) <= limit else f"{short[: limit - 1]}…"


def json_block(value: Any) -> str:
    """JSON that can stand in a ``<script type="application/json">``: nothing in it can end the element or open another.

    Half a surrogate pair is written as its escape: UTF-8 cannot hold it.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode(errors="backslashreplace").decode()
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
