"""What installed packages and a user's own file add: families, tasks, protocols, critics, judges and rewards.

A package names its objects as entry points of the group of their kind (docs/adding-a-task.md); a file given as ``--include``
calls ``visrl.register``. Nothing is looked up before a name of ours has been missed, and nothing is imported but what was
named: ``--help`` stays fast, and a package that is broken stops nobody who does not use it.

A name of ours cannot be taken over. A name that two packages offer is refused when it is used, with both packages' names.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, EntryPoint, distributions
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Generic, TypeVar

from visrl.errors import UsageError, nearest

log = logging.getLogger(__name__)

T = TypeVar("T")
KINDS = {
    "family": "visrl.families",
    "task": "visrl.tasks",
    "protocol": "visrl.protocols",
    "critic": "visrl.critics",
    "judge": "visrl.judges",
    "reward": "visrl.rewards",
}
"""What can be added -> its group of entry points."""
_TABLES = {
    "family": "visrl.policies.families:FAMILIES",
    "task": "visrl.evals.benchmarks:TASKS",
    "protocol": "visrl.core.prompts:PROTOCOLS",
    "critic": "visrl.train.critics.critics:CRITICS",
    "judge": "visrl.evals.judge:JUDGES",
    "reward": "visrl.train.grpo.rewards:REWARDS",
}
_ADDED: dict[tuple[str, str], tuple[Any, str]] = {}  # (kind, name) -> (object, which file)
_INCLUDED: dict[Path, str] = {}  # file -> sha256
_USED: dict[str, str] = {}  # package -> version, of what was loaded


@dataclass(frozen=True, slots=True)
class Offer:
    """One thing that somebody offers under a name. source: the package with its version, or the included file."""

    kind: str
    name: str
    source: str
    value: str
    load: Callable[[], Any]


class Registry(dict[str, T], Generic[T]):
    """Ours, by name; a name that is none of ours is looked for among what others offer, and loaded when it is asked for.

    As a dict it holds ours and what was loaded: ``in``, ``get`` and ``[]`` also find what is only offered. check: raises
    ValueError for an object that is not what the kind needs, and returns it as it is kept. reserved: further names that are ours.
    """

    def __init__(
        self,
        kind: str,
        ours: Mapping[str, T],
        check: Callable[[str, Any], T],
        reserved: Callable[[], Collection[str]] = tuple,
    ) -> None:
        super().__init__(ours)
        self.kind, self._ours, self._check, self._reserved = kind, set(ours), check, reserved

    def own(self, name: str, value: T) -> None:
        """Add one of ours."""
        self._ours.add(name)
        self[name] = value

    def copy(self) -> Registry[T]:
        """The same table, where what is added does not reach this one."""
        return Registry(self.kind, self, self._check, self._reserved)

    def is_ours(self, name: object) -> bool:
        """Whether visrl uses the name itself, so that nobody else can offer it."""
        return name in self._ours or name in self._reserved()

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and self._offer(name) is not None)

    def _offer(self, name: str) -> Offer | None:
        return None if self.is_ours(name) else offers(self.kind).get(name)

    def __missing__(self, name: str) -> T:
        found = self._offer(name)
        if found is None:
            raise KeyError(name)
        self[name] = loaded(found, self._check)
        return self[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The object of that name, loaded where need be, or ``default``."""
        try:
            return self[name]
        except KeyError:
            return default

    def named(self, name: str, what: str = "") -> T:
        """The object of that name. Raises UsageError for one that nobody has, with the nearest, or one that does not load."""
        if name not in self:
            raise UsageError(f"{what or 'unknown ' + self.kind} {name!r}", nearest(name, self.names()))
        return self[name]

    def names(self) -> list[str]:
        """All names: ours, what was added, and what is only offered."""
        return list(dict.fromkeys([*self, *(name for name in offers(self.kind) if not self.is_ours(name))]))

    def others(self) -> Iterator[tuple[Offer, str]]:
        """What others offer, and why it cannot be used: empty where it can, as far as names tell."""
        for offer in all_offers(self.kind):
            taken = self.is_ours(offer.name)
            yield offer, f"ignored: visrl has a {self.kind} of that name" if taken else _clash(offer)


def register(kind: str, name: str, value: Any) -> None:
    """Add a family, task, protocol, critic, judge or reward under ``name``: for a file given as ``--include``, or a notebook.

    What the object of each kind is: docs/adding-a-task.md. Raises UsageError for another kind, a name that visrl uses or that
    was added before, and an object that is not what the kind needs.
    """
    table = registry_of(kind)
    if table.is_ours(name):
        raise UsageError(f"visrl has a {kind} named {name!r}", "choose another name: built-in names cannot be replaced")
    if (kind, name) in _ADDED:
        raise UsageError(f"the {kind} {name!r} is registered twice", f"first in {_ADDED[kind, name][1]}")
    _ADDED[kind, name] = (value, _including())
    table.named(name)


def registry_of(kind: str) -> Registry[Any]:
    """The table of a kind. Raises UsageError for a kind that cannot be added to."""
    if kind not in KINDS:
        raise UsageError(f"unknown kind {kind!r}", nearest(kind, KINDS))
    module, _, table = _TABLES[kind].partition(":")
    found: Registry[Any] = vars(import_module(module))[table]
    return found


