"""The two turns, by a policy that writes down what it was asked."""

import pytest
from PIL import Image

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box
from visrl.core.prompts import P_BOX, P_DETAIL, P_RL, PROTOCOLS
from visrl.core.types import CoTSample, Picture, Unparsed
from visrl.errors import PictureError
from visrl.policies.protocol import FunctionPolicy, Output
from visrl.rollout.config import RolloutConfig
from visrl.rollout.retry import RETRIES
from visrl.rollout.rollout import look_then_answer

SIZE = (400, 200)
PICTURE = Picture("p.png", lambda: Image.new("RGB", SIZE, "white"))
GOLD = Box(100, 50, 200, 150)
SAMPLE = CoTSample("1", "t", "qa", "What is It?", PICTURE, SIZE, GOLD, ("a cat",), cluster="p.png")
REC = CoTSample("2", "t", "rec", "The LEFT cat", PICTURE, SIZE, GOLD, cluster="p.png")
SQUARE = FORMATS["padded_square_3dp"]


def run(protocol, samples, reply, focus="predicted", crop="tight", **policy):
    asked = []

    def answer(request):
        asked.append(request)
        return reply(request) if callable(reply) else reply

    model = FunctionPolicy("f", answer, SQUARE, **policy)
    return list(look_then_answer(model, samples, RolloutConfig(PROTOCOLS[protocol], focus, crop))), asked


def texts(request):
    return [(turn.role, turn.text("<image>")) for turn in request.turns]


def reply(request):
    return SQUARE.write(GOLD, SIZE) if request.step == "box" else "cat"


def test_viscot_train_is_one_conversation():
    (episode,), (box, answer) = run("viscot_train", [SAMPLE], reply)
    # 400x200: pad 100, side 400: x .25 .5, y (50+100)/400 .375 and .625
    assert episode.box.xyxy == pytest.approx(GOLD.xyxy) and episode.looked_at == (100, 50, 200, 150)
    assert texts(box) == [("user", f"<image>\nWhat is It?{P_BOX}")]
    assert texts(answer) == [*texts(box), ("assistant", "[0.250, 0.375, 0.500, 0.625]"), ("user", "<image>")]
    assert answer.turns[-1].pictures[0].open().size == (100, 100)
    assert episode.answer == "cat" and episode.error is None


def test_viscot_eval_asks_twice():
    _, (box, answer) = run("viscot_eval", [SAMPLE], reply)
    assert texts(box) == [
        ("user", f"<image>\nwhat is it?. {P_BOX.strip()}")
    ]  # lower case and "?." as in the official run
    assert texts(answer) == [
        ("user", "<image>\nWhat is It?"),
        ("assistant", "[0.250, 0.375, 0.500, 0.625]"),
        ("user", f"<image>\n{P_DETAIL}What is It?"),
    ]


def test_visrl_train_starts_anew_with_both_pictures():
    _, (box, answer) = run("visrl_train", [SAMPLE], reply)
    assert texts(box) == [("user", f"<image>\nWhat is It? {P_RL}")]
    assert texts(answer) == [("user", f"<image>\nWhat is It? {P_RL}\n<image>")]
    assert [picture.open().size for picture in answer.turns[0].pictures] == [SIZE, (100, 100)]


def test_direct_asks_once():
    (episode,), (answer,) = run("direct", [SAMPLE], "cat")
    assert texts(answer) == [("user", "<image>\nWhat is It?")]
    assert episode.box is None and episode.looked_at is None and episode.answer == "cat"


def test_rec_ends_with_the_box_in_every_protocol():
    for protocol in PROTOCOLS:
        (episode,), (box,) = run(protocol, [REC], reply)
        assert texts(box)[0][1] == (
            "<image>\nLocate the region this sentence describes: the left cat. Please provide the bounding box coordinates."
        )
        assert episode.answer is None and episode.box.xyxy == pytest.approx(GOLD.xyxy)


