"""Which option an answer chooses, read as a careful reader would: for sure, or not at all.

In this order, on plain text (plain_text.py). What is found first decides; where it is not for sure, nothing further is tried.

1. The answer is a letter and nothing else: "B", "(b)", "**B**", "$\\boxed{B}$"; or the text of one option and nothing else.
2. It is *stated*: "answer is B", "Answer: (B)", "not A but B", in some twenty languages. The last statement counts, since
   models correct themselves; a later judgement (3) on another letter leaves it open.
3. It is *judged*: "option B is correct", "I choose B", "it's B", "so B". All such must agree.
4. It is *ticked*: of the lines that begin with a letter, the only one with a tick: "B ✓", "- [x] B".
5. It *opens or closes* the text: "B. dog", "Option B", a last line of one letter. Not where the text lists the options.
6. The text of exactly one option stands in a short answer as whole words, in a sentence that denies nothing (option_texts.py).

Where a line begins the next question ("Question:", "USER:"), what stands before it is read first. A letter that is a part of
an option's text ("Vitamin C"), denied ("B is wrong"), supposed ("if the answer is B"), one of several ("A or B"), or followed by
another option's text ("B. cat") is not chosen. "A" and "I" before another word are an article and a pronoun.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from visrl.core.types import Unparsed
from visrl.evals.scorers import choice_words as worded
from visrl.evals.scorers.option_texts import OptionTexts
from visrl.evals.scorers.plain_text import plain

_ALONE = re.compile(r"[^\w+#°%&=@]{0,20}([A-Za-z])[^\w+#°%&=@-]{0,20}")
_CONTEXT = 160  # characters before a statement that may take it back


def letter(text: str, options: Mapping[str, str]) -> str | Unparsed:
    """The option's letter that an output chooses, or why none is read. ``options``: letter -> text of the options that exist.

    Never raises; reads the first and last 20,000 characters of the answer, in a time linear in the output's length.
    """
    answer = plain(text)
    if isinstance(answer, Unparsed):
        return answer
    if not answer.strip():
        return Unparsed("empty output")
    texts = OptionTexts(options)
    alone = _ALONE.fullmatch(answer)
    if alone and (name := alone.group(1).upper()) in texts:
        return name
    if (whole := texts.equal_to(answer)) is not None:
        return whole
    if alone:
        return Unparsed(f"{name} is no option")
    first = worded.NEXT_QUESTION.split(answer, maxsplit=1)[0]
    if first != answer and not isinstance(found := _read(first, texts), Unparsed):
        return found
    return _read(answer, texts)


def _read(answer: str, options: OptionTexts) -> str | Unparsed:
    for read in (_by_statement, _by_ticks, _at_an_end, _by_text):
        if (found := read(answer, options)) is not None:
            return found
    return Unparsed("no option is named")


class _Said(NamedTuple):
    """A letter at ``end`` of a text, from ``start`` on; ``name`` "" where it is one of several or contradicts itself."""

    name: str
    start: int
    end: int


def _by_statement(text: str, options: OptionTexts) -> str | Unparsed | None:
    stated = _said(text, options, worded.STATED)
    judged = _said(text, options, worded.JUDGED)
    if stated:
        last = max(stated, key=lambda said: said.end)
        judged = [said for said in judged if said.start >= last.end and said.name != last.name]
        found = {last.name, *(said.name for said in judged)}
    else:
        found = {said.name for said in judged}
    if not found:
        return None
    if len(found) > 1 or found == {""}:
        return Unparsed("more than one option is stated")
    name = found.pop()
    return name if name in options else Unparsed(f"{name} is no option")


def _said(text: str, options: OptionTexts, patterns: Sequence[re.Pattern[str]]) -> list[_Said]:
    """What the patterns find, less what is denied, supposed or an article."""
    found = []
    parts = options.parts(text)
    for pattern in patterns:
        for match in pattern.finditer(text):
            end = match.end("letter")
            if not _is_letter(text, match) or worded.DENIED.match(text, match.end()):
                continue
            if worded.SUPPOSED.search(text[max(0, match.start() - _CONTEXT) : match.start()]):
                continue
            if worded.MISTAKEN.search(text[max(0, match.start("letter") - _CONTEXT) : match.start("letter")]):
                continue
            name = match["letter"].upper()
            if end in parts:  # "Vitamin C" is no C, unless it is C's own text
                found += [_Said(name, match.start(), end)] if parts[end] == {name} else []
                continue
            several = _one_of_several(text, match.start("letter"), match.end(), name)
            found.append(
                _Said("" if several or _contradicts(text, match.end(), name, options) else name, match.start(), end)
            )
    return found


def _is_letter(text: str, match: re.Match[str]) -> bool:
    """Not the article of "answer is A dog", nor a small letter that begins a sentence's next word."""
    name, end = match["letter"], match.end("letter")
    rest = text[end : end + 24]
    if name.islower() and rest[:1] not in ("", "\n", *".,;:!?)]}>"):
        return False
    if name not in "AI" or not rest.startswith(" "):
        return True
    word = worded.WORD.match(rest, 1)
    return word is None or word.group().lower() in worded.GOES_ON


def _one_of_several(text: str, start: int, end: int, name: str) -> bool:
    further = worded.FURTHER.match(text, end)
    if further is not None and further["next"] != name and not _is_article(text, further.end()):
        return True
    return worded.FURTHER_BEFORE.search(text[max(0, start - 24) : start]) is not None


def _is_article(text: str, end: int) -> bool:
    word = worded.WORD.match(text, end + 1) if text[end : end + 1] == " " else None
    return text[end - 1] in "AI" and word is not None and word.group().lower() not in worded.GOES_ON


def _contradicts(text: str, end: int, name: str, options: OptionTexts) -> bool:
    rest = text[end : end + 400]
    return options.contradict(name, rest[worded.MARK.match(rest).end() :])  # type: ignore[union-attr]  # matches ""


def _by_ticks(text: str, options: OptionTexts) -> str | Unparsed | None:
    """The one letter whose line has a tick, where lines have ticks or crosses."""
    lines = [match for match in worded.LISTED_LINE.finditer(text) if match["letter"] in options]
    ticked = {match["letter"] for match in lines if worded.TICK.search(match.group())}
    crossed = {match["letter"] for match in lines if worded.CROSS.search(match.group())}
    if len(lines) < 2 or not ticked | crossed:
        return None
    return ticked.pop() if len(ticked) == 1 and not ticked & crossed else Unparsed("not one option is ticked")


def _at_an_end(text: str, options: OptionTexts) -> str | Unparsed | None:
    """The letter that opens the text, else the one that its last line consists of."""
    first = worded.OPENING.match(text)
    if (
        first is not None
        and len(set(worded.LISTED.findall(text)).intersection(options.texts)) < 2
        and not worded.DENIED.match(text, first.end())
    ):
        name = (first["inside"] or first["lower"] or first["letter"]).upper()
        at = next(first.end(group) for group in ("inside", "lower", "letter") if first[group])
        if name in options and at not in options.parts(text):
            if _one_of_several(text, first.start(), first.end() - len(first["mark"].lstrip(")]}>")), name):
                return Unparsed("more than one option is named")
            return (
                Unparsed(f"{name} with another option's text")
                if _contradicts(text, first.end(), name, options)
                else name
            )
    last = _ALONE.fullmatch(text.rpartition("\n")[2])
    return last.group(1).upper() if last is not None and last.group(1) in options else None


def _by_text(text: str, options: OptionTexts) -> str | Unparsed | None:
    return options.named_in(text)
