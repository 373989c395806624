"""A blinded policy sees grey pictures of the same sizes, and the record says so."""

import pytest
from PIL import Image

from visrl.core.box_formats import FORMATS
from visrl.core.types import Picture, Turn
from visrl.errors import UsageError
from visrl.policies.blind import GREY, Blind
from visrl.policies.protocol import Output, Policy, Request, Sampling
from visrl.policies.registry import load_policy
from visrl.rollout.config import rollout_config


class Looker(Policy):
    """Answers with the sizes and colours of what it is shown."""

    name, needs_pictures, default_protocol = "looker", True, "visrl_train"
    box_format = FORMATS["padded_square_3dp"]

    def generate(self, requests, sampling):
        shown = [[p.open() for t in r.turns for p in t.parts if isinstance(p, Picture)] for r in requests]
        return [Output((" ".join(f"{i.size} {i.getpixel((0, 0))}" for i in images),)) for images in shown]

    def describe(self):
        return {"kind": "looker"}


def test_every_picture_is_grey_and_keeps_its_size():
    red = Picture("a", lambda: Image.new("RGB", (30, 20), (255, 0, 0)))
    asked = Request(
        "a#1", "answer", (Turn("user", (red, "what?")), Turn("assistant", ("box",)), Turn("user", ("crop", red)))
    )
    seeing, blind = Looker(), Blind(Looker())
    assert seeing.generate([asked], Sampling())[0].texts[0] == "(30, 20) (255, 0, 0) (30, 20) (255, 0, 0)"
    assert blind.generate([asked], Sampling())[0].texts[0] == f"(30, 20) {GREY} (30, 20) {GREY}"
    assert blind.name == "blind:looker" and blind.describe() == {"kind": "looker", "pictures": "blank"}


def test_blinding_what_never_looks_is_refused():
    with pytest.raises(UsageError, match="does not use pictures"):
        load_policy("blind:constant:yes")


def test_by_name():
    policy = load_policy("blind:base")
    assert policy.name == "blind:base" and policy.describe()["pictures"] == "blank"


def test_a_blind_model_looks_and_scores_as_the_model_itself():
    """docs/world.md's control is what the command gives: same protocol, same crop; texts can be scored through it."""
    policy, seeing = load_policy("blind:tiny"), load_policy("tiny")
    assert (policy.default_crop, policy.default_protocol) == (seeing.default_crop, seeing.default_protocol)
    assert rollout_config(policy).crop == "tight"  # the small models'; other families' is viscot_square112
    red, grey = (Picture("a", lambda c=c: Image.new("RGB", (64, 64), c)) for c in ((255, 0, 0), GREY))
    asked = [Request("a", "answer", (Turn("user", (picture, "\nWhat?")),)) for picture in (red, grey)]
    (blinded,) = policy.loglikelihood(asked[:1], ["A"])
    assert blinded.value == seeing.loglikelihood(asked[1:], ["A"])[0].value  # red is seen as grey
    assert blinded.value != seeing.loglikelihood(asked[:1], ["A"])[0].value


def test_batch_size_reaches_the_model_behind():
    policy = load_policy("blind:base")
    policy.rows = 5
    assert (policy.policy.rows, policy.batch_size) == (5, 20)  # four batches at once
