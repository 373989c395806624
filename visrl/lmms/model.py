"""The lmms-eval side of visrl: our model class, and running lmms-eval's own tasks from visrl-eval.

``lmms-eval --model visrl --model_args policy=hf:PATH,protocol=visrl_train,crop=tight --tasks visrl_refcoco_val,mme``: any
policy (policies/registry.py) looks, then answers, inside ``generate_until``, through rollout/rollout.py as everywhere. One
request per document. On our tasks the whole episode is returned to our scorer (tasks/lmms.py); on any other task the
answer's text is.

Known limits: 1. documents with one picture and one user turn; others fail, each with its reason. 2. an upstream task's answer
length also bounds the box turn, so fewer than 128 new tokens are raised to 128. 3. a failed sample of an upstream task goes
to its scorer as "", which counts as wrong there; it is logged, counted in ``failures``, and makes visrl-eval's exit code 3.
4. of several processes each has lmms-eval's share of the documents, some of which it asks for once more so that shares are alike;
what it prints is the same. Recorded predictions (replay) go with our tasks only: others have nothing to match them by.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

from visrl.core.final_answer import tagged_answer
from visrl.core.types import CoTSample, Episode, Step
from visrl.errors import UsageError
from visrl.evaluation.evaluate import Options, config_of
from visrl.lmms.kept import Kept
from visrl.lmms.loading import Loaded, load_tasks
from visrl.lmms.samples import upstream_sample
from visrl.policies.protocol import Policy
from visrl.policies.registry import load_policy
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer
from visrl.runs.distributed import init
from visrl.tasks import SOURCES
from visrl.tasks.lmms import PREFIX, data_folder, is_ours, samples_of, score_together, serialize_episode

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance

log = logging.getLogger(__name__)
_CONFIG_OPTIONS = ("protocol", "focus", "crop", "seed")
_SHOWN = 5  # failures printed per task; all of them are in ``failures``


class LookThenAnswer(lmms):
    """Any visrl policy as a chat model of lmms-eval. ``failures``: task -> document -> why its sample failed."""

    is_simple = False

    def __init__(
        self,
        policy: str | Policy = "hf",
        config: RolloutConfig | None = None,
        batch_size: int | str = 8,
        kept: Kept | None = None,
        **arguments: Any,
    ) -> None:
        """From ``--model_args policy=SPEC,…``: protocol, focus, crop and seed say how to look, the rest is the policy's.

        ``pretrained=PATH`` is what lmms-eval's own models call ``policy=hf:PATH``. kept: where episodes are written, and read
        back by the next run.
        """
        super().__init__()
        how = {name: arguments.pop(name) for name in _CONFIG_OPTIONS if name in arguments}
        arguments.pop("max_batch_size", None)
        if isinstance(policy, str):
            policy = load_policy(policy, {name: str(value) for name, value in arguments.items()})
        self.policy = policy
        self.config = config or config_of(policy, Options(**how))
        self.batch_size = max(1, int(batch_size))
        self.failures: dict[str, dict[str, str]] = defaultdict(dict)
        self._kept = kept

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer per request, in order; ours are grouped by task and decoding, which is what a batch shares."""
        groups: dict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[f"{request.args[4]}\0{request.args[2]!r}"].append(number)
        found: dict[int, GenerationResult] = {}
        for numbers in groups.values():
            found |= dict(zip(numbers, self._run([requests[number] for number in numbers]), strict=True))
        self._report()
        return [found[number] for number in range(len(requests))]

    @property
    def device(self) -> Any:
        """Where lmms-eval puts the counts that its processes exchange: gloo takes the CPU's, NCCL those of a process's GPU."""
        import torch
        import torch.distributed as dist

        from visrl.policies.hf.loading import own_device

        on_cpu = not dist.is_initialized() or dist.get_backend() == "gloo"
        return torch.device("cpu" if on_cpu else own_device())

    def _run(self, requests: Sequence[Instance]) -> Iterator[GenerationResult]:
        """The answers of requests of one task with one way of decoding."""
        task, options = requests[0].args[4], requests[0].args[2]
        config = _decoding(self.config, options)
        ours = is_ours(task)
        if not ours and self.policy.recorded:
            raise UsageError(
                f"{self.policy.name} has no predictions for {task}", f"recorded outputs need tasks named {PREFIX}…"
            )
        samples = self._our_samples(task, requests) if ours else []

        def sample(number: int) -> CoTSample:
            if ours:
                return samples[number]
            _, messages, _, document, _, _ = requests[number].args
            return upstream_sample(str(document), task, messages, partial(self._document, requests[number]))

        if self._kept is None:
            asked = map(sample, range(len(requests)))
            episodes = look_then_answer(self.policy, asked, config, batch_size=self.batch_size)
        else:
            ids = [sample.id for sample in samples] if ours else _document_ids(requests)
            episodes = self._kept.episodes(task, ids, sample, (self.policy, config, self.batch_size))
        said = []
        for number, episode in enumerate(episodes):
            if episode.error is not None:
                self.failures[task][episode.sample_id] = episode.error
            text = serialize_episode(episode) if ours else _answer(episode, options)
            said += [(samples[number], episode, text)] if ours else []
            yield _result(episode, text)
        if ours:
            score_together(task.removeprefix(PREFIX), said)

    def _document(self, request: Instance) -> Mapping[str, Any]:
        _, _, _, number, task, split = request.args
        return cast(Mapping[str, Any], self.task_dict[task][split][number])

    def _our_samples(self, task: str, requests: Sequence[Instance]) -> list[CoTSample]:
        name = task.removeprefix(PREFIX)
        if self.policy.needs_pictures:
            SOURCES[name].require_pictures(data_folder())
        known = samples_of(name)
        if (
            self.policy.recorded
        ):  # all of them, whatever --limit says; documents without a prediction then fail: unscored
            self.policy.match_samples(list(known.values()), name)
        return [known[self._document(request)["id"]] for request in requests]

    def _report(self) -> None:
        for task, failed in self.failures.items():
            log.warning("%s: %d samples failed and are unscored or, in an upstream task, wrong", task, len(failed))
            for document, reason in list(failed.items())[:_SHOWN]:
                log.warning("  %s: %s", document, reason)

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not done: looking is this model's own second round."""
        raise NotImplementedError("visrl looks, then answers, within one request; multi-round tasks are not supported")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not done: a policy generates."""
        raise NotImplementedError("visrl generates; loglikelihood tasks are not supported")

    def clean(self) -> None:
        """Nothing: lmms-eval would delete the weights after the first of several tasks."""


def _decoding(config: RolloutConfig, options: Mapping[str, Any]) -> RolloutConfig:
    """The config with the request's decoding options: length, and temperature where the task samples."""
    length = max(128, int(options.get("max_new_tokens") or 128))
    temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
    return replace(config, sampling=replace(config.sampling, max_tokens=length, temperature=temperature))


