"""One trajectory, whoever runs it: in process, behind a server, by a server's own tool calls, and replayed from its record."""

import base64
import contextlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
import torch
from PIL import Image

from visrl.core.boxes import Box
from visrl.core.prompts import SEVERAL
from visrl.core.types import CoTSample, Picture, Turn
from visrl.errors import UsageError
from visrl.policies.hf.loading import CheckpointArguments, load_checkpoint
from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import FunctionPolicy, Request, Sampling, Tool
from visrl.policies.recorded.replay import ReplayPolicy
from visrl.policies.servers.endpoint import EndpointPolicy
from visrl.policies.servers.replies import Calls, schema, with_native_calls
from visrl.rollout.config import rollout_config
from visrl.rollout.rollout import look_then_answer
from visrl.runs.lines import episode_to_json

SIZE = (120, 80)
SAMPLING = Sampling(max_tokens=110)
CALLS = {"a": [10, 10, 60, 60], "b": [20, 10, 110, 70]}


def drawn(name):
    turn = 0 if name == "a" else 90
    return Picture(name, lambda: Image.linear_gradient("L").rotate(turn).resize(SIZE).convert("RGB"))


SAMPLES = [CoTSample(n, "t", "qa", f"What is {n}?", drawn(n), SIZE, Box(8, 8, 50, 50), ("x",)) for n in CALLS]


