"""The prompt gate's rendering: every task x protocol x family, from fixture documents, as exact text.

A fixture document goes the way of any document: adapter, rollout, turns, the family's layout. The policy here only writes
down what it is asked and answers the box turn with the true box in the family's own format, so that the texts also hold
how the family writes boxes and, in the pictures' marks, which pixels were cut out. "turns" is the conversation before any
layout. No model, no processor and no hub is needed; families' processors are stood in for by the few values that
rendering reads (Qwen2.5-VL's picture limits are its published ones).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from visrl.core.box_formats import FORMATS, BoxFormat
from visrl.core.boxes import Box, Size
from visrl.core.json_files import read_object
from visrl.core.looking.calls import View, write_call
from visrl.core.prompts import PROTOCOLS, SEVERAL, Protocol
from visrl.core.records import dump_json, write_atomically
from visrl.core.types import CoTSample, Turn
from visrl.errors import UsageError
from visrl.evals.benchmarks import TASKS
from visrl.evals.gates import Prompt, Prompts, text_hash
from visrl.policies.protocol import FunctionPolicy, Request
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer

TURNS = "turns"
_QWEN_EYES = SimpleNamespace(
    patch_size=14, merge_size=2, size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}, image_mean=(0.5,) * 3
)
_ANSWER = "blue"


def data_folder() -> Path:
    """Where the gates' own files lie: inside the package."""
    return Path(str(files("visrl.evals"))) / "suites" / "data"


def fixture(task: str) -> CoTSample:
    """The fixture document of a task as a sample; a task that draws its documents gives its first one."""
    from visrl.tasks import SOURCES, adapt, load
    from visrl.tasks.common import Document

    rows = json.loads((data_folder() / "documents.json").read_text(encoding="utf-8"))
    spec = TASKS[task]
    if spec.small_world or task not in SOURCES:
        return next(iter(load(task, None, with_pictures=False, limit=1)))
    document = Document("documents.json", rows.get(task) or rows[spec.benchmark])
    return adapt(SOURCES[task], task, document, None, with_pictures=False)


def families() -> dict[str, Any]:
    """name -> adapter, for every family of ours; LLaVA-NeXT twice, because its layout follows its language model."""
    from visrl.policies.families import _OURS, family_class

    found: dict[str, Any] = {}
    for name in _OURS:
        cls = family_class(SimpleNamespace(model_type=name))
        found[name] = _stand_in(cls, "llama")
        if name == "llava_next":
            found["llava_next (mistral)"] = _stand_in(cls, "mistral")
    return found


def _stand_in(cls: Any, text_model: str) -> Any:
    config = SimpleNamespace(text_config=SimpleNamespace(model_type=text_model))
    processor = SimpleNamespace(tokenizer=None, image_token="", image_processor=_QWEN_EYES)
    family = cls(config, processor)
    processor.image_token = family.layout.picture
    return family


def render_all() -> Prompts:
    """All texts of all tasks, protocols and families. Imports torch, because the adapters do; loads no model."""
    adapters = families()
    return {key: prompt for task in TASKS for key, prompt in _of_task(task, adapters)}


def _of_task(task: str, adapters: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], Prompt]]:
    sample, version = fixture(task), TASKS[task].version
    for protocol in (*PROTOCOLS.values(), *SEVERAL.values()):
        by_format: dict[str, list[Request]] = {}  # families that write boxes alike are asked alike
        asked = _conversations(sample, protocol, FORMATS["padded_square_3dp"])
        text = "\n---\n".join(f"{request.step}\n{_as_text(request.turns)}" for request in asked)
        yield (task, protocol.id, TURNS), Prompt.of(version, text)
        for name, family in adapters.items():
            native: BoxFormat = family.native
            if native.name not in by_format:
                by_format[native.name] = _conversations(sample, protocol, native)
            asked = by_format[native.name]
            text = "\n---\n".join(_rendered(family, request.turns) for request in asked)
            yield (task, protocol.id, name), Prompt.of(version, text)


def _rendered(family: Any, turns: tuple[Turn, ...]) -> str:
    try:
        return str(family.render(turns).text)
    except ValueError as error:  # a LayoutError: this family cannot express it, and that, too, is on file
        return f"cannot: {error}"


def _conversations(sample: CoTSample, protocol: Protocol, box_format: BoxFormat) -> list[Request]:
    """What a policy is asked about ``sample`` when it answers the box turn with the true box."""
    asked: list[Request] = []
    size, box = sample.size or (64, 48), sample.box or Box(8, 6, 40, 30)

    def answer(request: Request) -> str:
        asked.append(request)
        if request.step == "look":
            return _look(protocol, box, size, box_format) if request.stream == "0" else _ANSWER
        return box_format.write(box, size) if request.step == "box" else _ANSWER

    policy = FunctionPolicy("recorder", answer, box_format)
    if protocol.several is not None:  # what a box measures is said in words, for which the picture's size is needed
        sample = replace(sample, size=size)
    list(look_then_answer(policy, [sample], RolloutConfig(protocol)))
    return asked


def _look(protocol: Protocol, box: Box, size: Size, box_format: BoxFormat) -> str:
    """A call for the true box."""
    rules = protocol.several
    assert rules is not None, "only a protocol of several looks asks for one"
    if rules.ask == "box_turn":
        return box_format.write(box, size)
    view = View((0, 0, *size), size)
    return write_call(box, rules.frame(size, box_format.frame_for(size)), view, rules, 0)


def _as_text(turns: tuple[Turn, ...]) -> str:
    """Role and parts of every turn; a picture by its name, which for a crop holds its pixels."""
    return "\n".join(
        f"{turn.role}: "
        + "".join(part if isinstance(part, str) else f"<{part.ref or 'picture'}>" for part in turn.parts)
        for turn in turns
    )


# --- the texts on file


def prompts_file() -> Path:
    return data_folder() / "prompts.json"


def read_prompts(path: Path) -> Prompts:
    """The texts on file. Raises UsageError for a damaged file, or for a text that is not what its hash says."""
    try:
        value = read_object(path, "visrl-eval accept --prompts")
        texts: dict[str, str] = value["texts"]
        wrong = [key for key, text in texts.items() if text_hash(text) != key]
        if wrong:
            raise ValueError(f"text {wrong[0]} was edited by hand")
        return {
            (task, protocol, family): Prompt(item["version"], key, texts.get(key))
            for task, item in value["tasks"].items()
            for protocol, hashes in item["hashes"].items()
            for family, key in hashes.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: no accepted prompts: {error}", "visrl-eval accept --prompts") from error


def write_prompts(path: Path, prompts: Prompts) -> None:
    """Per task its version and the hash of each protocol and family; the texts of turns and of each benchmark's first task."""
    first = {spec.benchmark: name for name, spec in reversed(TASKS.items())}.values()
    tasks: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for (task, protocol, family), prompt in prompts.items():
        item = tasks.setdefault(task, {"version": prompt.version, "hashes": {}})
        item["hashes"].setdefault(protocol, {})[family] = prompt.hash
        if prompt.text is not None and (family == TURNS or task in first):
            texts[prompt.hash] = prompt.text
    write_atomically(path, dump_json({"texts": texts, "tasks": tasks}))
