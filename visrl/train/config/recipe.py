"""A recipe: one YAML file that says everything about a training run, checked before anything heavy is loaded.

``kind`` names what runs. Each kind is a module with ``KIND`` (a :class:`Kind`); adding one is adding a line to ``KINDS``.
Unknown keys are refused with the nearest known one, and old names of keys are still read.
``--set a.b=c`` overrides a value, and the resolved recipe is printed with where each value came from.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from visrl.core.json_files import reason
from visrl.core.prompts import DEFAULT_PROTOCOL
from visrl.errors import UsageError, nearest, printable
from visrl.evals.plain_yaml import PlainLoader, parse_yaml, read_plain
from visrl.train.config.protocols import ProtocolChoice
from visrl.train.config.section import DatasetSection, Section
from visrl.train.config.trainer_ranges import check_numbers

KINDS: dict[str, str] = {
    "sft": "visrl.train.sft.sft",
    "dpo": "visrl.train.dpo.stages",
    "small_model": "visrl.train.small_model.run",
    "grpo": "visrl.train.grpo.phase",
    "pairs": "visrl.train.pairs.command",
    "loop": "visrl.train.loop.run",
    "ablations": "visrl.train.loop.ablations",
}
OLD_KINDS = {"base": "small_model"}


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
    seed: int = Field(default=88, ge=0, lt=2**32, description="the official seed (docs/method.md e)")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of recipe. recipe: its sections. run: does it, or what is missing of it, and returns the exit code. check: raises
    UsageError for models, data, pictures or servers that are not there, before anything heavy is loaded. status: of what
    is done piece by piece, a line per piece: what would run, or be redone and why. renamed: keys by the dotted names that older
    recipes use -> their names now.
    """

    recipe: type[Recipe]
    run: Callable[[Any], int]
    check: Callable[[Any], None]
    status: Callable[[Any], list[str]] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


class ModelSection(Section):
    """Which weights are trained, and how they are loaded."""

    path: str = Field(description="a folder, or a hub id")
    revision: str | None = None
    adapter: str | None = Field(default=None, description="a PEFT folder to go on training")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    attn: Literal["sdpa", "eager", "flex_attention", "flash_attention_2", "flash_attention_3"] = Field(
        default="sdpa",
        description="flex_attention: branched rows of the language model on a GPU; flash attention takes plain rows alone",
    )
    box_format: str | None = Field(default=None, description="another way to write boxes than the family's own")
    processor: str | None = Field(default=None, description="where the processor is, of weights saved without one")
    load_in_4bit: bool | None = Field(default=None, description="QLoRA: the base rounded to 4 bits (bitsandbytes)")
    load_in_8bit: bool | None = Field(default=None, description="the same with 8 bits")
    trust_remote_code: bool = False
    freeze_vision: bool = Field(
        default=True, description="train the language model only; its features are then computed once"
    )

    @model_validator(mode="after")
    def _one_rounding(self) -> ModelSection:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit: give one of them")
        return self

    @property
    def shares_rows(self) -> bool:
        """Whether its attention takes the mask of rows with branches."""
        return not self.attn.startswith("flash")

    @property
    def bits(self) -> int:
        """Of a weight of the base, where it is rounded; 0 where it is not."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else 0


class LoraSection(Section):
    """Low-rank adapters; leave the section out to train all weights."""

    r: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target: str | None = Field(
        default=None, description="a regex of module names; default: every linear of the language model"
    )


class DataSection(Section):
    """What is trained on."""

    path: Path | None = Field(default=None, description="the file; the small world's pairs need none")
    pictures: Path = Field(default=Path(), description="the folder that picture names are relative to")
    format: Literal["visrl", "viscot", "cot", "llava", "datasets", "official", "world_oracle"] = "visrl"
    dataset: DatasetSection = DatasetSection()
    protocol: ProtocolChoice | None = Field(
        default=None,
        description="of rows that name none: those of other people's formats, and chains without the field",
    )
    limit: int | None = Field(default=None, ge=1, description="only the first rows")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: Any) -> Any:
        """Files of other formats name no protocol: what is trained must stand in the recipe."""
        if isinstance(data, dict) and data.get("protocol") is None and data.get("format") in IMPORTED:
            return {**data, "protocol": DEFAULT_PROTOCOL}
        return data

    @property
    def file(self) -> Path:
        """The file. Raises UsageError where the recipe names none."""
        if self.path is None:
            raise UsageError("data.path is missing", "name the file to train on")
        return self.path


IMPORTED = ("viscot", "cot", "datasets", "official")
"""Formats of other people's files, which say nothing of how their rows are to be asked."""
EVERY_KEY = "`visrl-train RECIPE --dry-run` prints every key of a recipe in recipes/"


class _Loader(PlainLoader):
    """Plain YAML where ``5e-6`` is a number (YAML 1.1 reads it as text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A checked recipe, its kind, and where each value came from (dotted key -> source)."""

    recipe: Recipe
    kind: Kind
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
    tree = read_plain(path, "recipes are YAML mappings; the folder recipes/ has examples", _Loader)
    if not isinstance(tree, dict):
        raise UsageError(f"{path} is not a mapping", "recipes are YAML mappings with a `kind`, for example `kind: sft`")
    return tree


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``a.b=c`` texts -> dotted key -> value, the last one counting; values are YAML. Raises UsageError without ``=``."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {setting!r} is not key=value", "for example --set trainer.learning_rate=1e-5")
        values.pop(key, None)  # set again: after what was set in between
        values[key] = parse_yaml(text, f"--set {printable(key, 60)}", "values are YAML, as in a recipe", _Loader)
    return values


