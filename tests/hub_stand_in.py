"""A stand-in for the hub on loopback: what huggingface_hub asks when it makes a repository, commits files and reads one."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_" + "standin" * 5


class _Hub(BaseHTTPRequestHandler):
    """files: path -> bytes; seen: (method, path, whether the token came). refuse: a status for all that is written."""

    def log_message(self, *_):
        pass

    def _say(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _note(self):
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization") == f"Bearer {TOKEN}"))

    def do_GET(self):
        self._note()
        name = self.path.split("?")[0].rpartition("/main/")[2]
        if "/resolve/" in self.path and name in self.server.files:
            data = self.server.files[name]
            about = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": "a" * 40}
            self._say(200, data, **about)
        elif "/resolve/" in self.path:
            self._say(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit="a" * 40)
        else:
            self._say(200, {"id": "org/model", "sha": "a" * 40, "siblings": []})

    do_HEAD = do_GET

    def do_POST(self):
        self._note()
        body = self._body()
        if self.server.refuse:
            self._say(self.server.refuse, {"error": "Invalid credentials"})
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            self._say(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            address = f"http://127.0.0.1:{self.server.server_port}/org/model/commit/{'b' * 40}"
            self._say(200, {"commitUrl": address, "commitOid": "b" * 40, "success": True})
        else:
            self._say(200, {"url": f"http://127.0.0.1:{self.server.server_port}/org/model", "id": "org/model"})


@contextmanager
def hub(refuse=0, **files):
    """The server, with files that its repository holds already."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.files, server.seen, server.refuse = {name: text.encode() for name, text in files.items()}, [], refuse
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