_NOW: list[str] = []


def _including() -> str:
    return _NOW[-1] if _NOW else "this program"


def offers(kind: str) -> dict[str, Offer]:
    """What others offer of a kind, by name: the first of those with one name, whose clash is said when it is loaded."""
    found: dict[str, Offer] = {}
    for offer in all_offers(kind):
        found.setdefault(offer.name, offer)
    return found


def all_offers(kind: str) -> list[Offer]:
    """Everything that others offer of a kind: what was registered, then packages' entry points."""
    mine = [Offer(k, n, source, "", lambda v=value: v) for (k, n), (value, source) in _ADDED.items() if k == kind]  # type: ignore[misc]
    return [*mine, *(_offer(kind, point, package) for point, package in _scan().get(KINDS[kind], ()))]


def _offer(kind: str, point: EntryPoint, package: tuple[str, str]) -> Offer:
    def load() -> Any:
        _USED[package[0]] = package[1]
        return point.load()

    return Offer(kind, point.name, " ".join(package), point.value, load)


def _clash(offer: Offer) -> str:
    sources = [other.source for other in all_offers(offer.kind) if other.name == offer.name]
    return f"offered by {' and by '.join(sources)}" if len(sources) > 1 else ""


def loaded(offer: Offer, check: Callable[[str, Any], T]) -> T:
    """The object offered. Raises UsageError naming the package where several offer that name, or it cannot be imported or is
    not what its kind needs.
    """
    if clash := _clash(offer):
        raise UsageError(f"the {offer.kind} {offer.name!r} is {clash}", "uninstall one of them")
    where = f"the {offer.kind} {offer.name!r} of {offer.source}"
    place = f" ({offer.value})" if offer.value else ""
    hint = f"mend or uninstall {offer.source.partition(' ')[0]}" if offer.value else f"mend {offer.source}"
    try:
        found = offer.load()
    except (Exception, SystemExit) as error:  # other people's code, any failure
        raise UsageError(f"{where} does not load{place}: {type(error).__name__}: {error}", hint) from error
    try:
        return check(offer.name, found)
    except ValueError as error:
        raise UsageError(f"{where}{place}: {error}", hint) from error


@cache
def _scan() -> dict[str, list[tuple[EntryPoint, tuple[str, str]]]]:
    """Group -> entry points of installed packages with their package's name and version; of a package that is installed twice
    the one that Python would import. Packages whose metadata cannot be read are said and left out.
    """
    found: dict[str, list[tuple[EntryPoint, tuple[str, str]]]] = {group: [] for group in KINDS.values()}
    seen: set[str] = set()
    for package in distributions():
        points = _points(package)
        if points:
            name = str(package.metadata["Name"])
            if name not in seen:
                seen.add(name)
                for point in points:
                    found[point.group].append((point, (name, package.version)))
    return found


def _points(package: Distribution) -> list[EntryPoint]:
    groups = set(KINDS.values())
    try:
        return [point for point in package.entry_points if point.group in groups]
    except Exception as error:  # noqa: BLE001 - damaged metadata of any package that is installed
        log.warning("%s: its entry points cannot be read: %s: %s", package.name, type(error).__name__, error)
        return []


def include(files: Iterable[Path]) -> None:
    """Run the files of ``--include``, each once, so that what they register can be named. Raises UsageError with file and line
    where one cannot be read or stops with an error.
    """
    for file in files:
        path = file.resolve()
        if path in _INCLUDED:
            continue
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise UsageError(f"--include {file}: {error.strerror}", "name a Python file") from error
        _INCLUDED[path] = digest
        _NOW.append(str(file))
        try:
            _run(path)
        except UsageError:
            raise
        except (Exception, SystemExit) as error:  # a user's code, any failure
            raise UsageError(_where(path, file, error), "fix the file; it is executed first") from error
        finally:
            _NOW.pop()


def _run(path: Path) -> None:
    name = f"visrl_included_{path.stem}_{len(_INCLUDED)}"
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--include {path.name}: not a Python file", "its name ends in .py")
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses look their module up there
    spec.loader.exec_module(module)


def _where(path: Path, shown: Path, error: BaseException) -> str:
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == str(path) else None
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            line = frame.lineno
    text = error.msg if isinstance(error, SyntaxError) else error
    return f"--include {shown}{f':{line}' if line else ''}: {type(error).__name__}: {text}"


def used() -> dict[str, str]:
    """Of whom something was loaded, for records: package -> version, included file's name -> sha256 of its bytes."""
    return {**dict(sorted(_USED.items())), **included()}


def included() -> dict[str, str]:
    """The files that were run: name -> sha256 of its bytes."""
    return {path.name: f"sha256:{digest}" for path, digest in _INCLUDED.items()}


def include_options() -> list[str]:
    """``--include FILE`` for each file that was run: for a command that starts another one."""
    return [word for path in _INCLUDED for word in ("--include", str(path))]


def forget() -> None:
    """Look for packages anew, and drop what was registered: for tests."""
    _scan.cache_clear()
    for store in (_ADDED, _INCLUDED, _USED):
        store.clear()