def override(tree: dict[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Put values at their dotted keys, in order and in place; None takes a key away, so that its default counts. Returns the
    dotted keys set, within a mapping too.

    Below ``set`` it stays: there it takes a key away from the recipe that is set.
    """
    for key, value in values.items():
        node = tree
        *parents, last = key.split(".")
        for parent in parents:
            child = node.get(parent)
            if not isinstance(child, dict):
                child = node[parent] = {}
            node = child
        if value is None and "set" not in parents:
            node.pop(last, None)
        else:
            node[last] = deepcopy(value)
    return [name for name, _ in flat(values)]


def upgrade(tree: dict[str, Any]) -> None:
    """Give a recipe's old names their new ones, in place. Raises UsageError for a kind that is unknown, and where old and new
    name stand side by side.
    """
    tree["kind"] = OLD_KINDS.get(str(tree.get("kind")), tree.get("kind"))
    for old, new in kind_of(tree["kind"]).renamed.items():
        *parents, last = old.split(".")
        node: Any = tree
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            name = new.rpartition(".")[2]
            if name in node:
                raise UsageError(f"{old} and {new} are the same key", f"{old} is its old name: remove it")
            node[name] = node.pop(last)


def _current(key: str, renamed: Mapping[str, str]) -> str:
    """The name now of a dotted key, or of one below it."""
    for old, new in renamed.items():
        if key == old or key.startswith(f"{old}."):
            return new + key[len(old) :]
    return key


def kind_of(name: Any) -> Kind:
    """A kind by its name. Raises UsageError for one that is unknown, or not in this installation."""
    if name is None:
        raise UsageError("the recipe has no kind", f"add `kind: …`, one of {', '.join(KINDS)}")
    if not isinstance(name, str) or name not in KINDS:
        raise UsageError(f"unknown kind {printable(repr(name), 60)}", nearest(str(name), KINDS))
    try:
        kind: Kind = importlib.import_module(KINDS[name]).KIND
    except ModuleNotFoundError as error:
        if error.name != KINDS[name]:
            raise
        raise UsageError(f"kind {name!r} is not in this version of visrl", f"kinds: {', '.join(KINDS)}") from error
    return kind


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Resolved:
    """Read a recipe, override it by ``a.b=c`` texts and check it. Raises UsageError naming the file and the key."""
    values = parse_settings(settings)
    return resolve(path, values, tuple(values))


def resolve(path: Path, values: Mapping[str, Any], given: Sequence[str] = ()) -> Resolved:
    """Read a recipe, put ``values`` at their dotted keys and check it. Raises UsageError naming the file and the key, and
    those of the keys ``given`` with --set that it is set by.
    """
    tree = read_yaml(path)
    tree["kind"] = values.get("kind", tree.get("kind"))
    try:
        upgrade(tree)
    except UsageError as error:
        raise UsageError(f"{path}: {error.message}", error.hint) from error
    kind = kind_of(tree["kind"])
    sources = dict.fromkeys((key for key, _ in flat(tree)), path.name)
    keys = override(tree, {_current(key, kind.renamed): value for key, value in values.items()})
    upgrade(tree)
    sources |= dict.fromkeys((_current(key, kind.renamed) for key in keys), "--set")
    try:
        recipe = kind.recipe.model_validate(tree, context={"folder": path.parent})
    except ValidationError as error:
        raise _explain(path, kind.recipe, error, {_current(key, kind.renamed): key for key in given}) from error
    return Resolved(recipe, kind, sources)


def _explain(path: Path, model: type[BaseModel], error: ValidationError, given: Mapping[str, str]) -> UsageError:
    """given: keys of --set by their names now."""
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"]]
    key = ".".join(loc)
    near = [said for name, said in given.items() if _within(name, key) or _within(key, name)]
    with_set = f" (read with --set {', '.join(near)})" if near else ""
    if first["type"] != "extra_forbidden":
        return UsageError(f"{path}: {reason(error)}", EVERY_KEY + with_set)
    known = _fields(model, loc[:-1])
    hint = f"{nearest_key(loc[-1], known)} (known: {', '.join(known)}){with_set}"
    return UsageError(f"{path}: unknown key {key!r}", hint)


def _within(key: str, section: str) -> bool:
    """Whether a dotted key is a section, or in it; the recipe itself is ""."""
    return not section or f"{key}.".startswith(f"{section}.")


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
    visrl sets, and for numbers out of their range.

    reserved: key -> where it is set instead.
    """
    from dataclasses import fields

    known = [item.name for item in fields(config) if item.name not in reserved]
    for key in section:
        if key in reserved:
            raise ValueError(f"{key} is set by {reserved[key]}")
        if key not in known:
            raise ValueError(f"{config.__name__} has no {key!r}: {nearest_key(key, known)}")
    check_numbers(section, config)
    _require_reporters(section.get("report_to"))
    return dict(section)


def _require_reporters(asked: Any) -> None:
    """Raises ValueError for a tracker that is not installed: the trainer would say so after the model has been loaded."""
    for name in [asked] if isinstance(asked, str) else asked or []:
        package = {"none": "", "all": ""}.get(name, str(name).replace("-", "_"))
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(f"report_to: {name} is not installed: pip install {name}, or report_to: none")
