"""Episodes of several looks, by a policy that says what a list tells it."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from looks_made import GOLD, SIZE, call, faulty
from PIL import Image

from visrl.core.box_formats import FORMATS, resized_format
from visrl.core.boxes import Box
from visrl.core.crops import random_box
from visrl.core.prompts import PROTOCOLS, SEVERAL
from visrl.core.types import CoTSample, Look, Picture, Unparsed
from visrl.errors import PictureError, UsageError
from visrl.policies.protocol import FunctionPolicy, Output, Sampling
from visrl.rollout.config import RolloutConfig, fitting, rollout_config, with_looks
from visrl.rollout.dialogue import CALLED_AGAIN, NEVER_LOOKED, ONLY_FAULTS
from visrl.rollout.rollout import look_then_answer

PICTURE = Picture("p.png", lambda: Image.linear_gradient("L").resize(SIZE).convert("RGB"))
SAMPLE = CoTSample("1", "t", "qa", "What is it?", PICTURE, SIZE, GOLD, ("a cat",), " Briefly.", cluster="p.png")
REC = CoTSample("2", "t", "rec", "The LEFT cat", PICTURE, SIZE, GOLD, cluster="p.png")
ANSWER = "<answer>a cat</answer>"


def run(outputs, sample=SAMPLE, focus="predicted", limits=None, tokens=None, fmt="json_pixel", **rules):
    """(episode, requests): the model says ``outputs`` one after another; ``tokens``: how many each costs."""
    asked = []

    class Teller(FunctionPolicy):
        def generate(self, requests, sampling):
            asked.extend((request, sampling) for request in requests)
            texts = [outputs[int(r.stream)] if isinstance(outputs, list) else outputs for r in requests]
            return [Output((text,), prompt_tokens=1, output_tokens=tokens) for text in texts]

    policy = Teller("f", lambda _: "", FORMATS[fmt] if isinstance(fmt, str) else fmt, needs_pictures=True)
    config = rollout_config(policy, protocol="zoom", box_source=focus)
    several = replace(config.protocol.several, **rules)
    several = replace(several, limits=replace(several.limits, **(limits or {})))
    config = replace(config, protocol=replace(config.protocol, several=several))
    (episode,) = look_then_answer(policy, [sample], config)
    return episode, asked


def said(asked, turn=-1):
    return [(t.role, t.text()) for t in asked[turn][0].turns]


def test_look_look_answer():
    outputs = [call([100, 50, 200, 150]), call([120, 60, 140, 80]), ANSWER]
    episode, asked = run(outputs)
    first, second = episode.looks
    assert (first.box, first.looked_at, first.fault) == (GOLD, (100, 50, 200, 150), "")
    assert second.looked_at == (120, 60, 140, 80) and second.step.output == outputs[1]
    assert episode.answer == ANSWER and episode.ended == "answer" and episode.error is None
    assert episode.box == Box(120, 60, 140, 80) and episode.looked_at == (120, 60, 140, 80)
    roles = [role for role, _ in said(asked)]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert said(asked)[1] == ("user", "<image>\nWhat is it? Briefly.")
    assert (
        said(asked)[3][1]
        == "<tool_response><image></tool_response>\nThis is region 1, 100 x 100 pixels. Looks left: 5."
    )
    assert [p.open().size for t in asked[-1][0].turns for p in t.pictures] == [SIZE, (100, 100), (20, 20)]
    # every turn's conversation goes on from the one before: what a cache is carried over
    for before, after in pairwise(asked):
        assert after[0].turns[: len(before[0].turns)] == before[0].turns and before[0].keep_cache
    # a step's prompt is what was said since the turn before
    assert first.step.prompt.startswith("system: You answer") and first.step.prompt.endswith(
        "user: <image>\nWhat is it? Briefly."
    )
    assert episode.answer_step.prompt.startswith("user: <tool_response>") and "region 2" in episode.answer_step.prompt


def test_answering_at_once_is_a_choice():
    episode, asked = run(["a cat"])
    assert (episode.looks, episode.ended, episode.answer) == ((), "answer", "a cat") and len(asked) == 1
    assert episode.box == Unparsed(NEVER_LOOKED)


def test_a_faulty_call_is_told_and_counts_as_a_look():
    episode, asked = run([call("here"), call([100, 50, 200, 150]), ANSWER])
    assert [look.fault for look in episode.looks] == ["not_four_numbers", ""] and episode.ended == "answer"
    told = "<tool_response>The call was not carried out: the region is not four numbers x1, y1, x2, y2.</tool_response>"
    assert said(asked)[3] == ("user", f"{told} Looks left: 5.")
    assert "This is region 2" in said(asked)[5][1]


def test_ten_thousand_faulty_calls_end_no_run_and_each_is_counted():
    """Each sample makes five calls, all faulty, and answers: 2,000 samples."""
    made = faulty(10_000, seed=1)
    turns = {str(i): [turn for _, turn in made[5 * i : 5 * i + 5]] for i in range(2000)}

    def answer(request):
        said, number = turns[request.key], int(request.stream)
        return said[number] if number < 5 else ANSWER

    policy = FunctionPolicy("f", answer, FORMATS["json_pixel"])
    samples = [replace(SAMPLE, id=key, picture=None) for key in turns]
    episodes = list(look_then_answer(policy, samples, rollout_config(policy, protocol="zoom"), batch_size=500))
    assert [e.error for e in episodes] == [None] * 2000 and {e.ended for e in episodes} == {"answer"}
    assert Counter(look.fault for e in episodes for look in e.looks) == Counter(kind for kind, _ in made)
    assert all(e.box == Unparsed(ONLY_FAULTS) and e.looked_at is None for e in episodes)


def test_the_limit_of_looks_is_told_and_one_turn_is_left():
    episode, asked = run([call([100, 50, 200, 150]), call([1, 1, 9, 9]), ANSWER], limits={"looks": 2})
    assert said(asked)[3][1].endswith("Looks left: 1.")
    assert said(asked)[5][1].endswith("No look is left. Answer now, between <answer> and </answer>.")
    assert episode.ended == "looks" and len(episode.looks) == 2 and episode.answer == ANSWER


def test_a_call_in_the_place_of_an_answer_ends_it():
    episode, asked = run(call([100, 50, 200, 150]), limits={"looks": 2})
    assert len(asked) == 3 and len(episode.looks) == 2 and episode.ended == "call"
    assert episode.answer == call([100, 50, 200, 150])


def test_no_look_allowed_asks_without_the_tool():
    episode, asked = run([ANSWER], limits={"looks": 0})
    assert said(asked) == [
        ("system", "You answer questions about a picture. Write your answer between <answer> and </answer>."),
        ("user", "<image>\nWhat is it? Briefly."),
    ]
    assert episode.ended == "looks" and episode.box is None and episode.looks == ()


def test_the_limit_of_pictures():
    episode, _ = run([call([1, 1, 9, 9]), ANSWER, ""], limits={"pictures": 2})
    assert episode.ended == "pictures" and len(episode.looks) == 1


def test_the_limit_of_new_tokens():
    """300 in all, 128 a turn, 50 written in each: after a look 250 are left, fewer than two turns: the second one answers."""
    episode, asked = run([call([1, 1, 9, 9]), ANSWER], limits={"new_tokens": 300}, tokens=50)
    assert episode.ended == "tokens" and len(episode.looks) == 1
    assert [sampling.max_tokens for _, sampling in asked] == [128, 128]
    episode, asked = run(call([1, 1, 9, 9]), limits={"new_tokens": 60})
    assert len(asked) == 1 and asked[0][1].max_tokens == 60 and episode.ended == "call"
    # where nobody counts, a turn is taken to be as long as it may be: 400 - 128 = 272, then 144 < 256
    episode, _ = run([call([1, 1, 9, 9])] * 2 + [ANSWER], limits={"new_tokens": 400})
    assert len(episode.looks) == 2 and episode.ended == "tokens"


def test_a_turn_ends_behind_its_call():
    _, asked = run([ANSWER])
    sampling = asked[0][1]
    rambling = f"{call([1, 1, 9, 9])}\n<tool_response>a dog</tool_response><answer>dog</answer>"
    assert sampling.cut(rambling) == call([1, 1, 9, 9])
    assert (
        sampling.cut(f"<think>{call([1, 2, 3, 4])}</think>{ANSWER} more")
        == f"<think>{call([1, 2, 3, 4])}</think>{ANSWER}"
    )


def test_coordinates_of_the_last_picture():
    outputs = [call([100, 50, 200, 150]), call([10, 10, 30, 30]), ANSWER]
    episode, _ = run(outputs, coordinates="last")
    assert [look.looked_at for look in episode.looks] == [(100, 50, 200, 150), (110, 60, 130, 80)]


def test_a_crop_that_comes_back_enlarged():
    shown = replace(SEVERAL["zoom"].several.shown, scale=2.0)
    outputs = [call([100, 50, 200, 150]), call([20, 20, 60, 60]), ANSWER]
    episode, asked = run(outputs, coordinates="last", shown=shown)
    # 20..60 of a crop shown twice as large is 10..30 of the original's pixels from 100, 50
    assert episode.looks[1].looked_at == (110, 60, 130, 80)
    pictures = [p for t in asked[-1][0].turns for p in t.pictures]
    assert [p.open().size for p in pictures] == [SIZE, (200, 200), (40, 40)]
    assert pictures[1].ref == "p.png#xyxy=100,50,200,150@200x200"


def test_the_unit_is_the_familys():
    episode, asked = run([call([250, 250, 500, 750]), ANSWER], fmt="json_1000")
    assert episode.looks[0].box == Box(100, 50, 200, 150)  # of 400 x 200
    assert "in steps from 0 to 1000 along the picture" in said(asked)[0][1]
    # Qwen2.5-VL's: 400 x 200 is seen at 392 x 196, multiples of 28; 98 of 392 is a quarter
    episode, asked = run([call([98, 49, 196, 147]), ANSWER], fmt=resized_format(28, 1, 10**9))
    assert episode.looks[0].box == Box(100, 50, 200, 150)
    assert "in pixels of the picture as you see it" in said(asked)[0][1]


def test_a_unit_of_its_own():
    episode, _ = run([call([0.25, 0.25, 0.5, 0.75]), ANSWER], unit="fraction")
    assert episode.looks[0].box == Box(100, 50, 200, 150)
    episode, _ = run([call([98, 49, 196, 147]), ANSWER], unit="resized", resize=(28, 1, 10**9))
    assert episode.looks[0].box == Box(100, 50, 200, 150)


def test_a_box_turn_in_the_last_picture():
    """The first crop begins at (100, 50) and is shown at its own size: 20, 10 of it is 120, 60 of the original."""
    outputs = ['{"bbox_2d": [100, 50, 200, 150]}', '{"bbox_2d": [20, 10, 40, 30]}', "a cat"]
    episode, asked = run(outputs, ask="box_turn", coordinates="last")
    assert [look.box for look in episode.looks] == [Box(100, 50, 200, 150), Box(120, 60, 140, 80)]
    assert episode.ended == "answer" and [p.open().size for p in asked[-1][0].turns[-1].pictures] == [(20, 20)]
    # a control's look is written as the model would have: in the picture shown last
    told = replace(SAMPLE, boxes=(Box(100, 50, 200, 150), Box(120, 60, 140, 80)))
    _, asked = run("a cat", sample=told, focus="gold", ask="box_turn", coordinates="last")
    assert [text for role, text in said(asked) if role == "assistant"] == outputs[:2]


def test_a_look_may_be_asked_for_by_the_familys_box():
    outputs = ['{"bbox_2d": [100, 50, 200, 150]}', "<answer>[1, 2, 3, 4]</answer>"]
    episode, asked = run(outputs, ask="box_turn")
    assert [look.looked_at for look in episode.looks] == [(100, 50, 200, 150)] and episode.ended == "answer"
    assert asked[0][1].cut('{"bbox_2d": [100, 50, 200, 150]} and more') == '{"bbox_2d": [100, 50, 200, 150]'


def test_referring_expressions_are_answered_with_a_box():
    outputs = [call([0, 0, 300, 200]), '<answer>{"bbox_2d": [100, 50, 200, 150]}</answer>']
    episode, asked = run(outputs, REC)
    assert episode.box == GOLD and episode.looked_at == (0, 0, 300, 200)
    assert "Locate the region this sentence describes: The LEFT cat." in said(asked)[1][1]
    episode, _ = run(call([0, 0, 300, 200]), REC, limits={"looks": 1})
    assert episode.box == Unparsed(CALLED_AGAIN)  # the box of a call is no answer


# --- controls


def test_gold_looks_once_per_true_box_and_asks_for_the_answer_alone():
    two = replace(SAMPLE, boxes=(Box(0, 0, 40, 40), Box(300, 100, 400, 200)))
    episode, asked = run([ANSWER], two, focus="gold")
    assert [look.looked_at for look in episode.looks] == [(0, 0, 40, 40), (300, 100, 400, 200)]
    assert [look.step for look in episode.looks] == [None, None] and len(asked) == 1
    assert episode.box is None and episode.ended == "looks"
    texts = said(asked)
    assert texts[2] == (
        "assistant",
        '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 40, 40]}}</tool_call>',
    )
    assert texts[3][1].endswith("Looks left: 1.") and texts[5][1].endswith(
        "Answer now, between <answer> and </answer>."
    )
    assert episode.answer_step.prompt.startswith("system: ") and "region 2" in episode.answer_step.prompt


def test_controls_of_each_look():
    episode, asked = run([call([1, 1, 9, 9]), ANSWER], focus="gold,predicted")
    assert episode.looks[0] == Look(None, GOLD, (100, 50, 200, 150)) and episode.looks[1].step.output == call(
        [1, 1, 9, 9]
    )
    assert episode.ended == "answer" and len(asked) == 2 and episode.box == Box(1, 1, 9, 9)
    episode, asked = run([call([1, 1, 9, 9]), ANSWER], focus="predicted,full")
    assert [look.looked_at for look in episode.looks] == [(1, 1, 9, 9), (0, 0, 400, 200)] and len(asked) == 2
    assert episode.ended == "looks"


def test_the_first_random_box_is_the_papers():
    rng = random.Random("0:t:1")
    episode, _ = run([ANSWER], focus="random")
    assert episode.looks[0].box == random_box(SIZE, rng)
    twice, _ = run([ANSWER], focus="random,random")
    assert twice.looks[0] == episode.looks[0] and twice.looks[1].box == random_box(SIZE, random.Random("0:t:1:1"))


def test_gold_without_a_true_box_fails_the_sample():
    episode, _ = run([ANSWER], replace(SAMPLE, box=None), focus="gold")
    assert episode.error == "this sample has no true box to look at"


def test_tokens_that_leave_no_look_are_refused():
    policy = FunctionPolicy("f", lambda _: "", FORMATS["json_pixel"])
    with pytest.raises(UsageError, match="16384 new tokens in total leave no look"):
        rollout_config(policy, protocol="zoom", sampling=Sampling(max_tokens=8193))
    assert rollout_config(policy, protocol="zoom", sampling=Sampling(max_tokens=8192)).protocol.name == "zoom"


def test_a_list_of_foci_is_for_several_looks():
    policy = FunctionPolicy("f", lambda _: "", FORMATS["json_pixel"])
    with pytest.raises(UsageError, match="has a single look"):
        rollout_config(policy, protocol="visrl_train", box_source="gold,predicted")
    with pytest.raises(UsageError, match="unknown 'gild'"):
        rollout_config(policy, protocol="zoom", box_source="gold,gild")


# --- what goes wrong


def test_a_failed_request_and_a_missing_picture_fail_their_samples_alone():
    class Failing(FunctionPolicy):
        def generate(self, requests, sampling):
            return [Output(error="down", retry=False) if r.key == "1" else Output((ANSWER,)) for r in requests]

    def gone():
        raise PictureError("gone")

    policy = Failing("f", lambda _: "", FORMATS["json_pixel"], needs_pictures=True)
    samples = [SAMPLE, replace(SAMPLE, id="2"), replace(SAMPLE, id="3", picture=Picture("q.png", gone))]
    episodes = list(look_then_answer(policy, samples, rollout_config(policy, protocol="zoom")))
    assert [e.error for e in episodes] == ["down", None, "picture: gone"]


def test_a_picture_that_the_family_does_not_take_fails_its_sample():
    thin = replace(SAMPLE, size=(1, 500), picture=Picture("thin", lambda: Image.new("RGB", (1, 500))))
    episode, asked = run([ANSWER], thin, fmt=resized_format(28, 1, 10**9))
    assert "200 times" in episode.error and not asked


# --- limits by name


def test_more_looks_than_a_protocol_has():
    assert with_looks(SEVERAL["zoom"], 3).several.limits.looks == 3
    assert with_looks(PROTOCOLS["visrl_train"], 1) == PROTOCOLS["visrl_train"]
    assert with_looks(PROTOCOLS["visrl_train"], 0) == PROTOCOLS["direct"] == with_looks(PROTOCOLS["direct"], 0)
    for name in ("visrl_train", "direct"):
        with pytest.raises(UsageError, match="--max-looks 2"):
            with_looks(PROTOCOLS[name], 2)


def test_a_model_that_takes_few_pictures_looks_as_often_as_it_can():
    assert fitting(SEVERAL["zoom"], None) is SEVERAL["zoom"]
    assert fitting(SEVERAL["zoom"], 2).several.limits.pictures == 2
    assert fitting(PROTOCOLS["direct"], 1) is PROTOCOLS["direct"]


def test_the_papers_protocols_are_the_special_case_and_know_nothing_of_this():
    for protocol in PROTOCOLS.values():
        assert protocol.several is None and protocol.id == f"{protocol.name}/v1"
    config = RolloutConfig(PROTOCOLS["visrl_train"], "gold")
    assert config.focus == "gold" and config.focus_of(0) == config.focus_of(3) == "gold"
