"""A proxy in front of a server that spoils a share of the answers, each in one of five ways, by a seeded dice."""

import http.client
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("timeout", "429", "500", "broken json", "cut stream")


class Proxy(ThreadingHTTPServer):
    """``share`` of requests are spoilt. ``counts``: what was done to how many."""

    daemon_threads = True

    def __init__(self, port, share, seed=0):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream, self.share, self.dice = port, share, random.Random(seed)
        self.counts, self.lock = Counter(), threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def fate(self):
        with self.lock:
            chosen = self.dice.choice(FAULTS) if self.dice.random() < self.share else "good"
            self.counts[chosen] += 1
            return chosen

    def handle_error(self, request, client_address):
        """Clients that give up are the point."""


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        fate = self.server.fate()
        if fate == "timeout":
            time.sleep(20)
        elif fate in ("429", "500"):
            self._send(int(fate), "application/json", b'{"error": {"message": "not now"}}')
        elif fate == "broken json":
            self._send(200, "text/event-stream", b'data: {"id": "x", "choices": [{"del\n\n')
        else:
            upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=60)
            upstream.request("POST", self.path, body, {"content-type": "application/json"})
            answer = upstream.getresponse()
            data = answer.read()
            self._send(
                answer.status, answer.headers["content-type"], data[: len(data) // 2] if fate == "cut stream" else data
            )

    def _send(self, status, kind, data):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(data)
