"""A recipe: one YAML file that says everything about a training run, checked before anything heavy is loaded.

``kind`` names what runs. Each kind is a module with ``RECIPE`` (a :class:`Recipe` subclass: its sections) and
``run(recipe)``; adding a kind is adding a line to ``KINDS``. Unknown keys are refused with the nearest known one.
``--set a.b=c`` overrides a value, and the resolved recipe is printed with where each value came from.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from visrl.errors import UsageError, nearest

KINDS: dict[str, str] = {
    "sft": "visrl.train.sft.sft",
    "dpo": "visrl.train.dpo.stages",
    "base": "visrl.train.small_model.run",
    "small_model": "visrl.train.small_model.run",
    "pairs": "visrl.train.pairs.run",
    "loop": "visrl.train.loop.run",
    "ablations": "visrl.train.loop.ablations",
}


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _ascending(stages: tuple[int, ...]) -> tuple[int, ...]:
    if not stages or list(stages) != sorted(set(stages)):
        raise ValueError("stages are [1], [2] or [1, 2]")
    return stages


Stages = Annotated[tuple[Literal[1, 2], ...], AfterValidator(_ascending)]
"""Which of the two stages, in order."""


class Recipe(Section):
    """What every recipe has. Subclasses add their sections."""

    kind: str
    output: Path = Field(description="the run's folder")
    seed: int = Field(default=88, description="the official seed (docs/method.md e)")


class ModelSection(Section):
    """Which weights are trained, and how they are loaded."""

    path: str = Field(description="a folder, or a hub id")
    revision: str | None = None
    adapter: str | None = Field(default=None, description="a PEFT folder to go on training")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    attn: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    box_format: str | None = Field(default=None, description="another way to write boxes than the family's own")
    trust_remote_code: bool = False
    freeze_vision: bool = Field(
        default=True, description="train the language model only; its features are then computed once"
    )


class LoraSection(Section):
    """Low-rank adapters; leave the section out to train all weights."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.0
    target: str | None = Field(
        default=None, description="a regex of module names; default: every linear of the language model"
    )


class DataSection(Section):
    """What is trained on."""

    path: Path | None = Field(default=None, description="the file; the small world's pairs need none")
    pictures: Path = Field(default=Path(), description="the folder that picture names are relative to")
    format: Literal["visrl", "viscot", "cot", "official", "world_oracle"] = "visrl"
    limit: int | None = Field(default=None, description="only the first rows")

    @property
    def file(self) -> Path:
        """The file. Raises UsageError where the recipe names none."""
        if self.path is None:
            raise UsageError("data.path is missing", "name the file to train on")
        return self.path


EVERY_KEY = "`visrl-train RECIPE --dry-run` prints every key of a recipe in recipes/"


class _Loader(yaml.SafeLoader):
    """YAML where ``5e-6`` is a number (YAML 1.1 reads it as text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A checked recipe, the module that runs it, and where each value came from (dotted key -> source)."""

    recipe: Recipe
    module: ModuleType
    sources: Mapping[str, str]

    def lines(self) -> Iterator[str]:
        """``key = value  (source)`` for every value, defaults included."""
        for key, value in flat(self.recipe.model_dump(mode="json")):
            yield f"{key} = {value}  ({self.sources.get(key, 'default')})"


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping, in order."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises UsageError for a missing file or one that is not a mapping."""
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "the folder recipes/ has examples") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: {error}", "recipes are YAML mappings") from error
    if not isinstance(tree, dict):
        raise UsageError(f"{path} is not a mapping", "recipes are YAML mappings with a `kind`, for example `kind: sft`")
    if tree.get("kind") == "small_model":
        tree["kind"] = "base"  # its older name, which the hashes of finished phases hold
    return tree


def override(tree: dict[str, Any], settings: Iterable[str]) -> list[str]:
    """Apply ``a.b=c`` settings in place; values are YAML. Returns the dotted keys set, within a mapping too.

    Raises UsageError without ``=``.
    """
    keys = []
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {setting!r} is not key=value", "for example --set trainer.learning_rate=1e-5")
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            child = node.get(parent)
            if not isinstance(child, dict):
                child = node[parent] = {}
            node = child
        node[last] = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
        keys += [name for name, _ in flat({key: node[last]})]
    return keys


def module_of(kind: Any) -> ModuleType:
    """The module that runs a kind. Raises UsageError for one that is unknown, or not in this installation."""
    if kind is None:
        raise UsageError("the recipe has no kind", f"add `kind: …`, one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}", nearest(str(kind), KINDS))
    try:
        return importlib.import_module(KINDS[kind])
    except ModuleNotFoundError as error:
        if error.name != KINDS[kind]:
            raise
        raise UsageError(f"kind {kind!r} is not in this version of visrl", f"kinds: {', '.join(KINDS)}") from error


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Resolved:
    """Read, override and check a recipe. Raises UsageError naming the file and the key."""
    tree = read_yaml(path)
    sources = dict.fromkeys((key for key, _ in flat(tree)), path.name)
    sources |= dict.fromkeys(override(tree, settings), "--set")
    module = module_of(tree.get("kind"))
    try:
        recipe = module.RECIPE.model_validate(tree, context={"folder": path.parent})
    except ValidationError as error:
        raise _explain(path, module.RECIPE, error) from error
    return Resolved(recipe, module, sources)


def _explain(path: Path, model: type[BaseModel], error: ValidationError) -> UsageError:
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"]]
    key = ".".join(loc)
    if first["type"] != "extra_forbidden":
        return UsageError(f"{path}: {key}: {first['msg']}", EVERY_KEY)
    known = _fields(model, loc[:-1])
    return UsageError(f"{path}: unknown key {key!r}", f"{nearest_key(loc[-1], known)} (known: {', '.join(known)})")


def nearest_key(name: str, known: Sequence[str]) -> str:
    """A hint naming the closest of ``known`` keys, or where all are listed."""
    hint = nearest(name, known)
    return hint if hint.startswith("did you mean") else EVERY_KEY


def _fields(model: type[BaseModel], loc: Sequence[str]) -> list[str]:
    """The field names of the section at ``loc`` below ``model``."""
    for part in loc:
        field = model.model_fields.get(part)
        inner = [t for t in _types(field.annotation) if issubclass(t, BaseModel)] if field else []
        if not inner:
            break
        model = inner[0]
    return list(model.model_fields)


def _types(annotation: Any) -> list[type]:
    parts = getattr(annotation, "__args__", None) or (annotation,)
    return [part for part in parts if isinstance(part, type)]


def check_trainer_section(section: Mapping[str, Any], config: type, reserved: Mapping[str, str]) -> dict[str, Any]:
    """``trainer:`` passes straight to TRL's ``config`` (a dataclass). Raises ValueError for keys it lacks or that
    visrl sets.

    reserved: key -> where it is set instead.
    """
    from dataclasses import fields

    known = [item.name for item in fields(config) if item.name not in reserved]
    for key in section:
        if key in reserved:
            raise ValueError(f"{key} is set by {reserved[key]}")
        if key not in known:
            raise ValueError(f"{config.__name__} has no {key!r}: {nearest_key(key, known)}")
    return dict(section)
