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
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

from visrl.core.final_answer import tagged_answer
from visrl.core.types import CoTSample, Episode, Picture, Step
from visrl.errors import PictureError, UsageError, nearest
from visrl.evaluation.evaluate import Options, config_of
from visrl.policies.protocol import Policy
from visrl.policies.registry import load_policy
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer
from visrl.runs.distributed import init
from visrl.tasks import SOURCES
from visrl.tasks.lmms import PREFIX, data_folder, is_ours, samples_of, serialize_episode
from visrl.tasks.pictures import as_rgb, decoded

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance
    from PIL.Image import Image

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
        **arguments: Any,
    ) -> None:
        """From ``--model_args policy=SPEC,…``: protocol, focus, crop and seed say how to look, the rest is the policy's.

        ``pretrained=PATH`` is what lmms-eval's own models call ``policy=hf:PATH``.
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
        if is_ours(task):
            samples: Any = self._our_samples(task, requests)
        elif self.policy.recorded:
            raise UsageError(
                f"{self.policy.name} has no predictions for {task}", f"recorded outputs need tasks named {PREFIX}…"
            )
        else:
            samples = (_upstream_sample(request, partial(self._document, request)) for request in requests)
        for episode in look_then_answer(self.policy, samples, config, batch_size=self.batch_size):
            if episode.error is not None:
                self.failures[task][episode.sample_id] = episode.error
            yield _result(episode, serialize_episode(episode) if is_ours(task) else _answer(episode, options))

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


def _upstream_sample(request: Instance, document: Callable[[], Mapping[str, Any]]) -> CoTSample:
    """A document of any lmms-eval task as a sample: its text is the question, its picture the picture.

    The task's ``post_prompt``, if the text ends in it, becomes the instruction, asked only where an answer is asked for.
    """
    _, doc_to_messages, _, number, task, _ = request.args
    try:
        text, picture = _read_messages(doc_to_messages(document()), f"{task}/{number}")
    except Exception as error:  # noqa: BLE001 - a task's own code, on one document: that sample fails, the rest goes on
        text, picture = "", _failing(f"{task}/{number}", f"{type(error).__name__}: {error}")
    post = (getattr(getattr(doc_to_messages, "__self__", None), "lmms_eval_specific_kwargs", None) or {}).get(
        "post_prompt"
    )
    instruction = post if isinstance(post, str) and post and text.endswith(post) else ""
    question = text.removesuffix(instruction) if instruction else text
    return CoTSample(str(number), task, "qa", question, picture=picture, instruction=instruction)


def _read_messages(messages: Sequence[Mapping[str, Any]], name: str) -> tuple[str, Picture]:
    """(text, picture) of a chat of lmms-eval: system and user turns run together, one picture."""
    texts: list[str] = []
    images: list[Any] = []
    for message in messages:
        if message["role"] not in ("system", "user"):
            return "", _failing(name, "a conversation with earlier answers (few-shot) is not supported")
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts.append(part["text"].replace("<image>", "").strip("\n"))
            elif part["type"] == "image":
                images.append(part["url"])
            else:
                return "", _failing(name, f"{part['type']} is not supported")
    text = "\n".join(text for text in texts if text)
    if len(images) != 1:
        return text, _failing(name, f"{len(images)} pictures: look, then answer takes one")
    return text, Picture(name, lambda: _opened(images[0]))


def _opened(image: Any) -> Image:
    if isinstance(image, str):
        try:
            return decoded(Path(image).read_bytes(), Path(image).name)
        except OSError as error:
            raise PictureError(f"{Path(image).name} cannot be read: {error.strerror or error}") from error
    return as_rgb(image)


def _failing(name: str, reason: str) -> Picture:
    def fail() -> Image:
        raise PictureError(reason)

    return Picture(name, fail)


# --- lmms-eval's tasks from visrl-eval


def run_upstream(
    tasks: Sequence[str], policy: Policy, config: RolloutConfig, *, limit: int | None = None, batch_size: int = 8
) -> dict[str, Any]:
    """Run tasks of lmms-eval, ours or its own, and return its results as plain data, with our ``failures``. Of several processes
    only the first has results, and each the failures of its share.

    Raises what went wrong, which lmms-eval's own command turns into exit code 0; UsageError for an unknown task.
    """
    from lmms_eval.evaluator import simple_evaluate
    from tenacity import RetryError

    model = LookThenAnswer(policy, config, batch_size)
    try:
        found = simple_evaluate(
            model=model,
            tasks=list(tasks),
            task_manager=_task_manager(tasks),
            limit=limit,
            distributed_executor_backend="torchrun"
            if init().world_size > 1
            else "accelerate",  # by gloo, which init() set up
        )
    except RetryError as error:  # what a data set that cannot be loaded looks like after five times
        raise error.last_attempt.exception() or error from error
    except ImportError as error:
        raise error.__cause__ if isinstance(error.__cause__, UsageError) else error from error
    kept = ("results", "groups", "versions", "n-samples", "n-shot", "higher_is_better")
    failures = {task: dict(failed) for task, failed in model.failures.items()}
    return {**{key: _plain(found[key]) for key in kept if key in (found or {})}, "failures": failures}


def _plain(value: Any) -> Any:
    """JSON values: no numpy scalars, and None for what is not a number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, int) else str(value)


def _task_manager(tasks: Sequence[str]) -> Any:
    """A TaskManager that knows ``tasks``: of the folders that define them if that is enough, else of all 1,985 tasks."""
    from lmms_eval.tasks import TaskManager

    from visrl.lmms.plugin import add_our_folder, task_folder

    folders = {str(task_folder()), *(str(file.parent) for file in _files_naming(tasks))}
    manager = TaskManager(include_path=sorted(folders), include_defaults=False, model_name="visrl")
    if all(_resolves(manager, name) for name in tasks):
        return manager
    add_our_folder(TaskManager)
    manager = TaskManager(model_name="visrl")
    for name in tasks:
        if name not in manager.all_tasks:
            raise UsageError(f"lmms-eval has no task {name!r}", nearest(name, manager.all_tasks))
    return manager


def _files_naming(tasks: Sequence[str]) -> Iterator[Path]:
    """lmms-eval's task files that define one of ``tasks`` as task, group or tag."""
    import lmms_eval.tasks

    names = "|".join(map(re.escape, tasks))
    defines = re.compile(rf"""^\s*(?:(?:task|group|tag):|-)\s*["']?(?:{names})["']?\s*$""", re.MULTILINE)
    for file in sorted(Path(lmms_eval.tasks.__file__).parent.rglob("*.yaml")):
        if defines.search(file.read_text(encoding="utf-8", errors="replace")):
            yield file


def _resolves(manager: Any, name: str) -> bool:
    """Whether a task, and every member of a group, is known to the manager."""
    if name not in manager.task_index:
        return False
    members = manager.task_index[name].get("task")
    if members == -1:  # a group's own file lists its members
        members = manager._get_config(name).get("task")
    if manager.task_index[name]["type"] not in ("group", "tag"):
        return True
    return isinstance(members, list) and all(isinstance(m, str) and _resolves(manager, m) for m in members)