def said(name, turn):
    """Two calls, the second one faulty, then an answer."""
    good = f'<tool_call>{{"name": "image_zoom_in_tool", "arguments": {{"bbox_2d": {CALLS[name]}}}}}</tool_call>'
    return [good, "<tool_call>[]</tool_call>", f"<answer>{name}</answer>"][turn]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A tiny random Qwen2.5-VL that was taught these two conversations by heart, and is what it is by its weights."""
    import tiny_models as tiny

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("taught") / "qwen"
    tiny.save("qwen2_5_vl", folder)
    return teach(load_checkpoint(str(folder), CheckpointArguments(dtype="float64")))


def teach(loaded, rate=5e-3, steps=160):
    """Fine-tune until the model says what ``said`` says, in place. Returns it."""
    policy, asked = HFPolicy("tiny", loaded), []

    def tell(request):
        asked.append(request)
        return said(request.key, int(request.stream))

    teller = FunctionPolicy("teller", tell, policy.box_format, needs_pictures=True)
    list(look_then_answer(teller, SAMPLES, rollout_config(teller, protocol="zoom", sampling=SAMPLING)))
    chats = []
    for request in asked[-2:]:
        turns = (*request.turns, Turn("assistant", (said(request.key, 2),)))
        rendered = policy.family.render(turns, add_generation_prompt=False)
        chats.append(policy.family.chat(rendered, [policy.family.encode_image(p.open()) for p in rendered.pictures]))
    policy.model.train()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=rate)
    for _ in range(steps):
        loss = policy.model(**policy.family.collate(chats)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            break
    policy.model.eval()
    return loaded


class Served(ThreadingHTTPServer):
    """A model in this process behind the interface. native: it answers with tool calls. bodies: what it was sent."""

    daemon_threads = True

    def __init__(self, policy, native=False):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.policy, self.native, self.bodies, self.lock = policy, native, [], threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            turns = tuple(_turns(body["messages"]))
            request = Request(str(len(self.server.bodies)), "look", turns)
            (output,) = self.server.policy.generate([request], Sampling(max_tokens=body["max_tokens"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for delta, finish in _deltas(output.texts[0], self.server.native):
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m",
                     "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}  # fmt: skip
            with contextlib.suppress(OSError):  # the client has what it wants
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        with contextlib.suppress(OSError):
            self.wfile.write(b"data: [DONE]\n\n")


def _deltas(text, native):
    """The text in pieces; native: a call in it as the interface has it, its arguments in two."""
    before, opened, rest = text.partition("<tool_call>")
    with contextlib.suppress(ValueError):
        if native and opened and isinstance(value := json.loads(rest.partition("</tool_call>")[0]), dict):
            arguments = json.dumps(value["arguments"])
            yield {"content": before or None}, None
            for name, part in ((value["name"], arguments[:7]), (None, arguments[7:])):
                yield (
                    {
                        "tool_calls": [
                            {"index": 0, "id": "c", "type": "function", "function": {"name": name, "arguments": part}}
                        ]
                    },
                    None,
                )
            yield {}, "tool_calls"
            return
    for at in range(0, len(text), 9):
        yield {"content": text[at : at + 9]}, None
    yield {}, "stop"


def _turns(messages):
    """Messages as turns; calls and what they showed as ``zoom`` has them in its texts."""
    waiting = None
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            text = content or ""
            for told in message.get("tool_calls", ()):
                function = told["function"]
                text += f'<tool_call>{{"name": "{function["name"]}", "arguments": {function["arguments"]}}}</tool_call>'
            yield Turn("assistant", (text,))
        elif role == "tool":
            waiting = content
        else:
            parts = [content] if isinstance(content, str) else [_part(part) for part in content]
            if waiting is not None:  # the picture belongs between the tags of the tool's text
                before, closing, after = waiting.partition("</tool_response>")
                parts, waiting = [before, *parts, closing + after], None
            yield Turn(role, tuple(parts))
    if waiting is not None:
        yield Turn("user", (waiting,))


def _part(part):
    if part["type"] == "text":
        return part["text"]
    data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
    return Picture("served", lambda: Image.open(io.BytesIO(data)).convert("RGB"))


def trajectories(policy, samples=SAMPLES, focus="predicted"):
    config = rollout_config(policy, protocol="zoom", sampling=SAMPLING, box_source=focus)
    return list(look_then_answer(policy, samples, config))


def resized(loaded):
    """How this model writes boxes, for whoever cannot see its processor."""
    return {"box_format": "json_resized", **{name: str(limit) for name, limit in loaded.family.pixels().items()}}


def told(episodes):
    """What must be the same, whoever ran it: texts, boxes, regions, faults, prompts, ends."""
    return [
        (
            e.error,
            e.ended,
            e.box,
            e.answer,
            [(k.step and (k.step.prompt, k.step.output), k.box, k.looked_at, k.fault) for k in e.looks],
        )
        for e in episodes
    ]


def test_in_process_behind_a_server_and_replayed(taught, tmp_path):
    here = trajectories(HFPolicy("tiny", taught))
    assert [[k.fault for k in e.looks] for e in here] == [["", "not_an_object"]] * 2
    assert [e.answer for e in here] == ["<answer>a</answer>", "<answer>b</answer>"]
    # numbers of a picture of 120 x 80 that this processor sees at 84 x 56; 60 is below its lower edge, where the box is cut
    assert here[0].looks[0].box.xyxy == pytest.approx((10 * 120 / 84, 10 * 80 / 56, 60 * 120 / 84, 80))
    server = Served(HFPolicy("tiny", taught))
    there = EndpointPolicy.load(f"{server.url}#m", **resized(taught))
    assert told(trajectories(there)) == told(here)
    (tmp_path / "episodes.jsonl").write_text("".join(json.dumps(episode_to_json(e)) + "\n" for e in here))
    replay = ReplayPolicy.load(str(tmp_path / "episodes.jsonl"), **resized(taught))
    bare = [CoTSample(s.id, "t", "qa", s.question, answers=s.answers) for s in SAMPLES]  # no picture, no size
    assert told(trajectories(replay, replay.match_samples(bare, "t"))) == told(here)


def test_controls_in_process_and_behind_a_server(taught):
    """The cache is carried over looks that nobody asked the model for."""
    here = trajectories(HFPolicy("tiny", taught), focus="gold,random,predicted")
    assert [len(e.looks) >= 2 and e.error is None for e in here] == [True, True]
    there = EndpointPolicy.load(f"{Served(HFPolicy('tiny', taught)).url}#m", **resized(taught))
    assert told(trajectories(there, focus="gold,random,predicted")) == told(here)


def test_the_cache_is_carried_from_look_to_look(taught):
    policy = HFPolicy("tiny", taught)
    cached = []
    generate = policy.generate

    def spy(requests, sampling):
        outputs = generate(requests, sampling)
        cached.append([(output.cached_tokens, output.prompt_tokens) for output in outputs])
        return outputs

    policy.generate = spy
    trajectories(policy)
    assert [tokens for tokens, _ in cached[0]] == [0, 0]
    # each later turn computes only what came since: its reply, the crop and a sentence
    for before, after in pairwise(cached):
        assert all(kept >= read for (kept, _), (_, read) in zip(after, before, strict=True))


def test_native_tool_calls_give_the_same_looks(taught):
    server = Served(HFPolicy("tiny", taught), native=True)
    there = EndpointPolicy.load(f"{server.url}#m", **resized(taught), tools="native")
    assert there.describe()["tools"] == "native"
    episodes = trajectories(there)
    first = server.bodies[0]
    assert (
        first["tools"][0]["function"]["name"] == "image_zoom_in_tool"
        and "<tool_call>" not in first["messages"][0]["content"]
    )
    assert "pixels of the picture as you see it" in first["tools"][0]["function"]["description"]
    assert [e.error for e in episodes] == [None, None]


def test_calls_in_the_interfaces_layout():
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": 'I look.<tool_call>{"name": "z", "arguments": {"b": [1]}}</tool_call>'},
        {"role": "user", "content": [{"type": "text", "text": "<r>"}, picture, {"type": "text", "text": "</r>"}]},
        {"role": "assistant", "content": "<tool_call>oops</tool_call>"},
        {"role": "user", "content": [{"type": "text", "text": "no JSON"}]},
    ]
    found = with_native_calls(messages)
    function = {"name": "z", "arguments": '{"b": [1]}'}
    assert found[1] == {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }
    assert found[2:4] == [
        {"role": "tool", "tool_call_id": "call_1", "content": "<r></r>"},
        {"role": "user", "content": [picture]},
    ]
    assert found[4:] == messages[3:]  # what is no call cannot be sent as one
    assert schema(Tool("z", "d", "b", "l"))["function"]["parameters"]["required"] == ["b"]
    assert (
        Calls({1: ["late", "{}"], 0: ["z", '{"b": 1}']}).text()
        == '<tool_call>{"name": "z", "arguments": {"b": 1}}</tool_call>'
    )
    assert Calls({0: ["z", "not json"]}).text() == '<tool_call>{"name": "z", "arguments": not json}</tool_call>'


# --- recordings of others


def recorded(tmp_path, *rows):
    path = tmp_path / "them.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_recorded_messages_are_replayed(tmp_path):
    arguments = json.dumps({"bbox_2d": [10, 10, 60, 60]})
    row = {
        "id": "a",
        "size": [120, 80],
        "messages": [
            {"role": "system", "content": "Look."},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "Closer.", "tool_calls": [{"type": "function", "function": {"name": "image_zoom_in_tool", "arguments": arguments}}]},
            {"role": "tool", "content": "done"},
            {"role": "assistant", "content": "<tool_call>no</tool_call>"},
            {"role": "user", "content": "wrong"},
            {"role": "assistant", "content": [{"type": "text", "text": "<answer>x</answer>"}]},
        ],
    }  # fmt: skip
    replay = ReplayPolicy.load(str(recorded(tmp_path, row)), box_format="json_pixel")
    assert replay.default_protocol == "zoom" and replay.describe()["layout"] == "trajectories"
    bare = [CoTSample("a", "t", "qa", "What?", answers=("x",))]
    (episode,) = trajectories(replay, replay.match_samples(bare, "t"))
    assert [(k.fault, k.looked_at) for k in episode.looks] == [("", (10, 10, 60, 60)), ("not_json", None)]
    assert (
        episode.looks[0].step.prompt == "system: Look.\nuser: <image>What?"
        and episode.looks[1].step.prompt == "tool: done"
    )
    assert (episode.answer, episode.ended, episode.error) == ("<answer>x</answer>", "answer", None)


@pytest.mark.parametrize(
    "messages, why",
    [
        ("x", "messages is str, not a list"),
        ([{"role": "user", "content": "q"}], "no message is the assistant's"),
        ([{"content": "q"}], "message 1 is no object with a role"),
        ([{"role": "assistant", "content": 3}], "content is int"),
        ([{"role": "assistant", "tool_calls": [{"name": "z"}]}], "a tool call has no function"),
    ],
)
def test_a_recording_of_another_shape_names_its_line(tmp_path, messages, why):
    with pytest.raises(UsageError, match=r"them.jsonl:1: not a trajectories row: .*" + why):
        ReplayPolicy.load(str(recorded(tmp_path, {"id": "a", "messages": messages})))


def test_a_recording_that_ends_early_is_its_samples_error(tmp_path):
    row = {"id": "a", "size": [120, 80], "messages": [{"role": "assistant", "content": said("a", 0)}]}
    replay = ReplayPolicy.load(str(recorded(tmp_path, row)), box_format="json_pixel")
    (episode,) = trajectories(replay, replay.match_samples([CoTSample("a", "t", "qa", "q")], "t"))
    assert "no turn 2 was recorded" in episode.error and SEVERAL["zoom"].version == 1
