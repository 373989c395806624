"""Several servers of one model: who gets the next request, who is taken out, and when one is tried again.

A request goes to its key's own server (both turns of a sample meet the same prefix cache) unless that one is out or has its
share of work; then to the least busy. An unreachable server is dropped immediately, one that fails in other ways after
``PATIENCE`` failures in a row. It is asked for its models (``GET URL/models``) after a pause that doubles up to ``LONGEST``, and
gets requests again when it answers. With every server out, requests go on trying, each counted among its tries.

``adapter``: a LoRA folder, as the *servers* see it, that every server loads under the model's name (vLLM's
``POST /v1/load_lora_adapter``, which needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=True there), again after it came back.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from visrl.errors import UsageError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

log = logging.getLogger(__name__)
PATIENCE = 3
FIRST, LONGEST = 1.0, 60.0  # seconds between looks at a server that is out
LOOK = 10.0  # seconds a server has to list its models


@dataclass(slots=True, eq=False)
class Replica:
    """One server. busy: requests it is working on. failures: in a row. next_look: when it may be looked at again, if out."""

    url: str
    busy: int = 0
    answered: int = 0
    failures: int = 0
    out: bool = False
    pause: float = FIRST
    next_look: float = 0.0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Counts a request while it runs."""
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    def succeeded(self) -> None:
        self.answered += 1
        self.failures = 0
        if self.out:
            log.warning("%s answers again", self.url)
            self.out, self.pause = False, FIRST

    def failed(self, *, silent: bool) -> None:
        """One more failure; ``silent``: nobody answered at all."""
        self.failures += 1
        if self.out or not (silent or self.failures >= PATIENCE):
            return
        log.warning("%s is taken out: %d failures in a row", self.url, self.failures)
        self.out, self.next_look = True, time.monotonic() + self.pause


class Replicas:
    """The servers of a policy. State lasts from call to call; clients do not, an event loop owns them."""

    def __init__(self, urls: Sequence[str], model: str, adapter: str = "") -> None:
        self.all = [Replica(url) for url in urls]
        self.model, self.adapter = model, adapter
        self._looks: dict[str, asyncio.Task[None]] = {}

    def fit(self, beside: Sequence[Replica] = ()) -> list[Replica]:
        """Those that take requests, without ``beside``."""
        return [r for r in self.all if not r.out and r not in beside]

    def choose(self, key: str, share: int, *, beside: Sequence[Replica] = ()) -> Replica:
        """The server for a request of ``key``. share: requests at once beyond which another helps out.

        beside: where it failed just now; others are taken while there are any.
        """
        fit = self.fit(beside) or self.fit() or self.all
        home = self.all[int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % len(self.all)]
        return home if home in fit and home.busy < share else min(fit, key=lambda r: r.busy)

    def failed(self, replica: Replica, *, silent: bool) -> None:
        """A failure worth another try. The only server there is is never taken out: its requests wait for it."""
        if len(self.all) > 1:
            replica.failed(silent=silent)

    def look_again(self, clients: dict[str, AsyncOpenAI]) -> None:
        """Start to look at servers that are out and due; requests do not wait for it."""
        for replica in self.all if len(self.all) > 1 else ():
            if replica.out and time.monotonic() >= replica.next_look and replica.url not in self._looks:
                self._looks[replica.url] = asyncio.create_task(self._look(replica, clients[replica.url]))

    async def _look(self, replica: Replica, client: AsyncOpenAI) -> None:
        import openai

        try:
            await self.make_ready(client)
        except (openai.OpenAIError, UsageError) as error:
            log.debug("%s is still out: %s", replica.url, type(error).__name__)
            replica.pause = min(2 * replica.pause, LONGEST)
            replica.next_look = time.monotonic() + replica.pause
        else:
            replica.succeeded()
            replica.answered -= 1  # a look is not an answer
        finally:
            self._looks.pop(replica.url, None)

    async def stop_looking(self) -> None:
        """End what an event loop about to close would leave behind."""
        tasks = list(self._looks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._looks.clear()

    async def make_ready(self, client: AsyncOpenAI) -> None:
        """See that a server answers, and that it has the adapter. Raises openai's errors, and UsageError for an adapter that
        it does not take or has under this name from another folder."""
        import openai

        try:
            served: dict[str, Any] = {m.id: m async for m in client.with_options(timeout=LOOK).models.list()}
        except openai.APIStatusError as error:
            if error.status_code >= 500 or self.adapter:
                raise
            return  # it answers, and lists no models
        if not self.adapter:
            return
        if self.model in served:
            root = (served[self.model].model_extra or {}).get("root")
            if root in (None, self.adapter):
                return
            raise UsageError(
                f"the name {self.model} is taken by {root} on {client.base_url}",
                "give each adapter a different name: URL#NAME",
            )
        body = {"lora_name": self.model, "lora_path": self.adapter}
        try:
            await client.post("/load_lora_adapter", body=body, cast_to=str)
        except openai.APIStatusError as error:
            raise UsageError(
                f"{client.base_url} does not load {self.adapter}: {error.status_code} {error.message[:200]}",
                "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True; the folder must be on the server",
            ) from error
