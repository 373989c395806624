"""Turns -> the exact text a family was trained on, with a mark for each picture, and which characters are replies.

Chat templates of repositories reorder pictures ("render all images first"), add a newline of their own after each, or
insert a system prompt that another checkpoint of the same model lacks. The protocols (prompts.py) fix every byte of a
prompt, so the layout is data of ours: evaluation, pair generation, SFT and DPO all render with it. :func:`template` is the
same layout as a Jinja chat template, for servers and for trained checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from visrl.core.types import Picture, Turn

Place = Literal["inline", "first", "last"]


class LayoutError(ValueError):
    """A conversation this family cannot express; the sample fails with this reason."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a conversation is written down.

    picture: the mark of one picture. place: ``inline`` where the turn has it; ``first``: all pictures of the conversation
    where its first one stands; ``last``: behind the texts of their turn.
    after_pictures: what follows the pictures of ``first``.
    opening: the text before the first turn, when that is not a system turn. generation_prompt: what makes the model reply.
    """

    picture: str
    user: str
    user_end: str
    assistant: str
    assistant_end: str
    generation_prompt: str
    opening: str = ""
    before: str = ""
    system: str = ""
    system_end: str = ""
    place: Place = "inline"
    after_pictures: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text. ``pictures`` in the order of their marks; ``replies``: character spans [start, end) of the
    assistant's texts with the mark that ends them (what a model is trained to write)."""

    text: str
    pictures: tuple[Picture, ...]
    replies: tuple[tuple[int, int], ...]


def render(layout: Layout, turns: Sequence[Turn], *, add_generation_prompt: bool = True) -> Rendered:
    """The text of a conversation; with ``add_generation_prompt``, up to where the model goes on."""
    pictures = tuple(picture for turn in turns for picture in turn.pictures)
    text = layout.before
    if not turns or turns[0].role != "system":
        text += layout.opening
    replies: list[tuple[int, int]] = []
    waiting = len(pictures)  # of place "first": not yet written
    for turn in turns:
        if turn.role == "assistant":
            start = len(text) + len(layout.generation_prompt)
            text += layout.assistant + turn.text() + layout.assistant_end
            replies.append((start, len(text)))
        elif turn.role == "system":
            text += layout.system + turn.text() + layout.system_end
        else:
            body, waiting = _body(layout, turn, waiting)
            text += layout.user + body + layout.user_end
    return Rendered(text + layout.generation_prompt if add_generation_prompt else text, pictures, tuple(replies))


def _body(layout: Layout, turn: Turn, waiting: int) -> tuple[str, int]:
    texts = [part for part in turn.parts if isinstance(part, str)]
    if layout.place == "inline":
        return "".join(part if isinstance(part, str) else layout.picture for part in turn.parts), waiting
    if layout.place == "last":
        return "".join(texts) + layout.picture * len(turn.pictures), waiting
    ahead = layout.picture * waiting + layout.after_pictures if waiting else ""
    return ahead + "".join(texts), 0


def template(layout: Layout) -> str:
    """The layout as a Jinja chat template with ``{% generation %}`` around replies, for messages with content lists.

    The generation prompt opens a reply, so what is trained of a reply starts right behind it, as in :func:`render`.
    """
    q = _quoted
    rest = layout.assistant.removeprefix(layout.generation_prompt)
    texts = "{%- for c in m.content if c.type == 'text' -%}{{- c.text -}}{%- endfor -%}"
    marks = "{%- for c in m.content if c.type == 'image' -%}{{- " + q(layout.picture) + " -}}{%- endfor -%}"
    if layout.place == "inline":
        body = (
            "{%- for c in m.content -%}{%- if c.type == 'image' -%}{{- " + q(layout.picture) + " -}}"
            "{%- elif c.type == 'text' -%}{{- c.text -}}{%- endif -%}{%- endfor -%}"
        )
    elif layout.place == "last":
        body = texts + marks
    else:
        body = (
            "{%- if not ns.shown -%}{%- set ns.shown = true -%}{%- for n in messages if n.content is not string -%}"
            + marks.replace("m.content", "n.content")
            + "{%- endfor -%}{{- "
            + q(layout.after_pictures)
            + " -}}{%- endif -%}"
            + texts
        )
    plain = "{%- if m.content is string -%}{{- m.content -}}{%- else -%}"
    return (
        "{%- set ns = namespace(shown=false) -%}{{- " + q(layout.before) + " -}}"
        "{%- if messages[0].role != 'system' -%}{{- " + q(layout.opening) + " -}}{%- endif -%}"
        "{%- for m in messages -%}{%- if m.role == 'assistant' -%}{{- " + q(layout.generation_prompt) + " -}}{%- generation -%}"
        "{{- " + q(rest) + " -}}" + plain + texts + "{%- endif -%}{{- " + q(layout.assistant_end) + " -}}"
        "{%- endgeneration -%}{%- elif m.role == 'system' -%}{{- " + q(layout.system) + " -}}"
        + plain + texts + "{%- endif -%}{{- " + q(layout.system_end) + " -}}"
        "{%- else -%}{{- " + q(layout.user) + " -}}" + plain + body + "{%- endif -%}{{- " + q(layout.user_end) + " -}}"
        "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- " + q(layout.generation_prompt) + " -}}{%- endif -%}"
    )  # fmt: skip


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


VICUNA = Layout(  # llava/conversation.py, vicuna_v1 (docs/method.md a2): SeparatorStyle.TWO, " " and "</s>"
    picture="<image>",
    opening=(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed,"
        " and polite answers to the user's questions. "
    ),
    user="USER: ",
    user_end=" ",
    assistant="ASSISTANT: ",
    assistant_end="</s>",
    generation_prompt="ASSISTANT:",
)
CHATML = Layout(  # Qwen and InternVL
    picture="<image>",
    system="<|im_start|>system\n",
    system_end="<|im_end|>\n",
    user="<|im_start|>user\n",
    user_end="<|im_end|>\n",
    assistant="<|im_start|>assistant\n",
    assistant_end="<|im_end|>\n",
    generation_prompt="<|im_start|>assistant\n",
)
