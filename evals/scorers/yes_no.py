"""Yes or no, read as a careful reader would: for sure, or not at all. Beside the published rules of POPE and MME, never for them.

In this order: the answer begins with a word for yes or no; it states one ("the answer is no", "Answer: **No**"), or ends with
one ("Based on the picture, yes.") and says nothing to the contrary; a short answer says whether what is asked for is there
("There is no dog", "I don't see a dog", "There is a dog"). Doubt ("not sure", "yes and no", "maybe") is neither. Words of some
fifteen languages.
"""

from __future__ import annotations

import re

from visrl.core.types import Unparsed
from visrl.evals.scorers.plain_text import plain

UNSURE = Unparsed("neither yes nor no for sure")

_YES = r"yes|yeah|yep|yup|yea|correct|true|ja|oui|sí|si|sì|sim|да|tak|evet|はい|네|예|是的|是|对的|对|有的|有|نعم|हाँ|हां|ya|có"
_NO = (
    r"nope|nah|no|false|nein|non|não|нет|nie|hayır|いいえ|아니요|아니오|아뇨"
    r"|不是的|不是|没有的|没有|沒有|不存在|不|否|لا|नहीं|tidak|không"
)
_END = r"(?![^\W_]|['-][A-Za-z])"
_EITHER = rf"(?:(?P<yes>{_YES})|(?P<no>{_NO})){_END}"
_OPENS = re.compile(
    r"\W{0,20}(?:(?:well|oh|i'd say|i would say|definitely|certainly|sure|absolutely|indeed)[, ]{1,2})?"
    rf"{_EITHER}(?! (?:idea|one|clue|way to|doubt|problem|answer|comment|information|or false)\b)"
    r"(?!\.? ?\d)(?! ?(?:and|or|/) ?(?:yes|no)\b)",
    re.IGNORECASE,
)
_STATED = re.compile(
    r"(?:\b(?:answer|ans|antwort|réponse|respuesta|resposta|risposta|ответ|antwoord)|答案|回答|答え|정답)"
    r"(?:\W{0,4}(?:is|would be|should be|must be|ist|lautet|est|es|é|è|это|是|为|は|은)|\W{0,2}[:=—–-]|(?<=[案答え답]))"
    rf"\W{{0,6}}{_EITHER}(?! ?(?:and|or|/) ?(?:yes|no)\b)",
    re.IGNORECASE,
)
_ENDS = re.compile(
    r"(?:(?<!yes)(?<!no)[,.:;!\n] ?|(?<!n't )(?<!not )(?<!to )\b(?:is|be|think|say|answer|option|probably|so|thus|therefore),? )"
    r"(?P<said>yes|no)[^\w?]{0,8}\Z",
    re.IGNORECASE,
)
_ABSENT = re.compile(
    r"\bthere(?: (?:is|are|was|were|does|do)(?: no\b| not\b|n't\b)|'s no\b)|\b(?:do|does|did|can|could)(?:n't| not) (?:see"
    r"|contain|show|include|depict|have|appear|find|detect|feature)\b|\bcannot see\b"
    r"|\bno \w{1,30} (?:is|are) (?:visible|present|shown)\b"
    r"|没有|沒有|不存在",
    re.IGNORECASE,
)
_PRESENT = re.compile(r"\bthere (?:is|are) (?!no\b|not\b)", re.IGNORECASE)
_NEGATIVE = re.compile(
    r"\b(?:no|not|neither|nor|without|nothing|nobody|zero|hardly|lack|false|doubt)\b|n't\b", re.IGNORECASE
)
_ASSENTS = re.compile(r"\W{0,20}(?:correct|true|sure)\b", re.IGNORECASE)  # "Correct, there is no dog"
_UNDECIDED = re.compile(
    r"\b(?:not (?:sure|certain)|unsure|cannot (?:tell|answer|determine)|can't (?:tell|answer))\b", re.IGNORECASE
)
_DOUBT = re.compile(
    r"\b(?:unclear|uncertain|maybe|perhaps|possibly|might|depends|unknown|cannot (?:say|be determined)"
    r"|can't (?:determine|say|help)"
    r"|(?:hard|difficult) to|if there (?:is|are)|whether)\b|是不是|有没有|\?",
    re.IGNORECASE,
)
_SHORT = 300  # characters of an answer that says nothing but whether something is there
_WORD = re.compile(r"[^\W\d_]{3,}")
_NOT_ASKED_FOR = {"the", "there", "and", "are", "was", "image", "picture", "photo", "this", "that", "does", "not"}
_PRONOUNS = {"it", "one", "any", "them"}


def yes_or_no(text: str, question: str = "") -> str | Unparsed:
    """ "yes" or "no", or why neither is read in an output. Never raises; linear in the output's length.

    question: with it, "There is a man" is no yes to "Is there a dog?": a word of the question must be named.
    """
    answer = plain(text)
    if isinstance(answer, Unparsed):
        return answer
    if not answer:
        return Unparsed("empty output")
    if (found := said_in_words(answer)) is not None:
        return found
    return _whether_there(answer, question) if len(answer) <= _SHORT else UNSURE


def said_in_words(answer: str) -> str | Unparsed | None:
    """Which of the two words a plain answer begins with, states or ends with, whatever was asked; None of one that does not."""
    first = answer.partition("\n")[0][:_SHORT]
    if opening := _OPENS.match(answer):
        denied = _ASSENTS.match(first) is not None and _ABSENT.search(first) is not None
        return UNSURE if denied or _UNDECIDED.search(first) else "yes" if opening["yes"] else "no"
    if said := list(_STATED.finditer(answer)):
        return "yes" if said[-1]["yes"] else "no"
    if end := _ENDS.search(answer[-_SHORT:]):
        said_at_end, tail = end["said"].lower(), answer[-_SHORT:]
        contrary = (_ABSENT if said_at_end == "yes" else _PRESENT).search(tail)
        return UNSURE if contrary or _UNDECIDED.search(tail) else said_at_end
    return None


def _whether_there(answer: str, question: str) -> str | Unparsed:
    if _UNDECIDED.search(answer) or _DOUBT.search(answer) or (question and not _shared(answer, question)):
        return UNSURE
    absent, present = _ABSENT.search(answer), _PRESENT.search(answer)
    if (absent is None) == (present is None) or (present and _NEGATIVE.search(answer)):
        return UNSURE
    return "no" if absent else "yes"


def _shared(answer: str, question: str) -> bool:
    """Whether a word of the question stands in the answer, in singular or plural. Chinese is not cut into words: always."""
    if not answer.isascii():
        return True
    words = {word.removesuffix("s") for word in _WORD.findall(question.lower())} - _NOT_ASKED_FOR
    said = {word.removesuffix("s") for word in answer.lower().replace(".", " ").split()}
    return bool(said & (words | _PRONOUNS))
