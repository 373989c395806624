"""What a model answered: its output without the thought before it. One step, before every scorer, judge and box parser.

The last ``<answer>…</answer>`` after the thought, else what follows the last ``</think>``, else the whole text, unchanged.
Tags in any case, with blanks or attributes in them, and the same marks as other families write them (``_MARKS``). Further:

1. A thought that never ends is no answer: Unparsed. Nor is one that nothing follows. In both an ``<answer>…</answer>`` at
   the very end of the text, a fence aside, counts (the model forgot ``</think>``); one that the thought goes on behind is
   only weighed.
2. An ``<answer>`` that is not closed reaches to the end of the text; with nothing behind it, the answer before it counts.
   An end without a beginning (prompts that open the tag themselves) closes what stands before it.
3. Without tags, a line that is a heading of the answer ("**Answer**", "### Final answer", "Answer: B"), behind a line that is a
   heading of the thought, does as ``<answer>`` does. Tags whose ``<`` is written ``&lt;`` are tags.
4. GLM's ``<|begin_of_box|>…<|end_of_box|>`` inside the answer is the answer. Marks of a turn's end are cut off.

Never raises, and linear in the length of the text: every mark is looked for by a pattern of bounded length.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

from visrl.core.types import Unparsed

ENDLESS = "the thought never ends"
NOTHING_AFTER = "nothing follows the thought"

_THOUGHT = "think|thinking|rationale|thoughts?|reasoning|reason|scratchpad|analysis"
_ANSWER = "answer|final[ _-]?answer|conclusion"  # conclusion: LLaVA-CoT
_MARKS = re.compile(
    "|".join(
        (
            # <think>, </Think >, <seed:think>, <think:name>, <answer type="x">; at the text's end also without its ">"
            rf"<\s{{0,4}}(?P<end>/?)\s{{0,4}}(?:\w{{1,16}}:)?(?:(?P<thought>{_THOUGHT})|(?P<answer>{_ANSWER}))"
            r"(?:[\s:][^<>]{0,200})?(?:>|\Z)",
            r"(?P<thought_starts>◁think▷|\[THINK\]|<\|(?:begin_of_thought|START_THINKING)\|>"
            r"|<\|channel\|>analysis<\|message\|>|<\|channel>thought"
            r"|<unused94>thought)",  # MedGemma, Kimi-VL, Magistral, OpenThinker, Cohere, gpt-oss, Gemma
            r"(?P<thought_ends>◁/think▷|\[/THINK\]|<\|(?:end_of_thought|END_THINKING)\|>"
            r"|<\|channel\|>final<\|message\|>|<channel\|>|<unused95>)",
            r"(?P<answer_starts><\|(?:begin_of_solution|START_RESPONSE)\|>)",
            r"(?P<answer_ends><\|(?:end_of_solution|END_RESPONSE)\|>)",
        )
    ),
    re.IGNORECASE,
)
_ESCAPED = re.compile(rf"&lt;/?(?:{_THOUGHT}|{_ANSWER})&gt;", re.IGNORECASE)
_HEADED = r"^[ \t]{{0,3}}(?:#{{1,6}}[ \t]{{1,4}})?(?:\*\*|__)?(?:{})(?:[ \t]{{0,4}}(?:\*\*|__|:)){{0,3}}"
_HEADING_OF_THOUGHT = re.compile(
    _HEADED.format(f"{_THOUGHT}|thought process") + r"(?:[ \t]{0,4}$|(?<=[:*_])[ \t])", re.IGNORECASE | re.MULTILINE
)
_HEADING_OF_ANSWER = re.compile(
    _HEADED.format(_ANSWER) + r"(?:[ \t]{0,4}$|(?<=[:*_])[ \t])", re.IGNORECASE | re.MULTILINE
)
_BOXED = re.compile(r"<\|(?P<answer_starts>begin_of_box)\|>|<\|(?P<answer_ends>end_of_box)\|>")
_NEXT_TURN = re.compile(
    r"<(?:\|im_end\||\|eot_id\||end_of_turn)>\s{0,4}<(?:\|im_start\||\|start_header_id\||start_of_turn)>\s{0,4}user"
)
_CLOSING = " \t\r\n`*"  # what may close a text behind its last tag: blanks, the fence or the bold that it stands in
_MARKED = re.compile(r"[<◁]|think\]", re.IGNORECASE)  # what every mark holds
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "<|return|>", "<end_of_turn>", "</s>", "<eos>")


class _Mark(NamedTuple):
    """A tag at [start, end) of the text."""

    thought: bool
    closing: bool
    start: int
    end: int


def final_answer(text: str) -> str | Unparsed:
    """The part of an output that answers, or why there is none. Text without marks comes back as it is."""
    return _find(text)[0]


def tagged_answer(text: str) -> str | Unparsed | None:
    """As :func:`final_answer`, but None where the answer does not stand in answer tags: for parsers that demand them."""
    found, tagged = _find(text)
    return found if tagged or isinstance(found, Unparsed) else None


def outside_thoughts(text: str) -> str:
    """What is said and not thought: without the thoughts, without one that never ends, and without what stands before an end of
    a thought that has no beginning (prompts open it themselves)."""
    if not _MARKED.search(text):
        return text
    said: list[str] = []
    start, opened = 0, False
    for mark in _marks(text, _MARKS):
        if not mark.thought or (opened and not mark.closing):
            continue
        if mark.closing:
            said = said if opened else []
            start, opened = mark.end, False
        else:
            said.append(text[start : mark.start])
            opened = True
    return "".join(said if opened else [*said, text[start:]])


def _find(text: str) -> tuple[str | Unparsed, bool]:
    """The answer, and whether answer tags hold it."""
    if "&lt;" in text and _ESCAPED.search(text):
        text = html.unescape(text)
    if not _MARKED.search(text):
        return _below_heading(text), False
    text = _without_turn_end(text)
    marks = _marks(text, _MARKS)
    if not marks:
        return _unboxed(_below_heading(text)), False
    last = max((i for i, mark in enumerate(marks) if mark.thought and mark.closing), default=-1)
    start = marks[last].end if last >= 0 else 0
    after = marks[last + 1 :]
    if any(mark.thought for mark in after):
        return _at_the_end(text, len(text), after, ENDLESS)
    answer = _block(text, start, len(text), after)
    if answer is not None:
        return _unboxed(answer), True
    if rest := text[start:].strip():
        return _unboxed(rest), False
    return _at_the_end(text, marks[last].start, marks[:last], NOTHING_AFTER)


def _at_the_end(text: str, end: int, marks: Sequence[_Mark], otherwise: str) -> tuple[str | Unparsed, bool]:
    """A complete answer with nothing between it and ``end``, in a text whose answer should stand elsewhere."""
    if (
        len(marks) >= 2
        and not marks[-1].thought
        and marks[-1].closing
        and not text[marks[-1].end : end].strip(_CLOSING)
    ):
        opening = marks[-2]
        if not opening.thought and not opening.closing:
            return _unboxed(text[opening.end : marks[-1].start].strip()), True
    return Unparsed(otherwise), False


def _below_heading(text: str) -> str:
    """What follows the last heading of an answer, in a text that has a heading of a thought before it; else the text."""
    thought = _HEADING_OF_THOUGHT.search(text)
    if thought is None:
        return text
    *_, last = [None, *_HEADING_OF_ANSWER.finditer(text, thought.end())]
    rest = "" if last is None else text[last.end() :].strip()
    return rest or text


def _block(text: str, start: int, end: int, marks: Sequence[_Mark]) -> str | None:
    """What the last answer tag of text[start:end] holds. ``marks``: the answer tags there, in order; None without any."""
    found: str | None = None
    for i, mark in enumerate(marks):
        following = marks[i + 1] if i + 1 < len(marks) else None
        if not mark.closing:
            block = text[mark.end : following.start if following else end].strip()
            closed = following is not None and following.closing
            found = block if block or closed else found
        elif i == 0:
            found = text[start : mark.start].strip()
    return found


def _unboxed(text: str) -> str:
    found = _block(text, 0, len(text), _marks(text, _BOXED))
    return text if found is None else found


def _marks(text: str, pattern: re.Pattern[str]) -> list[_Mark]:
    marks = []
    for match in pattern.finditer(text):
        start, end = match.span()
        if text.endswith("/>", start, end):  # <think/>: opened and closed, holds nothing
            continue
        kind = match.lastgroup or ""
        closing = kind.endswith("_ends") or (kind in ("thought", "answer") and bool(match["end"]))
        marks.append(_Mark(kind.startswith("thought"), closing, start, end))
    return marks


def _without_turn_end(text: str) -> str:
    """Without the marks that end a turn in special tokens, in case a decoder left them in, and a user's turn behind them."""
    if following := _NEXT_TURN.search(text):
        text = text[: following.start()]
    end, found = len(text.rstrip()), following is not None
    while mark := next((mark for mark in _ENDS if text.endswith(mark, 0, end)), ""):
        end, found = end - len(mark), True
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end] if found else text
