"""An evaluation by a server of which a share of the answers is spoilt, in every way that servers and networks have.

    python tests/campaigns/server_faults.py --documents 240 --share 0.3 --seed 1

A stand-in for an OpenAI-compatible server on this machine, whose good answers follow from the conversation alone. The evaluation runs
once undisturbed; then again, with that share of all requests spoilt, until the command ends with exit code 0 (a redirect to another host
is refused, and its sample failed, by design: the same command tries it again). Records, scores and the outputs of every sample must be
the undisturbed ones. Prints a row per kind of fault.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from visrl.runs.lines import read_episodes

ODD_WAITS = ("²", "-1", "nan", "1e400", "", "Wed, 21 Oct 2099 07:28:00 GMT", "0.01", "0", "1,5", "\u0663")


def good_text(body):
    """A box in the first turn and a word in the second, by what was asked, pictures included."""
    digest = hashlib.sha256(json.dumps(body["messages"], sort_keys=True).encode()).digest()
    if sum(message["role"] == "user" for message in body["messages"]) > 1:
        return ("yes", "no", "A", "7")[digest[0] % 4]
    x1, y1 = digest[1] * 2, digest[2] * 2
    return json.dumps({"bbox_2d": [x1, y1, x1 + 20 + digest[3], y1 + 20 + digest[4]]})


def chunk(content=None, finish=None):
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [{"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}]}  # fmt: skip


def events(*chunks):
    return b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks)


DONE = b"data: [DONE]\n\n"


class Answers(BaseHTTPRequestHandler):
    """Good and spoilt answers; ``server.share`` of all are spoilt."""

    protocol_version = "HTTP/1.0"  # the end of an answer is the end of the connection

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send(200, json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode())

    def do_POST(self):
        size = int(self.headers["content-length"])
        sent = self.rfile.read(size)
        if len(sent) < size:  # the client's time was over before its question was sent
            return
        body = json.loads(sent)
        with self.server.lock:
            dice = self.server.dice
            name = dice.choice(list(FAULTS)) if dice.random() < self.server.share else "none"
            detail = dice.random()
            self.server.sent[name] += 1
        try:
            if name == "none":
                self.send(200, self.whole(body), "text/event-stream")
            else:
                FAULTS[name](self, body, detail)
        except OSError:
            pass  # the client has gone

    def whole(self, body):
        text = good_text(body)
        return events(chunk(text[:3]), chunk(text[3:]), chunk(finish="stop")) + DONE

    def send(self, code, data, kind="application/json", **headers):
        self.send_response(code)
        self.send_header("content-type", kind)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value.encode().decode("latin-1"))
        self.end_headers()
        self.wfile.write(data)


def slowly(handler, body, _):
    handler.send(200, b"", "text/event-stream")
    for byte in handler.whole(body)[:40]:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(handler.server.timeout_s / 10)


def cut(handler, body, detail):
    data = handler.whole(body)
    handler.send(
        200, data[: int(detail * (len(data) - len(DONE) - 100))], "text/event-stream", content_length=str(len(data))
    )


def stream(*chunks):
    return lambda handler, _, __: handler.send(200, events(*chunks) + DONE, "text/event-stream")


def status(code, data=b'{"error": {"message": "later"}}'):
    return lambda handler, _, detail: handler.send(code, data, retry_after=ODD_WAITS[int(detail * len(ODD_WAITS))])


def to_itself(handler, *_):
    handler.send(307, b"", location=f"http://127.0.0.1:{handler.server.server_address[1]}/v1/chat/completions")


FAULTS = {
    "500, odd Retry-After": status(500),
    "429, odd Retry-After": status(429),
    "503, a page of HTML": status(503, b"<html>\xff\xfe</html>"),
    "choices: null": stream({**chunk(), "choices": None}),
    "delta: null": stream({**chunk(), "choices": [{"index": 0, "delta": None, "finish_reason": None}]}),
    "choices: []": stream({**chunk(), "choices": []}),
    "a text as a chunk": stream("text"),
    "a list as a chunk": stream([1, 2]),
    "half an answer, no end": lambda handler, body, _: handler.send(200, events(chunk(good_text(body)[:2])) + DONE, "text/event-stream"),
    "an error in the stream": stream(chunk("1"), {"error": {"message": "out of memory"}}),
    "a cut body": cut,
    "no JSON": lambda handler, *_: handler.send(200, b"data: {oops\n\n" + DONE, "text/event-stream"),
    "no UTF-8": lambda handler, *_: handler.send(200, b'data: {"a": "\xff\xfe"}\n\n' + DONE, "text/event-stream"),
    "an empty body": lambda handler, *_: handler.send(200, b"", "text/event-stream"),
    "closed at once": lambda handler, *_: handler.connection.close(),
    "a slow sender": slowly,
    "no answer": lambda handler, *_: time.sleep(handler.server.timeout_s * 1.5),
    "a redirect to itself": to_itself,
    "a redirect to another host": lambda handler, *_: handler.send(307, b"", location="http://other.invalid/v1/chat/completions"),
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """timeout_s: of the client; what is slow here takes longer."""

    daemon_threads, request_queue_size = True, 256

    def __init__(self, seed, timeout_s):
        super().__init__(("127.0.0.1", 0), Answers)
        self.share, self.dice, self.lock, self.sent = 0.0, random.Random(seed), threading.Lock(), Counter()
        self.timeout_s = timeout_s


def evaluation(server, output, documents):
    url = f"endpoint:http://127.0.0.1:{server.server_address[1]}/v1#m"
    args = f"box_format=json_1000,timeout={server.timeout_s},tries=20,in_flight=32"
    words = ("--model", url, "--model-args", args, "--tasks", "world_viscot")
    asked = [
        sys.executable,
        "-c",
        "import sys; from visrl.cli.evaluate import main; sys.exit(main(sys.argv[1:]))",
        "run",
        *words,
    ]
    return subprocess.run([*asked, "--limit", str(documents), "-o", str(output), "-q"], capture_output=True, text=True)  # fmt: skip


def outputs(folder):
    """(task, id) -> the last episode."""
    return {(one.task, one.sample_id): one for one in read_episodes(folder / "episodes.jsonl")}


def compared(calm, rough):
    """What is lost, and what is another sample's, or nobody's."""
    wanted, found = outputs(calm), outputs(rough)
    lost = [key for key in wanted if key not in found or found[key].error is not None]
    mixed = [key for key in found if key not in lost and found[key] != wanted.get(key)]
    names = ["scores.jsonl", *(f"records/{path.name}" for path in sorted((calm / "records").iterdir()))]
    files = [name for name in names if (calm / name).read_bytes() != (rough / name).read_bytes()]
    return lost, mixed, files


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=240, help="of each of five tasks, which have 250")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=1.0, help="of the client, in seconds: more on a busy machine")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    server = Server(args.seed, args.timeout)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = evaluation(server, folder / "calm", args.documents)
    assert done.returncode == 0, done.stderr
    calm_requests = server.sent.total()
    server.share, server.sent = args.share, Counter()
    codes, began, said = [], time.monotonic(), ""
    while (not codes or codes[-1] != 0) and len(codes) < 20:
        done = evaluation(server, folder / "rough", args.documents)
        codes.append(done.returncode)
        said += done.stderr
    lost, mixed, files = compared(folder / "calm", folder / "rough")
    for name, count in sorted(server.sent.items(), key=lambda pair: -pair[1]):
        print(f"{count:>7} {name}")
    total = server.sent.total()
    print(
        f"{calm_requests} requests undisturbed; {total} with {1 - server.sent['none'] / total:.0%} spoilt, exit codes {codes}, "
        f"{time.monotonic() - began:.0f} s"
    )
    print(f"{len(outputs(folder / 'rough'))} samples, {len(lost)} lost, {len(mixed)} mixed up, other files: {files}, "
          f"tracebacks: {said.count('Traceback')}")  # fmt: skip
    shutil.rmtree(folder)
    return bool(lost or mixed or files or codes[-1] or "Traceback" in said)


if __name__ == "__main__":
    sys.exit(main())
