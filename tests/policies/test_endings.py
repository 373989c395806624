"""Where an output ends, and how: stop texts that count, finish reasons, contents in parts. A server that says what it is told."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from visrl.core.box_formats import FORMATS
from visrl.core.types import Turn
from visrl.policies.protocol import Request, Sampling
from visrl.policies.servers.endpoint import EndpointPolicy

THOUGHT = "<think>the left one, [9, 9, 99, 99]? No.</think>\n"
LABEL = '{"label": "[red] sign", "bbox_2d": '
BOX = "[100, 200, 300, 400]"


@pytest.mark.parametrize(
    ("text", "end"),
    [
        (BOX, BOX),
        (f"{BOX} and more ]", BOX),
        (THOUGHT + BOX + " yes", THOUGHT + BOX),  # the thought's own box ends nothing
        ("<think>maybe [9, 9, 99, 99]", None),  # still thinking
        (LABEL + BOX + "}", LABEL + BOX),  # nor does the bracket of a quoted label
        ("the [red] one", None),
    ],
)
def test_a_box_turn_ends_where_a_box_outside_thoughts_and_labels_ends(text, end):
    box_format = FORMATS["json_1000"]
    sampling = Sampling(stop=(box_format.syntax.stop,), accept_stop=box_format.ends_with_box)
    assert sampling.end_of(text) == (None if end is None else len(end))
    assert sampling.cut(text) == (text if end is None else end)


def test_rules_that_read_the_whole_output_are_given_the_whole_output():
    for mode in ("strict", "vlm_r1"):
        box_format = FORMATS["json_1000"].with_mode(mode)
        assert not box_format.ends_with_box('<answer>{"bbox_2d": [1, 2, 3, 4]')


def test_without_a_rule_every_stop_counts():
    assert Sampling(stop=("]", "\n")).cut("a\nb]") == "a\n"


class _Says(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            script = self.server.scripts[self.server.asked % len(self.server.scripts)]
            self.server.asked += 1
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for choices in script:
            chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": choices}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")


def delta(content, finish=None, **more):
    return [{"index": 0, "delta": {"content": content, **more}, "finish_reason": finish}]


def said(*script):
    """(output, how often it was asked for) of a server whose chunks hold these choices."""
    return sampled(script)


def sampled(*scripts):
    """The same of as many samples as there are scripts, each the chunks of one of them."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Says)
    server.scripts, server.asked, server.lock = scripts, 0, threading.Lock()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        policy = EndpointPolicy.load(
            f"http://127.0.0.1:{server.server_address[1]}/v1#m", box_format="json_1000", tries="2"
        )
        (output,) = policy.generate(
            [Request("a", "answer", (Turn("user", ("what?",)),))], Sampling(max_tokens=9, n=len(scripts))
        )
        return output, server.asked
    finally:
        server.shutdown()
        server.server_close()


def test_content_in_parts_is_joined_and_a_thought_left_out():
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a c"}, {"type": "text", "text": "at"}]
    output, _ = said(delta(parts), delta("!", "stop"))
    assert output.texts == ("a cat!",) and output.finish_reason == "stop"


def test_an_answer_cut_at_its_length_says_so_and_an_empty_one_is_unscored():
    output, _ = said(delta("a c", "length"))
    assert (output.texts, output.finish_reason) == (("a c",), "length")
    output, asked = said(delta(None), delta("", "length"))
    assert output.error == "cut before anything was said: finish_reason length" and asked == 1 and not output.retry


def test_one_empty_sample_of_several_does_not_undo_the_others():
    """As in vLLM: it is an empty text, from which nothing is read. All of them empty: the request failed."""
    whole, empty, blocked = [delta("a cat", "stop")], [delta("", "length")], [delta("I ca", "content_filter")]
    output, asked = sampled(whole, empty, whole, blocked)
    assert output.error is None and sorted(output.texts) == ["", "", "a cat", "a cat"] and asked == 4
    assert sampled(empty, empty)[0].error == "cut before anything was said: finish_reason length"


def test_filtered_and_refused_answers_are_unscored_with_their_reason():
    assert said(delta("I ca", "content_filter"))[0].error == "blocked: finish_reason content_filter"
    assert said(delta(None, "stop", refusal="I won't"))[0].error == "refused: I won't"


def test_what_is_not_in_the_layout_is_tried_again_like_other_faults():
    output, asked = said(delta({"text": "a dict"}, "stop"))
    assert asked == 2 and "neither text nor a list of parts" in output.error
    output, asked = said(None, delta("fine", "stop"))  # choices: null
    assert output.texts == ("fine",) and asked == 1
