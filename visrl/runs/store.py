"""A run on disk: what was asked, what came out, and how to go on after any interruption.

``run.json``        the request, its hash, versions; started, finished, durations (never part of what is compared)
``episodes.jsonl``  a line per finished sample, append-only; fsynced at least once a second and at the end of each task
``scores.jsonl``    a line per sample, metric -> value or null with a reason; rewritten whole by every scoring
``records/*.json``  TaskResults; byte-identical for equal requests, however often the run was interrupted

Samples go through in batches with fixed boundaries, so that a resumed run asks the model the same batches. Failed samples
are tried again by the next run; the last line of a sample counts.

Of several processes each appends to a file of its own, ``episodes.rank3.jsonl``. ``gather`` moves these into the one file while
all of them wait, so that it never changes under a reader; what a killed run left in them the next one gathers, on however many.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from visrl.core.records import clear_pieces, dump_json, write_atomically
from visrl.core.types import Episode
from visrl.errors import UsageError, refused
from visrl.runs.distributed import ALONE, Processes
from visrl.runs.identity import deciding
from visrl.runs.lines import episode_to_json, read_episodes, read_lines, sealed
from visrl.runs.meta import read_meta

log = logging.getLogger(__name__)
FSYNC_EVERY_S = 1.0
WHOLE_FILES = ("run.json", "scores.jsonl", "pairs.jsonl", "manifest.json")
"""Files that only the holder of a run rewrites, besides records/; a page, say, anybody may write there."""
KEPT = "finished samples are kept; free disk space and run the same command again"
_LINE = json.JSONEncoder(allow_nan=False)  # made once: json.dumps would make one per line
_SCORES = json.JSONEncoder(allow_nan=False, sort_keys=True)
Finished = Mapping[str, Collection[str]]
"""task -> ids of its samples that need not run again"""


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def request_hash(request: Mapping[str, Any]) -> str:
    """sha256 of what decides a request, as canonical JSON: two commands with one hash are the same run."""
    return hashlib.sha256(json.dumps(deciding(request), sort_keys=True, allow_nan=False).encode()).hexdigest()


def fresh_folder(scratch: Path, name: str) -> Path:
    """An unused folder below ``scratch``."""
    folder = scratch / slug(name)
    while folder.exists():
        folder = folder.with_name(f"{folder.name}_")
    return folder


def slug(text: str) -> str:
    """A file name from user text: word characters, dot, plus and minus; at most 60, never empty or hidden."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")[:60] or "run"


