"""A checkpoint's own chat template, which is not used: whether its prompts would differ from ours is said once."""

from __future__ import annotations

import logging
from typing import Any

from jinja2 import TemplateError

from visrl.core.types import Picture, Turn
from visrl.policies.families.base import Family

log = logging.getLogger(__name__)
CANNOT_WRITE = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    MemoryError,
)
"""What somebody else's template may raise when it runs."""
ASKED, ANSWERED, ASKED_AGAIN = "Where?", "[0.1, 0.2]", "What colour?"


def say_if_ignored(path: str, family: Family) -> None:
    """Warn where the template of ``path`` lays a conversation out otherwise than the family does, white space aside."""
    own = _by_template(family)
    if own is not None and own != _by_layout(family):
        log.warning(
            "%s has a chat template that lays prompts out otherwise than family %s does; the family's layout is used"
            " (docs/families.md)",
            path,
            family.name,
        )


def _by_template(family: Family) -> str | None:
    """The conversation as the checkpoint's template writes it; None where there is none, or it cannot write it."""
    if not family.processor.chat_template:
        return None
    picture, talk = {"type": "image"}, []
    for role, text in (("user", ASKED), ("assistant", ANSWERED), ("user", ASKED_AGAIN)):
        shown = [picture] if text == ASKED else []
        talk.append({"role": role, "content": [*shown, {"type": "text", "text": text}]})
    try:
        text = family.processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    except CANNOT_WRITE as error:
        log.info("its own chat template cannot write a conversation: %s", error)
        return None
    return _bare(str(text), family)


def _by_layout(family: Family) -> str:
    picture = Picture("", _never_opened)
    turns = (
        Turn("user", (picture, "\n" + ASKED)),
        Turn("assistant", (ANSWERED,)),
        Turn("user", (ASKED_AGAIN,)),
    )
    return _bare(family.render(turns).text, family)


def _bare(text: str, family: Family) -> str:
    """Without white space, and without the text's first token, which a tokenizer may add by itself."""
    return "".join(text.split()).removeprefix(family.tokenizer.bos_token or "")


def _never_opened() -> Any:
    raise AssertionError("a layout writes marks and opens no picture")
