"""Who says how right a free answer is: the paper's judge through any OpenAI-compatible endpoint, or offline rules.

The paper's judge (docs/method.md b3, eval_cot_score.py) is gpt-3.5-turbo-1106, shown question, standard answer and answer,
never the picture, and replying ``score: x``. A judge moves a benchmark by .2 (b3), so its name goes in every record, and
only :func:`is_papers` may stand beside a published number. The offline judges are for tests and for first looks.

Departures from the official script: 1. a failed request or a reply without exactly one ``score: x`` is *unscored*, not 0.
2. temperature 0 and a seedless request, both in the name; the script leaves the API's default of 1. 3. "score: 0.8." is read as
0.8; the script crashes on the full stop. 4. every judge reads the final answer, not the thought before it
(core/final_answer.py); a thought that never ends is 0, and no model is asked. 5. "score: 8/10" and "score: 80%" are 0.8; the
script reads 8 and 80, which are more than the full score.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.parse import urlsplit

from visrl.core.final_answer import final_answer
from visrl.core.plugins import Registry
from visrl.core.types import Score, Unparsed
from visrl.errors import UsageError, nearest
from visrl.evals.equal_words import anls, contains, exact
from visrl.evals.guarded_http import cause_of, check_url, guarded_client

if TYPE_CHECKING:
    import asyncio

    from openai import AsyncOpenAI

PROMPT_VERSION = "viscot/v1"
# The official prompt, byte for byte: it is part of the metric. Quoted from Visual-CoT (Apache-2.0), eval_cot_score.py.
SYSTEM = (
    "\nYou are responsible for proofreading the answers, you need to give a score to the model's answer by referring to the"
    " standard answer, based on the given question. The full score is 1 point and the minimum score is 0 points. Please output"
    ' the score in the form "score: <score>". The evaluation criteria require that the closer the model\'s answer is to the'
    " standard answer, the higher the score.\n"
)
USER = "\nquestion: {question}\nstandard answer: {standard}\nmodel's answer: {answer}\n"
PICTURE_MARK = "<image>\n"  # the script leaves it before the question
PAPER_MODEL = "gpt-3.5-turbo-1106"
PAPER_HOST = "api.openai.com"
_REPLY = re.compile(r"score: (\d[\d.]*|\.\d+)(?: ?(%)| ?(?:/|out of) ?(\d+(?:\.\d+)?))?")
NO_REPLY = "judge: request failed"
"""How the reason of an answer begins whose judge could not be reached: asked again, it may have a score."""
NOT_THE_PAPERS = "not the paper's judge"


@dataclass(frozen=True, slots=True)
class JudgeItem:
    """One answer to judge. ``standard``: acceptable answers; a model judge is shown the first, rules take the best."""

    id: str
    question: str
    standard: tuple[str, ...]
    answer: str


class Judge(Protocol):
    """name: as records print it, with all that changes a score. description: for people. kind: a rule, or a model."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def kind(self) -> Literal["rule", "model"]: ...

    def judge_many(self, items: Sequence[JudgeItem]) -> list[Score]:
        """A Score in 0..1 per item, in order; None with the reason where the judge failed. Never raises for an item."""
        ...


def is_papers(name: str | None) -> bool:
    """Whether a recorded judge is the paper's: model, endpoint and prompt. Temperature differs from the script's (note 2)."""
    return name is not None and name.startswith(f"openai:{PAPER_HOST}#{PAPER_MODEL}/{PROMPT_VERSION}")


def make_judge(spec: str) -> Judge:
    """``exact``, ``anls``, ``contains``, ``openai:URL#MODEL``, or a third party's ``NAME`` or ``NAME:ARGUMENT``.

    Raises UsageError for anything else, and for a third party's that cannot be made.
    """
    if spec in _RULES:
        return _RULES[spec]
    if spec.startswith("openai:"):
        return _endpoint(spec)
    name, _, argument = spec.partition(":")
    if name not in JUDGES:
        known = [*_RULES, "openai:URL#MODEL", *JUDGES.names()]
        raise UsageError(f"unknown judge {spec!r}", nearest(spec, known) if spec else f"one of {', '.join(known)}")
    try:
        return JUDGES[name](argument)
    except (TypeError, ValueError, KeyError, OSError) as error:
        raise UsageError(f"judge {spec!r}: {type(error).__name__}: {error}", f"what does {name} take?") from error


def ready_judge(spec: str) -> Judge:
    """The judge, able to work: what it lacks must not come out after a night of generating, or between two records.

    Raises UsageError as :func:`make_judge`, and where a key is missing.
    """
    judge = make_judge(spec)
    if isinstance(judge, EndpointJudge):
        judge.key()
    return judge


# --- offline rules


def read(item: JudgeItem) -> str | Score:
    """What an item's output answers, without the thought before it, or its score: nothing for a thought that never ends."""
    answer = final_answer(item.answer)
    return Score(0.0, f"unparsed: {answer.reason}") if isinstance(answer, Unparsed) else answer


def verdicts(judge: Judge, items: Sequence[JudgeItem]) -> list[Score]:
    """A Score per item, whatever the judge raises: where it fails on many at once, each is asked for alone.

    Raises UsageError, which is about the whole run.
    """
    try:
        return judge.judge_many(items)
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - any judge, any failure: one item must not take the others with it
        if len(items) == 1:
            return [Score(None, f"judge: {type(error).__name__}: {error}")]
        return [score for item in items for score in verdicts(judge, [item])]


