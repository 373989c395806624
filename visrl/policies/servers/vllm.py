"""vLLM in this process: ``--model vllm:ID`` (``pip install visrl[vllm]``). ``LLM.generate`` on the family's own prompts.

vLLM batches, schedules and caches (prefixes by content, pictures included), so a call hands it every conversation at once.
What is ours: the family's layout makes the prompt and prepares the pictures, tokens become text exactly as in process (box tokens
are kept), draws are seeded per request, texts are scored by the log-probabilities of a prompt's last tokens, and adapters are
exchanged between calls (:meth:`VLLMPolicy.use_adapter`).

Run on vLLM 0.32 for CPUs, where prompts and greedy texts equal those of ``hf:`` (docs/engines.md, tests/engines/). Never run on a
GPU here. Draws at a temperature are vLLM's own: the same for one seed, others than those of ``hf:``.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visrl.core.boxes import Size
from visrl.core.chat_format import LayoutError
from visrl.errors import Incomplete, PictureError, UsageError
from visrl.policies.families.base import EncodedImage, Family
from visrl.policies.protocol import LogLikelihood, Output, Policy, Request, Sampling, Tokens
from visrl.policies.servers.vllm_arguments import (
    PICTURES,
    VLLMArguments,
    deciding,
    engine_arguments,
    processor_kwargs,
    rank_of,
    separated,
    served_rank,
)

_EYES = re.compile(r"vision|visual|projector|connector|merger|image_newline")
"""In the name of an adapter's tensor: a place outside the language model, which vLLM leaves out and does not say so."""
_NEVER = -100.0
"""The lowest bias of a token's logit that vLLM takes."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request on its way. index: its place in the call. prompt: as ``LLM.generate`` takes it. ids: written so far."""

    index: int
    request: Request
    prompt: Mapping[str, Any]
    ids: tuple[int, ...] = ()


