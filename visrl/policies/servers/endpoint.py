"""Any OpenAI-compatible server as a policy: vLLM, SGLang, LMDeploy, ``transformers serve``, hosted ones.

Requests of a call run at once, at most ``in_flight`` of them; answers come back in the order of the requests. Timeouts, 429,
5xx, connections that break, streams that end early and bodies that are not JSON are tried again, with growing pauses; other
refusals (400, 401, 404) are the sample's error at once. Several servers of one model share the requests (replicas.py): one that
dies is taken out and its requests are tried elsewhere.

A turn's parts go out in our order, pictures as PNG data URLs made once per call: the answer turn of a conversation starts with
the bytes of its box turn, which is what a server's prefix cache matches on. How they become a prompt is the server's chat
template's business, and so is what its processor does to pictures: unlike models in this process it cannot be seen, and
``box_format`` must be named by the user, because a server does not say how its model writes boxes.

Departures: 1. ``stop`` is not sent: servers cut the stop text off, our outputs keep it. The text is streamed, and the connection
closed as soon as a stop text has come. 2. n samples are n requests with seeds of their own: not every server knows ``n``.
3. Of several samples, those that were blocked, or cut before they said anything, are empty texts; a request fails if all are.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import logging
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from visrl.core.box_formats import FORMATS, RESIZED, BoxFormat, format_named
from visrl.core.outputs import why_unscored
from visrl.core.types import Picture, Turn
from visrl.errors import Incomplete, PictureError, UsageError
from visrl.evals.guarded_http import check_url, guarded_client
from visrl.policies.arguments import ModelArguments
from visrl.policies.protocol import Output, Policy, Request, Sampling
from visrl.policies.servers.asking import Asking, asking
from visrl.policies.servers.failures import (
    NobodyAnswers,
    ServerFailed,
    as_broken,
    is_away,
    nobody_there,
    reason_of,
    worth_another_try,
)
from visrl.policies.servers.outage import LONGEST, LOST, Outage
from visrl.policies.servers.preflight import answers, look
from visrl.policies.servers.replicas import Replica, Replicas
from visrl.policies.servers.replies import Calls, Message, Reply, pieces, schema, with_native_calls

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from PIL.Image import Image

log = logging.getLogger(__name__)
OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go and how patiently. pause: seconds before the second try, doubled before each further one. patience:
    seconds without any answer after which the run ends (outage.py).

    url: one, or several of one model joined by commas. in_flight: requests at once, per server. adapter: see replicas.py.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    in_flight: int = 16
    timeout: float = 120.0
    tries: int = 8
    pause: float = 0.5
    patience: float = 300.0
    adapter: str = ""
    asking: Asking = Asking()  # noqa: RUF009 - frozen

    @property
    def urls(self) -> list[str]:
        return self.url.split(",")


class EndpointArguments(ModelArguments):
    """How a server is asked. timeout, patience: seconds. pad: ``red/green/blue``. min_pixels, max_pixels: of ``json_resized``.
    tools: whether looks are called for in the text or by the interface's tool calls (replies.py). The rest: asking.py.
    """

    kind: ClassVar[str] = "endpoint"

    box_format: str = ""
    key_env: str = "OPENAI_API_KEY"
    in_flight: int = Field(default=16, ge=1, le=10_000)
    timeout: float = Field(default=120.0, gt=0, le=604_800)
    tries: int = Field(default=8, ge=1, le=1000)
    patience: float = Field(default=300.0, ge=0, le=604_800)
    pad: str = ""
    adapter: str = ""
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105 - no secret
    temperature: str = ""
    extra_body: str = ""
    extra_headers: str = ""
    tools: Literal["text", "native"] = "text"
    min_pixels: int = Field(default=56 * 56, ge=1)
    max_pixels: int = Field(default=14 * 14 * 4 * 16384, ge=1)


class EndpointPolicy(Policy):
    """A model behind ``POST URL/chat/completions``.

    pad: colour with which pictures are padded to a square before they are sent, for servers of LLaVA-1.5, whose processor would
    cut the square out of the middle instead.
    """

    def __init__(self, server: Server, box_format: BoxFormat, pad: tuple[int, int, int] | None = None) -> None:
        self.server, self.box_format, self.pad = server, box_format, pad
        self.name = f"{server.url}#{server.model}"
        self.replicas = Replicas(server.urls, server.model, server.adapter)
        self.outage = Outage(server.patience)
        self._met = False
        self.rows = server.in_flight * len(server.urls)
        self._key = os.environ.get(server.key_env, "")

    @classmethod
    def load(cls, target: str, **arguments: Any) -> EndpointPolicy:
        """``--model endpoint:URL[,URL…]#NAME --model-args box_format=…``. Raises UsageError for what a user can mend."""
        args = EndpointArguments.read(arguments)
        urls, separator, model = target.partition("#")
        for url in urls.split(","):
            check_url(url, "endpoint", _EXAMPLE)
        if not separator or not model:
            raise UsageError(f"{target!r} is not URL#NAME", _EXAMPLE)
        if len(set(urls.split(","))) < len(urls.split(",")):
            raise UsageError(f"{urls} contains a server twice", "list each URL once")
        colour = _colour(args.pad)
        how = asking(args.token_limit, args.temperature, args.extra_body, args.extra_headers)
        hard = (args.key_env, args.in_flight, args.timeout, args.tries)
        server = Server(urls, model, *hard, patience=args.patience, adapter=args.adapter, asking=how)
        policy = cls(server, _box_format(args.box_format, args.min_pixels, args.max_pixels), colour)
        policy.native_tools = args.tools == "native"
        if args.adapter:
            asyncio.run(policy.load_adapter())
        return policy

    @classmethod
    def of_openai(cls, model: str, **arguments: Any) -> EndpointPolicy:
        """``--model openai:NAME``: the service itself. Raises UsageError as :meth:`load` does, and without a key."""
        key = EndpointArguments.read(arguments).key_env
        if not os.environ.get(key):
            raise UsageError(f"openai:{model} needs a key, and {key} is not set", f"export {key}=…, or key_env=NAME")
        policy = cls.load(f"{OPENAI}#{model}", **arguments)
        policy.name = f"openai:{model}"
        return policy

    @property
    def batch_size(self) -> int:
        return 4 * self.rows

    def describe(self) -> Mapping[str, Any]:
        """What a record says: where the model is and how it was asked; the key's name, never the key."""
        return {
            "kind": "endpoint",
            "url": self.server.url,
            "model": self.server.model,
            "key_env": self.server.key_env if self._key else None,  # stated, and decides nothing (runs/identity.py)
            "box_format": self.box_format.name,
            "pad": self.pad,
            **({"servers": self.server.urls} if len(self.server.urls) > 1 else {}),
            **({"adapter": self.server.adapter} if self.server.adapter else {}),
            **({"tools": "native"} if self.native_tools else {}),
            **self.server.asking.describe(),
        }

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        """One Output per request, in order."""
        return asyncio.run(self._generate(requests, sampling))

    async def _generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
        free = asyncio.Semaphore(self.rows)
        if not self.outage.reason:
            self.outage.ended()
        pictures: dict[str, str] = {}
        clients = {url: self._client(url) for url in self.server.urls}
        try:
            return await asyncio.gather(*(self._one(clients, free, r, sampling, pictures) for r in requests))
        finally:
            await self.replicas.stop_looking()
            for client in clients.values():
                await client.close()

    def _client(self, url: str) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        seconds, key, headers = self.server.timeout, self._key or "none", dict(self.server.asking.headers)
        more = {"default_headers": headers, "http_client": guarded_client(seconds)}
        return AsyncOpenAI(base_url=url, api_key=key, timeout=seconds, max_retries=0, **more)

    def require_reachable(self) -> None:
        """Before the first call: raises UsageError where no server answers, or one refuses the key or the model (preflight.py).
        Later: raises Incomplete where servers answered and no longer do (outage.py).
        """
        if not self._met:
            server = self.server
            asyncio.run(look(server.urls, self._client, server.model, server.key_env, server.asking.limit))
            self._met = True
        if self.outage.reason:
            if self.outage.lost >= LOST or not asyncio.run(answers(self.server.urls, self._client)):
                raise Incomplete(
                    f"{self.server.url}: {self._discreet(self.outage.reason)}",
                    f"the same command goes on once it is back; patience={self.server.patience:g} says how long it is waited for",
                )
            self.outage.ended()

    async def load_adapter(self) -> None:
        """Have every server load ``server.adapter``. One that does not answer is taken out, and gets it when it is back.

        Raises UsageError where a server refuses it, or none answers.
        """
        import openai

        for replica in self.replicas.all:
            try:
                async with self._client(replica.url) as client:
                    await self.replicas.make_ready(client)
            except openai.OpenAIError as error:
                log.debug("%s: %s", replica.url, self._discreet(str(error)))
                replica.failed(silent=True)
        if all(replica.out for replica in self.replicas.all):
            raise UsageError(f"{self.server.url} does not answer", "is the server running, and the URL right?")

    async def _one(
        self,
        clients: dict[str, AsyncOpenAI],
        free: asyncio.Semaphore,
        request: Request,
        sampling: Sampling,
        pictures: dict[str, str],
    ) -> Output:
        import openai

        try:
            messages = [self._message(turn, pictures) for turn in request.turns]
            asked: dict[str, Any] = {"messages": with_native_calls(messages) if self.native_tools else messages}
            asked |= {"tools": [schema(request.tool)]} if request.tool is not None else {}
            bodies = [{**asked, **self._arguments(request, sampling, i)} for i in range(sampling.n)]
            tries = (self._patiently(clients, free, request.key, body, sampling) for body in bodies)
            replies = await asyncio.gather(*tries)
        except (PictureError, openai.OpenAIError, ServerFailed) as error:
            return Output(error=self._discreet(f"{type(error).__name__}: {error}"), retry=False)
        reasons = [why_unscored(reply.text, reply.finish, reply.refusal) for reply in replies]
        if all(reasons):
            return Output(error=self._discreet(str(reasons[0])), retry=False)
        # of several samples one that says nothing is one that says nothing, as in vLLM; it does not undo the others
        texts = tuple("" if reason else reply.text for reply, reason in zip(replies, reasons, strict=True))
        return Output(texts, finish_reason=replies[0].finish)

    def _arguments(self, request: Request, sampling: Sampling, index: int) -> dict[str, Any]:
        draw = f"{sampling.seed}:{request.key}:{request.step}{request.stream}:{index}"
        seeded = hashlib.sha256(draw.encode()).digest()
        seed = int.from_bytes(seeded[:4], "big") >> 1
        return {"model": self.server.model, **self.server.asking.arguments(sampling, seed)}

    async def _patiently(
        self,
        clients: dict[str, AsyncOpenAI],
        free: asyncio.Semaphore,
        key: str,
        body: dict[str, Any],
        sampling: Sampling,
    ) -> Reply:
        """The reply to one request, tried until it is whole. The place among those in flight is given up while pausing."""
        pause, tried, attempts = self.server.pause, list[Replica](), 0
        while True:
            answered = self.outage.answers
            self.replicas.look_again(clients)
            try:
                async with free:
                    if self.outage.reason:
                        raise NobodyAnswers(self.outage.reason)
                    replica = self.replicas.choose(key, -(-self.rows // len(clients)), beside=tried)
                    with replica.working():
                        text = self._stream(clients[replica.url], body, sampling)
                        whole = await asyncio.wait_for(text, self.server.timeout)
                replica.succeeded()
                self.outage.answered()
                return whole
            except NobodyAnswers:
                raise
            except Exception as error:  # whatever a broken server makes a client raise: told apart below
                wait = worth_another_try(error)
                if wait is None:
                    raise as_broken(error, attempts + 1) from error
                waits = self.outage.answers == answered and await self._gone(error)  # for all alike: it costs no try
                attempts += not waits
                self._note(replica, error, attempts)
                tried.append(replica)
                if not self.replicas.fit(tried):
                    tried.clear()
                    await asyncio.sleep(max(wait, pause * random.uniform(0.5, 1.0)))
                    pause = min(2 * pause, LONGEST) if waits else 2 * pause

    async def _gone(self, error: Exception) -> bool:
        """Whether a try failed because no server is there. One that lists its models is there: the request broke the connection,
        and may be the last one that is asked, so that no other answer tells.
        """
        if nobody_there(error) and await answers(self.server.urls, self._client):
            return False
        return is_away(error)

    def _note(self, replica: Replica, error: Exception, attempts: int) -> None:
        """A try that failed. Raises what the request fails with, where that was its last one or nobody has answered for long."""
        self.replicas.failed(replica, silent=nobody_there(error))
        self.outage.failed(reason_of(error))
        if attempts >= self.server.tries:
            self.outage.gave_up(reason_of(error))
            raise as_broken(error, attempts) from error
        if self.outage.reason:
            raise NobodyAnswers(self.outage.reason) from error
        log.debug("try %d failed: %s", attempts, self._discreet(str(error)))

    async def _stream(self, client: AsyncOpenAI, body: dict[str, Any], sampling: Sampling) -> Reply:
        """The text up to a stop that counts, or to the end the server declares, and that end. Raises ServerFailed for a stream
        that breaks off, or that is not in the layout of the interface.
        """
        text, finish, refusal, calls, began = "", None, "", Calls(), False
        async with await client.chat.completions.create(stream=True, **body) as stream:
            async for chunk in stream:
                began = True
                said, ended, refused = pieces(chunk, calls)
                text, finish, refusal = text + said, ended or finish, refusal + refused
                if sampling.stop and sampling.end_of(text) is not None:
                    return Reply(sampling.cut(text), "stop")
        if finish is None:
            raise ServerFailed(
                "the stream ended before the text did"
                + ("" if began else ", with nothing in it: does the server stream?")
            )
        return Reply(text + calls.text(), finish, refusal)

    def _message(self, turn: Turn, pictures: dict[str, str]) -> Message:
        if turn.role != "user":
            return {"role": turn.role, "content": turn.text()}
        return {"role": "user", "content": [self._part(part, pictures) for part in turn.parts]}

    def _part(self, part: str | Picture, pictures: dict[str, str]) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        image = part.open()
        name = hashlib.blake2b(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()
        if name not in pictures:
            pictures[name] = self._data_url(image)
        return {"type": "image_url", "image_url": {"url": pictures[name]}}

    def _data_url(self, image: Image) -> str:
        if self.pad is not None:
            from visrl.policies.families.llava import expand2square

            image = expand2square(image.convert("RGB"), self.pad)
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG", compress_level=1)  # lossless: the same pixels as in-process
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    def _discreet(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


_EXAMPLE = "for example endpoint:http://localhost:8000/v1#my-model; several servers of one model: URL,URL#NAME"


def _colour(pad: str) -> tuple[int, int, int] | None:
    """``122/116/104`` as numbers. Raises UsageError for anything else."""
    if not pad:
        return None
    parts = pad.split("/")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) < 256 for part in parts):
        raise UsageError(f"pad={pad} is not red/green/blue", "for LLaVA-1.5: pad=122/116/104")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _box_format(name: str, min_pixels: int, max_pixels: int) -> BoxFormat:
    """The format a user names; ``json_resized`` is Qwen2.5-VL's and depends on the server's pixel limits."""
    if not name:
        raise UsageError(
            "the box format of a served model must be given: a server does not report it",
            f"--model-args box_format=NAME, one of {', '.join([*FORMATS, RESIZED])}; docs/families.md names each family's",
        )
    if name != RESIZED:
        return format_named("padded_square_3dp" if name == "paper" else name)
    return format_named(name, min_pixels=str(min_pixels), max_pixels=str(max_pixels))
