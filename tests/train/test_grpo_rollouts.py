"""Chains are drawn by evaluation's own steps, and what is trained on is what was sampled."""

from dataclasses import replace

import pytest
import torch
from test_grpo_exact import trainer_of
from train_made import sample, tiny

from visrl.core.boxes import Box
from visrl.core.prompts import PROTOCOLS
from visrl.errors import UsageError
from visrl.policies.protocol import FunctionPolicy, Output, Policy, Sampling
from visrl.train.grpo.rollouts import RolloutPlan, draw_groups


class Script(Policy):
    """Says three boxes, one of them unreadable, then answers; it remembers what it was asked."""

    name, needs_pictures = "script", True

    def __init__(self, box_format):
        self.box_format, self.asked = box_format, []

    def generate(self, requests, sampling):
        self.asked += [
            (r.step, r.stream, len([p for t in r.turns for p in t.parts if not isinstance(p, str)])) for r in requests
        ]
        if requests[0].step == "box":
            good = self.box_format.write(Box(2.0, 3.0, 20.0, 25.0), requests[0].size)
            return [Output((good, "nowhere", good), token_ids=((1, 2), (3,), (1, 2)))] * len(requests)
        return [Output((f"said {i}",), token_ids=((7, 8, i),)) for i in range(len(requests))]

    def describe(self):
        return {}


def plan(protocol="visrl_train", n=3):
    return RolloutPlan(PROTOCOLS[protocol], Sampling(n, 1.0))


def test_chains_look_then_answer_and_an_unreadable_box_is_answered_from_the_whole_picture():
    policy = Script(tiny("llava").encoder.box_format)
    (group,) = draw_groups(policy, [sample(0)], plan(), ":9")  # a picture of 40 x 30
    assert policy.asked == [("box", ":9", 1), *[("answer", f":9:{i}", 2) for i in range(3)]]
    boxes = [chain.candidate.box for chain in group.chains]
    # three decimals of the padded square's side 40: thousandths are .04 px
    assert (
        boxes[0].xyxy == pytest.approx((2.0, 3.0, 20.0, 25.0), abs=0.05) and boxes[1] is None and boxes[2] == boxes[0]
    )
    assert [bool(chain.unparsed) for chain in group.chains] == [False, True, False]
    crops = [chain.crop.ref for chain in group.chains]
    assert crops[1] == "noise0#xyxy=0,0,40,30" and crops[0] == crops[2] != crops[1]
    assert [chain.candidate.answer for chain in group.chains] == ["said 0", "said 1", "said 2"]
    assert [chain.replies["box"].ids for chain in group.chains] == [(1, 2), (3,), (1, 2)]
    assert [chain.length for chain in group.chains] == [2 + 3, 1 + 3, 2 + 3]


def test_one_turn_questions_take_one_turn():
    policy = Script(tiny("llava").encoder.box_format)
    (group,) = draw_groups(policy, [replace(sample(0), kind="rec")], plan(), "")
    assert [list(chain.replies) for chain in group.chains] == [["box"]] * 3
    (group,) = draw_groups(policy, [sample(0)], plan("direct"), "")
    assert [list(chain.replies) for chain in group.chains] == [["answer"]] * 3 and group.chains[0].crop is None


def test_a_policy_that_fails_or_hides_its_tokens_names_the_sample():
    silent = FunctionPolicy("f", lambda request: "x", tiny("llava").encoder.box_format)
    with pytest.raises(UsageError, match="does not report the tokens it sampled"):
        draw_groups(silent, [sample(0)], plan(n=1), "")

    class Broken(Script):
        def generate(self, requests, sampling):
            return [Output(error="boom", retry=False)] * len(requests)

    with pytest.raises(UsageError, match="sample s0: boom"):
        draw_groups(Broken(silent.box_format), [sample(0)], plan(), "")


@pytest.mark.parametrize("name", ["llava", "mllama", "paligemma2", "qwen2_5_vl", "internvl"])
def test_what_is_drawn_is_as_probable_to_the_learner_as_it_was_to_the_policy(name, tmp_path):
    """Greedy chains: every sampled token is the most probable one where the learner scores it."""
    trainable = tiny(name, torch.float64)
    trainer = trainer_of(trainable, tmp_path, max_completion_length=6, num_iterations=1, beta=0.0)
    trainer.plan = RolloutPlan(PROTOCOLS["visrl_train"], Sampling(4, 0.0, max_tokens=6))
    groups = trainer._rollouts([sample(0)])
    assert all(len(chain.replies["box"].ids) <= 6 for chain in groups[0].chains)
    turns = trainer.encoding.turns(groups, trainer.plan.turns)
    for turn in turns.values():
        scorer = trainer._scorer(trainer.model.eval(), turn)
        with torch.no_grad():
            top = scorer().is_top1[turn["where"]]
        assert top[turn["taken"].bool()].all()


def test_a_generation_is_scored_and_cut_into_the_steps_batches(tmp_path):
    trainable = tiny("llava")
    trainer = trainer_of(
        trainable, tmp_path, max_completion_length=6, per_device_train_batch_size=4, gradient_accumulation_steps=2
    )
    trainer.plan = RolloutPlan(PROTOCOLS["visrl_train"], Sampling(4, 1.0, max_tokens=6))
    trainer.rewards = replace(trainer.rewards, box={"length": 1.0}, answer={"length": 1.0})
    batches = trainer._generation([sample(0), sample(1)])
    assert [batch["ids"] for batch in batches] == [["s0"], ["s1"]]
    tokens = [int(batch["completion_mask"].sum()) for batch in batches]
    assert all(int(batch["num_items_in_batch"]) == sum(tokens) for batch in batches)
    lengths = torch.tensor([len(c["box_text"] or "") for c in trainer._last[0]["chains"]])
    assert len(trainer._last) == 2 and len(lengths) == 4
    rewards = torch.tensor([c["rewards"]["length"] for c in trainer._last[0]["chains"]])
    wanted = (rewards - rewards.mean()) / (rewards.std() + 1e-4)  # both turns are credited with the same reward here
    found = torch.tensor([c["advantages"]["answer"] for c in trainer._last[0]["chains"]])
    assert (found - wanted).abs().max() < 2e-3  # rounded to four places
