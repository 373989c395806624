"""Servers that are not there, are not meant, or go away in the middle: said within seconds, waited for, and gone on with."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_servers import BOXES, Fake, samples

from visrl.core.prompts import PROTOCOLS
from visrl.core.types import Turn
from visrl.errors import Incomplete, UsageError
from visrl.policies.before import check_policy
from visrl.policies.protocol import Request, Sampling
from visrl.policies.servers import outage, preflight
from visrl.policies.servers.endpoint import EndpointPolicy, Server
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer

ARGS = {"box_format": "padded_square_3dp"}


def policy(url, **more):
    return EndpointPolicy(
        Server(url, "m", **{"timeout": 5.0, "tries": 3, "pause": 0.02, "in_flight": 4, **more}), BOXES
    )


def ask(endpoint, *keys):
    return endpoint.generate([Request(k, "box", (Turn("user", (f"{k} ?",)),)) for k in keys], Sampling(max_tokens=4))


def test_a_name_that_the_server_does_not_have_is_refused_with_those_it_has():
    server = Fake(strict=True)
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"/v1 has no model mm") as caught:
        check_policy(f"endpoint:{server.url}#mm", ARGS)
    assert "it has m" in caught.value.hint.lower() and time.monotonic() - started < 10
    check_policy(f"endpoint:{server.url}#m", ARGS)
    server.strict = False  # answers to any name
    check_policy(f"endpoint:{server.url}#mm", ARGS)
    server.kill()


def test_nobody_there_is_said_before_the_first_sample_however_it_is_asked():
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:9/v1 does not answer"):
        list(look_then_answer(policy("http://127.0.0.1:9/v1"), samples(4), RolloutConfig(PROTOCOLS["direct"])))
    assert time.monotonic() - started < 10


def test_a_server_that_is_away_costs_no_tries():
    """Two seconds without anybody there are more than three tries at a pause of 0.02 s: all is answered once it is back."""
    server = Fake()
    endpoint, port = policy(server.url, patience=60.0), server.port
    assert ask(endpoint, "a")[0].error is None
    server.kill()
    back = []
    threading.Timer(2.0, lambda: back.append(Fake(port))).start()
    outputs = ask(endpoint, *map(str, range(9)))
    assert [o.error for o in outputs] == [None] * 9 and sum(back[0].asked.values()) == 9
    assert endpoint.outage.began is None and not endpoint.outage.reason
    back[0].kill()


def test_after_the_patience_the_run_ends_and_what_is_finished_stays():
    server = Fake(delay=0.01)
    endpoint = policy(server.url, patience=1.0)

    def killed():
        while sum(server.asked.values()) < 30:
            time.sleep(0.005)
        server.kill()

    threading.Thread(target=killed, daemon=True).start()
    config, made = RolloutConfig(PROTOCOLS["direct"]), []
    started = time.monotonic()
    with pytest.raises(Incomplete, match=r"no answer for \d s") as caught:
        made.extend(
            look_then_answer(endpoint, samples(400), config, batch_size=20)
        )  # what came before the end is in it
    good = [e for e in made if e.error is None]
    assert 26 <= len(good) < 60 and len(made) % 20 == 0, "the batch in which it died is whole, no other was begun"
    assert "no answer for" in next(e.error for e in made if e.error)
    assert time.monotonic() - started < 15 and "goes on once it is back; patience=1" in caught.value.hint
    again = Fake(server.port)
    assert all(o.error is None for o in ask(endpoint, "x")) is False, "what is still asked fails at once"
    endpoint.require_reachable()  # it answers again
    assert ask(endpoint, "x")[0].error is None
    again.kill()


def test_one_request_that_brings_the_server_down_is_its_own_error():
    """A connection that breaks for one question only costs that question its three tries, beside others and as the last one asked:
    three pauses of at most 0.08 s, far below the patience.
    """
    server = Fake(breaks="7")
    endpoint = policy(server.url, patience=20.0)
    started = time.monotonic()
    outputs = ask(endpoint, *map(str, range(5)), "7", *map(str, range(8, 40)))
    assert [i for i, o in enumerate(outputs) if o.error] == [5] and "given up after 3 tries" in outputs[5].error
    assert "given up after 3 tries" in ask(endpoint, "7")[0].error
    assert time.monotonic() - started < 15
    endpoint.require_reachable()
    assert ask(endpoint, "1")[0].error is None
    server.kill()


def test_a_server_that_answers_nothing_but_errors_ends_the_run(monkeypatch):
    monkeypatch.setattr(outage, "LOST", 6)
    server = Fake(status=500)
    endpoint = policy(server.url, tries=2, in_flight=16)
    monkeypatch.setattr("visrl.policies.servers.endpoint.LOST", 6)
    assert all(o.error for o in ask(endpoint, *map(str, range(6))))
    with pytest.raises(Incomplete, match="6 requests in a row failed"):
        endpoint.require_reachable()
    server.kill()


def test_a_refused_connection_is_not_a_busy_server(monkeypatch):
    """A server that takes a connection and says nothing may be busy before a run; in its middle it is gone."""
    monkeypatch.setattr(preflight, "PATIENCE", 0.3)
    server = Fake(silent=True)
    endpoint = policy(server.url, timeout=0.2, patience=0.5)
    endpoint.require_reachable()
    assert ask(endpoint, "a")[0].error
    if not endpoint.outage.reason:
        ask(endpoint, "b")
    with pytest.raises(Incomplete):
        endpoint.outage.reason = endpoint.outage.reason or "no answer"
        endpoint.require_reachable()
    server.kill()


COMMAND = "from visrl.cli.evaluate import main; import sys; sys.exit(main(sys.argv[1:]))"


def _command(url, folder, **more):
    args = ",".join(f"{k}={v}" for k, v in {**ARGS, "patience": 1, "in_flight": 4, **more}.items())
    command = [
        *(
            sys.executable,
            "-c",
            COMMAND,
            "--model",
            f"endpoint:{url}#m",
            "--model-args",
            args,
            "--tasks",
            "world_viscot_doc",
        ),
        *("--limit", "30", "--batch-size", "5", "-o", folder),
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def _finished(folder):
    lines = [json.loads(line) for line in (Path(folder) / "episodes.jsonl").read_text().splitlines()]
    return {line["sample_id"] for line in lines if not line.get("error")}


def test_the_command_ends_with_3_and_the_same_command_finishes(tmp_path):
    """Killed after 20 of 60 answers (a box and a word each): at least one batch of five is finished, and nothing is asked twice."""
    server = Fake(delay=0.02)

    def killed():
        while sum(server.asked.values()) < 20:
            time.sleep(0.005)
        server.kill()

    threading.Thread(target=killed, daemon=True).start()
    code, said = _command(server.url, tmp_path / "run")
    kept = _finished(tmp_path / "run")
    assert code == 3 and 5 <= len(kept) < 30
    assert "no answer for" in said and f"{len(kept)} finished samples are in" in said and "Traceback" not in said
    again = Fake(server.port)
    code, said = _command(again.url, tmp_path / "run")
    assert code == 0 and len(_finished(tmp_path / "run")) == 30
    assert sum(again.asked.values()) <= 2 * (30 - len(kept)) + 10, (
        "finished samples are not asked again, but for their batch"
    )
    again.kill()
    started = time.monotonic()
    code, said = _command(again.url, tmp_path / "other")
    assert code == 2 and "does not answer" in said and "Traceback" not in said
    assert time.monotonic() - started < 30, "of which nine tenths are Python's start on a busy machine"
