"""Whether a server is there, before anything is asked of it: ``GET URL/models``, for servers that have such a list."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from visrl.errors import UsageError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

log = logging.getLogger(__name__)
PATIENCE = 10.0  # seconds for the list


async def look(urls: Sequence[str], client_of: Callable[[str], AsyncOpenAI], model: str, key_env: str) -> None:
    """Ask every server for its models. One that has no such list, or says nothing readable, passes; of several one may be down.

    A name that is not listed is a warning: some servers answer to any. Raises UsageError where no server can be reached, or one
    refuses the key.
    """
    down = [url for url in urls if not await _is_up(url, client_of(url), model, key_env)]
    if len(down) == len(urls):
        raise UsageError(f"{', '.join(urls)} does not answer", "is the server running, and the URL right?")


async def _is_up(url: str, client: AsyncOpenAI, model: str, key_env: str) -> bool:
    import openai

    try:
        async with client.with_options(timeout=PATIENCE) as asking:
            listed = [found.id async for found in asking.models.list()]
    except openai.APITimeoutError:
        return True  # busy, perhaps
    except openai.APIConnectionError:
        return False
    except openai.AuthenticationError as error:
        raise UsageError(
            f"{url} refuses the key", f"export {key_env}=…, or name another variable: key_env=NAME"
        ) from error
    except (openai.OpenAIError, json.JSONDecodeError, AttributeError, TypeError, ValueError):
        return True  # it has no such list
    if listed and model not in listed:
        few = ", ".join(sorted(listed)[:5])
        log.warning("%s lists no model %s; it has %s", url, model, few)
    return True
