"""A document of any lmms-eval task as a sample: its text is the question, its picture the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl.core.types import CoTSample, Picture
from visrl.errors import PictureError
from visrl.tasks.pictures import as_rgb, decoded

if TYPE_CHECKING:
    from PIL.Image import Image

Messages = Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
"""A task's ``doc_to_messages``: a document -> a chat."""


def upstream_sample(name: str, task: str, messages: Messages, document: Callable[[], Mapping[str, Any]]) -> CoTSample:
    """The sample of document ``name`` of ``task``. A document that cannot be read gives one whose picture says why.

    The task's ``post_prompt``, if the text ends in it, becomes the instruction, asked only where an answer is asked for.
    """
    try:
        text, picture = read_messages(messages(document()), f"{task}/{name}")
    except Exception as error:  # noqa: BLE001 - a task's own code, on one document: that sample fails, the rest goes on
        text, picture = "", failing(f"{task}/{name}", f"{type(error).__name__}: {error}")
    post = (getattr(getattr(messages, "__self__", None), "lmms_eval_specific_kwargs", None) or {}).get("post_prompt")
    instruction = post if isinstance(post, str) and post and text.endswith(post) else ""
    question = text.removesuffix(instruction) if instruction else text
    return CoTSample(name, task, "qa", question, picture=picture, instruction=instruction)


def read_messages(messages: Sequence[Mapping[str, Any]], name: str) -> tuple[str, Picture]:
    """(text, picture) of a chat of lmms-eval: system and user turns run together, one picture."""
    texts: list[str] = []
    images: list[Any] = []
    for message in messages:
        if message["role"] not in ("system", "user"):
            return "", failing(name, "a conversation with earlier answers (few-shot) is not supported")
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts.append(part["text"].replace("<image>", "").strip("\n"))
            elif part["type"] == "image":
                images.append(part["url"])
            else:
                return "", failing(name, f"{part['type']} is not supported")
    text = "\n".join(text for text in texts if text)
    if len(images) != 1:
        return text, failing(name, f"{len(images)} pictures: look, then answer takes one")
    return text, Picture(name, lambda: _opened(images[0]))


def _opened(image: Any) -> Image:
    if isinstance(image, str):
        try:
            return decoded(Path(image).read_bytes(), Path(image).name)
        except OSError as error:
            raise PictureError(f"{Path(image).name} cannot be read: {error.strerror or error}") from error
    return as_rgb(image)


def failing(name: str, reason: str) -> Picture:
    """A picture that cannot be opened."""

    def fail() -> Image:
        raise PictureError(reason)

    return Picture(name, fail)
