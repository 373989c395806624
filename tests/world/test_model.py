"""The small model is a real LLaVA, asked in the very tokens it was taught with."""

import numpy as np
import pytest
import torch
from PIL import Image

from visrl.core.boxes import Box
from visrl.core.prompts import PROTOCOLS, answer_turns, box_turns
from visrl.core.types import Picture
from visrl.policies.families import family_for
from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import Sampling
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer
from visrl.train.small_model.inputs import jittered, patches_in, view
from visrl.train.small_model.pretext_tasks import PRETEXT, Teacher
from visrl.train.small_model.run import save
from visrl.world.chat_format import BINS, BOX_FORMAT
from visrl.world.model import PICTURE_TOKENS, build_model, build_processor, build_tokenizer
from visrl.world.questions import documents
from visrl.world.rng import Dice
from visrl.world.samples import sample_of, samples


@pytest.fixture(scope="module")
def processor():
    torch.set_num_threads(1)
    return build_processor(build_tokenizer())


@pytest.fixture(scope="module")
def policy(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    save(folder, build_model(processor.tokenizer, seed=0), processor)
    return HFPolicy.load(str(folder), dtype="float32")


def test_a_saved_model_is_an_ordinary_policy_of_its_family(policy):
    assert policy.describe()["family"] == "world"
    assert (policy.default_protocol, policy.default_crop, policy.box_format) == ("visrl_train", "tight", BOX_FORMAT)
    assert sum(weight.numel() for weight in policy.model.parameters()) < 1_320_000
    asked = list(samples("general", "val", 3))
    look = RolloutConfig(PROTOCOLS["visrl_train"], "gold", "tight", Sampling(max_tokens=2))
    assert [episode.error for episode in look_then_answer(policy, asked, look)] == [None] * 3


def test_weights_are_a_function_of_the_seed(processor):
    one, again, other = (build_model(processor.tokenizer, seed) for seed in (1, 1, 2))
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("size", [(448, 448), (448, 336), (60, 200), (37, 90)])
def test_lessons_see_what_the_processor_makes(processor, size):
    """|view / 255 - 0.5| / 0.25 is the processor's output to rounding: padding, resizing and scaling are the same."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)
    theirs = processor(images=[image], text="<image>", return_tensors="pt")["pixel_values"][0]
    ours = (torch.from_numpy(view(image).copy()).permute(2, 0, 1) / 255 - 0.5) / 0.25
    assert torch.allclose(ours, theirs, atol=0.02), "one grey level is 1 / 255 / 0.25 = 0.016"


@pytest.mark.parametrize("kind", ["rec", "general", "doc"])
def test_lessons_ask_in_the_tokens_of_evaluation(processor, policy, kind):
    row = next(documents(kind, "val"))
    sample = sample_of(row)
    family = family_for(policy.model.config, processor)
    turns = box_turns(PROTOCOLS["visrl_train"], sample, sample.picture)
    rendered = family.render(turns)
    chat = family.chat(rendered, [family.see(picture.open()) for picture in rendered.pictures])
    assert list(chat.ids) == Teacher(processor, "val").prompt(row).ids


def test_the_question_stands_before_the_pictures(processor, policy):
    sample = next(samples("general", "val"))
    crop = Picture("crop", lambda: Image.new("RGB", (9, 9)))
    turns = answer_turns(PROTOCOLS["visrl_train"], sample, sample.picture, crop, "")
    text = policy.family.render(turns).text
    assert text.index(sample.question) < text.index("<image>")
    assert text.endswith("<image><image><|assistant|>")


def test_the_base_never_sees_a_box_in_an_answer(processor):
    """What stands behind the cue in a pretext lesson holds no location token ("edges" has them on picture tokens alone)."""
    teacher = Teacher(processor, "pretrain")
    locations = set(processor.tokenizer.convert_tokens_to_ids([f"<loc{i:02d}>" for i in range(BINS)]))
    cue = processor.tokenizer.convert_tokens_to_ids("<|assistant|>")

    def replied(example):
        return example.labels[example.ids.index(cue) + 1 :]

    for lesson in set(PRETEXT) - {"caption"}:
        for i in range(12):
            assert not locations & set(replied(teacher.example(lesson, Dice(lesson, i)))), lesson
    for i in range(12):  # a grounded caption holds boxes, and nothing is asked: its prompt is the picture alone
        caption = teacher.example("caption", Dice("caption", i))
        prompt = caption.ids[: caption.ids.index(cue)]
        assert len(prompt) == PICTURE_TOKENS + 2 and sum(label in locations for label in caption.labels) == 12
    for lesson in ("box", "point", "first"):
        assert sum(label in locations for label in replied(teacher.example(lesson, Dice(lesson, 1)))) == 4


def test_targets_on_picture_tokens_stand_where_the_loss_reads_them(processor):
    """The loss scores label t + 1 from hidden state t: patch p's target is at first picture token + p + 1."""
    teacher = Teacher(processor, "val")
    for i in range(40):
        dice = Dice("where", i)
        row = teacher._grounded(Dice("where", i))
        example = teacher.bind(dice)
        if row is None:
            continue
        first = example.ids.index(teacher.image_id)
        inside = patches_in(Box(*map(float, row["box"])), tuple(row["size"]))
        for patch in range(PICTURE_TOKENS):
            label = example.labels[first + patch + 1]
            assert label in (-100, teacher.here if inside[patch] else teacher.away)


def test_patches_of_a_picture_that_is_not_square():
    """448 x 336 is padded by 56 px above: the picture's upper left quarter is columns 0-3 and, of 64-px rows, from y = 56 to
    224 the rows 1, 2, 3 (their centres 84, 140, 196; row 0's is 28)."""
    inside = patches_in(Box(0.0, 0.0, 224.0, 168.0), (448, 336)).reshape(8, 8)
    assert inside.any(0).tolist() == [True] * 4 + [False] * 4
    assert inside.any(1).tolist() == [False, True, True, True] + [False] * 4


def test_jitter_stays_inside_and_keeps_most_of_the_box():
    box = Box(0.0, 100.0, 100.0, 200.0)
    for i in range(50):
        moved = jittered(box, (448, 448), Dice("jitter", i))
        assert not moved.is_empty and moved.clipped((448, 448)) == moved
        assert max(abs(a - b) for a, b in zip(moved.xyxy, box.xyxy, strict=True)) <= 0.08 * 100 * 6, "six sigma"


def test_boxes_round_trip_to_half_a_bin():
    """A bin is 448 / 32 = 14 px: written and read again, an edge is off by at most 7."""
    for sample in samples("rec", "val", 40):
        text = BOX_FORMAT.write(sample.box, sample.size)
        read = BOX_FORMAT.parse(text, sample.size)
        assert max(abs(a - b) for a, b in zip(read.xyxy, sample.box.xyxy, strict=True)) <= 7.0 + 1e-9
