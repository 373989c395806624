"""The endpoint policy against ``transformers serve``, a real server in a process of its own, and against one that fails."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from faulty import FAULTS, Proxy
from tinies import picture

from visrl.core.box_formats import FORMATS
from visrl.core.prompts import PROTOCOLS
from visrl.core.types import CoTSample, Turn
from visrl.errors import UsageError
from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import Request, Sampling
from visrl.policies.servers.endpoint import EndpointPolicy, Reply, Server
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer

BOXES = FORMATS["padded_square_3dp"]
SIZES = [(90, 50), (40, 44), (30, 77), (120, 100), (64, 64)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Qwen2.5-VL that writes letters only, so that no half of a UTF-8 character depends on who decodes it."""
    model, processor = tiny.build("qwen2_5_vl", seed=3)
    tokens = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    with torch.no_grad():
        for i, token in enumerate(tokens):
            if not token.replace("Ġ", "").isalnum() or not token.replace("Ġ", "").isascii():
                model.lm_head.weight[i] = 0  # the best of 400 logits is above 0
    where = tmp_path_factory.mktemp("served")
    model.save_pretrained(where)
    processor.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def port(folder):
    """``transformers serve`` on a free port of the loopback."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).parent / "transformers"
    command = [
        program,
        "serve",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [str(c) for c in command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait(port, server)
            yield port
        finally:
            server.terminate()


def _wait(port, server):
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return
        except OSError:
            assert server.poll() is None, "transformers serve ended"
            time.sleep(0.25)
    pytest.fail("transformers serve did not start within five minutes")


def endpoint(url, folder, **more):
    return EndpointPolicy(Server(url, str(folder), **more), BOXES)


def samples(n=5):
    for i in range(n):
        size = SIZES[i % 5]
        yield CoTSample(
            f"d{i}", "t", "rec" if i % 5 == 3 else "qa", f"what letter is it ? {i}", picture(*size, i % 5), size
        )


@pytest.mark.parametrize("protocol", ["visrl_train", "viscot_train"])
def test_the_same_episodes_as_in_process(protocol, port, folder):
    look = RolloutConfig(PROTOCOLS[protocol], sampling=Sampling(max_tokens=8))
    served = list(look_then_answer(endpoint(f"http://127.0.0.1:{port}/v1", folder), samples(), look, batch_size=5))
    local = list(look_then_answer(HFPolicy.load(str(folder), box_format="paper"), samples(), look, batch_size=5))

    def bare(
        episodes,
    ):  # a server that is cut off mid-stream counts no tokens, and only servers say how an output ended
        return [
            replace(
                e,
                **{
                    s: v and replace(v, prompt_tokens=None, output_tokens=None, finish_reason=None, seen_sizes=None)
                    for s in ("box_step", "answer_step")
                    for v in [getattr(e, s)]
                },
            )
            for e in episodes
        ]

    assert all(e.error is None for e in served)
    assert bare(served) == bare(local)
    assert len({e.box_step.output for e in served}) > 1


def test_with_thirty_percent_faults_nothing_is_lost_or_doubled_and_order_is_kept(port, folder):
    look = RolloutConfig(PROTOCOLS["visrl_train"], sampling=Sampling(max_tokens=8))
    clean = endpoint(f"http://127.0.0.1:{port}/v1", folder)
    expected = list(look_then_answer(clean, samples(12), look, batch_size=12))
    proxy = Proxy(port, share=0.3, seed=2)
    try:
        patient = endpoint(proxy.url, folder, timeout=10.0, tries=12, pause=0.05, in_flight=6)
        got = list(look_then_answer(patient, samples(12), look, batch_size=12))
    finally:
        proxy.shutdown()
    assert got == expected and [e.sample_id for e in got] == [f"d{i}" for i in range(12)]
    assert set(proxy.counts) == {*FAULTS, "good"}, "every kind of fault happened"
    assert proxy.counts["good"] == 12 + 10  # a box each, an answer each for the 10 that are not REC: none asked twice


def test_what_fails_for_good_is_the_sample_s_error(port, folder):
    proxy = Proxy(port, share=1.0, seed=1)
    proxy.fate = lambda: "500"
    try:
        hopeless = endpoint(proxy.url, folder, tries=3, pause=0.01)
        (output,) = hopeless.generate(
            [Request("a", "box", (Turn("user", (picture(40, 40), "where")),))], Sampling(max_tokens=4)
        )
    finally:
        proxy.shutdown()
    assert output.texts == () and "given up after 3 tries" in output.error


def test_a_refusal_is_not_tried_again(port, folder):
    """``transformers serve`` pinned to one model answers 400 for another name."""
    other = endpoint(f"http://127.0.0.1:{port}/v1", "someone/else")
    started = time.monotonic()
    (output,) = other.generate([Request("a", "box", (Turn("user", ("where",)),))], Sampling(max_tokens=4))
    assert output.error and "BadRequestError" in output.error
    assert time.monotonic() - started < 5  # eight tries would have paused for a minute


class Spy(EndpointPolicy):
    """Keeps the bodies instead of sending them."""

    def require_reachable(self):
        """Nobody is asked."""

    async def _stream(self, client, body, sampling):
        self.bodies = [*getattr(self, "bodies", []), json.loads(json.dumps(body))]
        return Reply("[0.1, 0.2, 0.3, 0.4]", "stop")


def test_the_second_turn_starts_with_the_bytes_of_the_first(folder):
    for protocol, shared in (("viscot_train", 2), ("visrl_train", 1)):
        spy = Spy(Server("http://127.0.0.1:9/v1", "m"), BOXES)
        list(look_then_answer(spy, list(samples(1)), RolloutConfig(PROTOCOLS[protocol]), batch_size=1))
        first, second = (json.dumps(b["messages"][0]["content"])[:-1] for b in spy.bodies)
        if protocol == "viscot_train":  # the whole first turn is in the second conversation, unchanged
            assert first == second
        else:  # one turn: picture and question, then the crop
            assert first[: first.index("sub-image")] == second[: second.index("sub-image")]
        assert (
            len(
                [
                    p
                    for m in spy.bodies[1]["messages"]
                    for p in m["content"]
                    if isinstance(p, dict) and p["type"] == "image_url"
                ]
            )
            == 2
        )
        assert first.startswith('[{"type": "image_url", "image_url": {"url": "data:image/png;base64,'), shared


def test_samples_are_requests_with_seeds_of_their_own():
    def seeds(seed, key="k"):
        spy = Spy(Server("http://127.0.0.1:9/v1", "m"), BOXES)
        hot = Sampling(n=3, temperature=2.0, top_p=0.7, top_k=50, seed=seed)
        (output,) = spy.generate([Request(key, "box", (Turn("user", ("where",)),))], hot)
        assert len(output.texts) == 3
        assert {(b["temperature"], b["top_p"], b["extra_body"]["top_k"]) for b in spy.bodies} == {(2.0, 0.7, 50)}
        return [b["seed"] for b in spy.bodies]

    assert len(set(seeds(1))) == 3 and seeds(1) == seeds(1)
    assert not set(seeds(1)) & set(seeds(2)) and not set(seeds(1)) & set(seeds(1, "other"))


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    policy = EndpointPolicy.load("http://127.0.0.1:9/v1#m", box_format="json_1000", key_env="MY_KEY", patience="0")
    assert policy.describe()["key_env"] == "MY_KEY"
    assert "secret" not in json.dumps(policy.describe()) + policy.name
    assert policy._discreet("Incorrect API key sk-very-secret") == "Incorrect API key ***"
    (output,) = policy.generate([Request("a", "box", (Turn("user", ("where",)),))], Sampling())
    assert "no answer for 0 s" in output.error  # nobody listens on port 9


@pytest.mark.parametrize(
    ("target", "args", "message"),
    [
        ("localhost:8000#m", {}, "is not a URL"),
        ("http://localhost:8000/v1", {}, "is not URL#NAME"),
        ("http://me:pw@localhost/v1#m", {}, "contains a password"),
        ("http://localhost/v1?key=s3cret#m", {}, "contains a query"),
        ("http://[::1/v1#m", {}, "not a URL"),
        ("http://localhost/v1#m", {}, "the box format of a served model must be given"),
        ("http://localhost/v1#m", {"box_format": "json_100"}, "unknown box format"),
        ("http://localhost/v1#m", {"box_format": "json_1000", "pad": "122"}, "is not red/green/blue"),
    ],
)
def test_wrong_use(target, args, message):
    with pytest.raises(UsageError, match=message):
        EndpointPolicy.load(target, **args)


def test_qwen2_5_vl_behind_a_server_measures_in_its_resized_picture():
    policy = EndpointPolicy.load("http://localhost/v1#m", box_format="json_resized")
    # 641x479 -> multiples of 28: 644x476; 100*644/641=100.5 (rounds to 100), 50*476/479=49.7
    from visrl.core.boxes import Box

    assert policy.box_format.write(Box(100, 50, 641, 479), (641, 479)) == '{"bbox_2d": [100, 50, 644, 476]}'


def test_pictures_are_padded_where_asked(monkeypatch):
    import base64
    import io

    from PIL import Image

    spy = Spy(Server("http://127.0.0.1:9/v1", "m"), BOXES, pad=(122, 116, 104))
    spy.generate([Request("a", "box", (Turn("user", (picture(90, 50), "where")),))], Sampling())
    url = spy.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert sent.size == (90, 90) and sent.getpixel((0, 0)) == (122, 116, 104)
