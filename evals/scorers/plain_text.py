"""An answer as plain text: without the thought, markup, and runs of blanks, and no longer than what is read of it."""

from __future__ import annotations

import re
import unicodedata

from visrl.core.final_answer import final_answer
from visrl.core.types import Unparsed

HEAD = 20_000
"""Characters that are read at either end of an answer: what it says stands near the start or the end."""

_COMMANDS = re.compile(
    r"\\(?:boxed|fbox|text[a-z]{0,2}|math[a-z]{0,2})(?=\s?\{)|\\[()\[\]]|```[a-z]{0,10}|<br ?/?>"
    r"|<(?P<tag>b|i|u|em|strong|mark|code|span|p)>(?=[^<>]{1,400}</(?P=tag)>)"  # in pairs: "<B>" is a letter
    r"|(?<=[^<>])</(?:b|i|u|em|strong|mark|code|span|p)>",
    re.IGNORECASE,
)
_LINE_END = re.compile(r"\\n(?![a-z])")  # of a string that was escaped once more than unescaped; not LaTeX's \nu
_SIGNS = re.compile(r"(?<=\d)[*~](?=\d)|(?<![^\W_\d])#")  # 3~5 is not 35; the # of a heading, not of C#
_MARKUP = str.maketrans(dict.fromkeys("*`$~", "") | dict.fromkeys('_"“”„«»「」『』', " ") | {"’": "'", "‘": "'"})
_QUOTES = re.compile(r"(?<![^\W_])'|'(?![^\W_])")  # not the one of "can't"
_SPEAKER = re.compile(r"^\W{0,4}(?:assistant|model|gpt|ai|bot|response|output) ?: ?", re.IGNORECASE)


def plain(text: str) -> str | Unparsed:
    """The final answer of an output: full-width signs as usual ones, no Markdown, LaTeX or quotes, single blanks and line ends.

    Linear in the length of the text; of a long answer the first and the last HEAD characters.
    """
    answer = final_answer(text)
    if isinstance(answer, Unparsed):
        return answer
    if len(answer) > 2 * HEAD:
        answer = f"{answer[:HEAD]}\n{answer[-HEAD:]}"
    return _SPEAKER.sub("", normalised(answer))


def normalised(text: str) -> str:
    """What :func:`plain` makes of a text that is no model's output, such as an option: to be compared with an answer."""
    text = _LINE_END.sub("\n", unicodedata.normalize("NFKC", text))
    text = _QUOTES.sub(" ", _SIGNS.sub(" ", _COMMANDS.sub("", text)).translate(_MARKUP))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)
