"""YAML files people write (recipes, suites) or review (baselines), read as plain values: no tags, nothing without an end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from visrl.core.json_files import MAX_DEPTH, read_text
from visrl.errors import UsageError, printable

MAX_ALIASES = 30
"""So many uses of anchors (``*a``); of lists of lists of aliases, which stand for gigabytes, a file cannot have more than levels
whose product stays small: 3 ** 10."""


class PlainLoader(yaml.SafeLoader):
    """SafeLoader without tags, and with limits: finite numbers, ``MAX_DEPTH`` levels, ``MAX_ALIASES``, no cycles."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._open: list[str | None] = []  # anchors of the nodes that are being read, the outermost first
        self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's parser has no types
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > MAX_ALIASES or event.anchor in self._open:
                raise _refused(f"*{event.anchor} is used within itself, or too often", event)
            return super().compose_node(parent, index)
        if event.tag is not None:
            raise _refused(f"the tag {event.tag}: only plain values are read", event)
        if len(self._open) >= MAX_DEPTH:
            raise _refused(f"nested more than {MAX_DEPTH} deep", event)
        self._open.append(event.anchor)
        try:
            return super().compose_node(parent, index)
        finally:
            self._open.pop()


def _refused(what: str, event: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, what, event.start_mark)


def _finite(loader: PlainLoader, node: yaml.ScalarNode) -> float:
    value = float(loader.construct_yaml_float(node))
    if not math.isfinite(value):
        raise yaml.constructor.ConstructorError(None, None, f"{node.value} is not a finite number", node.start_mark)
    return value


PlainLoader.add_constructor("tag:yaml.org,2002:float", _finite)


def parse_yaml(
    text: str, where: str, hint: str, loader: type[PlainLoader] = PlainLoader, said: str = "not plain YAML"
) -> Any:
    """The value of a YAML text. said: what a wrong one is. Raises UsageError naming ``where`` and the line."""
    try:
        return yaml.load(text, Loader=loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise UsageError(f"{where}{line}: {said}: {printable(error.problem or '')}", hint) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: no such date, a number of 5,000 digits
        raise UsageError(f"{where}: {said}: {printable(str(error))}", hint) from error


def read_plain(path: Path, hint: str, loader: type[PlainLoader] = PlainLoader, said: str = "not plain YAML") -> Any:
    """The value of a YAML file; see :func:`parse_yaml`. Raises UsageError naming the file and the line."""
    return parse_yaml(read_text(path, hint), str(path), hint, loader, said)
