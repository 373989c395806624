"""What came back from a server or stands in a file of predictions: its text, and whether it ended as an answer does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FULL_WIDTH = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | {0x3000: ord(" ")}
"""For ``str.translate``: signs as East Asian keyboards type them -> ASCII's."""
_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "token_limit"})
_BLOCKED = frozenset(
    {
        "content_filter",
        "contentfilter",
        "content-filter",
        "safety",
        "prohibited_content",
        "blocklist",
        "recitation",
        "spii",
    }
    | {"image_safety", "refusal", "guardrail_intervened", "content_filtered", "sensitive"}
)
_BROKEN = frozenset(
    {
        "error",
        "abort",
        "aborted",
        "cancelled",
        "canceled",
        "incomplete",
        "timeout",
        "malformed_function_call",
        "network_error",
    }
)
_STATUS = re.compile(r"\s{0,20}(Error code: \d{3}) - ")  # openai's client; a screen may read "Error code: 43"
_REASONS = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason", "finish")
_SAYING = frozenset({"error", "reasoning_content", "refusal", *_REASONS})  # most rows say nothing of how they ended
CLIENT_ERRORS = (
    "Failed to obtain answer via API",  # VLMEvalKit: FAIL_MSG, and the fail_msg of its clients
    "[LMMS_EVAL_REQUEST_FAILED after",  # lmms-eval 0.7.3: its clients of OpenAI and Gemini
)
"""How clients begin a prediction that is none: the request failed, and its error was recorded in the answer's place."""


def joined_content(value: Any) -> str:
    """A message's content as text: a string, None, or a list of parts, whose texts are joined. Parts of a thought are no text.

    Raises TypeError for anything else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_part(part) for part in value)
    raise TypeError(f"content is {type(value).__name__}, neither text nor a list of parts")


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise TypeError(f"a part of the content is {type(part).__name__}")
    text = part.get("text")
    if isinstance(text, dict):  # {"type": "text", "text": {"value": …}}
        text = text.get("value")
    kind = str(part.get("type", "text"))
    return text if isinstance(text, str) and kind in ("text", "output_text") else ""


def why_unscored(text: str | None, finish_reason: Any = None, refusal: Any = None) -> str | None:
    """Why an output cannot be scored, by how it ended, or None where it can be.

    An output cut at its length is scored as it is, unless it holds nothing at all.
    """
    reason = str(finish_reason or "").strip().lower().rpartition(".")[2]  # FinishReason.MAX_TOKENS
    if isinstance(refusal, str) and refusal.strip():
        return f"refused: {refusal.strip()[:100]}"
    if reason in _BLOCKED:
        return f"blocked: finish_reason {reason}"
    if reason in _BROKEN:
        return f"broken off: finish_reason {reason}"
    empty = text is None or not text.strip()
    if reason in _CUT and empty:
        return f"cut before anything was said: finish_reason {reason}"
    if text is not None and (status := _STATUS.match(text)):
        return f"the recorded text is a client's error: {status[1]}"
    if text is not None and text.lstrip().startswith(CLIENT_ERRORS):
        return f"the recorded text is a client's error: {next(e for e in CLIENT_ERRORS if e in text)}"
    return None


def ending_of(row: Mapping[str, Any], text: str | None) -> str | None:
    """The same of a recorded row, which may say how it ended: ``finish_reason``, ``stop_reason``, ``refusal`` or ``error``."""
    if _SAYING.isdisjoint(row):
        return why_unscored(text)
    error = row.get("error")
    if isinstance(error, dict) and error:
        error = error.get("message") or "error"
    if error and str(error).strip():
        return str(error).strip()[:200]
    if not (text or "").strip() and str(row.get("reasoning_content") or "").strip():
        return "only a thought came back"
    return why_unscored(text, next((row[name] for name in _REASONS if row.get(name)), None), row.get("refusal"))
