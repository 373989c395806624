"""Asking a policy so that one bad request spoils nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from visrl.errors import printable
from visrl.policies.protocol import Output, Policy, Request, Sampling, Tokens

log = logging.getLogger(__name__)
RETRIES = 5
"""How often a failed request is asked again at once. With three in ten failing, one in 1,400 is left to a later pass."""


def total(counts: Iterable[Tokens | None]) -> Tokens | None:
    """The sum; None where any of them is not known."""
    result = Tokens()
    for count in counts:
        if count is None:
            return None
        result = result + count
    return result


def ask(policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
    """An Output per request, in order. Failed ones are asked again where that may help (``Output.retry``), with the same
    randomness; the last error stays. Raises UsageError, or Incomplete, where nobody is there to be asked.
    """
    if requests:
        policy.require_reachable()
    outputs = _once(policy, requests, sampling)
    for _ in range(RETRIES):
        failed = [i for i, output in enumerate(outputs) if output.error is not None and output.retry]
        if not failed:
            break
        for i, output in zip(failed, _once(policy, [requests[i] for i in failed], sampling), strict=True):
            outputs[i] = output
    for request, output in zip(requests, outputs, strict=True):
        if output.error is not None and output.retry:
            log.warning("sample %s failed %d times: %s", printable(request.key), 1 + RETRIES, printable(output.error))
    return outputs


def _once(policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
    """One try. A call that raises is split, so that only the culprit fails."""
    if not requests:
        return []
    try:
        outputs = list(policy.generate(requests, sampling))
    except Exception as error:  # noqa: BLE001 - a model may raise anything; the request fails with it, the run goes on
        if len(requests) == 1:
            return [Output(error=f"{type(error).__name__}: {error}")]
        return [_once(policy, [request], sampling)[0] for request in requests]
    if len(outputs) != len(requests):
        raise RuntimeError(f"{policy.name} returned {len(outputs)} outputs for {len(requests)} requests")
    return [_checked(output, sampling.n) for output in outputs]


def _checked(output: Output, n: int) -> Output:
    if output.error is None and len(output.texts) != n:
        return Output(error=f"{n} texts were asked for, {len(output.texts)} came")
    return output
