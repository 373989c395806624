"""Servers that send their client elsewhere, answer without end, or say what is in no layout."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from visrl.core.types import Turn
from visrl.errors import UsageError
from visrl.evals import guarded_http
from visrl.evals.judge import JudgeItem, make_judge
from visrl.policies.protocol import Request, Sampling
from visrl.policies.servers.endpoint import EndpointPolicy

GOOD = {"choices": [{"index": 0, "delta": {"content": "fine"}, "finish_reason": "stop"}]}


class _Server(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(self.headers.get("authorization"))
        self.server.answer(self)


@contextmanager
def serving(answer):
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    server.asked, server.answer = [], answer
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def ask(url, tries="2"):
    policy = EndpointPolicy.load(f"{url}#m", box_format="json_1000", tries=tries)
    policy.server = policy.server.__class__(**{**_fields(policy.server), "pause": 0.01})
    return policy.generate([Request("a", "answer", (Turn("user", ("what?",)),))], Sampling(max_tokens=9))[0]


def _fields(server):
    return {name: getattr(server, name) for name in server.__dataclass_fields__}


def stream(*chunks):
    def answer(handler):
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        for chunk in chunks:
            handler.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        handler.wfile.write(b"data: [DONE]\n\n")

    return answer


def redirect(to):
    def answer(handler):
        handler.send_response(307)
        handler.send_header("location", to)
        handler.send_header("content-length", "0")
        handler.end_headers()

    return answer


@pytest.mark.parametrize(
    "chunk",
    ["text", [1], 5, None, {"choices": "x"}, {"choices": [None]}, {"choices": [{"delta": "x"}]}, {"choices": {"a": 1}},
     {"choices": [{"delta": {"content": {"a": 1}}}]}, {"choices": [["x"]]}],
)  # fmt: skip
def test_a_chunk_in_no_layout_is_tried_again_and_then_the_samples_error(chunk):
    with serving(stream(chunk)) as (server, url):
        output = ask(url)
    assert output.error is not None and len(server.asked) == 2


@pytest.mark.parametrize("chunk", [{"choices": None}, {"choices": [{"index": 0, "delta": None}]}])
def test_choices_and_deltas_that_are_null_add_nothing(chunk):
    with serving(stream(chunk, GOOD)) as (_, url):
        assert ask(url).texts == ("fine",)


def test_a_reply_in_one_piece_is_told_from_a_stream_that_breaks_off():
    def answer(handler):
        handler.send_response(200)
        handler.send_header("content-type", "application/json")
        handler.end_headers()
        handler.wfile.write(json.dumps({"choices": [{"index": 0, "message": {"content": "fine"}}]}).encode())

    with serving(answer) as (_, url):
        assert "does the server stream?" in ask(url).error
    with serving(stream({"choices": [{"index": 0, "delta": {"content": "fi"}}]})) as (_, url):
        assert ask(url).error.endswith("the stream ended before the text did")


def test_a_redirect_to_another_host_is_refused_at_once():
    with serving(stream(GOOD)) as (other, there):
        goal = there.replace("127.0.0.1", "localhost") + "/chat/completions"
        with serving(redirect(goal)) as (server, url):
            output = ask(url)
            (verdict,) = make_judge(f"openai:{url}#m").judge_many([JudgeItem("x", "q", ("red",), "red")])
    assert "another host, localhost" in output.error and "another host, localhost" in verdict.reason
    assert other.asked == [] and output.texts == ()
    assert len(server.asked) == 2  # one each: another try would lead there, too


def test_a_redirect_within_the_host_is_followed():
    with serving(stream(GOOD)) as (_, there), serving(redirect(f"{there}/chat/completions")) as (_, url):
        assert ask(url).texts == ("fine",)


def test_an_answer_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(guarded_http, "MAX_BYTES", 1000)
    with serving(stream(*[{"choices": [{"index": 0, "delta": {"content": "x" * 90}}]}] * 30, GOOD)) as (server, url):
        output = ask(url)
        (verdict,) = make_judge(f"openai:{url}#m").judge_many([JudgeItem("x", "q", ("red",), "red")])
    assert "longer than 1,000 bytes" in output.error and verdict.value is None
    assert len(server.asked) >= 2


@pytest.mark.parametrize("url", ["http://h/v1?api_key=s3cret", "http://me:s3cret@h/v1"])
def test_a_key_in_an_address_is_refused_and_not_repeated(url):
    for make in (
        lambda: EndpointPolicy.load(f"{url}#m", box_format="json_1000"),
        lambda: make_judge(f"openai:{url}#m"),
    ):
        with pytest.raises(UsageError, match="the URL contains") as caught:
            make()
        assert "s3cret" not in str(caught.value)
