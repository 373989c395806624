"""When two free answers are equal in words, and how alike they are: the offline judges' rules (judge.py).

Equal but for case, punctuation, articles, width (ＯＫ) and the comma in 1,000. What distinguishes answers survives: the sign of
a number (-5), ``+``, ``#`` and a grade's or blood group's ``-`` at the end of a word (C++, C#, A-, 35+), decimal points (.5 is
0.5). A unit sign at a number ($ € £ ¥ ₹ % < > and the like) may be left out of one of two answers, since the benchmarks' standard
answers write both "$6.60" and "6.60" for what a picture shows; two different ones are different answers. A plus or # before a
number says nothing.

Where nothing but articles is left the articles count ("A" is not "The"), and where no word is left, the signs do: nothing is
equal to nothing only when both texts were blank. Of a text the first READ characters count. Linear in the length of the texts,
but for the edit distance, which is 0 similarity for texts of very different lengths.
"""

from __future__ import annotations

import re
import string
from typing import NamedTuple

from visrl.core.outputs import FULL_WIDTH

READ = 100_000
_ARTICLES = frozenset({"a", "an", "the"})
_QUOTES = "‘’“”–—…"
_CURRENCY = "$€£¥₹₩₽¢"
_UNITS = frozenset(_CURRENCY + "%‰<>≤≥")
_LATEX = re.compile(r"\\(?:boxed|text[a-z]{0,2}|math[a-z]{0,2})(?=\{)")
# Signs that survive are written as these letters of nobody's alphabet until punctuation is gone
_MINUS, _PLUS, _SHARP, _POINT = "\ue000", "\ue001", "\ue002", "\ue003"
_MARKED = str.maketrans({_MINUS: "-", _PLUS: "+", _SHARP: "#", _POINT: "."})
_IN_NUMBER = re.compile(r"(?<=\d)(?:\.(?=\d)|,(?=\d{3}(?!\d)))")  # the comma of 1,000, not of 1,2,3
_BARE_POINT = re.compile(r"(?<![\w.])\.(?=\d)")  # .5 is 0.5
_SIGN = re.compile(rf"(?<![\w)\]%°])[-−–](?=[{_CURRENCY}]?\.?\d)")  # not the dash of 5-10 or May-5
_UNIT_BEFORE = re.compile(rf"([{_CURRENCY}<>≤≥])[ ]?(?={_MINUS}?[.]?\d)")
_UNIT_AFTER = re.compile(rf"(?<=\d)[ ]?([%‰{_CURRENCY}])")
_PLUSES = re.compile(r"(?<=\w)\+{1,2}(?![\w+])")
_SHARPS = re.compile(r"(?<=[^\W\d_])#(?!\w)")
_GRADES = re.compile(r"(?<!\w)([a-z]{1,2})[-−](?![\w-])")
_UNIT_LETTERS = {unit: chr(0xE010 + i) for i, unit in enumerate(sorted(_UNITS))}
_UNIT_OF = {letter: unit for unit, letter in _UNIT_LETTERS.items()}
_CHECKED = 1000  # places in an answer whose units are compared with the standard answer's


class Word(NamedTuple):
    """A word as it is compared, and the unit signs at it: "$5" is ("5", "$")."""

    core: str
    unit: str


def words(text: str) -> list[Word]:
    """What is compared of a text: "The Bird's -$1,000.50." -> bird, s, -1000.50 with $. Never raises."""
    text = " ".join(_LATEX.sub("", text[:READ].translate(FULL_WIDTH)).lower().split())
    text = _BARE_POINT.sub("0.", text)
    text = _IN_NUMBER.sub(lambda m: _POINT if m.group() == "." else "", text)
    text = _GRADES.sub(rf"\1{_MINUS}", _SIGN.sub(_MINUS, text))
    text = _SHARPS.sub(_SHARP, _PLUSES.sub(lambda m: _PLUS * len(m.group()), text))
    text = _UNIT_BEFORE.sub(lambda m: _UNIT_LETTERS[m.group(1)], text)
    text = _UNIT_AFTER.sub(lambda m: _UNIT_LETTERS[m.group(1)], text)
    kept = "".join(" " if c in string.punctuation or c in _QUOTES else c for c in text)
    found = [_word(word) for word in kept.split()]
    return [word for word in found if word.core not in _ARTICLES] or found


def _word(word: str) -> Word:
    core = "".join(c for c in word if c not in _UNIT_OF)
    unit = "".join(sorted(_UNIT_OF[c] for c in word if c in _UNIT_OF))
    return Word(core.translate(_MARKED), unit)


def exact(standard: str, answer: str) -> float:
    """1 when both are equal in words, else 0."""
    wanted, given = words(standard), words(answer)
    if not wanted or not given:
        return float(" ".join(standard.lower().split()) == " ".join(answer.lower().split()))
    return float(len(wanted) == len(given) and all(map(agree, wanted, given)))


def contains(standard: str, answer: str) -> float:
    """1 when the standard answer stands in the answer as whole words, else 0. Generous to answers that list everything.

    A standard answer without a word, or of articles alone, must be the whole answer.
    """
    wanted, given = words(standard), words(answer)
    if all(word.core in _ARTICLES for word in wanted):
        return exact(standard, answer)
    return float(_stands_in(wanted, given))


def agree(a: Word, b: Word) -> bool:
    """Whether two words are equal, a unit sign aside that only one of them has."""
    return a.core == b.core and (a.unit == b.unit or not a.unit or not b.unit)


def _stands_in(wanted: list[Word], given: list[Word]) -> bool:
    """Whether the words stand in a row somewhere; of very many places with the same letters the first _CHECKED count."""
    needle = f" {' '.join(word.core for word in wanted)} "
    hay = f" {' '.join(word.core for word in given)} "
    place, number, position = hay.find(needle), 0, 0
    with_units = [(i, word) for i, word in enumerate(wanted) if word.unit]
    for _ in range(_CHECKED):
        if place < 0:
            return False
        number += hay.count(" ", position, place)
        position = place
        if all(agree(word, given[number + i]) for i, word in with_units):
            return True
        place = hay.find(needle, place + 1)
    return False


def anls(standard: str, answer: str) -> float:
    """1 - edit distance / longer length of the lower-cased texts, and 0 from a distance of half the length on (ANLS, DocVQA)."""
    a, b = (" ".join(text.lower().split()) for text in (standard, answer))
    longer = max(len(a), len(b))
    if longer == 0:
        return 1.0
    if abs(len(a) - len(b)) * 2 >= longer:  # the distance is at least that: a megabyte of answer costs nothing
        return 0.0
    from rapidfuzz.distance import Levenshtein  # only where it is needed: it takes 20 ms to import

    distance = Levenshtein.distance(a, b) / longer
    return 1.0 - distance if distance < 0.5 else 0.0
