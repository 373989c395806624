"""The shipped base: small, safe to load, and as able as its card says, on a few dozen pictures of val."""

import json
from dataclasses import replace

import pytest
import torch

from visrl.errors import UsageError
from visrl.focus import tight
from visrl.policies import Sampling
from visrl.policies.load import load_policy
from visrl.prompts import PROTOCOLS
from visrl.rollout import Look, look_then_answer
from visrl.types import Picture
from visrl.world import checkpoint_path
from visrl.world.samples import samples

N = 64


def right(policy, asked, look):
    episodes = list(look_then_answer(policy, asked, look, batch_size=N))
    assert [e.error for e in episodes if e.error] == []
    return sum(e.answer.strip() == s.answers[0] for e, s in zip(episodes, asked, strict=True)) / len(asked)


def cropped(sample):
    region = tight(sample.box, sample.size)
    crop = Picture(f"{sample.id}#crop", lambda: sample.picture.open().crop(region))
    return replace(sample, picture=crop, size=(region[2] - region[0], region[3] - region[1]))


def test_checkpoints_are_small_and_hold_no_pickle():
    """A third of the 8 MB that all shipped checkpoints may have together."""
    files = [f for f in checkpoint_path("base").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 8_000_000 / 3
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".jinja", ".md", ".png"}


def test_it_says_how_it_was_made_and_saw_no_box():
    record = json.loads((checkpoint_path("base") / "training.json").read_text())
    card = (checkpoint_path("base") / "MODEL_CARD.md").read_text()
    assert len(record["data_sha256"]) == 64 and record["data_sha256"] in card and "visrl-train" in card
    assert not {"box", "point"} & set(record["recipe"]["lessons"])


def test_an_unknown_name_has_a_hint():
    with pytest.raises(UsageError) as error:
        checkpoint_path("tinny")
    assert "tiny" in error.value.hint


def test_the_base_reads_true_crops_and_cannot_read_the_whole_picture():
    """Measured on 1,250: .99 of signs from the crop, .09 without (12 signs: chance is .083). On 64, 20 points are 4 errors."""
    torch.set_num_threads(1)
    base = load_policy("base")
    asked = list(samples("general", "val", N))
    direct = Look(PROTOCOLS["direct"], crop="tight", sampling=Sampling(max_tokens=4))
    gold = Look(PROTOCOLS["visrl_train"], "gold", "tight", Sampling(max_tokens=4))
    assert right(base, [cropped(sample) for sample in asked], direct) > 0.85
    assert right(base, asked, gold) > 0.85
    assert right(base, asked, direct) < 0.3
