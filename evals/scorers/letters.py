"""Which option an answer chooses, read as a careful reader would: for sure, or not at all.

In this order, on plain text (plain_text.py). What is found first decides; where it is not for sure, nothing further is tried.

1. The answer is a letter and nothing else: "B", "(b)", "**B**", "$\\boxed{B}$".
2. It is *stated*: "answer is B", "Answer: (B)", "not A but B", in some twenty languages. The last statement counts, since
   models correct themselves; a later judgement (3) on another letter leaves it open.
3. It is *judged*: "option B is correct", "I choose B", "it's B", "so B". All such must agree.
4. It is *ticked*: of the lines that begin with a letter, the only one with a tick: "B ✓", "- [x] B".
5. It *opens or closes* the text: "B. dog", "Option B", a last line of one letter. Not where the text lists the options.
6. The text of exactly one option stands in a short answer as whole words, in a sentence that denies nothing.

A letter that is denied ("B is wrong"), supposed ("if the answer is B"), one of several ("A or B"), or followed by another
option's text ("B. cat") is not chosen. "A" and "I" before another word are an article and a pronoun.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from visrl.core.types import Unparsed
from visrl.evals.scorers import choice_words as worded
from visrl.evals.scorers.plain_text import plain

_ALONE = re.compile(r"\W{0,20}([A-Za-z])\W{0,20}")
_SENTENCE_ENDS = re.compile(r"[.!?;\n。！？]")
_WORD = re.compile(r"[^\W_]+(?:['.][^\W_]+)*")
_ARTICLES = frozenset({"a", "an", "the"})
_CONTEXT = 160  # characters before a statement that may take it back
_SHORT = 200  # an answer that chooses by an option's text says little else


def letter(text: str, options: Mapping[str, str]) -> str | Unparsed:
    """The option's letter that an output chooses, or why none is read. ``options``: letter -> text of the options that exist.

    Never raises; reads the first and last 20,000 characters of the answer, in a time linear in the output's length.
    """
    answer = plain(text)
    if isinstance(answer, Unparsed):
        return answer
    if not answer.strip():
        return Unparsed("empty output")
    alone = _ALONE.fullmatch(answer)
    if alone:
        name = alone.group(1).upper()
        return name if name in options else Unparsed(f"{name} is no option")
    for read in (_by_statement, _by_ticks, _at_an_end, _by_text):
        if (found := read(answer, options)) is not None:
            return found
    return Unparsed("no option is named")


class _Said(NamedTuple):
    """A letter at ``end`` of a text, from ``start`` on; ``name`` "" where it is one of several or contradicts itself."""

    name: str
    start: int
    end: int


def _by_statement(text: str, options: Mapping[str, str]) -> str | Unparsed | None:
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


def _said(text: str, options: Mapping[str, str], patterns: Sequence[re.Pattern[str]]) -> list[_Said]:
    """What the patterns find, less what is denied, supposed or an article."""
    found = []
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
    word = _WORD.match(rest, 1)
    return word is None or word.group().lower() in worded.GOES_ON


def _one_of_several(text: str, start: int, end: int, name: str) -> bool:
    further = worded.FURTHER.match(text, end)
    if further is not None and further["next"] != name and not _is_article(text, further.end()):
        return True
    return worded.FURTHER_BEFORE.search(text[max(0, start - 24) : start]) is not None


def _is_article(text: str, end: int) -> bool:
    word = _WORD.match(text, end + 1) if text[end : end + 1] == " " else None
    return text[end - 1] in "AI" and word is not None and word.group().lower() not in worded.GOES_ON


def _contradicts(text: str, end: int, name: str, options: Mapping[str, str]) -> bool:
    """Whether what follows the letter is another option's text and not its own: "B. cat"."""
    rest = text[end : end + 400].lstrip(" .):,-–—([{]}>、")
    said = _words(_SENTENCE_ENDS.split(rest.lstrip("\n"), maxsplit=1)[0])
    return (
        bool(said) and said != _words(options.get(name, "")) and said in [_words(option) for option in options.values()]
    )


def _by_ticks(text: str, options: Mapping[str, str]) -> str | Unparsed | None:
    """The one letter whose line has a tick, where lines have ticks or crosses."""
    lines = [match for match in worded.LISTED_LINE.finditer(text) if match["letter"] in options]
    ticked = {match["letter"] for match in lines if worded.TICK.search(match.group())}
    crossed = {match["letter"] for match in lines if worded.CROSS.search(match.group())}
    if len(lines) < 2 or not ticked | crossed:
        return None
    return ticked.pop() if len(ticked) == 1 and not ticked & crossed else Unparsed("not one option is ticked")


def _at_an_end(text: str, options: Mapping[str, str]) -> str | Unparsed | None:
    """The letter that opens the text, else the one that its last line consists of."""
    first = worded.OPENING.match(text)
    if (
        first is not None
        and len(set(worded.LISTED.findall(text)).intersection(options)) < 2
        and not worded.DENIED.match(text, first.end())
    ):
        name = (first["inside"] or first["lower"] or first["letter"]).upper()
        if name in options:
            if _one_of_several(text, first.start(), first.end() - len(first["mark"].lstrip(")]}>")), name):
                return Unparsed("more than one option is named")
            return (
                Unparsed(f"{name} with another option's text")
                if _contradicts(text, first.end(), name, options)
                else name
            )
    last = _ALONE.fullmatch(text.rpartition("\n")[2])
    return last.group(1).upper() if last is not None and last.group(1) in options else None


def _by_text(text: str, options: Mapping[str, str]) -> str | Unparsed | None:
    """The only option whose text stands in the answer; an option inside a longer matching one does not count."""
    wanted = {name: words for name, option in options.items() if (words := _words(option))}
    if len(text) > max(_SHORT, 2 * sum(map(len, options.values()))):
        return None
    found: set[str] = set()
    for sentence in _SENTENCE_ENDS.split(text):
        words = _words(sentence)
        here = {name: at for name, own in wanted.items() if (at := _place(own, words)) >= 0}
        longest = {
            name for name in here if not any(_inside(wanted[name], wanted[other]) for other in here if other != name)
        }
        for name in longest:
            rest = words[: here[name]] + words[here[name] + len(wanted[name]) :]
            if not worded.NEGATED.intersection(rest):
                found.add(name)
    if len(found) > 1:
        return Unparsed("more than one option is named")
    return found.pop() if found else None


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.lower()) if word not in _ARTICLES]


def _place(own: Sequence[str], words: Sequence[str]) -> int:
    return next((i for i in range(len(words) - len(own) + 1) if words[i : i + len(own)] == own), -1)


def _inside(own: Sequence[str], longer: Sequence[str]) -> bool:
    return len(own) < len(longer) and _place(own, longer) >= 0