def test_without_a_box_the_whole_picture_is_looked_at():
    (episode,), _ = run("viscot_eval", [SAMPLE], lambda r: "no idea" if r.step == "box" else "dog")
    assert episode.box == Unparsed("no list of four numbers") and episode.looked_at == (0, 0, 400, 200)


@pytest.mark.parametrize(
    ("focus", "region"), [("gold", (100, 50, 200, 150)), ("centre", (100, 50, 300, 150)), ("full", (0, 0, 400, 200))]
)
def test_controls_never_ask_for_a_box(focus, region):
    (episode,), asked = run("viscot_train", [SAMPLE], "cat", focus=focus)
    assert [request.step for request in asked] == ["answer"] and episode.looked_at == region and episode.box is None
    assert asked[0].turns[1].parts[0].startswith("[0.")  # the conversation holds the control's box


def test_random_focus_is_the_samples_own():
    regions = {run("viscot_train", [SAMPLE], "x", focus="random")[0][0].looked_at for _ in range(3)}
    assert len(regions) == 1


def test_one_bad_sample_does_not_take_its_batch_along():
    def broken():
        raise PictureError("truncated")

    bad = CoTSample("bad", "t", "qa", "?", Picture("b.png", broken), SIZE)
    odd = CoTSample("odd", "t", "qa", "?", PICTURE, (7, 7))
    episodes, _ = run("direct", [SAMPLE, bad, odd, REC], "x", needs_pictures=True)
    assert [e.error is None for e in episodes] == [True, False, False, True]
    assert episodes[1].error == "picture: truncated"
    assert episodes[2].error == "picture: p.png is (400, 200), the annotations say (7, 7)"


def test_a_policy_that_raises_fails_only_the_culprit():
    def answer(request):
        if request.key == "1":
            raise RuntimeError("boom")
        return "[0, 0, 1, 1]"

    episodes, _ = run("direct", [SAMPLE, REC, REC], answer)
    assert [e.error for e in episodes] == ["RuntimeError: boom", None, None]


def test_a_picture_is_decoded_once_per_batch():
    opened = []

    def load():
        opened.append(1)
        return Image.new("RGB", SIZE)

    picture = Picture("once.png", load)
    samples = [CoTSample(str(i), "t", "qa", "?", picture, SIZE) for i in range(4)]

    class Looks(FunctionPolicy):
        def generate(self, requests, sampling):
            for request in requests:
                for turn in request.turns:
                    [p.open() for p in turn.pictures]
            return [Output(("[0, 0, 1, 1]",)) for _ in requests]

    list(
        look_then_answer(
            Looks("l", None, SQUARE, needs_pictures=True), samples, RolloutConfig(PROTOCOLS["visrl_train"])
        )
    )
    assert len(opened) == 1


def test_instructions_are_asked_with_the_answer_only():
    sample = CoTSample("1", "t", "qa", "Is it?", PICTURE, SIZE, instruction="\nAnswer yes or no.")
    for protocol in ("viscot_train", "viscot_eval", "visrl_train"):
        _, (box, answer) = run(protocol, [sample], reply)
        assert "yes or no" not in texts(box)[0][1] and texts(answer)[-1][1].endswith("\nAnswer yes or no.")


def asked_again(outputs):
    """How often a policy whose outputs are these, one a call, is asked about one REC sample; and the episode."""
    calls = []

    class Scripted(FunctionPolicy):
        def generate(self, requests, sampling):
            calls.append(len(requests))
            return [outputs[min(len(calls), len(outputs)) - 1] for _ in requests]

    (episode,) = look_then_answer(Scripted("s", None, SQUARE), [REC], RolloutConfig(PROTOCOLS["direct"]))
    return len(calls), episode


def test_a_request_that_fails_now_and_then_is_asked_again():
    box = Output((SQUARE.write(GOLD, SIZE),))
    calls, episode = asked_again([Output(error="503"), Output(error="503"), box])
    assert (calls, episode.error) == (3, None) and episode.box.xyxy == pytest.approx(GOLD.xyxy)
    assert asked_again([Output(error="503")])[0] == 1 + RETRIES == 6


