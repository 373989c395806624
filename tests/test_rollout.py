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
