"""Models whose code lies in their repository and that are spoken to by ``model.chat(msgs=…, tokenizer=…)``: MiniCPM-o and -V.

transformers has no class for MiniCPM-o-2.6. Where the user trusts the repository's code and has a transformers it runs on (its
authors name 4.44), this policy calls it, one conversation after another; elsewhere, serve it
and use policies/servers/endpoint.py.

Tested with a stand-in repository of that interface (tests/policies/test_remote_chat.py). The real model was never loaded here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from visrl.core.box_formats import FORMATS, BoxFormat
from visrl.core.types import Turn
from visrl.errors import PictureError, UsageError
from visrl.policies.families.base import PAPER_FORMAT
from visrl.policies.hf.hashes import weights_hash
from visrl.policies.hf.loading import CheckpointArguments, commit_of, folder_of, own_device
from visrl.policies.protocol import Output, Policy, Request, Sampling

CHAT_TYPES = ("minicpmo", "minicpmv")
NATIVE = FORMATS["box_tag_1000"]


class RemoteChatPolicy(Policy):
    """A ``model.chat`` behind the policy contract. No batches and no caches: the repository's code has its own way."""

    def __init__(self, path: str, model: Any, tokenizer: Any, box_format: BoxFormat, about: Mapping[str, Any]) -> None:
        self.name, self.model, self.tokenizer, self.box_format = path, model, tokenizer, box_format
        self._about = dict(about)

    @classmethod
    def load(cls, path: str, args: CheckpointArguments, box_format: str) -> RemoteChatPolicy:
        """Raises UsageError unless the user trusts the code, and where it does not run on this transformers."""
        from transformers import AutoModel, AutoTokenizer

        served = "serve it (vLLM has it) and use --model endpoint:URL#NAME --model-args box_format=box_tag_1000"
        if not args.trust_remote_code:
            raise UsageError(
                f"{path} needs Python code from its own repository",
                f"set trust_remote_code=true if you trust that code, or {served}",
            )
        formats = {"native": NATIVE, "paper": PAPER_FORMAT, **FORMATS}
        if box_format not in formats:
            raise UsageError(f"unknown box format {box_format!r}", f"one of {', '.join(formats)}")
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, **args.where)
            model = AutoModel.from_pretrained(path, dtype=args.dtype, use_safetensors=True, **args.where)
        except Exception as error:
            raise UsageError(
                f"the code of {path} does not run here: {type(error).__name__}: {error}", served
            ) from error
        model = model.to(args.device or own_device()).eval()
        about = {
            "kind": "hf",
            "family": "minicpmo",
            "path": path,
            "revision": commit_of(model.config) or args.revision or None,
            "weights_sha256": weights_hash(folder_of(path, args.revision)),
            "dtype": str(model.dtype).removeprefix("torch."),
            "trust_remote_code": True,
        }
        return cls(path, model, tokenizer, formats[box_format], about)

    def describe(self) -> Mapping[str, Any]:
        """What a record says of this model."""
        return {**self._about, "box_format": self.box_format.name}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        """One Output per request, in order."""
        return [self._one(request, sampling) for request in requests]

    def _one(self, request: Request, sampling: Sampling) -> Output:
        try:
            messages = [_message(turn) for turn in request.turns]
        except PictureError as error:
            return Output(error=f"PictureError: {error}", retry=False)
        # its greedy default is three beams and a repetition penalty: both would change scores unseen
        how: dict[str, Any] = {"sampling": False, "num_beams": 1, "repetition_penalty": 1.0}
        if sampling.temperature > 0:
            drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
            how = {"sampling": True, "repetition_penalty": 1.0, **drawn}
        texts = []
        for index in range(sampling.n):
            seeded = hashlib.sha256(f"{sampling.seed}:{request.key}:{request.step}:{index}".encode()).digest()
            with torch.random.fork_rng(), torch.inference_mode():
                torch.manual_seed(int.from_bytes(seeded[:7], "big"))
                text = self.model.chat(
                    msgs=messages, tokenizer=self.tokenizer, max_new_tokens=sampling.max_tokens, **how
                )
            texts.append(sampling.cut(str(text)))
        return Output(tuple(texts))


def _message(turn: Turn) -> dict[str, Any]:
    parts = [part if isinstance(part, str) else part.open().convert("RGB") for part in turn.parts]
    return {"role": turn.role, "content": parts}
