"""Documents from the network, through ``datasets``: rows are turned into the rows of our files, and go on from there.

docs/data.md lists which dataset stands for which task. lmms-lab/RefCOCO is not among them: its ``val`` is UNC's and Google's
together (8,811 objects, 23,962 sentences), not the published 10,834 sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from visrl.errors import UsageError
from visrl.runs.hub import settle

Row = Mapping[str, Any]
Found = tuple[str, Row, Callable[[], bytes] | None]


class Hub(Protocol):
    """Where the rows are online. ``has_pictures``: they come with their pictures."""

    @property
    def has_pictures(self) -> bool: ...

    def rows(self) -> Iterator[Found]:
        """(place, row in the layout of our files, encoded picture if there is one)."""
        ...

    def facts(self) -> dict[str, Any]:
        """For records: which dataset, at which revision."""
        ...


def unchanged(row: Row) -> Iterator[Row]:
    yield row


@dataclass(frozen=True, slots=True)
class HubDataset:
    """A dataset of the Hugging Face hub, or a local folder in its layout.

    convert: a row of theirs -> rows of ours. image: the column that holds the picture; it is decoded by us, not by them.
    """

    path: str
    split: str
    convert: Callable[[Row], Iterable[Row]] = unchanged
    config: str | None = None
    image: str | None = None

    @property
    def has_pictures(self) -> bool:
        return self.image is not None

    def rows(self) -> Iterator[Found]:
        import datasets

        table = _loaded(lambda: datasets.load_dataset(self.path, self.config, split=self.split), self.path)
        if self.image is not None:
            table = table.cast_column(self.image, datasets.Image(decode=False))
        texts = table.remove_columns(self.image) if self.image is not None else table
        for number, row in enumerate(texts):
            picture = self._picture(table, number) if self.image is not None else None
            for ours in self.convert(row):
                yield f"{self.path}/{self.split}: row {number}", ours, picture

    def _picture(self, table: Any, number: int) -> Callable[[], bytes]:
        return lambda: bytes(table[number][self.image]["bytes"] or b"")

    def facts(self) -> dict[str, Any]:
        import datasets

        builder = _loaded(lambda: datasets.load_dataset_builder(self.path, self.config), self.path)
        return {"dataset": self.path, "config": self.config, "split": self.split, "revision": str(builder.hash)}


@dataclass(frozen=True, slots=True)
class PinnedFiles:
    """JSON files at a fixed commit of the repository that published them, for what no hub dataset contains.

    join: the files' rows side by side -> documents' rows.
    """

    repository: str
    commit: str
    files: tuple[str, ...]
    join: Callable[..., Iterable[tuple[str, Row]]]
    url: str = "https://raw.githubusercontent.com/{repository}/{commit}/{file}"
    has_pictures: bool = False

    def rows(self) -> Iterator[Found]:
        import datasets

        places = [self.url.format(repository=self.repository, commit=self.commit, file=file) for file in self.files]
        tables = [_loaded(partial(datasets.load_dataset, "json", data_files=p, split="train"), p) for p in places]
        return ((where, row, None) for where, row in self.join(*tables))

    def facts(self) -> dict[str, Any]:
        return {"repository": self.repository, "revision": self.commit, "files": list(self.files)}


def _loaded(load: Callable[[], Any], name: str) -> Any:
    from datasets.exceptions import DatasetsError

    if "://" not in name:
        settle()
    try:
        return load()
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # OSError: no network, offline mode, not found
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"cannot load {name}: {reason}", "offline, give a folder: --data DIR (docs/data.md)"
        ) from error
