"""Patterns of how a choice is worded, in English and some twenty other languages. letters.py says what they decide.

They are matched on plain text (plain_text.py): blanks stand alone, so that no pattern needs a repeated blank, and every part
is of bounded length, so that a search is linear.
"""

from __future__ import annotations

import re

_NO_WORD_AFTER = r"(?![A-Za-z0-9À-ɏ+#]|['-][A-Za-z])"  # nor C++ and C#
WORD = re.compile(r"[^\W_]+(?:['.][^\W_]+)*")
_BEFORE = r"(?<![A-Za-z0-9À-ɏ])"
_X = rf"[({{\[<]{{0,4}}(?P<letter>[A-Za-z]){_NO_WORD_AFTER}[)}}\]>]{{0,4}}"
_ADJECTIVE = r"(?:correct[ae]?|right|best|final|most appropriate|richtig|korrekt|correta|corretta|certa|juste|juiste)"
_NOUN = (
    rf"{_BEFORE}(?:answer|ans|solution|option|choice|letter|selection|guess|antwort|lösung|réponse|reponse|respuesta|opción|opcion"
    r"|resposta|alternativa|opção|risposta|opzione|ответ|вариант|antwoord|odpowiedź|odpowiedzią|svar|svaret|vastaus|odpověď"
    r"|răspunsul|jawaban|jawabannya)"
)
_IS = (
    r"(?:is(?: indeed| most likely| probably| clearly| definitely| therefore| thus)?|was|would be|should be|must be|has to be"
    r"|seems to be|appears to be|ist|lautet|est|es|é|è|to|jest|är|er|on|je|este|adalah|это)\b"
)
_FILLER = r"(?:the|la|le|die|de|a letra|letra|lettre|letter|option|choice|opción|opção|opzione|вариант|answer)"
_EASTERN = (
    r"(?:答案|正解|正确选项|正確選項|正确的选项|答え|回答|解答|정답|해답|답변?|câu trả lời(?: đúng)?|đáp án(?: đúng)?|الإجابة"
    r"|الجواب|उत्तर|cevap|cevabı|yanıt|คำตอบ)"
)

STATED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_NOUN}(?: {_ADJECTIVE})?(?: (?:to|for) (?:the|this) question)? ?(?:{_IS} ?:?|[:=—–-]) ?(?:{_FILLER} ){{0,2}}\n?{_X}",
        rf"{_EASTERN}(?: الصحيحة| الصحيح)? ?(?:は|が|은|는|是|为|為|应该是|应为|应是|应选|就是|选|選|هي|هو|là)?[: ]{{0,3}}"
        rf"(?:选项|選項)?\n?{_X}",
        rf"(?:\A|\n)(?:the )?(?:(?:final |correct )?(?:answer|ans)|(?:final|prediction|predicted|verdict|result) ?:) ?"
        rf"{_X}(?=\.|\n|\Z)",
        rf"\bnot {_X.replace('letter', 'other')},? (?:but|rather)(?: rather)? (?:option )?{_X}",
        rf"\b(?:wait|actually|correction|scratch that|on second thoughts?)[ ,.:;!…–—-]{{1,8}}(?:no,? )?(?:actually,? )?"
        rf"(?:it's |it is |make it |make that |option ){{0,2}}{_X}(?=[.,;:!\n]|\Z)",
    )
)
"""The answer is X."""

_GOOD = (
    r"(?:correct|right|true|accurate|best|richtig|korrekt|correcte?|correcta|correta|corretta|juste"
    r"|(?:most likely |most appropriate |correct |right |best ){0,2}(?:my )?(?:answer|option|choice|one))"
)
_IN_PARENTHESES = r"(?: \([^()\n]{1,80}\))?"

JUDGED = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b(?:I|we)(?: would| will| therefore|'d|'ll)? (?:choose|chose|select|pick|go with|opt for|say|vote for) (?:the )?"
        rf"(?:option |answer |choice |letter )?{_X}",
        rf"{_BEFORE}{_X}{_IN_PARENTHESES} (?:is|seems|ist|est|es|é|è) (?:clearly |indeed |definitely |therefore |thus |the |la "
        rf"|most |only |likely ){{0,3}}{_GOOD}\b(?! if\b| only if\b)",
        rf"\b(?:it's|it is|it must be|it should be|it would be|that's|that is|that would be|that must be) (?:option |letter )?"
        rf"{_X}(?= ?(?:[.,;:!\n]|\Z|[a-z]))",
        rf"\b(?:therefore|thus|hence|so|consequently)[,:]? (?:option |it's |it is )?{_X}(?=[.,;:!\n]|\Z)",
        rf"\b(?:option|choice|answer) {_X}{_IN_PARENTHESES} (?:best |correctly |accurately |clearly ){{0,2}}"
        r"(?:matches|describes|fits|answers)\b",
        rf"(?:\b(?:probably|most likely|definitely|clearly|must be|has to be|let's go with|choose|pick)"
        r"|我认为是|我認為是|这是|這是) ?"
        rf"{_X}(?=[.,;:!。\n]|\Z)",
        rf"{_BEFORE}{_X} ?(?:选项|選項)?(?:是|为|為)?(?:正确|正確|对的|對的|最合适|最合適|最佳)",
        rf"(?<![不没未非无別别])(?:选择|選擇|选|選)(?![项項]) ?:? ?(?:选项|選項)?{_X}",
    )
)
"""X is right; I choose X; so X."""