class VLLMPolicy(Policy):
    """A ``vllm.LLM`` behind the policy contract. rank: the largest LoRA rank it was started for, 0: none. tower: whether it
    takes adapters of the vision tower."""

    scores_texts = True

    def __init__(
        self,
        name: str,
        engine: Any,
        family: Family,
        about: Mapping[str, Any],
        *,
        box_format: str,
        rank: int,
        tower: bool = False,
    ) -> None:
        from visrl.policies.hf.decoding import OutputText

        self.name, self.engine, self.family, self.rank, self.tower = name, engine, family, rank, tower
        self.box_format = family.box_format(box_format)
        self.default_protocol, self.default_crop = family.default_protocol, family.default_crop
        self._about = dict(about)
        self._adapter: Any = None
        self._dead = ""
        self._numbers = itertools.count(1)
        self._text = OutputText(family, self.box_format)

    @classmethod
    def load(cls, path: str, **arguments: Any) -> VLLMPolicy:
        """``--model vllm:ID --model-args …``. Raises UsageError without vLLM, and for a model it or visrl does not know."""
        from visrl.policies.hf.adapters import base_and_adapter

        args, rest = separated(arguments)
        vllm = require_vllm()
        given = engine_arguments(rest)
        name = path
        path, adapter = base_and_adapter(path, args.adapter)
        family, about = _family(path, args)
        if family.engines_differ:
            raise UsageError(f"{path}: {family.engines_differ}", f"--model hf:{path}")
        family.limit_pixels(args.pixel_limits)  # what boxes in the resized picture are measured by
        rank = served_rank(args, adapter)
        engine = _started(
            vllm, path, args, {**given, "mm_processor_kwargs": processor_kwargs(family, args, given)}, rank
        )
        facts = {**about, "dtype": args.dtype, "vllm": vllm.__version__}
        if family.pixel_limits:
            facts["pixels"] = family.pixels()
        if args.pixel_limits:
            facts["pixel_limits"] = args.pixel_limits
        if told := deciding(given):
            facts["engine"] = told
        tower = bool(given.get("enable_tower_connector_lora"))
        policy = cls(f"vllm:{name}", engine, family, facts, box_format=args.box_format, rank=rank, tower=tower)
        policy.max_pictures = _pictures(given)
        if adapter:
            policy.use_adapter(adapter)
        return policy

    @property
    def batch_size(self) -> int:
        return 512

    def use_adapter(self, folder: str) -> None:
        """From now on answer with the LoRA of ``folder`` (PEFT), without loading the base again: a trainer's next iteration.

        Raises UsageError where there is none, the engine was started for a smaller rank, or it would leave out a part of it.
        """
        from vllm.lora.request import LoRARequest

        from visrl.policies.hf.adapters import adapter_tensors, few
        from visrl.policies.hf.hashes import weights_hash

        if (rank := rank_of(folder)) > self.rank:
            raise UsageError(
                f"{folder} has rank {rank}, vLLM was started for rank {self.rank}",
                f"start it for larger ones: --model-args max_lora_rank={rank}",
            )
        tensors = adapter_tensors(folder)
        if (seeing := [name for name in tensors if _EYES.search(name)]) and not self.tower:
            raise UsageError(
                f"{folder} adapts more than the language model, which vLLM would ignore: {few(seeing)}",
                "--model-args enable_tower_connector_lora=true, where vLLM has it for this model; or merge the adapter",
            )
        number = next(self._numbers)  # vLLM tells adapters apart by it: a new one for new weights, whatever the folder
        self._adapter = LoRARequest(f"{Path(folder).name}-{number}", number, folder)
        self._about["adapter"] = {"path": folder, "weights_sha256": weights_hash(Path(folder)), "tensors": len(tensors)}

    def with_adapter(self, folder: str) -> VLLMPolicy | None:
        if folder and rank_of(folder) > self.rank:
            return None
        about = {key: value for key, value in self._about.items() if key != "adapter"}
        other = VLLMPolicy(
            self.name,
            self.engine,
            self.family,
            about,
            box_format=self.box_format.name,
            rank=self.rank,
            tower=self.tower,
        )
        other._numbers, other.max_pictures = self._numbers, self.max_pictures
        if folder:
            other.use_adapter(folder)
        return other

    def rename(self, name: str) -> None:
        self.name = self._about["path"] = name
        if self._about.get("adapter") is not None:
            self._about["adapter"] = {**self._about["adapter"], "path": name}

    def describe(self) -> Mapping[str, Any]:
        """What a record says of this model."""
        return {"kind": "vllm", "adapter": None, **self._about, "box_format": self.box_format.name}

    def require_reachable(self) -> None:
        """Raises Incomplete where the engine's process has died: nothing it is asked would be answered."""
        if self._dead:
            raise Incomplete(
                f"vLLM's engine has died: {self._dead}",
                "its own messages say why; the same command starts another and goes on",
            )

    def close(self) -> None:
        """End the engine's process, which holds weights and cache."""
        self.engine.llm_engine.engine_core.shutdown()

    # -- asking

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        """One Output per request, in order; one call of the engine for all whose pictures open. Where a stop did not count, texts
        go on in a further call.
        """
        outputs: list[Output | None] = [None] * len(requests)
        asked: list[_Asked] = []
        for index, request in enumerate(requests):
            try:
                asked.append(_Asked(index, request, self._prompt(request)))
            except (PictureError, LayoutError) as error:
                outputs[index] = Output(error=f"{type(error).__name__}: {error}", retry=False)
        while asked:
            further: list[_Asked] = []
            for one, result in zip(asked, self._engine(asked, sampling), strict=True):
                ids = [[*one.ids, *made.token_ids] for made in result.outputs]
                if self._goes_on(result, ids[0], sampling):
                    further.append(replace(one, ids=tuple(ids[0])))
                else:
                    outputs[one.index] = self._output(one, result, ids, sampling)
            asked = further
        return [output if output is not None else Output(error="nothing was generated") for output in outputs]

    def _engine(self, asked: Sequence[_Asked], sampling: Sampling) -> Sequence[Any]:
        how = [self._sampling(one, sampling) for one in asked]
        prompts = [
            {**one.prompt, "prompt_token_ids": [*one.prompt["prompt_token_ids"], *one.ids]} if one.ids else one.prompt
            for one in asked
        ]
        return self._run(prompts, how)

    def _run(self, prompts: Sequence[Mapping[str, Any]], how: Any) -> Sequence[Any]:
        """One call of the engine; that it has died is remembered."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            found: Sequence[Any] = self.engine.generate(
                prompts, sampling_params=how, use_tqdm=False, lora_request=self._adapter
            )
        except EngineDeadError as error:
            self._dead = str(error) or "it said nothing"
            raise
        return found

    def _prompt(self, request: Request, completion: Sequence[int] = ()) -> dict[str, Any]:
        """The family's conversation with one mark per picture, which vLLM's processor replaces by the picture's own tokens."""
        rendered = self.family.render(request.turns)
        images = [self.family.prepare(picture.open().convert("RGB")) for picture in rendered.pictures]
        mark = EncodedImage("", (self.family.image_token_id,), {})
        ids = [*self.family.chat(rendered, [mark] * len(images)).ids, *completion]
        return {"prompt_token_ids": ids, **({"multi_modal_data": {"image": images}} if images else {})}

    def _sampling(self, asked: _Asked, sampling: Sampling) -> Any:
        from vllm import SamplingParams

        request = asked.request
        draw = f"{sampling.seed}:{request.key}:{request.step}{request.stream}"
        seed = int.from_bytes(hashlib.sha256(draw.encode()).digest()[:4], "big") >> 1
        drawn: dict[str, Any] = {}
        if sampling.temperature > 0:  # a drawn placeholder would stand for a picture that is not there
            drawn = {"top_p": sampling.top_p, "top_k": sampling.top_k, "seed": seed}
            drawn["logit_bias"] = {self.family.image_token_id: _NEVER}
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens - len(asked.ids),
            stop=[*(sampling.stop if self._stops(sampling) else ()), *self.family.end_texts] or None,
            stop_token_ids=sorted(self.family.end_ids),  # generation_config="vllm": it knows one end of text at most
            skip_special_tokens=False,  # or a stop text of special tokens would never be seen
            **drawn,
        )

    @staticmethod
    def _stops(sampling: Sampling) -> bool:
        """Whether the engine stops at a stop text. Where that may not count, texts go on in another call, and only greedy ones
        can: a drawn text would begin its seed anew. It is cut afterwards.
        """
        return sampling.accept_stop is None or (sampling.n == 1 and sampling.temperature <= 0)

    def _goes_on(self, result: Any, ids: Sequence[int], sampling: Sampling) -> bool:
        """Whether a text ended at a stop that does not count."""
        made = result.outputs[0]
        if sampling.accept_stop is None or not self._stops(sampling) or made.finish_reason != "stop":
            return False
        if made.stop_reason not in sampling.stop or len(ids) >= sampling.max_tokens:
            return False
        return sampling.end_of(self._text.text(ids)) is None

    def _output(self, asked: _Asked, result: Any, ids: Sequence[Sequence[int]], sampling: Sampling) -> Output:
        return Output(
            tuple(self._text.final(tokens, sampling) for tokens in ids),
            prompt_tokens=len(result.prompt_token_ids) - len(asked.ids),
            output_tokens=sum(map(len, ids)),
            cached_tokens=min(result.num_cached_tokens or 0, len(result.prompt_token_ids) - len(asked.ids)),
            finish_reason=result.outputs[0].finish_reason,
            seen_sizes=self._seen(asked.prompt),
            token_ids=tuple(tuple(tokens) for tokens in ids),
        )

    def _seen(self, prompt: Mapping[str, Any]) -> tuple[Size, ...] | None:
        images = prompt.get("multi_modal_data", {}).get("image", ())
        sizes = [self.family.resized_to(image.size) for image in images]
        return tuple(size for size in sizes if size is not None) or None

    # -- scoring

    def loglikelihood(self, requests: Sequence[Request], completions: Sequence[str]) -> list[LogLikelihood]:
        """As ``hf:`` scores: the completion's tokens and the end of the reply behind the prompt, by the engine's own
        log-probabilities of a prompt."""
        from vllm import SamplingParams

        found: list[LogLikelihood] = [LogLikelihood(error="not scored")] * len(requests)
        prompts: list[tuple[int, int, dict[str, Any]]] = []
        for index, (request, text) in enumerate(zip(requests, completions, strict=True)):
            ids = [*self.family.tokenizer(text, add_special_tokens=False)["input_ids"], *self.family.end_of_reply()]
            try:
                prompts.append((index, len(ids), self._prompt(request, ids)))
            except (PictureError, LayoutError) as error:
                found[index] = LogLikelihood(error=f"{type(error).__name__}: {error}")
        if not prompts:
            return found
        how = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        results = self._run([prompt for *_, prompt in prompts], how)
        for (index, n, _), result in zip(prompts, results, strict=True):
            found[index] = _summed(result, n)
        return found


