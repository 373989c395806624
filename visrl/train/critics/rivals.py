"""The other answers that a question admits: what the standard answer is held against (margin_critic.py).

In this order; what is found first decides.

``yes``, ``no``   the standard answer is one of them: the other one
``option``        the question lists options ("A. dog"), and the standard answer is a letter, an option's text or both: the others
``choice``        the question ends in "the man or the boy?", and the standard answer is one of the two: the other one
``count``         it asks "how many", and the standard answer is a number below ten, in digits or as a word: the others below ten
``open``          anything else: what the policy itself answered to this question and the judge calls wrong, the commonest first

A rival is spelled as the standard answer is ("Yes." -> "No.", "(B)" -> "(A)"), so that spelling decides nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from visrl.core.types import CoTSample
from visrl.evals.judge import JudgeItem, make_judge

AnswerKind = Literal["yes", "no", "option", "choice", "count", "open"]
MOST = 8
"""Answers of the policy that an open question's standard answer is held against: each is read by the critic."""
WRONG = 0.5
"""A judge's score below which an answer of the policy is another one than the standard answer."""
_POLARITY: Mapping[str, AnswerKind] = {"yes": "yes", "no": "no"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CORE = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)
_OPTION = re.compile(r"(?:^|\s)\(?([A-Z])[.):]\s+(\S.*?)(?=\s+\(?[A-Z][.):]\s|\s*$)", re.DOTALL)
_OR = re.compile(r"(.*\S)\s+or\s+(\S.*?)\s*\?\s*", re.DOTALL | re.IGNORECASE)
_BEFORE = re.compile(r"[,:;]\s+|\s[-–—]\s+|\s(?=(?:the|an?)\s)", re.IGNORECASE)
_ARTICLE = re.compile(r"\A(?:the|an?)\s+", re.IGNORECASE)
_MARKS = " ,;:'\"“”‘’"
_HOW_MANY = re.compile(r"\bhow\s+many\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rivals:
    """kind: how they were found. texts: none only where a question is ``open`` and the policy gave no wrong answer."""

    kind: AnswerKind
    texts: tuple[str, ...]


def rivals_of(sample: CoTSample, sampled: Sequence[str] = (), judge: str = "exact") -> Rivals:
    """The answers that ``sample``'s first standard answer is held against. sampled: what the policy answered to it. judge: the
    offline rule that calls one of those wrong."""
    standard, question = sample.answers[0], f"{sample.question}{sample.instruction}"
    before, core, behind = _parts(standard)
    if kind := _POLARITY.get(core.lower()):
        return Rivals(kind, (f"{before}{_cased('no' if kind == 'yes' else 'yes', core)}{behind}",))
    if others := _other_options(question, standard):
        return Rivals("option", others)
    if other := _other_choice(sample.question, standard):
        return Rivals("choice", (other,))
    if _HOW_MANY.search(sample.question) and (counts := _other_counts(core)):
        return Rivals("count", tuple(f"{before}{count}{behind}" for count in counts))
    return Rivals("open", _wrong(sample, sampled, judge))


def _parts(text: str) -> tuple[str, str, str]:
    """What stands before, in and behind the words of an answer."""
    found = _CORE.fullmatch(text)
    assert found is not None, "it matches any text"
    return found[1], found[2], found[3]


def _cased(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def _spelled(text: str, like: str) -> str:
    return text.lower() if like.islower() else _cased(text, like)


def _other_options(question: str, standard: str) -> tuple[str, ...]:
    options = dict(_options(question))
    before, core, behind = _parts(standard)
    if len(options) < 2:
        return ()
    if core.upper() in options:
        return tuple(f"{before}{letter}{behind}" for letter in options if letter != core.upper())
    if ours := next((text for text in options.values() if _same(text, standard)), None):
        return tuple(text for text in options.values() if text != ours)
    ours = next((letter for letter, text in options.items() if re.fullmatch(_both(letter, text), standard)), None)
    if ours is None:
        return ()
    sign = standard[: -len(options[ours])]
    return tuple(f"{sign.replace(ours, letter, 1)}{text}" for letter, text in options.items() if letter != ours)


def _both(letter: str, text: str) -> str:
    return rf"\(?{letter}[.):]?\s+{re.escape(text)}"


def _options(question: str) -> Iterator[tuple[str, str]]:
    """Letter and text of the options that a question lists, from A on without a gap."""
    wanted = ord("A")
    for found in _OPTION.finditer(question):
        if ord(found[1]) == wanted:
            # what stands behind a line's end is the instruction, not the last option's text
            yield found[1], found[2].split("\n", 1)[0].rstrip()
            wanted += 1


def _same(one: str, other: str) -> bool:
    return _parts(one)[1].casefold() == _parts(other)[1].casefold()


def _other_choice(question: str, standard: str) -> str | None:
    found = _OR.fullmatch(question.strip())
    if found is None or not standard:
        return None
    said = [_BEFORE.split(found[1].rstrip(_MARKS))[-1].strip(_MARKS), found[2].strip(_MARKS)]
    if _ARTICLE.match(said[0]) and not _ARTICLE.match(said[1]):
        return None  # "connected on the screen or connecting?": what the first one is cannot be told
    two = [_ARTICLE.sub("", text) for text in said]
    ours = [_same(text, standard) for text in two]
    if not any(ours) or all(ours):
        return None
    own, other = two[ours.index(True)], two[ours.index(False)]
    as_asked = own.strip(".") == standard.strip(".")
    return (other if as_asked else _spelled(other, standard)) + ("." if standard.endswith(".") else "")


def _other_counts(standard: str) -> tuple[str, ...]:
    if standard.isdecimal() and len(standard) == 1:
        return tuple(str(n) for n in range(10) if n != int(standard))
    if standard.lower() in _NUMBERS:
        return tuple(_cased(word, standard) for word in _NUMBERS if word != standard.lower())
    return ()


def _wrong(sample: CoTSample, sampled: Sequence[str], judge: str) -> tuple[str, ...]:
    common = [text for text, _ in Counter(text for text in sampled if text.strip()).most_common()]
    items = [JudgeItem(sample.id, sample.question, sample.answers, text) for text in common]
    scores = make_judge(judge).judge_many(items)
    wrong = [t for t, score in zip(common, scores, strict=True) if score.value is not None and score.value < WRONG]
    return tuple(wrong[:MOST])