def test_what_is_decided_is_not_asked_again():
    calls, episode = asked_again([Output(error="400 no such model", retry=False)])
    assert (calls, episode.error) == (1, "400 no such model")


def test_defaults_are_the_policy_s_and_unknown_names_are_refused():
    from visrl.errors import UsageError
    from visrl.rollout.config import rollout_config

    model = FunctionPolicy("f", lambda request: "x", SQUARE)
    config = rollout_config(model, seed=3)
    assert (config.protocol.name, config.crop) == (model.default_protocol, model.default_crop)
    assert (config.box_source, config.seed, config.sampling.seed) == ("predicted", 3, 3)
    assert rollout_config(model).seed == rollout_config(model).sampling.seed == 0
    assert rollout_config(model, protocol="direct", crop="tight").crop == "tight"
    for wrong in ({"protocol": "dirct"}, {"crop": "tigt"}, {"box_source": "gld"}):
        with pytest.raises(UsageError, match="unknown"):
            rollout_config(model, **wrong)
    bare = RolloutConfig(PROTOCOLS["direct"])
    assert (bare.box_source, bare.crop, bare.seed) == ("predicted", "viscot_square112", 0)


def test_tokens_are_known_only_where_all_are():
    from visrl.policies.protocol import Tokens
    from visrl.rollout.retry import total

    one = Tokens()
    assert total([]) == Tokens() and total([one, None]) is None and total([one, one]) == one + one


def test_texts_are_as_many_as_asked_for_and_outputs_as_many_as_requests():
    from visrl.policies.protocol import Request, Sampling
    from visrl.rollout.retry import ask

    class Gives(FunctionPolicy):
        def __init__(self, *outputs):
            super().__init__("g", None, SQUARE)
            self.outputs = outputs

        def generate(self, requests, sampling):
            return list(self.outputs)

    asked = [Request("k", "answer", (), None)]
    (found,) = ask(Gives(Output(("a",))), asked, Sampling(n=2))
    assert found.error == "2 texts were asked for, 1 came"
    (found,) = ask(Gives(Output(("a", "b"))), asked, Sampling(n=2))
    assert (found.error, found.texts) == (None, ("a", "b"))
    (found,) = ask(Gives(Output(error="no", retry=False)), asked, Sampling(n=2))
    assert found.error == "no"
    with pytest.raises(RuntimeError, match="g returned 2 outputs for 1 requests"):
        ask(Gives(Output(("a",)), Output(("b",))), asked, Sampling())
    assert ask(Gives(Output(("a",))), [], Sampling()) == []


def test_batches_are_as_large_as_asked_for():
    from visrl.rollout.rollout import batches

    assert [[s.id for s in b] for b in batches([SAMPLE, REC, SAMPLE], 2)] == [["1", "2"], ["1"]]
    sizes = []

    class Counts(FunctionPolicy):
        def generate(self, requests, sampling):
            sizes.append(len(requests))
            return [Output(("cat",)) for _ in requests]

    list(look_then_answer(Counts("c", None, SQUARE), [SAMPLE] * 9, RolloutConfig(PROTOCOLS["direct"])))
    assert sizes == [8, 1]


def test_the_box_turn_stops_where_the_syntax_ends_and_keeps_its_cache():
    seen = []

    class Writes(FunctionPolicy):
        def generate(self, requests, sampling):
            seen.extend((r.step, r.keep_cache, sampling.stop) for r in requests)
            return [Output((reply(r),), prompt_tokens=5, output_tokens=2) for r in requests]

    (episode,) = look_then_answer(Writes("w", None, SQUARE), [SAMPLE], RolloutConfig(PROTOCOLS["viscot_train"]))
    assert seen == [("box", True, ("]",)), ("answer", False, ())]
    assert (episode.box_step.prompt_tokens, episode.box_step.output_tokens) == (5, 2)
    assert episode.answer_step.prompt.startswith("user: <image>")
