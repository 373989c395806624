"""vLLM in this process: ``--model vllm:ID`` (``pip install visrl[vllm]``, a GPU). As thin as its documented ``LLM.chat`` allows.

vLLM batches, schedules and caches (prefixes by content, pictures included), so a call hands it every conversation at once.
What is ours: pictures are prepared as the family does, tokens become text exactly as in-process (box tokens are kept), draws
are seeded per request, and adapters are exchanged between calls (:meth:`VLLMPolicy.use_adapter`).

Never run on a GPU here: tested against a module with vLLM's documented signatures (tests/policies/test_vllm.py). The chat
template is the checkpoint's own, not the family's layout: where the two differ, so do prompts, and records of ``vllm:`` and
``hf:`` are of two models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from visrl.core.ranges import MOST_PROCESSES
from visrl.core.types import Turn
from visrl.errors import PictureError, UsageError
from visrl.policies.arguments import PixelArguments
from visrl.policies.families.base import Family
from visrl.policies.protocol import Output, Policy, Request, Sampling

PICTURES = 2  # of a conversation: the picture and the crop


class VLLMArguments(PixelArguments):
    """What vLLM is started with."""

    kind: ClassVar[str] = "vllm"
    other_names: ClassVar[Mapping[str, str]] = {"torch_dtype": "dtype", "peft": "adapter", "lora": "adapter"}

    dtype: str = "auto"
    revision: str = ""
    box_format: str = "native"
    adapter: str = ""
    trust_remote_code: bool = False
    tensor_parallel_size: int = Field(default=1, ge=1, le=MOST_PROCESSES)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    max_model_len: int | None = Field(default=None, ge=1)


class VLLMPolicy(Policy):
    """A ``vllm.LLM`` behind the policy contract. ``rank``: the largest LoRA rank it was started for, 0: none."""

    def __init__(
        self, name: str, engine: Any, family: Family, about: Mapping[str, Any], *, box_format: str, rank: int
    ) -> None:
        from visrl.policies.hf.decoding import OutputText

        self.name, self.engine, self.family, self.rank = name, engine, family, rank
        self.box_format = family.box_format(box_format)
        self.default_protocol, self.default_crop = family.default_protocol, family.default_crop
        self._about = dict(about)
        self._adapter: Any = None
        self._loaded = 0
        self._text = OutputText(family, self.box_format)

    @classmethod
    def load(cls, path: str, **arguments: Any) -> VLLMPolicy:
        """``--model vllm:ID --model-args …``. Raises UsageError without vLLM, and for a model it or visrl does not know."""
        from visrl.policies.hf.adapters import base_and_adapter

        args = VLLMArguments.read(arguments)
        try:
            import vllm
        except ImportError as error:
            raise UsageError(
                "vllm is not installed", "pip install 'visrl[vllm]' on a machine with a GPU, or --model hf:ID"
            ) from error
        name = path
        path, adapter = base_and_adapter(path, args.adapter)
        family, about = _family(path, args)
        family.limit_pixels(args.pixel_limits)  # what boxes in the resized picture are measured by
        rank = _rank(adapter) if adapter else 0
        try:
            engine = vllm.LLM(
                model=path,
                dtype=args.dtype,
                revision=args.revision or None,
                trust_remote_code=args.trust_remote_code,
                tensor_parallel_size=args.tensor_parallel_size,
                gpu_memory_utilization=args.gpu_memory_utilization,
                max_model_len=args.max_model_len,
                enable_prefix_caching=True,
                limit_mm_per_prompt={"image": PICTURES},
                mm_processor_kwargs=args.pixel_limits or None,
                generation_config="vllm",  # not the checkpoint's: its penalties would change scores unseen
                **({"enable_lora": True, "max_lora_rank": rank} if rank else {}),
            )
        except (ValueError, RuntimeError) as error:
            first = str(error).strip().split("\n")[0]
            raise UsageError(
                f"vLLM cannot load {path}: {first}", "try --model hf:ID, which loads it with transformers"
            ) from error
        facts = {**about, "dtype": args.dtype, "vllm": vllm.__version__}
        if family.pixel_limits:
            facts["pixels"] = family.pixels()
        if args.pixel_limits:
            facts["pixel_limits"] = args.pixel_limits
        policy = cls(f"vllm:{name}", engine, family, facts, box_format=args.box_format, rank=rank)
        if adapter:
            policy.use_adapter(adapter)
        return policy

    @property
    def batch_size(self) -> int:
        return 512

    def use_adapter(self, folder: str) -> None:
        """From now on answer with the LoRA of ``folder`` (PEFT), without loading the base again: a trainer's next iteration.

        Raises UsageError where there is none, or the engine was started for a smaller rank.
        """
        from vllm.lora.request import LoRARequest

        from visrl.policies.hf.adapters import adapter_tensors
        from visrl.policies.hf.loading import weights_hash

        if _rank(folder) > self.rank:
            raise UsageError(
                f"{folder} has rank {_rank(folder)}, vLLM was started for rank {self.rank}",
                "load this adapter at the start: --model-args adapter=FOLDER",
            )
        tensors = len(adapter_tensors(folder))
        self._loaded += 1  # vLLM tells adapters apart by this number: a new one for new weights, whatever the folder
        self._adapter = LoRARequest(f"{Path(folder).name}-{self._loaded}", self._loaded, folder)
        self._about["adapter"] = {"path": folder, "weights_sha256": weights_hash(Path(folder)), "tensors": tensors}

    def describe(self) -> Mapping[str, Any]:
        """What a record says of this model."""
        return {"kind": "vllm", "adapter": None, **self._about, "box_format": self.box_format.name}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        """One Output per request, in order; one call of the engine for all whose pictures open."""
        outputs: list[Output | None] = [None] * len(requests)
        asked: list[tuple[int, list[dict[str, Any]]]] = []
        for index, request in enumerate(requests):
            try:
                asked.append((index, [self._message(turn) for turn in request.turns]))
            except PictureError as error:
                outputs[index] = Output(error=f"PictureError: {error}", retry=False)
        how = [self._sampling(requests[index], sampling) for index, _ in asked]
        conversations = [messages for _, messages in asked]
        found = (
            self.engine.chat(conversations, sampling_params=how, use_tqdm=False, lora_request=self._adapter)
            if conversations
            else []
        )
        for (index, _), result in zip(asked, found, strict=True):
            outputs[index] = self._output(result, sampling)
        return [output if output is not None else Output(error="nothing was generated") for output in outputs]

    def _message(self, turn: Turn) -> dict[str, Any]:
        parts: list[dict[str, Any]] = []
        for part in turn.parts:
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
            else:
                parts.append({"type": "image_pil", "image_pil": self.family.prepare(part.open().convert("RGB"))})
        return {"role": turn.role, "content": parts}

    def _sampling(self, request: Request, sampling: Sampling) -> Any:
        from vllm import SamplingParams

        draw = f"{sampling.seed}:{request.key}:{request.step}{request.stream}"
        seed = int.from_bytes(hashlib.sha256(draw.encode()).digest()[:4], "big") >> 1
        drawn = {"top_p": sampling.top_p, "top_k": sampling.top_k, "seed": seed} if sampling.temperature > 0 else {}
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop) if sampling.stop and sampling.accept_stop is None else None,  # else cut afterwards
            skip_special_tokens=False,  # or a stop text of special tokens would never be seen
            **drawn,
        )

    def _output(self, result: Any, sampling: Sampling) -> Output:
        ids = [list(one.token_ids) for one in result.outputs]
        texts = tuple(self._text.final(tokens, sampling) for tokens in ids)
        cached = result.num_cached_tokens or 0
        return Output(
            texts,
            prompt_tokens=len(result.prompt_token_ids),
            output_tokens=sum(map(len, ids)),
            cached_tokens=cached,
            finish_reason=result.outputs[0].finish_reason,
        )


def _family(path: str, args: VLLMArguments) -> tuple[Family, dict[str, Any]]:
    from visrl.policies.families import family_for
    from visrl.policies.hf.loading import commit_of, folder_of, load_config, weights_hash

    revision = {"revision": args.revision} if args.revision else {}
    config, processor = load_config(path, {"trust_remote_code": args.trust_remote_code, **revision})
    family = family_for(config, processor)
    about = {
        "family": family.name,
        "path": path,
        "revision": commit_of(config) or args.revision or None,
        "weights_sha256": weights_hash(folder_of(path, args.revision)),
        "trust_remote_code": args.trust_remote_code,
    }
    return family, about


def _rank(folder: str) -> int:
    """The rank of a PEFT adapter. Raises UsageError where the folder holds none."""
    try:
        return int(json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"no adapter_config.json with a rank in {folder}", "adapter= takes a folder saved by PEFT"
        ) from error
