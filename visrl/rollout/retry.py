"""Asking a policy so that one bad request spoils nothing, and counting what the answers cost."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from visrl.errors import printable
from visrl.policies.protocol import Output, Policy, Request, Sampling

log = logging.getLogger(__name__)
RETRIES = 5
"""How often a failed request is asked again at once. With three in ten failing, one in 1,400 is left to a later pass."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a model computed: ``prompt`` tokens of all prompts, ``cached`` of them taken from a cache, ``output`` tokens."""

    prompt: int = 0
    cached: int = 0
    output: int = 0

    @classmethod
    def of(cls, output: Output) -> Tokens | None:
        """None where the policy does not count."""
        if output.prompt_tokens is None or output.output_tokens is None:
            return None
        return cls(output.prompt_tokens, output.cached_tokens, output.output_tokens)

    @property
    def computed(self) -> int:
        """Prefill and decode: the tokens a model really ran on."""
        return self.prompt - self.cached + self.output

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.cached + other.cached, self.output + other.output)


def total(counts: Iterable[Tokens | None]) -> Tokens | None:
    """The sum; None where any of them is not known."""
    result = Tokens()
    for count in counts:
        if count is None:
            return None
        result = result + count
    return result


def ask(policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
    """An Output per request, in order. Failed ones are asked again, with the same randomness; the last error stays."""
    outputs = _once(policy, requests, sampling)
    for _ in range(RETRIES):
        failed = [i for i, output in enumerate(outputs) if output.error is not None]
        if not failed:
            break
        for i, output in zip(failed, _once(policy, [requests[i] for i in failed], sampling), strict=True):
            outputs[i] = output
    return outputs


def _once(policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
    """One try. A call that raises is split, so that only the culprit fails."""
    if not requests:
        return []
    try:
        outputs = list(policy.generate(requests, sampling))
    except Exception as error:  # noqa: BLE001 - a model may raise anything; the request fails with it, the run goes on
        if len(requests) == 1:
            reason = f"{type(error).__name__}: {error}"
            log.warning("question %s failed: %s", printable(requests[0].key), printable(reason))
            return [Output(error=reason)]
        return [_once(policy, [request], sampling)[0] for request in requests]
    if len(outputs) != len(requests):
        raise RuntimeError(f"{policy.name} returned {len(outputs)} outputs for {len(requests)} requests")
    return [_checked(output, sampling.n) for output in outputs]


def _checked(output: Output, n: int) -> Output:
    if output.error is None and len(output.texts) != n:
        return Output(error=f"{n} texts were asked for, {len(output.texts)} came")
    return output
