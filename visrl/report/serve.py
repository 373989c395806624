"""The page with all of its pictures, large, from a server on this machine only.

Nothing in a request ever becomes a path: the page is one file, a picture is a number in the album. Requests that name another
host are refused, so that no web site can read the pictures through a name it points at this machine (DNS rebinding).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from visrl.report.pictures import SERVED_SIDE, Album

HOST = "127.0.0.1"
_CACHED = 64
_PICTURE = re.compile(r"/picture/([0-9]{1,9})")


class PageServer(ThreadingHTTPServer):
    """A page and its album on a loopback port; ``port`` 0 picks a free port. Raises OSError where it cannot listen."""

    daemon_threads = True

    def __init__(self, page: Path, album: Album, port: int = 0) -> None:
        self.page, self.album = page, album
        self._cache: OrderedDict[int, bytes | None] = OrderedDict()
        self._lock = Lock()
        super().__init__((HOST, port), partial(_Handler))

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def picture(self, number: int) -> bytes | None:
        """WebP bytes of a picture of the album; None for a number it does not have, or a picture that does not open."""
        if number >= len(self.album.pictures):
            return None
        with self._lock:
            if number not in self._cache:
                self._cache[number] = self.album.open(number, SERVED_SIDE)
                if len(self._cache) > _CACHED:
                    self._cache.popitem(last=False)
            return self._cache[number]


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    server_version = "visrl"
    sys_version = ""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            self._send(403, "text/plain", b"this server answers to 127.0.0.1 only\n")
        elif self.path == "/":
            self._send(200, "text/html; charset=utf-8", self.server.page.read_bytes())
        elif (match := _PICTURE.fullmatch(self.path)) and (data := self.server.picture(int(match.group(1)))):
            self._send(200, "image/webp", data)
        else:
            self._send(404, "text/plain", b"not here\n")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "private, max-age=3600" if kind == "image/webp" else "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: a line per picture would bury the address."""
