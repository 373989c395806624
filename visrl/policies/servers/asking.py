"""What a service is told besides the conversation: its token limit by its name, a temperature, fields and headers of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from visrl.errors import UsageError
from visrl.policies.protocol import Sampling

TokenLimit = Literal["max_tokens", "max_completion_tokens"]


@dataclass(frozen=True, slots=True)
class Asking:
    """How a server is asked. limit: what its limit of new tokens is called. temperature: in the place of 0, where decoding would
    be greedy; None: as asked; "none": not sent at all, for models that refuse one. body: further fields of the request. headers:
    further headers, which are in no record.
    """

    limit: TokenLimit = "max_tokens"
    temperature: float | Literal["none"] | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def arguments(self, sampling: Sampling, seed: int) -> dict[str, Any]:
        """The fields of a request that say how to decode."""
        own = self.temperature
        temperature = sampling.temperature or (own if isinstance(own, float) else 0.0)
        extra = dict(self.body)
        found: dict[str, Any] = {self.limit: sampling.max_tokens}
        if own != "none":
            found["temperature"] = temperature
        if temperature > 0:
            found |= {"top_p": sampling.top_p, "seed": seed}
            if sampling.top_k:
                extra = {"top_k": sampling.top_k, **extra}
        return found | ({"extra_body": extra} if extra else {})

    def describe(self) -> dict[str, Any]:
        """What decides an output and is not usual; of headers nothing: they hold secrets, and say who asks."""
        found = {
            "token_limit": None if self.limit == "max_tokens" else self.limit,
            "temperature": self.temperature,
            "extra_body": dict(self.body),
        }
        return {name: value for name, value in found.items() if value not in (None, {})}


def asking(limit: TokenLimit, temperature: str, body: str, headers: str) -> Asking:
    """From ``--model-args``. Raises UsageError for what is no temperature, and for a file that is no JSON object."""
    own: float | Literal["none"] | None = None
    if temperature == "none":
        own = "none"
    elif temperature:
        try:
            own = float(temperature)
        except ValueError:
            own = -1.0
        if not 0.0 <= own <= 2.0:
            raise UsageError(f"--model-args: temperature={temperature}", "a number from 0 to 2, or none to send none")
    said = {name: str(value) for name, value in _object(headers, "extra_headers").items()}
    return Asking(limit, own, _object(body, "extra_body"), said)


def _object(text: str, name: str) -> dict[str, Any]:
    """A JSON object, written out or in a file."""
    if not text:
        return {}
    hint = f"--model-args {name}=FILE.json, a file that holds a JSON object"
    try:
        written = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        found = json.loads(written)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{name}: {error}", hint) from error
    if not isinstance(found, dict):
        raise UsageError(f"{name}: a JSON {type(found).__name__}, not an object", hint)
    return found
