"""Chains of several looks: what is trained is what evaluation says and hears under the same protocol, byte for byte."""

import dataclasses
import json

import pytest
from train_made import picture, tiny

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.policies.protocol import FunctionPolicy
from visrl.rollout.config import protocol_named, rollout_config
from visrl.rollout.rollout import look_then_answer
from visrl.train.common.conversations import Opened, answer_said, count, dialogue_after, look_text, opened, prompt_after
from visrl.train.config.protocols import most_looks, protocol_id
from visrl.train.config.recipe import DataSection
from visrl.train.data.candidates import Candidate, CandidateLook, Demonstration
from visrl.train.data.fingerprint import demonstrations_hash
from visrl.train.data.load import load_demonstrations
from visrl.train.data.rows import ChainRow, chain_row, read_rows, write_rows
from visrl.train.grpo.recipe import GRPORecipe
from visrl.train.sft.collator import SFTCollator
from visrl.train.sft.sft import conversations_of

SIZE = (80, 60)
SAMPLE = CoTSample(
    "s", "t", "qa", "what letter is on the red circle ?", picture(3, SIZE), SIZE, None, ("A",), " yes no"
)
POSTER, SIGN = Box(8.0, 6.0, 56.0, 54.0), Box(20.0, 18.0, 32.0, 30.0)
CHAIN = Candidate(answer="A", looks=(CandidateLook(POSTER), CandidateLook(SIGN)))
LAST = """\
name: crop_of_crop
coordinates: last
unit: thousandth
shown: {crop: tight, scale: 2}
limits: {looks: 2}
texts:
  system: "Look by a call, {unit}."
  question: "{question}{instruction}"
  crop: "Region {number}, {size}: {picture}"
  more: " {left} left."
"""
NAMED = LAST.replace("crop_of_crop", "observe").replace("last\n", "named\n").replace("thousandth", "fraction")
BOX_TURN = """\
name: boxes
ask: box_turn
limits: {looks: 3}
texts: {question: "{question}", crop: "{picture}"}
"""
FAMILIES = ("llava", "qwen2_5_vl", "paligemma2", "qwen3_vl", "mllama")