@dataclass(slots=True)
class Run:
    """An open run folder. Use as a context manager, by one process at a time or by all of ``processes`` together.

    lines: its append-only file. Entering, gathering and leaving are done by every process.
    """

    folder: Path
    request: Mapping[str, Any]
    lines: str = "episodes.jsonl"
    processes: Processes = ALONE
    _file: BinaryIO | None = field(default=None, repr=False)  # what this process appends to
    _whole: BinaryIO | None = field(default=None, repr=False)  # the one file, locked by the first process
    _synced: float = 0.0
    _written: int = 0  # lines since the last gathering
    _meta: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def episodes_path(self) -> Path:
        return self.folder / self.lines

    def __enter__(self) -> Run:
        try:
            if self.processes.is_main:
                self._open()
            self.processes.wait()
            if not self.processes.is_main:
                self._check_visible()
            self._file = self._whole if self.processes.world_size == 1 else _locked(self._part(self.processes.rank))
        except OSError as error:
            self._let_go()
            raise UsageError(
                f"{self.folder}: cannot write the run: {error}", "choose another place with --output"
            ) from error
        except BaseException:
            self._let_go()
            raise
        return self

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._whole = _locked(self.episodes_path)
        try:
            self._meta = self._check_request()
        except UsageError:
            self._whole.close()
            raise
        self._cut_torn_line()
        _clear(self.folder)
        self._take_in()
        again = {"resumed": [*self._meta.get("resumed", []), now()]} if "started" in self._meta else {}
        self.write_meta(started=self._meta.get("started", now()), **again)

    def _check_visible(self) -> None:
        if not (self.folder / "run.json").exists():
            raise UsageError(
                f"{self.folder}: not every process sees this folder", "choose a folder that all machines share"
            )
        self._check_request()

    def _part(self, rank: int | str) -> Path:
        return self.episodes_path.with_suffix(f".rank{rank}.jsonl")

    def gather(self) -> None:
        """Move what every process appended into the one file, and wait until it is there.

        Raises UsageError where a process wrote to a folder that the first does not see.
        """
        self.sync()
        self._check_place()
        if self.processes.world_size == 1:
            return
        assert self._file is not None, "a Run is gathered inside its with-block"
        self._file.close()
        written, self._written = self.processes.total(self._written), 0
        if self.processes.is_main and self._take_in() < written:
            raise UsageError(
                f"{self.folder}: not every process sees this folder", "choose a folder that all machines share"
            )
        self.processes.wait()
        self._file = _locked(self._part(self.processes.rank))

    def _take_in(self) -> int:
        """Append the whole lines of every part file to the one file; returns how many. Killed in between, lines may be there
        twice: the last one counts, and they are alike."""
        assert self._whole is not None, "only the first process gathers"
        lines = 0
        for path in sorted(self.folder.glob(self._part("*").name)):
            with _locked(path), path.open("rb") as part:
                for line in part:
                    if line.endswith(b"\n"):
                        self._whole.write(line)
                        lines += 1
                self._whole.flush()
                os.fsync(self._whole.fileno())
                path.unlink()
        return lines

    def _check_request(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        if not path.exists():
            self._refuse_orphans()
            return {}
        meta = read_meta(self.folder)
        before, asked = deciding(meta["request"]), deciding(self.request)
        changed = sorted(k for k in {*before, *asked} if before.get(k) != asked.get(k))
        if changed:  # the hash is of what decided when it was written, which may have been more
            if self._forget_failures():
                return {}
            raise UsageError(
                f"{self.folder} holds another run: {', '.join(changed)} differ",
                "give a new --output, or delete that folder",
            )
        return meta

    def _forget_failures(self) -> bool:
        """Whether another run claimed this folder and got nothing done: nothing, or failures alone, which are dropped."""
        parts = [path for path in self.folder.glob(self._part("*").name) if path.stat().st_size]
        if self._whole is None or parts or not all(read_lines(self.episodes_path, _failed)):
            return False
        log.warning("%s: another command got nothing done here; this one takes the folder", self.folder)
        self._whole.truncate(0)
        for path in (*self.folder.glob("records/*.json"), *self.folder.glob("scores.jsonl")):
            path.unlink()
        return True

    def _refuse_orphans(self) -> None:
        """Lines without their run.json are of a model and data nobody can name: another run must not add to them."""
        for path in (self.episodes_path, *self.folder.glob(self._part("*").name)):
            if path.is_file() and path.stat().st_size:
                raise UsageError(
                    f"{self.folder} has {path.name} but no run.json: it is unknown which run its outputs belong to",
                    "put its run.json back, give a new --output, or delete that folder",
                )

    def _cut_torn_line(self) -> None:
        """Before appending: half a line from a killed process would glue itself to the next one."""
        with self.episodes_path.open("rb+") as file:
            whole = sum(len(line) for line in file if line.endswith(b"\n"))
            if whole < file.seek(0, os.SEEK_END):
                log.warning("%s: the last line is torn and dropped; its sample runs again", self.episodes_path)
                file.truncate(whole)

    def finished(self) -> Finished:
        """The samples whose last episode did not fail: what a resumed run need not do again."""
        done: dict[str, set[str]] = {}
        for episode in read_episodes(self.episodes_path):
            ids = done.setdefault(episode.task, set())
            ids.add(episode.sample_id) if episode.error is None else ids.discard(episode.sample_id)
        return done

    def count(self) -> int:
        """How many samples are finished, those included that other processes have written and nobody has gathered."""
        files = [self.episodes_path, *self.folder.glob(self._part("*").name)]
        return len({(e.task, e.sample_id) for file in files for e in read_episodes(file) if e.error is None})

    def append(self, episodes: Iterable[Episode]) -> None:
        """Write finished samples. Raises UsageError when the disk refuses; what was written before stays."""
        self.append_lines(map(episode_to_json, episodes))

    def append_lines(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Write JSON objects, a line each; see :meth:`append`."""
        assert self._file is not None, "a Run is written inside its with-block"
        lines = [sealed(_LINE.encode(value)) for value in values]
        try:
            self._file.write(b"".join(lines))
            self._file.flush()
            self._written += len(lines)
        except OSError as error:
            raise refused(error, self.episodes_path, KEPT) from error
        if time.monotonic() - self._synced > FSYNC_EVERY_S:
            self.sync()
            self._check_place()

    def sync(self) -> None:
        """Everything appended so far, onto the disk. Raises UsageError when it refuses."""
        if self._file is not None and not self._file.closed:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise refused(error, self.episodes_path, KEPT) from error
            self._synced = time.monotonic()

    def _check_place(self) -> None:
        """Raise UsageError where the folder is no longer there, or another one is: an open file is written wherever it went."""
        path = self.episodes_path if self.processes.world_size == 1 else self._part(self.processes.rank)
        try:
            there, asked = path.stat(), (self.folder / "run.json").is_file()
        except OSError:
            there, asked = None, False
        ours = os.fstat(self._file.fileno()) if self._file is not None else None
        if not asked or there is None or ours is None or not os.path.samestat(there, ours):
            raise UsageError(
                f"{self.folder} was moved, deleted or replaced during the run",
                "what was finished is where that folder is now: move it back and run the same command again",
            )

    def write_meta(self, **facts: Any) -> None:
        """Update run.json: the request and its hash, and what must stay out of records (times, durations, argv)."""
        if not self.processes.is_main:
            return
        self._meta.update(facts, request=dict(self.request), request_hash=request_hash(self.request))
        write_atomically(self.folder / "run.json", dump_json(self._meta))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sync()
            if value is None:
                self._check_place()
        except UsageError:
            if value is None:  # else the error that ends the run is the one to be said
                raise
        finally:
            self._let_go()
        part = self._part(self.processes.rank)
        if self.processes.world_size > 1 and part.exists() and not part.stat().st_size:
            part.unlink()

    def _let_go(self) -> None:
        """Close the files. What a full disk did not take was said when it was written: closing tries, and fails, again."""
        for file in (self._file, self._whole):
            if file is not None:
                with suppress(OSError):
                    file.close()


def _failed(line: Any) -> bool:
    return "error" in line and line["error"] is not None


def _locked(path: Path) -> BinaryIO:
    """A file to append to that no other process appends to. Raises UsageError where one does."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UsageError(
            f"{path.parent}: another process is writing this run", "wait for it, or use another --output"
        ) from error
    return file


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run of episodes that is there, as a Run does, to rewrite what follows from them. Raises UsageError where another
    process holds it, or the system refuses.
    """
    path = folder / "episodes.jsonl"
    if not path.is_file():  # opening would make it; that nothing is there is said where it is read
        yield
        return
    try:
        file = _locked(path)
    except OSError as error:
        raise refused(error, path) from error
    with file:
        _clear(folder)
        yield


def _clear(folder: Path) -> None:
    clear_pieces(folder, WHOLE_FILES)
    clear_pieces(folder / "records")


def write_scores(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """scores.jsonl: a line per sample, metric -> value, or null with a reason."""
    lines = (_SCORES.encode(row) + "\n" for row in rows)
    write_atomically(folder / "scores.jsonl", lines)
