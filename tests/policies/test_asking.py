"""What a service is told besides the conversation, and whether it is there at all, asked before anything else."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from visrl.core.types import Turn
from visrl.errors import UsageError
from visrl.policies.before import check_policy
from visrl.policies.protocol import Request, Sampling
from visrl.policies.registry import parse_model_args
from visrl.policies.servers.endpoint import EndpointPolicy
from visrl.runs.store import Run, request_hash
from visrl.train.pairs.recipe import PolicySection

LISTED = {"object": "list", "data": [{"id": "big", "object": "model", "created": 0, "owned_by": "x"}]}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        status, body = self.server.models
        self._send(status, "application/json", json.dumps(body))

    def do_POST(self):
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.server.headers.append(dict(self.headers))
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        choice = {"index": 0, "delta": {"content": "red"}, "finish_reason": "stop"}
        self._send(200, "text/event-stream", f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\ndata: [DONE]\n\n")

    def _send(self, status, kind, text):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(text.encode())


@contextmanager
def serving(models=(200, LISTED)):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.models, server.bodies, server.headers = True, models, [], []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


GREEDY = Sampling(max_tokens=9)


def asked(url, server, sampling=GREEDY, **args):
    policy = EndpointPolicy.load(f"{url}#big", box_format="paper", **args)
    (out,) = policy.generate([Request("a", "answer", (Turn("user", ("what?",)),))], sampling)
    assert out.texts[0] == "red"
    return server.bodies[-1], policy.describe()


def test_the_limit_the_temperature_and_fields_of_ones_own(tmp_path):
    file = tmp_path / "extra.json"
    file.write_text('{"reasoning_effort": "low", "top_k": 7}')
    with serving() as (server, url):
        body, about = asked(url, server)
        assert (body["max_tokens"], body["temperature"]) == (9, 0.0) and "max_completion_tokens" not in body
        assert not {"token_limit", "temperature", "extra_body"} & about.keys()  # as before: such runs go on
        body, about = asked(url, server, token_limit="max_completion_tokens", temperature="0.7", extra_body=str(file))
        assert "max_tokens" not in body and (body["max_completion_tokens"], body["temperature"]) == (9, 0.7)
        assert body["reasoning_effort"] == "low" and body["top_k"] == 7 and "seed" in body
        assert about["token_limit"] == "max_completion_tokens" and about["extra_body"]["top_k"] == 7
        body, _ = asked(url, server, Sampling(temperature=2.0, top_k=50), temperature="0.7")
        assert (body["temperature"], body["top_k"]) == (2.0, 50)  # where sampling is asked for, that counts
        body, _ = asked(url, server, temperature="none")
        assert "temperature" not in body


def test_arguments_may_be_json():
    text = 'a=b, extra_body={"top_k": 7, "stop": ["x,y"]} ,c=[1, 2],d=e=f'
    said = {"a": "b", "extra_body": '{"top_k": 7, "stop": ["x,y"]}', "c": "[1, 2]", "d": "e=f"}
    assert parse_model_args(text) == said
    assert PolicySection(model="hf:x", args={"c": [1, 2], "d": {"e": True}, "f": True, "g": 0.5}).args == {
        "c": "[1, 2]", "d": '{"e": true}', "f": "true", "g": "0.5"
    }  # fmt: skip
    for wrong, why in (
        ("a={1, b=c", "a is not JSON"),
        ('a={"b": 1}c', "'c' after its JSON value"),
        ("a=b,,c", "'c' is not"),
    ):
        with pytest.raises(UsageError, match=why):
            parse_model_args(wrong)


def test_headers_are_sent_and_said_nowhere(tmp_path):
    file = tmp_path / "headers.json"
    file.write_text('{"X-Team": "secret"}')
    with serving() as (server, url):
        _, about = asked(url, server, extra_headers=str(file))
        assert server.headers[-1]["x-team" if "x-team" in server.headers[-1] else "X-Team"] == "secret"
        assert "secret" not in json.dumps(about) and "X-Team" not in json.dumps(about)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"temperature": "warm"}, "temperature=warm"),
        ({"temperature": "3"}, "temperature=3"),
        ({"extra_body": "nowhere.json"}, "extra_body: .*nowhere.json"),
        ({"extra_body": "{"}, "extra_body: "),
        ({"token_limit": "max"}, "token_limit=max"),
    ],
)
def test_what_is_no_way_of_asking_is_refused(args, said):
    with pytest.raises(UsageError, match=said):
        EndpointPolicy.load("http://127.0.0.1:9/v1#m", box_format="paper", **args)


def test_exporting_a_key_is_no_other_run(tmp_path, monkeypatch):
    def request():
        policy = EndpointPolicy.load("http://127.0.0.1:9/v1#m", box_format="paper")
        return {"model_info": dict(policy.describe()), "seed": 1}

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    without = request()
    with Run(tmp_path / "run", without) as run:
        run.write_meta()
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert request() != without and request_hash(request()) == request_hash(without)
    (tmp_path / "run/episodes.jsonl").write_text('{"task": "t", "sample_id": "1"}\n')
    meta = json.loads((tmp_path / "run/run.json").read_text())
    (tmp_path / "run/run.json").write_text(json.dumps({**meta, "request_hash": "of an older version"}))
    with Run(tmp_path / "run", request()):
        pass
    with (
        pytest.raises(UsageError, match="holds another run: seed differ"),
        Run(tmp_path / "run", {**request(), "seed": 2}),
    ):
        pass


def test_a_server_is_asked_for_its_models_first(caplog, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    args = {"box_format": "paper"}
    with serving() as (_, url):
        check_policy(f"endpoint:{url}#big", args)
        assert caplog.text == ""
        check_policy(f"endpoint:{url}#bgi", args)  # this one answers to any name
        assert "lists no model bgi; it has big" in caplog.text
        check_policy(f"endpoint:{url},http://127.0.0.1:9/v1#big", args)  # one of two is enough
    for status in (404, 500, 200):
        with serving((status, {"what": "no list"})) as (_, url):
            check_policy(f"endpoint:{url}#big", args)
    with serving((401, {"error": {"message": "no"}})) as (_, url), pytest.raises(UsageError, match="refuses the key"):
        check_policy(f"endpoint:{url}#big", args)
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:9/v1 does not answer"):
        check_policy("endpoint:http://127.0.0.1:9/v1#big", args)