OPENING = re.compile(
    r"[^\w]{0,4}(?i:(?:the )?(?:option|choice|opción|opcion|opção|opzione|вариант|选项|選項) ?:? ?)?"
    r"(?:[({\[<]{1,2}(?P<inside>[A-Za-z])[)}\]>]{1,2}|(?P<lower>[a-z])(?=[).])|(?P<letter>[A-Z])(?![A-Za-z0-9]))"
    r"(?P<mark> ?[.):,\]}>、。|]+| [-–—] | ?[–—] ?|(?= (?:because|since)\b)|\n|\Z|(?<=[)}\]>]) )",
)
"""X and what sets it off, where a text or a line begins."""

MARK = re.compile(r"\s?[.):,\]}>、]{0,4}\s{0,2}(?:[-–—:]\s)?[\s(\[{]{0,4}")
"""What sets a letter off from the option's text behind it; not the sign of "B. -5"."""

LISTED = re.compile(rf"{_BEFORE}([A-Z])[).:、\]] ?")
"""An option as questions list them."""

SUPPOSED = re.compile(
    r"(?:\b(?:if|I doubt|suppose|supposing|assume|assuming|whether|why|unless|thought|at first|initially"
    r"|(?:might|may|could|would) (?:think|say|believe))\b"
    r"|(?:\bnot|\bnever|n't) (?:think|believe|say|mean|sure|certain|clear|true|that)\b)"
    r"[^\n.,;:!?]{0,120}\Z|\bwhich \Z",
    re.IGNORECASE,
)
"""What in the same clause takes a statement back, before it."""

MISTAKEN = re.compile(
    r"(?:\b(?:wrong|incorrect|false|least likely|second[- ]best|other|unlikely|mauvaise|falsche|incorrecta|incorreta|errada"
    r"|sbagliata|неправильный|неверный) (?:answer|choice|option|antwort|réponse|respuesta|resposta|risposta|ответ)\b"
    r"[ :=–—-]{0,3}(?:(?:is|was|would be|ist|est|es|é|è|это)\b[ :]{0,2})?"
    r"|(?:(?:错误|錯誤)(?:的)?答案|不正解|오답)[: 是为為はが은는]{0,3})"
    r"(?:option |choice |the )?[({\[]?\Z",
    re.IGNORECASE,
)
"""What says, before the letter, that it is the answer not to give."""

DENIED = re.compile(
    r" ?(?:\([^()\n]{1,80}\) ?)?(?:(?:is|was|ist|est|es|é|è|seems|looks) (?:clearly |also |definitely |obviously )?"
    r"(?:not|nicht|incorrect|wrong|false|falsch|faux|incorrecta?|incorreta|errata|pas)\b"
    r"|(?:isn't|wasn't|cannot|can't|can not|doesn't|does not|would not|wouldn't)\b|(?:是|为)?(?:不|错|錯|有误)|が?誤|は間違"
    r"|, which is (?:not|incorrect|wrong|false)\b|ではあり?ま|ではない|じゃない|[가이] 아니|[가이] 아닙)",
    re.IGNORECASE,
)
"""What denies a letter, behind it."""

_AND = r"(?:,|/|&|\+|、|;|and|or|und|oder|et|ou|y|o|e|и|или|和|或|与)"
FURTHER = re.compile(
    rf" ?{_AND}(?: (?:and|or))? ?(?:option |choice )?[({{\[]?(?P<next>[A-Z]){_NO_WORD_AFTER}[)}}\]]?"
    r"(?! (?:is|was|isn't|would|cannot|can't|has|shows?|looks)\b)"
)
"""Another letter behind one: "A or B"."""
FURTHER_BEFORE = re.compile(rf"(?<![A-Za-z0-9])[A-Z][)}}\]]? ?{_AND} ?(?:option |choice )?[({{\[]{{0,2}}\Z")

_GOES_ON = (
    "because since as for due which based given but so though although while where when is was it and or not rather ist weil denn"
    " est car es porque pois é è perché perche to jest"
)
GOES_ON = frozenset(_GOES_ON.split())
"""Words that may follow a letter; any other makes "A" an article and "I" a pronoun."""

_NEGATED = (
    "not no never neither nor without none cannot can't isn't aren't doesn't don't didn't wasn't nicht kein keine keinen pas"
    " aucun aucune ningún não non nessun unlikely wrong incorrect instead unlike rather"
)
NEGATED = frozenset(_NEGATED.split())
"""Words that take an option's text in the same sentence back."""

IDIOMS = re.compile(r"\b(?:that's|that is|you're|you are|all|quite) right\b", re.IGNORECASE)
"""Where an option's text, "right", says nothing of a side."""

NEXT_QUESTION = re.compile(r"\n(?:question|q|user|human|instruction) ?\d{0,3} ?:", re.IGNORECASE)
"""Where a model without a stop goes on to ask itself the next question."""

LISTED_LINE = re.compile(r"^[^\w\n]{0,24}(?:\[ ?[xX]? ?\])?[^\w\n]{0,8}(?P<letter>[A-Z])\b[^\n]{0,400}", re.MULTILINE)
TICK = re.compile(r"[✓✔✅☑]|\[ ?[xX✓✔] ?\]")
CROSS = re.compile(r"[✗✘❌✖❎]|\[ ?\]")
