"""What went wrong with one request to a server, and whether asking again may help."""

from __future__ import annotations

import json

from visrl.evals.guarded_http import Redirected, TooLong, cause_of

AWAY = (502, 503, 504)
"""What a proxy says whose server is gone."""


class ServerFailed(Exception):
    """An answer that cannot be used and may be better next time."""


class NobodyAnswers(ServerFailed):
    """No server has answered for long: nothing more is tried."""


def nobody_there(error: Exception) -> bool:
    """Whether a connection failed, rather than an answer."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return type(error.__cause__).__name__ == "ConnectTimeout"  # httpx's, under whichever name the client has it
    return isinstance(error, openai.APIConnectionError)


def is_away(error: Exception) -> bool:
    """Whether there is no server behind the address just now."""
    import openai

    return nobody_there(error) or (isinstance(error, openai.APIStatusError) and error.status_code in AWAY)


def worth_another_try(error: Exception) -> float | None:
    """Seconds the server asks to wait (0 if it does not say), or None where trying again is no use."""
    import openai

    if isinstance(cause_of(error), Redirected):
        return None
    if isinstance(error, openai.APIStatusError):
        if error.status_code not in (408, 409, 425, 429) and error.status_code < 500:
            return None
        after = error.response.headers.get("retry-after", "")
        return min(float(after), 60.0) if after.replace(".", "", 1).isdecimal() else 0.0
    known = (
        openai.APIConnectionError,
        openai.APIError,
        TimeoutError,
        json.JSONDecodeError,
        UnicodeDecodeError,
        ServerFailed,
        TooLong,
    )
    if isinstance(error, known) or type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "pydantic"):
        return 0.0
    return None


def as_broken(error: Exception, attempts: int) -> Exception:
    """What a request failed with for good, after ``attempts`` tries."""
    import openai

    if isinstance(error, openai.APIStatusError) and attempts == 1:
        return error
    if (cause := cause_of(error)) is not None:
        return ServerFailed(str(cause))
    return ServerFailed(f"given up after {attempts} tries: {reason_of(error)}")


def reason_of(error: Exception) -> str:
    return str(error) or type(error).__name__
