"""A run, or two side by side, as a page to look at: pictures, boxes, crops, both turns, scores."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from visrl.errors import UsageError, printable, refused
from visrl.report.page import write_page
from visrl.report.pictures import Album
from visrl.report.runs_page import is_folder_of_runs, write_runs_page
from visrl.report.training import is_one_phase, is_training, write_training_page
from visrl.runs.store import slug

__all__ = ["open_page", "serve_page", "write_page", "write_report", "write_runs_page", "write_training_page"]


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """The page of one run folder, of two runs side by side, of a training folder, or of all runs in one; returns where it is.

    out: default ``report.html`` in the folder, ``report-vs-<first>.html`` in the second of two, ``index.html`` in a folder of
    runs. Raises UsageError.
    """
    _check(folders)
    many = is_folder_of_runs(folders) and not is_one_phase(folders[0])
    if out is None:
        beside = f"report-vs-{slug(folders[0].resolve().name)}.html"
        out = folders[-1] / ("index.html" if many else "report.html" if len(folders) == 1 else beside)
    try:
        if many:
            write_runs_page(folders[0], out)
        else:
            _write_one(folders, out)
    except OSError as error:
        raise refused(error, out, "choose another place with --output") from error
    return out


def _write_one(folders: Sequence[Path], out: Path, album: Album | None = None) -> None:
    """The page of a training folder, which holds its pictures itself, or of one run or two. album: as of ``write_page``."""
    if len(folders) == 1 and is_training(folders[0]):
        write_training_page(folders[0], out)
    else:
        write_page(folders, out, album=album)


def open_page(address: str) -> None:
    """Open a page in the user's browser; where there is none, say so and go on: the address has been printed."""
    import webbrowser

    if not webbrowser.open(address):
        print("no browser found: open the address above in one", file=sys.stderr)


def serve_page(folders: Sequence[Path], port: int = 0, *, in_browser: bool = False) -> None:
    """Show the page with all its pictures until Ctrl-C. Raises UsageError where the port is taken."""
    from visrl.report.serve import PageServer

    _check(folders)
    album = Album()
    with tempfile.TemporaryDirectory() as place:
        page = Path(place) / "report.html"
        _write_one(folders, page, album)
        try:
            server = PageServer(page, album, port)
        except OSError as error:
            raise UsageError(f"port {port}: {error}", "--port 0 picks a free port") from error
        with server:
            print(printable(f"{server.url}  (Ctrl-C stops)"), file=sys.stderr)
            if in_browser:
                open_page(server.url)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)


def _check(folders: Sequence[Path]) -> None:
    """Before anything is written: a folder that is missing must not come into being by being looked at."""
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder", "give a run folder, or the folder of a training run")
