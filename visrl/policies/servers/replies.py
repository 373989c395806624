"""What a server says, piece by piece, and tool calls in the interface's own layout.

A server that is told of a tool (``tools=native``) answers with ``tool_calls`` beside the text. To the rollout both are
one text, as ``zoom`` has it (core/looking/calls.py), and on the way back a turn with a call becomes an assistant message with
``tool_calls``, what the tool showed a ``tool`` message, and its picture, which that cannot hold, a ``user`` message behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from visrl.core.json_files import decode_foreign
from visrl.core.looking.calls import CALL, call_text
from visrl.core.outputs import joined_content
from visrl.policies.protocol import Tool
from visrl.policies.servers.failures import ServerFailed

Message = dict[str, Any]


class Reply(NamedTuple):
    """What a server said, why it ended there (OpenAI's ``finish_reason``), and its refusal, if it sent one."""

    text: str
    finish: str | None
    refusal: str = ""


@dataclass(slots=True)
class Calls:
    """Tool calls as their pieces come: number -> name and arguments so far."""

    parts: dict[int, list[str]] = field(default_factory=dict)

    def add(self, calls: Any) -> None:
        """A chunk's ``tool_calls``. Raises AttributeError or TypeError for what is not in the layout."""
        for place, call in enumerate(calls or ()):
            number = place if call.index is None else int(call.index)
            name, arguments = self.parts.setdefault(number, ["", ""])
            told = call.function
            if told is not None:
                self.parts[number] = [name + (told.name or ""), arguments + (told.arguments or "")]

    def text(self) -> str:
        """The first call as text; "" without any. What else was called is not read, like what stands behind a call in a text."""
        first = min(self.parts, default=None)
        return "" if first is None else call_text(*self.parts[first])


def pieces(chunk: Any, calls: Calls) -> Reply:
    """What a chunk adds; ``calls`` takes its tool calls. Raises ServerFailed for one that says that the server broke off, or is
    not in the interface's layout.
    """
    try:
        if broken := (chunk.model_extra or {}).get("error"):
            raise ServerFailed(f"the server broke off: {broken}")
        text, finish, refusal = "", None, ""
        for choice in chunk.choices or ():
            if (delta := choice.delta) is not None:
                text += joined_content(delta.content)
                refusal += delta.refusal or ""
                calls.add(delta.tool_calls)
            finish = choice.finish_reason or finish
        return Reply(text, finish, refusal)
    except (
        AttributeError,
        TypeError,
        ValueError,
    ) as error:  # the client checks no types: a chunk may be a text, a number
        raise ServerFailed(f"not in the layout of the interface: {error}") from error


def schema(tool: Tool) -> dict[str, Any]:
    """A tool as the interface declares one."""
    four = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
    parameters = {
        "type": "object",
        "properties": {tool.box: four, tool.label: {"type": "string"}},
        "required": [tool.box],
    }
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def with_native_calls(messages: Iterable[Message]) -> list[Message]:
    """Messages whose assistants' texts hold calls, with these in the interface's layout. A call that is not JSON stays a text."""
    out: list[Message] = []
    answers = ""  # the id of the call that the next message answers
    for message in messages:
        if message["role"] == "assistant" and (call := _call(str(message["content"]))) is not None:
            answers = f"call_{len(out)}"
            said, name, arguments = call
            told = {"id": answers, "type": "function", "function": {"name": name, "arguments": arguments}}
            out.append({"role": "assistant", "content": said or None, "tool_calls": [told]})
        elif answers and message["role"] == "user":
            parts = message["content"]
            text = "".join(part["text"] for part in parts if part["type"] == "text")
            out.append({"role": "tool", "tool_call_id": answers, "content": text})
            if shown := [part for part in parts if part["type"] != "text"]:
                out.append({"role": "user", "content": shown})
            answers = ""
        else:
            out.append(message)
    return out


def _call(text: str) -> tuple[str, str, str] | None:
    """(what is said before it, name, arguments as JSON) of a text's call; None where there is none that can be sent back."""
    before, opened, rest = text.partition(CALL.opening)
    inner, closed, _ = rest.partition(CALL.closing)
    if not opened or not closed:
        return None
    try:
        value = decode_foreign(inner)
    except (ValueError, OverflowError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    return before, value["name"], json.dumps(value.get("arguments", {}))
