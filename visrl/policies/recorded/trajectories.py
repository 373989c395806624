"""Recorded conversations of several turns: messages in OpenAI's layout, a JSON object per line (docs/data.md).

``{"id": "0", "task": "vstar", "size": [2048, 1365], "messages": [{"role": "system", …}, …]}``. The model's turns
are the ``assistant`` messages in order: their ``content``, and behind it their first tool call. What was said in between is each
turn's prompt. Calls are carried out again from the recorded text, so no picture needs to be in the file; where the picture is not
at hand either, ``size`` (width, height in pixels) says what the calls' numbers refer to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from visrl.core.boxes import Size, is_size
from visrl.core.looking.calls import call_text
from visrl.core.outputs import joined_content
from visrl.core.types import Episode, Step

Told = tuple[tuple[str, str, int | None], ...]
"""(prompt, output, new tokens or None) of each turn."""


def turns_of(episode: Episode) -> Told | None:
    """The model's turns of an episode of several looks; None of any other."""
    if episode.ended is None:
        return None
    steps = [*(look.step for look in episode.looks), episode.answer_step]
    return tuple(_told(step) for step in steps if step is not None)


def _told(step: Step) -> tuple[str, str, int | None]:
    return step.prompt, step.output, step.output_tokens


def turns_of_messages(messages: Any) -> Told:
    """The same of messages. Raises ValueError or TypeError for another shape, and without a turn of the model's."""
    if not isinstance(messages, list):
        raise TypeError(f"messages is {type(messages).__name__}, not a list")
    told: list[tuple[str, str, int | None]] = []
    said: list[str] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise TypeError(f"message {number} is no object with a role")
        if message["role"] == "assistant":
            told.append(("\n".join(said), assistant_text(message), None))
            said = []
        else:
            said.append(f"{message['role']}: {_heard(message.get('content'))}")
    if not told:
        raise ValueError("no message is the assistant's")
    return tuple(told)


def assistant_text(message: Mapping[str, Any]) -> str:
    """An assistant's message as text: its content, then its first tool call. Raises TypeError for another shape."""
    text = joined_content(message.get("content"))
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise TypeError(f"tool_calls is {type(calls).__name__}, not a list")
    return text + "".join(_call(call) for call in calls[:1])


def _call(call: Any) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise TypeError("a tool call has no function with a name")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):  # not OpenAI's layout, but that of many who write it down
        arguments = json.dumps(arguments)
    return call_text(function["name"], arguments if isinstance(arguments, str) else "")


def _heard(content: Any) -> str:
    """What the model was told, its pictures as marks."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return joined_content(content)
    return "".join("<image>" if _is_picture(part) else joined_content([part]) for part in content)


def _is_picture(part: Any) -> bool:
    return isinstance(part, dict) and str(part.get("type", "")).removeprefix("input_") in ("image", "image_url")


def size_of(row: Mapping[str, Any]) -> Size | None:
    """(width, height) of a row. Raises ValueError for anything but the two sides of a picture."""
    size = row.get("size")
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and is_size(*size)):
        raise ValueError(f"size {size!r:.40} is not a width and a height in pixels")
    return size[0], size[1]