def checked_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say which files are loaded, as ``hf:`` calls them. Raises UsageError without vLLM, and for one it refuses."""
    args, rest = separated(arguments)
    require_vllm()
    engine_arguments(rest)
    return args.model_dump(include={"box_format", "adapter", "revision", "trust_remote_code"})


def require_vllm() -> Any:
    """The module. Raises UsageError where it is not installed."""
    try:
        import vllm
    except ImportError as error:
        raise UsageError(
            "vllm is not installed", "pip install 'visrl[vllm]' (docs/engines.md), or --model hf:ID"
        ) from error
    return vllm


def _pictures(given: Mapping[str, Any]) -> int:
    """How many pictures a conversation may hold, as the engine is told."""
    limit = (given.get("limit_mm_per_prompt") or {}).get("image", PICTURES)
    return limit if type(limit) is int else PICTURES


def _started(vllm: Any, path: str, args: VLLMArguments, given: Mapping[str, Any], rank: int) -> Any:
    """The engine. Raises UsageError for a model that it cannot load."""
    ours = {
        "dtype": args.dtype,
        "revision": args.revision or None,
        "trust_remote_code": args.trust_remote_code,
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # not the checkpoint's: its penalties would change scores unseen
        **({"enable_lora": True, "max_lora_rank": rank} if rank else {}),
    }
    usual = {"limit_mm_per_prompt": {"image": PICTURES}}
    given = {name: value for name, value in given.items() if value not in (None, {})}
    try:
        return vllm.LLM(model=path, **usual | given | ours)
    except (ValueError, RuntimeError, TypeError) as error:
        first = str(error).strip().split("\n")[0]
        raise UsageError(
            f"vLLM cannot load {path}: {first}", "try --model hf:ID, which loads it with transformers"
        ) from error


def _summed(result: Any, n: int) -> LogLikelihood:
    """The log-probability of a prompt's last ``n`` tokens."""
    ids, logs = list(result.prompt_token_ids), list(result.prompt_logprobs or ())
    if len(logs) != len(ids):
        return LogLikelihood(error=f"vLLM gave {len(logs)} log-probabilities for {len(ids)} tokens")
    value = sum(float(row[token].logprob) for token, row in zip(ids[-n:], logs[-n:], strict=True))
    return LogLikelihood(value, tokens=Tokens(prompt=len(ids)))


def _family(path: str, args: VLLMArguments) -> tuple[Family, dict[str, Any]]:
    from visrl.policies.families import family_for
    from visrl.policies.hf.hashes import weights_hash
    from visrl.policies.hf.loading import commit_of, folder_of, load_config

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