@pytest.fixture
def protocols(tmp_path):
    """By name: zoom with another limit, and files of every way to measure."""
    found = {"zoom": "zoom", "zoom:2": "zoom:2"}
    for name, text in (("last", LAST), ("named", NAMED), ("box_turn", BOX_TURN)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        found[name] = str(path)
    return found


def texts_of(item, box_format):
    looks = CHAIN.looks
    said = [look_text(item, looks[:k], look, box_format) for k, look in enumerate(looks)]
    return [*said, answer_said(item, CHAIN, box_format)]


def shown(turns):
    return [(turn.role, turn.text(), [p.ref for p in turn.pictures]) for turn in turns]


@pytest.mark.parametrize("fmt", ["json_pixel", "json_1000", "padded_square_3dp", "loc_1024"])
@pytest.mark.parametrize("name", ["zoom", "zoom:2", "last", "named", "box_turn"])
def test_prompts_are_those_of_an_evaluation_in_which_the_model_says_the_targets(name, fmt, protocols):
    protocol, box_format = protocols[name], FORMATS[fmt]
    item, asked = opened(SAMPLE, protocol), []
    targets = texts_of(item, box_format)

    def answer(request):
        asked.append(request)
        return targets[int(request.stream)]

    policy = FunctionPolicy("f", answer, box_format, needs_pictures=True)
    (episode,) = look_then_answer(policy, [SAMPLE], rollout_config(policy, protocol=protocol))
    assert [look.fault for look in episode.looks] == ["", ""] and episode.answer == "<answer>A</answer>"
    for k, request in enumerate(asked):
        turns = prompt_after(item, CHAIN.looks[:k], "tight", box_format)
        assert shown(turns) == shown(request.turns)
        assert [p.open().tobytes() for t in turns for p in t.pictures] == [
            p.open().tobytes() for t in request.turns for p in t.pictures
        ]
    assert len(asked) == 3


def test_coordinates_lie_in_the_picture_that_the_protocol_declares(protocols):
    pixels = FORMATS["json_pixel"]
    said = {name: texts_of(opened(SAMPLE, protocols[name]), pixels)[:2] for name in protocols}

    def numbers(text):
        return json.loads(text[text.index("{") : text.rindex("}") + 1])["arguments"]

    assert [numbers(t)["bbox_2d"] for t in said["zoom"]] == [[8, 6, 56, 54], [20, 18, 32, 30]]
    # thousandths of the picture: 8/80, 6/60, 56/80, 54/60; then of the 48 x 48 crop at (8, 6): 12/48, 12/48, 24/48, 24/48
    assert [numbers(t)["bbox_2d"] for t in said["last"]] == [[100, 100, 700, 900], [250, 250, 500, 500]]
    # named: every look in the original, as fractions: 20/80, 18/60, 32/80, 30/60
    assert [numbers(t)["bbox_2d"] for t in said["named"]] == [[0.1, 0.1, 0.7, 0.9], [0.25, 0.3, 0.4, 0.5]]
    assert {numbers(t)["source"] for t in said["named"]} == {"original_image"}
    assert said["box_turn"] == [pixels.write(POSTER, SIZE), pixels.write(SIGN, SIZE)]


def collated(trainable, rows):
    joined = trainable.family.keeps_prefix
    numbered = [(row, part) for row in rows for part in range(conversations_of(row, joined=joined))]
    return SFTCollator(numbered, trainable.encoder)([{"row": i} for i in range(len(numbered))])


def said(trainable, labels):
    tokenizer, runs = trainable.family.tokenizer, [[]]
    for label in labels.tolist():
        runs[-1].append(label) if label != -100 else runs.append([])
    texts = [tokenizer.decode(run) for run in runs if run]
    return [text.removesuffix(trainable.family.layout.assistant_end).strip() for text in texts]


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_the_model_s_own_turns_alone(name):
    """In one sequence, or, where a reply would see what comes after it, in one of its own each."""
    trainable = tiny(name)
    item = opened(SAMPLE, "zoom")
    targets = texts_of(item, trainable.encoder.box_format)
    batch = collated(trainable, [Demonstration(SAMPLE, "zoom", CHAIN)])
    rows = [said(trainable, labels) for labels in batch["labels"]]
    assert rows == ([targets] if trainable.family.keeps_prefix else [[text] for text in targets])
    assert [len(chat.pictures) for chat in batch["chats"]] == ([3] if trainable.family.keeps_prefix else [1, 2, 3])


def test_one_look_and_none_and_a_referring_expression_are_chains_too():
    trainable = tiny("llava")
    rec = dataclasses.replace(SAMPLE, id="r", kind="rec", question="red circle", instruction="")
    rows = [
        Demonstration(SAMPLE, "zoom", Candidate(SIGN, answer="A")),
        Demonstration(SAMPLE, "zoom", Candidate(answer="A", looks=())),
        Demonstration(rec, "zoom", Candidate(SIGN, looks=(CandidateLook(POSTER),))),
    ]
    batch = collated(trainable, rows)
    # 80 x 60 on a square of 80: 10 above. 20/80 28/80 32/80 40/80; the poster 8/80 16/80 56/80 64/80
    sign = '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0.25, 0.35, 0.4, 0.5]}}</tool_call>'
    poster = sign.replace("[0.25, 0.35, 0.4, 0.5]", "[0.1, 0.2, 0.7, 0.8]")
    assert [said(trainable, labels) for labels in batch["labels"]] == [
        [sign, "<answer>A</answer>"],
        ["<answer>A</answer>"],
        [poster, "<answer>[0.250, 0.350, 0.400, 0.500]</answer>"],
    ]


def test_a_model_s_own_words_are_trained_verbatim_and_decide_what_is_shown():
    thought = '<think>there</think> <tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [1, 2, 30, 40]}}</tool_call>'
    own = Candidate(
        answer="A",
        looks=(CandidateLook(Box(0.0, 0.0, 9.0, 9.0), thought),),
        answer_text="<think>A?</think>\n<answer>A</answer>",
    )
    item, pixels = opened(SAMPLE, "zoom"), FORMATS["json_pixel"]
    turns = prompt_after(item, own.looks, "tight", pixels)
    assert turns[2].text() == thought and turns[3].pictures[0].ref == "noise3#xyxy=1,2,30,40"
    assert answer_said(item, own, pixels) == "<think>A?</think>\n<answer>A</answer>"


@pytest.mark.parametrize(
    ("looks", "protocol", "said_"),
    [
        ((CandidateLook(Box(1.0, 1.0, 1.2, 1.3)),), "zoom", "sample s: look 1: .*has no area"),
        ((CandidateLook(POSTER), CandidateLook(Box(60.0, 1.0, 70.0, 5.0))), "last", "look 2: .*outside"),
        ((CandidateLook(POSTER, "I see it"),), "zoom", "names no region"),
        ((CandidateLook(POSTER),) * 3, "zoom:2", "look 3 is one too many under zoom:2"),
    ],
)
def test_a_look_that_could_not_be_carried_out_is_refused_with_its_sample(looks, protocol, said_, protocols):
    with pytest.raises(UsageError, match=said_):
        dialogue_after(opened(SAMPLE, protocols.get(protocol, protocol)), looks, FORMATS["json_pixel"])


# --- files


def loaded(tmp_path, chain, **more):
    SAMPLE.picture.open().save(tmp_path / "p.png")
    row = {"id": "1", "picture": "p.png", "question": "what ?", "chain": chain, **more}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return load_demonstrations(DataSection(path=tmp_path / "rows.jsonl", pictures=tmp_path))


def test_a_file_has_every_box_in_pixels_of_the_original(tmp_path):
    (row,) = loaded(tmp_path, {"looks": [[8, 6, 56, 54], [20, 18, 32, 30]], "answer": "A"}, protocol="zoom:2")
    assert row.protocol == "zoom:2" and [look.box for look in row.chain.looks] == [POSTER, SIGN]


@pytest.mark.parametrize(
    ("chain", "protocol", "said_"),
    [
        (
            {"looks": [[8, 6, 56, 54]], "answer": "A"},
            "visrl_train",
            "rows.jsonl:1: chain.looks: visrl_train looks once",
        ),
        ({"looks": [[8, 6, 56, 54]] * 3, "answer": "A"}, "zoom:2", "3 boxes, and zoom:2 looks 2 times at most"),
        ({"looks": [[8, 6, 56, 54]], "box": [1, 1, 9, 9], "answer": "A"}, "zoom", "box and looks are one thing"),
        ({"looks": [[8, 6, 8, 54]], "answer": "A"}, "zoom", "look 1: x2 <= x1"),
        ({"looks": [[8, 6, 56, 54], None], "answer": "A"}, "zoom", "chain.looks: null"),
        ({"looks": [[8, 6, 56, 54]], "look_texts": ["a", "b"], "answer": "A"}, "zoom", "2 texts of 1 looks"),
        ({"answer": "A"}, "zoom", "chain.box: missing, and zoom looks"),
        ({"answer": "A"}, "zom", "unknown 'zom'.*did you mean zoom"),
        ({"answer": "A"}, "nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_wrong_rows_are_refused_with_their_line(chain, protocol, said_, tmp_path):
    with pytest.raises(UsageError, match=said_):
        loaded(tmp_path, chain, protocol=protocol)


def test_samples_with_true_boxes_for_several_looks_give_such_rows(tmp_path):
    gold = dataclasses.replace(SAMPLE, boxes=(POSTER, SIGN), box=POSTER)
    rows = [chain_row(gold, "zoom:2"), chain_row(dataclasses.replace(gold, id="b"), "visrl_train")]
    write_rows(tmp_path / "rows.jsonl", rows)
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert lines[0]["chain"] == {"looks": [[8.0, 6.0, 56.0, 54.0], [20.0, 18.0, 32.0, 30.0]], "answer": "A"}
    assert lines[1]["chain"] == {"box": [8.0, 6.0, 56.0, 54.0], "answer": "A"}  # the smallest around both
    assert list(read_rows(tmp_path / "rows.jsonl", ChainRow)) == rows


def test_what_a_protocol_file_says_is_part_of_what_rows_are(protocols, tmp_path):
    rows = [Demonstration(SAMPLE, protocols["last"], CHAIN)]
    other = tmp_path / "other.yaml"
    other.write_text(LAST.replace("Region", "Part"))
    assert demonstrations_hash(rows) != demonstrations_hash([dataclasses.replace(rows[0], protocol=str(other))])


def test_how_many_conversations_a_chain_is():
    row = Demonstration(SAMPLE, "zoom", CHAIN)
    assert [conversations_of(row, joined=joined) for joined in (True, False)] == [1, 3]
    assert count(SAMPLE, "visrl_train", joined=True) == 2
    assert isinstance(opened(SAMPLE, "zoom"), Opened)


def test_policy_gradients_take_a_protocol_of_several_looks():
    tree = {
        "kind": "grpo",
        "output": "x",
        "model": {"path": "m"},
        "data": {"path": "q"},
        "grpo": {"protocol": "zoom:2"},
    }
    assert GRPORecipe.model_validate({**tree, "critic": {"kind": "oracle"}}).grpo.protocol == "zoom:2"


def test_a_limit_of_looks_behind_a_name():
    assert [protocol_named(name).several.limits.looks for name in ("zoom", "zoom:2", "zoom:0")] == [6, 2, 0]
    assert most_looks("zoom:3") == 3 and most_looks("visrl_train") == 1 and most_looks("direct") == 0
    assert protocol_id("zoom:2") == "zoom/v1:2" and protocol_id("visrl_train") == "visrl_train/v1"
    for name in ("visrl_train:1", "zoom:", "zoom:-1", "zoom:two", "zoom:1000", ":2"):
        with pytest.raises(UsageError, match="unknown"):
            protocol_named(name)