def _result(episode: Episode, text: str) -> GenerationResult:
    looks = (look.step for look in episode.looks)
    steps = [step for step in (episode.box_step, *looks, episode.answer_step) if isinstance(step, Step)]
    counts = TokenCounts(
        input_tokens=sum(step.prompt_tokens or 0 for step in steps) or None,
        output_tokens=sum(step.output_tokens or 0 for step in steps) or None,
    )
    return GenerationResult(text, counts)


def _answer(episode: Episode, options: Mapping[str, Any]) -> str:
    """The answer for an upstream scorer, cut where the task says an answer ends. "" for a failed sample.

    Under a protocol of several looks the prompt asks for answer tags, which upstream scorers do not know: what stands in them.
    """
    text = episode.answer or ""
    if episode.ended is not None:
        tagged = tagged_answer(text)
        text = tagged if isinstance(tagged, str) else text
    stops = options.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop, 1)[0] if stop else text
    return text


def _document_ids(requests: Sequence[Instance]) -> list[str]:
    """A name per request: its document's number; the second of several answers to one document is ``12#2``."""
    seen: dict[int, int] = defaultdict(int)
    names = []
    for request in requests:
        number = request.args[3]
        seen[number] += 1
        names.append(f"{number}#{seen[number]}" if int(request.repeats or 1) > 1 and seen[number] > 1 else str(number))
    return names


# --- lmms-eval's tasks from visrl-eval


def run_upstream(
    tasks: Sequence[str], policy: Policy, config: RolloutConfig, *, limit: int | None = None, batch_size: int = 8
) -> dict[str, Any]:
    """Run tasks of lmms-eval, ours or its own, by name; see :func:`run_loaded`."""
    return run_loaded(tasks, load_tasks(tasks, init()), LookThenAnswer(policy, config, batch_size), limit)


def run_loaded(tasks: Sequence[str], loaded: Loaded, model: LookThenAnswer, limit: int | None) -> dict[str, Any]:
    """lmms-eval's results of tasks, with our ``failures`` and its ``samples`` (task -> a row per document). Of several processes
    only the first has results, and each the failures of its share.

    Raises what went wrong, which lmms-eval's own command turns into exit code 0.
    """
    from lmms_eval.evaluator import simple_evaluate

    found = simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=cast(Any, loaded),
        limit=limit,
        distributed_executor_backend="torchrun"
        if init().world_size > 1
        else "accelerate",  # by gloo, which init() set up
    )
    kept = ("results", "groups", "group_subtasks", "versions", "n-samples", "n-shot", "higher_is_better")
    failures = {task: dict(failed) for task, failed in model.failures.items()}
    samples = (found or {}).get("samples", {})
    return {
        **{key: _plain(found[key]) for key in kept if key in (found or {})},
        "failures": failures,
        "samples": samples,
    }


def _plain(value: Any) -> Any:
    """JSON values: no numpy scalars, and None for what is not a number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)
