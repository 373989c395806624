"""Where the texts of a question's options stand in an answer: as all of it, in its sentences, or around a single letter.

Both are normalised alike (plain_text.py), and words are compared as the offline judges compare them (evals/equal_words.py):
what tells options apart survives, so 0.5 is not 5, -5 not 5, C++ not C, "x > 3" not "x < 3". A mark that ends a sentence ends
none where it stands so in an option: "St. Louis", "It is red. It is large."
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from visrl.core.types import Unparsed
from visrl.evals.equal_words import Word, agree, words
from visrl.evals.scorers import choice_words as worded
from visrl.evals.scorers.plain_text import normalised
from visrl.evals.scorers.yes_no import said_in_words

_SENTENCE_END = re.compile(r"[.!?;](?=\s|\Z|[^\x00-\x7f])|(?<=[a-z])\.(?=[A-Z][a-z])|[\n。！？]")
_INNER_END = re.compile(r"\S{0,40}[.!?;](?=\s+\S)")
_SINGLE_LETTER = re.compile(r"(?<![^\W_])[A-Za-z](?![^\W_])")
_BEFORE, _BEHIND = " \"'([{", " .,:;!?\"')]}"  # not the point of .5
_SHORT = 200  # an answer that chooses by an option's text says little else


class OptionTexts:
    """The options of one question. ``options``: letter -> text."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.texts = {name: normalised(option) for name, option in options.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.texts

    def equal_to(self, answer: str) -> str | None:
        """The only option that the whole answer is, but for case and the marks around it."""
        for marks in (("", ""), (_BEFORE, _BEHIND)):
            wanted = _folded(answer, *marks)
            found = [name for name, text in self.texts.items() if wanted and _folded(text, *marks) == wanted]
            if found:
                return found[0] if len(found) == 1 else None
        return None

    def parts(self, answer: str) -> dict[int, set[str]]:
        """Where letters end that are part of an option's text ("Vitamin C") -> the options whose texts stand there."""
        found = defaultdict[int, set[str]](set)
        for name, text in self.texts.items():
            if len(text) > 1 and _SINGLE_LETTER.search(text):
                for match in re.finditer(rf"(?<![^\W_]){re.escape(text)}(?![^\W_])", answer, re.IGNORECASE):
                    for one in _SINGLE_LETTER.finditer(match.group()):
                        found[match.start() + one.end()].add(name)
        return found

    def contradict(self, name: str, following: str) -> bool:
        """Whether what follows a letter is another option's text and not its own: "B. cat"."""
        following = following[: 2 * self._longest + 40]
        own = self._words.get(name, [])
        said = words(next(self._sentences(following.lstrip("\n")), ""))
        if not said or _equal(own, words(following)[: len(own)], at_least=len(said)):
            return False
        return any(_equal(said, text) for text in self._words.values())

    def named_in(self, answer: str) -> str | Unparsed | None:
        """The only option whose text stands in a short answer, in a sentence that denies nothing.

        An option inside a longer one there does not count. "Yes" and "no" as options are read as answers to a yes/no question:
        neither is named by "No idea".
        """
        if len(answer) > max(_SHORT, 2 * sum(map(len, self.texts.values()))):
            return None
        yes_no = {
            text[0].core: name for name, text in self._words.items() if len(text) == 1 and text[0].core in ("yes", "no")
        }
        if len(yes_no) < 2:
            yes_no = {}
        wanted = {name: text for name, text in self._words.items() if text and name not in yes_no.values()}
        found = {
            name
            for sentence in self._sentences(worded.IDIOMS.sub(" ", answer))
            for name in self._named(sentence, wanted)
        }
        said = said_in_words(answer) if yes_no else None
        if isinstance(said, Unparsed):
            return said
        if said is not None:
            found.add(yes_no[said])
        if len(found) > 1:
            return Unparsed("more than one option is named")
        return found.pop() if found else None

    def _named(self, sentence: str, wanted: Mapping[str, list[Word]]) -> Iterator[str]:
        said = words(sentence)
        here = [name for name, own in wanted.items() if _stands_in(own, said)]
        for name in here:
            inside = any(len(wanted[name]) < len(wanted[n]) and _stands_in(wanted[name], wanted[n]) for n in here)
            if not inside and not _negations(sentence) - _negations(self.texts[name]):
                yield name

    @cached_property
    def _words(self) -> dict[str, list[Word]]:
        return {name: words(text) for name, text in self.texts.items()}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.texts.values()), default=0)

    @cached_property
    def _inner_ends(self) -> set[str]:
        return {match.group().lower() for text in self.texts.values() for match in _INNER_END.finditer(text)}

    def _sentences(self, text: str) -> Iterator[str]:
        start = 0
        for match in _SENTENCE_END.finditer(text):
            last_word = re.split(r"\s", text[max(start, match.end() - 41) : match.end()])[-1]
            if last_word.lower() not in self._inner_ends:
                yield text[start : match.start()]
                start = match.end()
        yield text[start:]


def _folded(text: str, before: str, behind: str) -> str:
    return " ".join(text.split()).casefold().lstrip(before).rstrip(behind)


def _negations(text: str) -> Counter[str]:
    return Counter(word for word in worded.WORD.findall(text.lower()) if word in worded.NEGATED)


def _equal(a: Sequence[Word], b: Sequence[Word], at_least: int = 0) -> bool:
    return len(a) == len(b) >= at_least and all(map(agree, a, b))


def _stands_in(own: Sequence[Word], said: Sequence[Word]) -> bool:
    return any(_equal(own, said[i : i + len(own)]) for i in range(len(said) - len(own) + 1))
