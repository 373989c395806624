"""The HTTP client of everything that asks a server: what a server cannot make it do.

It follows no redirect to another host (which would be sent pictures and questions, without the key), and reads no answer beyond
``MAX_BYTES``. Addresses with a key in them are refused: run.json and records keep addresses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from visrl.errors import UsageError

MAX_BYTES = 32 * 1024 * 1024
"""Of one answer, streamed or whole: a thousand times what a model of 8,000 tokens says."""


class Redirected(Exception):
    """A server sends its client to another host."""


class TooLong(Exception):
    """An answer of more than MAX_BYTES."""


def cause_of(error: BaseException) -> Redirected | TooLong | None:
    """Which of these a client's own error hides: it is raised in the middle of a request."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, Redirected | TooLong):
        found = found.__cause__ or found.__context__
    return found


def check_url(url: str, where: str, example: str) -> None:
    """Raises UsageError for what is no address, and for one that holds a password or a query, without repeating these."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{where}: not a URL: {error}", example) from error
    if parts.username or parts.password:
        raise UsageError(f"{where}: the URL contains a password", "put the key into an environment variable")
    if parts.query or "?" in url:
        raise UsageError(
            f"{where}: the URL contains a query string, and records store URLs",
            "put the key into an environment variable",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{where}: {url!r} is not a URL", example)


def guarded_client(timeout: float) -> Any:
    """An ``http_client`` for ``openai.AsyncOpenAI``. timeout: seconds that a part of an answer may take."""
    from openai import DefaultAsyncHttpxClient

    return DefaultAsyncHttpxClient(timeout=timeout, event_hooks={"response": [_guard]})


async def _guard(response: Any) -> None:
    if response.has_redirect_location:
        goal = response.url.join(response.headers["location"])
        if goal.host != response.url.host:
            raise Redirected(f"the server sends its client to another host, {goal.host}: name that one, if it is right")
    response.stream = _bounded(response.stream)


def _bounded(stream: Any) -> Any:
    """A response's stream that ends with an error beyond MAX_BYTES. Its class must be one of the client's own library."""
    from openai import DefaultAsyncHttpxClient

    library = import_module(
        DefaultAsyncHttpxClient.__mro__[1].__module__.partition(".")[0]
    )  # httpx, or what succeeds it

    class Bounded(library.AsyncByteStream):  # type: ignore[misc, name-defined]  # known at run time only
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for piece in stream:
                size += len(piece)
                if size > MAX_BYTES:
                    raise TooLong(f"the answer is longer than {MAX_BYTES:,} bytes")
                yield piece

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()
