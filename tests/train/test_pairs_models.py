"""Pairs with real models of the families, tiny and random: likelihoods, caches, batches; and a server that fails."""

import hashlib
import json
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from pairs_made import SIZE, recipe
from train_made import picture

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box
from visrl.core.prompts import PROTOCOLS, answer_turns
from visrl.core.types import CoTSample, Turn
from visrl.policies.hf.loading import CheckpointArguments, load_checkpoint
from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import Request
from visrl.policies.servers.endpoint import EndpointPolicy, Server
from visrl.train.critics.critics import LikelihoodCritic, Question, ScoreCritic
from visrl.train.critics.margin_critic import MarginCritic
from visrl.train.pairs.run import make_pairs, plan_of
from visrl.train.pairs.sampling import PairSampler

sys.path.append(str(Path(__file__).parents[1] / "policies"))
from faulty import Proxy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def load(name):
        if name not in made:
            made[name] = load_checkpoint(str(tiny.save(name, root / name)), CheckpointArguments(dtype="float64"))
        return made[name]

    return load


def asked(i):
    size = [(40, 30), (30, 44), (36, 36)][i % 3]
    return Request(f"q{i}", "answer", (Turn("user", (picture(i, size), "\nwhat letter is it ?" + " blue" * i)),), size)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "paligemma2", "mllama"])
def test_a_likelihood_is_the_sum_over_the_reply_and_its_end(name, loaded):
    policy = HFPolicy(name, loaded(name))
    texts = ["A", "blue square", "yes", "the red circle"]
    found = policy.loglikelihood([asked(i) for i in range(4)], texts)
    for i, (text, one) in enumerate(zip(texts, found, strict=True)):
        turns = asked(i).turns
        family = policy.family
        prompt = family.chat(family.render(turns), [family.encode_image(turns[0].pictures[0].open())])
        reply = [*family.tokenizer(text, add_special_tokens=False)["input_ids"], *family.end_of_reply()]
        batch = {k: v for k, v in family.collate([prompt.continued(reply)]).items() if k != "labels"}
        batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        with torch.no_grad():
            logs = policy.model(**batch).logits[0].log_softmax(-1)
        first = len(prompt.ids)
        expected = sum(float(logs[first + k - 1, token]) for k, token in enumerate(reply))  # place t predicts t + 1
        assert one.value == pytest.approx(expected, abs=1e-8)
        assert one.tokens.prompt == first + len(reply)


@pytest.mark.parametrize("name", ["llava", "paligemma2"])
def test_a_margin_is_the_difference_of_two_likelihoods(name, loaded):
    policy = HFPolicy(name, loaded(name), rows=3)
    samples = [replace(sample, answers=(("yes", "no")[i % 2],)) for i, sample in enumerate(questions(4))]
    about = [Question(sample, sample.picture, sample.picture) for sample in samples]
    for sample, margin in zip(samples, MarginCritic(policy).margins(about), strict=True):
        turns = answer_turns(PROTOCOLS["direct"], sample, sample.picture, None, "")
        asked_for = Request(sample.id, "answer", turns, sample.size)
        ours, other = policy.loglikelihood(
            [asked_for] * 2, [sample.answers[0], {"yes": "no", "no": "yes"}[sample.answers[0]]]
        )
        assert margin.value == pytest.approx(ours.value - other.value, abs=1e-8)
        assert margin.tokens.prompt == ours.tokens.prompt + other.tokens.prompt


class AnyText:
    """A box format for models that answer nonsense: any text is a box, most of them in one of nine places."""

    name = "any"
    syntax = FORMATS["loc_1024"].syntax

    def parse(self, text, size):
        dice = hashlib.sha256(text.encode()).digest()
        x, y = (dice[0] % 3) * size[0] / 3, (dice[1] % 3) * size[1] / 3
        return Box(x, y, x + size[0] / 3, y + size[1] / 3)

    def write(self, box, size):
        return "blue"

    def describe(self):
        return {"name": "any"}


def questions(n, size=None):
    for i in range(n):
        wide = size or [(40, 30), (30, 44), (36, 36)][i % 3]
        text = "what letter is on the red circle ?" + " green" * (i % 4)
        yield CoTSample(
            f"q{i}", "pairs", "qa", text, picture(i, wide), wide, Box(0, 0, 10, 10), ("A",), cluster=f"p{i}"
        )


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_batches_change_no_byte_of_a_real_model_s_pairs(name, loaded, tmp_path):
    lines = []
    for size in (1, 7):
        policy = HFPolicy(name, loaded(name), rows=4)
        policy.box_format = AnyText()
        critic = LikelihoodCritic(policy)
        plan = {"sampling": {"max_tokens": 4}, "batch_size": size, "exhaustive": True}
        asked_for = recipe(tmp_path / str(size), **plan)
        manifest = make_pairs(PairSampler(policy, critic, plan_of(asked_for, policy)), list(questions(9)), asked_for)
        assert manifest["funnel"]["failed"] == {} and manifest["funnel"]["chains"]["distinct"] > 9
        lines.append((tmp_path / str(size) / "chains.jsonl").read_text())
    assert lines[0] == lines[1]
    tokens = json.loads(lines[0].splitlines()[0])["tokens"]
    prompt, cached, _ = tokens["answers"]
    assert 0.3 * prompt < cached < prompt, "answers go on from the box turn's cache"


class Oracle(BaseHTTPRequestHandler):
    """A server that answers as a function of the request: boxes, letters, and scores in JSON."""

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked += 1
        dice = hashlib.sha256(json.dumps([body.get("seed"), body["messages"]], sort_keys=True).encode()).digest()
        parts = body["messages"][-1]["content"]
        text = "".join(part.get("text", "") for part in parts if part["type"] == "text")
        pictures = sum(part["type"] == "image_url" for part in parts)
        if "JSON format" in text:
            said = json.dumps({"score": float(text.rstrip().endswith("A")) if "given answer" in text else dice[0] % 2})
        elif pictures == 2:
            said = "AB"[dice[0] % 2]
        else:
            x, y = dice[0] % 60 / 100, dice[1] % 60 / 100
            said = FORMATS["padded_square_3dp"].syntax.write((x, y, x + 0.3, y + 0.3))
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
        events = [
            {**chunk, "choices": [{"index": 0, "delta": {"content": said}, "finish_reason": None}]},
            {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        ]
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(data.encode())


def test_a_server_that_fails_three_times_in_ten_gives_the_same_pairs(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Oracle)
    server.daemon_threads, server.asked = True, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy = Proxy(server.server_address[1], share=0.3, seed=4)
    urls = {"calm": f"http://127.0.0.1:{server.server_address[1]}/v1", "stormy": proxy.url}
    found = {}
    try:
        for name, url in urls.items():
            policy = EndpointPolicy(
                Server(url, "m", timeout=1.0, pause=0.01, in_flight=8, tries=12), FORMATS["padded_square_3dp"]
            )
            asked_for = recipe(tmp_path / name, batch_size=4)
            manifest = make_pairs(
                PairSampler(policy, ScoreCritic(policy), plan_of(asked_for, policy)),
                list(questions(5, SIZE)),
                asked_for,
            )
            found[name] = (tmp_path / name / "pairs.jsonl").read_bytes(), manifest["funnel"], manifest["boxes"]
    finally:
        proxy.shutdown()
        server.shutdown()
    assert sum(proxy.counts.values()) - proxy.counts["good"] > 20, "there were faults"
    assert found["calm"] == found["stormy"]
    assert found["calm"][1]["pairs"] > 0 and found["calm"][1]["failed"] == {}
