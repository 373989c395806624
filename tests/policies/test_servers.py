"""Several servers of one model, each a process's thread that answers like vLLM: balanced, one killed, brought back, given adapters."""

import contextlib
import json
import logging
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tinies import picture

from visrl.core.box_formats import FORMATS
from visrl.core.prompts import PROTOCOLS
from visrl.core.types import CoTSample, Turn
from visrl.errors import UsageError
from visrl.policies.protocol import Request, Sampling
from visrl.policies.servers.endpoint import EndpointPolicy, Server
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer

BOXES = FORMATS["padded_square_3dp"]


class Fake(ThreadingHTTPServer):
    """Says a box or a word, after ``delay`` seconds. ``asked``: question -> how often it was answered.

    strict: it knows its models' names alone. breaks: the word at whose question connections break. silent: it never answers.
    """

    daemon_threads = True

    def __init__(self, port=0, delay=0.0, status=200, lora=True, strict=False, breaks="", silent=False):
        super().__init__(("127.0.0.1", port), _Handler)
        self.strict, self.breaks, self.silent = strict, breaks, silent
        self.delay, self.status, self.lora = delay, status, lora
        self.asked, self.models, self.bodies = Counter(), {"m": "weights"}, []
        self.open, self.lock, self.dead = set(), threading.Lock(), False
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def port(self):
        return self.server_address[1]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self):
        """Nobody listens any more, and what was being answered breaks off."""
        self.dead = True
        self.shutdown()
        self.server_close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):  # already closed by the client
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        """Clients that break off are the point."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.server.open.add(self.connection)

    def do_GET(self):
        if self.server.silent:
            time.sleep(3)
        served = [
            {"id": k, "object": "model", "created": 0, "owned_by": "x", "root": v}
            for k, v in self.server.models.items()
        ]
        self._json(200, {"object": "list", "data": served})

    def do_POST(self):
        server, body = self.server, json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/load_lora_adapter":
            if not server.lora:
                return self._json(404, {"error": {"message": "Not Found"}})
            server.models[body["lora_name"]] = body["lora_path"]
            return self._text(200, "text/plain", b"Success: LoRA adapter added successfully")
        if server.strict and body["model"] not in server.models:
            return self._json(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        if not isinstance(body["messages"][-1]["content"], list):  # of one token, before a run
            return self._json(200, {"choices": [{"message": {"content": "hi"}}]})
        time.sleep(3 if server.silent else server.delay)
        if server.dead:  # a killed process says nothing more
            self.close_connection = True
            return None
        if server.status != 200:
            return self._json(server.status, {"error": {"message": "not now"}})
        question = "".join(p["text"] for p in body["messages"][-1]["content"] if p["type"] == "text").strip()
        if server.breaks and question.split()[0] == server.breaks:
            self.close_connection = True
            return self.connection.close()
        with server.lock:
            server.asked[question] += 1
            server.bodies.append(body)
        said = (
            "[0.1, 0.2, 0.3, 0.4]"
            if "sub-image" in question and len(body["messages"][-1]["content"]) == 2
            else question[:4]
        )
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        rows = [
            {"index": 0, "delta": {"content": said}, "finish_reason": None},
            {"index": 0, "delta": {}, "finish_reason": "stop"},
        ]
        lines = [f"data: {json.dumps({**chunk, 'choices': [row]})}\n\n" for row in rows]
        return self._text(200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]).encode())

    def _json(self, status, value):
        self._text(status, "application/json", json.dumps(value).encode())

    def _text(self, status, kind, data):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def samples(n):
    for i in range(n):
        yield CoTSample(f"d{i}", "t", "qa", f"{i:03d} what letter is it ?", picture(40, 44, i % 3), (40, 44))


def policy(*servers, **more):
    more = {"timeout": 10.0, "tries": 6, "pause": 0.02, "in_flight": 4, **more}
    return EndpointPolicy(Server(",".join(s.url for s in servers), "m", **more), BOXES)


def ask(endpoint, *keys):
    return endpoint.generate([Request(k, "box", (Turn("user", (f"{k} ?",)),)) for k in keys], Sampling(max_tokens=4))


def test_one_of_two_servers_killed_mid_run_loses_nothing_and_keeps_the_order(caplog):
    first, second = Fake(delay=0.02), Fake(delay=0.02)
    both = policy(first, second)

    def killed():
        while sum(first.asked.values()) < 10:
            time.sleep(0.005)
        first.kill()

    threading.Thread(target=killed, daemon=True).start()
    with caplog.at_level(logging.WARNING):
        episodes = list(look_then_answer(both, samples(60), RolloutConfig(PROTOCOLS["visrl_train"]), batch_size=20))
    assert [e.sample_id for e in episodes] == [f"d{i}" for i in range(60)]
    assert [e.error for e in episodes] == [None] * 60
    assert [e.answer_step.output for e in episodes] == [f"{i:03d} " for i in range(60)], "each its own answer"
    # 60 boxes and 60 answers; what the first server had said before it died was not asked again
    assert 10 <= sum(first.asked.values()) < 100, "it was killed in the middle"
    assert 120 <= sum((first.asked + second.asked).values()) <= 120 + 4, "twice only what broke off while being said"
    assert f"{first.url} is taken out" in caplog.text
    assert [r.out for r in both.replicas.all] == [True, False]
    second.kill()


def test_requests_are_balanced_and_both_turns_of_a_sample_meet_the_same_server():
    first, second = Fake(delay=0.01), Fake(delay=0.01)
    episodes = list(
        look_then_answer(
            policy(first, second, in_flight=8), samples(40), RolloutConfig(PROTOCOLS["visrl_train"]), batch_size=8
        )
    )
    assert all(e.error is None for e in episodes)
    assert min(sum(first.asked.values()), sum(second.asked.values())) >= 24, "of 80, both take a third at least"
    halves = [q for q in first.asked if q in second.asked]
    assert len(halves) <= 4, "an answer goes where its box was said, unless that server is full"
    first.kill(), second.kill()


def test_a_server_comes_back_after_a_health_check(monkeypatch, caplog):
    from visrl.policies.servers import replicas

    monkeypatch.setattr(replicas, "FIRST", 0.05)
    first, second = Fake(), Fake(delay=0.02)
    both = policy(first, second)
    for replica in both.replicas.all:
        replica.pause = 0.05
    port = first.port
    first.kill()
    assert all(o.error is None for o in ask(both, *map(str, range(12))))
    assert both.replicas.all[0].out
    again = Fake(port)
    time.sleep(0.1)
    with caplog.at_level(logging.WARNING):
        assert all(o.error is None for o in ask(both, *map(str, range(40))))
        assert all(o.error is None for o in ask(both, *map(str, range(40))))
    assert not both.replicas.all[0].out and f"{again.url} answers again" in caplog.text
    assert sum(again.asked.values()) > 0
    again.kill(), second.kill()


def test_a_server_that_only_fails_is_taken_out_and_its_requests_are_answered_elsewhere():
    sick, well = Fake(status=500), Fake()
    both = policy(sick, well)
    outputs = ask(both, *map(str, range(30)))
    assert [o.texts for o in outputs] == [(f"{i} ?"[:4],) for i in range(30)]
    assert both.replicas.all[0].out and both.replicas.all[0].failures >= 3
    sick.kill(), well.kill()


def test_two_busy_servers_are_not_hammered():
    """429 from both: after each was asked once, the request pauses. 6 tries on two servers are 3 rounds, 2 pauses between."""
    first, second = Fake(status=429), Fake(status=429)
    both = policy(first, second, pause=0.2)
    started = time.monotonic()
    (output,) = ask(both, "a")
    assert "given up after 6 tries" in output.error
    assert time.monotonic() - started >= 0.5 * (0.2 + 0.4)
    first.kill(), second.kill()


def test_with_nobody_there_the_sample_fails_and_says_so():
    first, second = Fake(), Fake()
    first.kill(), second.kill()
    (output,) = ask(policy(first, second, tries=3, patience=0.2), "a")
    assert output.texts == () and "no answer for" in output.error


def test_the_record_names_the_servers():
    loaded = EndpointPolicy.load("http://a:1/v1,http://b:2/v1#m", box_format="json_1000", in_flight="5")
    about = loaded.describe()
    assert about["servers"] == ["http://a:1/v1", "http://b:2/v1"] and about["model"] == "m"
    assert (
        loaded.rows == 10 and "servers" not in EndpointPolicy.load("http://a:1/v1#m", box_format="json_1000").describe()
    )


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://a/v1,b#m", "'b' is not a URL"),
        ("http://a/v1,#m", "'' is not a URL"),
        ("http://a/v1,http://a/v1#m", "twice"),
    ],
)
def test_wrong_use_of_several(target, message):
    with pytest.raises(UsageError, match=message):
        EndpointPolicy.load(target, box_format="json_1000")


def test_an_adapter_is_loaded_on_every_server_under_the_name_that_is_asked_for():
    first, second = Fake(), Fake()
    target = f"{first.url},{second.url}#it3"
    loaded = EndpointPolicy.load(target, box_format="json_1000", adapter="/shared/it3")
    assert first.models == second.models == {"m": "weights", "it3": "/shared/it3"}
    assert all(o.error is None for o in ask(loaded, *map(str, range(8))))
    assert {body["model"] for server in (first, second) for body in server.bodies} == {"it3"}
    assert loaded.describe()["adapter"] == "/shared/it3"
    with pytest.raises(
        UsageError, match="it3 is taken by /shared/it3 on"
    ):  # another iteration under an old name would go unseen
        EndpointPolicy.load(target, box_format="json_1000", adapter="/shared/it4")
    first.kill(), second.kill()


def test_a_server_that_comes_back_gets_the_adapter_again():
    first, second = Fake(), Fake(delay=0.02)
    loaded = EndpointPolicy.load(f"{first.url},{second.url}#it3", box_format="json_1000", adapter="/shared/it3")
    port = first.port
    first.kill()
    assert all(o.error is None for o in ask(loaded, *map(str, range(12))))
    again = Fake(port)
    assert "it3" not in again.models
    loaded.replicas.all[0].next_look = 0.0
    ask(loaded, *map(str, range(40)))
    assert again.models["it3"] == "/shared/it3" and not loaded.replicas.all[0].out
    again.kill(), second.kill()


def test_a_server_without_hot_loading_says_what_it_needs():
    plain = Fake(lora=False)
    with pytest.raises(UsageError, match="does not load /a") as caught:
        EndpointPolicy.load(f"{plain.url}#it3", box_format="json_1000", adapter="/a")
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in caught.value.hint
    plain.kill()