@dataclass(frozen=True, slots=True)
class RuleJudge:
    """An offline judge: a function of standard answer and answer, the best over the standard answers counts."""

    name: str
    rule: Any
    what: str
    kind: Literal["rule", "model"] = "rule"

    @property
    def description(self) -> str:
        return f"{self.what}; {NOT_THE_PAPERS}"

    def judge_many(self, items: Sequence[JudgeItem]) -> list[Score]:
        return [self._judge(item) for item in items]

    def _judge(self, item: JudgeItem) -> Score:
        if not item.standard:
            return Score(None, "the sample has no standard answer")
        answer = read(item)
        if isinstance(answer, Score):
            return answer
        return Score(max(self.rule(standard, answer) for standard in item.standard))


_RULES: dict[str, Judge] = {
    "exact": RuleJudge("exact", exact, "equal but for case, punctuation and articles"),
    "anls": RuleJudge("anls", anls, "normalised Levenshtein similarity, 0 below a half"),
    "contains": RuleJudge("contains", contains, "the standard answer stands in the answer"),
}


def _third_party(name: str, found: Any) -> Callable[[str], Judge]:
    if not callable(found):
        raise ValueError(
            f"not a function of the text behind `{name}:`, which returns a judge, but a {type(found).__name__}"
        )
    return found  # type: ignore[no-any-return]


JUDGES: Registry[Callable[[str], Judge]] = Registry("judge", {}, _third_party, lambda: [*_RULES, "openai"])
"""Third parties': given the text behind ``NAME:``, or ``""``, each returns a :class:`Judge`."""


# --- a model behind an endpoint


def _endpoint(spec: str) -> EndpointJudge:
    url, _, model = spec.removeprefix("openai:").partition("#")
    example = f"openai:https://{PAPER_HOST}/v1#{PAPER_MODEL}"
    check_url(url, "judge", example)
    if not model:
        raise UsageError(f"judge {spec!r} is not openai:URL#MODEL", example)
    return EndpointJudge(url, model)


def read_reply(reply: str) -> Score:
    """The score of a reply that holds ``score: x``, ``x/y`` or ``x %`` exactly once, cut to 0..1; else unscored."""
    found = _REPLY.findall(reply.lower())
    if len(found) != 1:
        return Score(None, f"judge: {len(found)} scores in the reply, not one")
    number, percent, full = found[0]
    try:
        value = float(number.rstrip(".")) / (100.0 if percent else float(full or 1))
    except (ValueError, ZeroDivisionError):
        return Score(None, "judge: the score is not a number")
    return Score(min(1.0, max(0.0, value)))


def _cut(text: str, limit: int = 4000) -> str:
    """An answer as the judge is shown it: model text may be a megabyte, a context window is not."""
    return text if len(text) <= limit else text[:limit]


@dataclass(frozen=True, slots=True)
class EndpointJudge:
    """The paper's prompt sent to ``model`` at an OpenAI-compatible ``url``, the key from OPENAI_API_KEY.

    At most ``concurrency`` requests at a time, each tried ``1 + retries`` times with growing pauses (the client's).
    """

    url: str
    model: str
    temperature: float = 0.0
    concurrency: int = 16
    retries: int = 7
    timeout: float = 60.0
    kind: Literal["rule", "model"] = "model"

    @property
    def name(self) -> str:
        host = urlsplit(self.url)
        port = f":{host.port}" if host.port else ""
        return f"openai:{host.hostname}{port}#{self.model}/{PROMPT_VERSION}/T{self.temperature:g}"

    @property
    def description(self) -> str:
        whose = "the paper's model and prompt, at temperature 0" if is_papers(self.name) else NOT_THE_PAPERS
        return f"{self.model} with VisCoT's prompt ({PROMPT_VERSION}); {whose}"

    def judge_many(self, items: Sequence[JudgeItem]) -> list[Score]:
        if not items:
            return []
        import asyncio  # here, as openai below: most judges need neither

        return asyncio.run(self._judge_all(items, self.key()))

    def key(self) -> str:
        """From OPENAI_API_KEY. Raises UsageError where the paper's endpoint is asked without one."""
        key = os.environ.get("OPENAI_API_KEY")
        if not key and urlsplit(self.url).hostname == PAPER_HOST:
            raise UsageError(f"the judge {self.model} needs a key", "export OPENAI_API_KEY, or use --judge exact")
        return key or "none"

    async def _judge_all(self, items: Sequence[JudgeItem], key: str) -> list[Score]:
        import asyncio

        from openai import AsyncOpenAI

        gate = asyncio.Semaphore(self.concurrency)
        async with AsyncOpenAI(
            api_key=key,
            base_url=self.url,
            timeout=self.timeout,
            max_retries=self.retries,
            http_client=guarded_client(self.timeout),
        ) as client:
            return list(await asyncio.gather(*(self._judge(client, item, gate) for item in items)))

    async def _judge(self, client: AsyncOpenAI, item: JudgeItem, gate: asyncio.Semaphore) -> Score:
        import asyncio

        if not item.standard:
            return Score(None, "the sample has no standard answer")
        answer = read(item)
        if isinstance(answer, Score):
            return answer
        text = USER.format(question=PICTURE_MARK + item.question, standard=item.standard[0], answer=_cut(answer))
        async with gate:
            try:
                asked = client.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}],
                    temperature=self.temperature,
                )
                reply = await asyncio.wait_for(asked, 2 * self.timeout * (1 + self.retries))  # a byte a minute is none
                content = reply.choices[0].message.content
                return read_reply(content or "")
            except Exception as error:  # noqa: BLE001 - any endpoint, any failure: this answer is unscored, the rest goes on
                cause = cause_of(error)
                return Score(None, f"{NO_REPLY}: {type(error).__name__ if cause is None else cause}")
