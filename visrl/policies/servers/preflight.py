"""Whether a server is there, before anything is asked of it: ``GET URL/models``, for servers that have such a list."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from visrl.errors import UsageError, nearest
from visrl.policies.servers.failures import AWAY, nobody_there

if TYPE_CHECKING:
    from openai import AsyncOpenAI

log = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds for the list
PROBE = 4.0  # and for a word from a model that is not in it
ClientOf = Callable[[str], "AsyncOpenAI"]


async def look(urls: Sequence[str], client_of: ClientOf, model: str, key_env: str, limit: str = "max_tokens") -> None:
    """Ask every server for its models. One that has no such list, or says nothing readable, passes; of several one may be down.

    A name that is not listed is asked for one token (``limit``: what a request calls that), because some servers answer to any.
    Raises UsageError where no server can be reached, one refuses the key, or one does not have the model, within ten seconds.
    """
    up = await asyncio.gather(*(_is_up(url, client_of(url), model, key_env, limit) for url in urls))
    if not any(up):
        raise UsageError(
            f"{', '.join(urls)} does not answer", "is the server running, and the URL right? It often ends in /v1"
        )


async def answers(urls: Sequence[str], client_of: ClientOf) -> bool:
    """Whether any server says anything when it is asked for its models."""
    import openai

    async def one(client: AsyncOpenAI) -> bool:
        try:
            async with client.with_options(timeout=PATIENCE) as asking:
                await asking.models.list()
        except openai.APIStatusError as error:
            return error.status_code not in AWAY
        except openai.APIConnectionError:
            return False
        except (openai.OpenAIError, json.JSONDecodeError, AttributeError, TypeError, ValueError):
            return True
        return True

    return any(await asyncio.gather(*(one(client_of(url)) for url in urls)))


async def _is_up(url: str, client: AsyncOpenAI, model: str, key_env: str, limit: str) -> bool:
    import openai

    try:
        async with client.with_options(timeout=PATIENCE) as asking:
            listed = [found.id async for found in asking.models.list()]
            if listed and model not in listed:
                await _probe(url, asking, model, listed, limit)
    except openai.AuthenticationError as error:
        raise UsageError(
            f"{url} refuses the key", f"export {key_env}=…, or name another variable: key_env=NAME"
        ) from error
    except openai.APIConnectionError as error:
        return not nobody_there(error)  # a server that does not answer in time is busy, perhaps
    except openai.APIStatusError as error:
        return error.status_code not in AWAY  # else it has no such list
    except (openai.OpenAIError, json.JSONDecodeError, AttributeError, TypeError, ValueError):
        return True
    return True


async def _probe(url: str, client: AsyncOpenAI, model: str, listed: Sequence[str], limit: str) -> None:
    """Raises UsageError where the server says that it has no such model; other answers are a warning."""
    import openai

    few = ", ".join(sorted(listed)[:5])
    body = {"messages": [{"role": "user", "content": "hi"}], limit: 1}
    try:
        await client.with_options(timeout=PROBE).post(
            "/chat/completions", body={"model": model, **body}, cast_to=object
        )
    except openai.AuthenticationError:
        raise
    except (openai.NotFoundError, openai.BadRequestError) as error:
        if isinstance(error, openai.NotFoundError) or model in str(error):
            close = nearest(model, listed)
            hint = f"{close} It has {few}" if close.startswith("did you mean") else f"it has {few}"
            raise UsageError(f"{url} has no model {model}", f"{hint}: endpoint:{url}#NAME") from error
    except openai.OpenAIError as error:
        log.debug("%s: %s", url, type(error).__name__)
    log.warning("%s lists no model %s; it has %s", url, model, few)
