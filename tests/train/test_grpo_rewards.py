"""Rewards by name and advantages of a group, computed by hand."""

import math

import pytest
import torch
from grpo_made import group
from train_made import tiny

from visrl.core.boxes import Box
from visrl.core.types import Score
from visrl.errors import UsageError
from visrl.train.critics.critics import Judged
from visrl.train.grpo.advantages import advantages, weighted, without_spread
from visrl.train.grpo.credit import RewardPlan
from visrl.train.grpo.rewards import RewardTools, check_rewards, reward_named

NAN = math.nan


@pytest.fixture(scope="module")
def trainable():
    return tiny("llava")


def asked(trainable, **more):
    """The group of grpo_made: boxes 18 x 22 (twice), 23 x 8, none; answers A B, yes, green square C, blue."""
    from dataclasses import replace

    made = group(0, trainable)
    made.item = replace(made.item, sample=replace(made.item.sample, **more))
    return made


def values(name, made, **tools):
    return reward_named(name)([made], RewardTools(**tools))[0]


def test_a_box_is_rewarded_by_its_overlap_with_the_true_one(trainable):
    # true box 2..20 x 3..14: 18 x 11 = 198; the first two are 18 x 22 = 396 and hold it: IoU 198 / 396 = .5, not above .5.
    # 5..28 x 1..9 (184): meets it in 5..20 x 3..9 = 90; union 198 + 184 - 90 = 292. The unreadable one is wrong
    made = asked(trainable, box=Box(2.0, 3.0, 20.0, 14.0))
    assert values("iou", made) == [0.5, 0.5, pytest.approx(90 / 292), 0.0]
    assert values("acc@0.5", made) == [0.0, 0.0, 0.0, 0.0]
    # 2..20 x 3..25 itself: 1, 1; meets the third in 15 x 6 = 90, union 396 + 184 - 90 = 490
    made = asked(trainable, box=Box(2.0, 3.0, 20.0, 25.0))
    assert values("iou", made) == [1.0, 1.0, pytest.approx(90 / 490), 0.0]
    assert values("acc@0.5", made) == [1.0, 1.0, 0.0, 0.0]
    assert values("iou", asked(trainable)) == [None] * 4  # nobody knows the true box


def test_answers_are_judged_by_an_offline_rule_of_the_evaluation(trainable):
    made = asked(trainable, answers=("a b",))
    assert values("answer", made) == [1.0, 0.0, 0.0, 0.0]
    made = asked(trainable, answers=("square",))
    assert values("answer", made, judge="contains") == [0.0, 0.0, 1.0, 0.0]
    assert values("answer", asked(trainable)) == [None] * 4  # no standard answer


def test_format_and_length(trainable):
    made = asked(trainable)
    made.chains[1].candidate.answer = " "
    assert values("format", made) == [1.0, 0.0, 1.0, 0.0]
    tokens = [sum(len(r.ids) for r in c.replies.values()) for c in made.chains]
    assert values("length", made, max_tokens=100) == [1 - n / 200 for n in tokens]


class Words:
    """A critic that scores a crop by where it was cut, and an answer by its length; it counts what it is asked."""

    def __init__(self):
        self.asked = []

    def boxes(self, questions):
        self.asked += [q.crop.ref for q in questions]
        return [Judged(Score(q.box.x1 / 10)) for q in questions]

    def answers(self, questions):
        self.asked += [q.answer for q in questions]
        return [Judged(error="gone") if q.answer == "yes" else Judged(Score(len(q.answer) / 10)) for q in questions]


def test_critics_are_asked_once_about_each_crop_and_never_about_a_box_that_cannot_be_read(trainable):
    critic = Words()
    made = asked(trainable, answers=("A B",))
    assert values("box_critic", made, critic=critic) == [0.2, 0.2, 0.5, 0.0]  # x1 is 2, 2, 5
    assert critic.asked == ["noise0#xyxy=2,3,20,25", "noise0#xyxy=5,1,28,9"]
    critic.asked.clear()
    assert values("answer_critic", made, critic=critic) == [0.3, None, 1.4, 0.4]  # what fails is no score, not 0
    assert critic.asked == ["A B", "yes", "green square C", "blue"]


def test_rewards_that_cannot_work_are_refused_before_anything_is_loaded():
    with pytest.raises(UsageError, match="needs a critic"):
        check_rewards({"box_critic": 1.0}, False, "exact")
    with pytest.raises(UsageError, match="not an offline rule"):
        check_rewards({"answer": 1.0}, False, "openai:http://x#y")
    check_rewards({"iou": 1.0, "box_critic": 0.5}, True, "anls")


def test_a_group_s_baselines():
    # mean .5, deviations .5, -.5, .3, -.3; squares .25, .25, .09, .09: sum .68, over 3: .226667, root .476095
    rewards = torch.tensor([[1.0, 0.0, 0.8, 0.2]], dtype=torch.float64)
    assert advantages(rewards, "mean")[0].tolist() == pytest.approx([0.5, -0.5, 0.3, -0.3])
    scale = math.sqrt(0.68 / 3) + 1e-4
    assert advantages(rewards, "mean_std")[0].tolist() == pytest.approx(
        [0.5 / scale, -0.5 / scale, 0.3 / scale, -0.3 / scale]
    )
    # the others' means: 1/3, 2/3, .4, .6
    assert advantages(rewards, "leave_one_out")[0].tolist() == pytest.approx([2 / 3, -2 / 3, 0.4, -0.4])


def test_what_is_unscored_is_in_no_mean_and_moves_nothing():
    rewards = torch.tensor([[1.0, NAN, 0.0, 0.5], [NAN, 1.0, NAN, NAN]])
    # mean of 1, 0, .5 is .5; alone, the second group's one score has nothing to be compared with
    assert advantages(rewards, "mean").tolist() == [[0.5, 0.0, -0.5, 0.0], [0.0] * 4]
    # the others' means: .25, .75, .5
    assert advantages(rewards, "leave_one_out").tolist() == [[0.75, 0.0, -0.75, 0.0], [0.0] * 4]
    assert not advantages(rewards, "mean_std").isnan().any()


def test_groups_without_spread_are_counted():
    rewards = torch.tensor([[0.3, 0.3, 0.3], [0.3, 0.4, 0.3], [NAN, 0.2, NAN], [NAN, NAN, NAN], [NAN, 0.1, 0.9]])
    assert without_spread(rewards).tolist() == [True, False, True, True, False]


def test_a_reward_that_does_not_apply_is_left_out_and_one_that_failed_leaves_its_chain_unscored():
    found = {
        "iou": torch.tensor([[0.5, 1.0], [NAN, NAN], [NAN, NAN]]),
        "answer": torch.tensor([[1.0, NAN], [0.0, 1.0], [NAN, NAN]]),
    }
    total = weighted(found, {"iou": 2.0, "answer": 0.5})
    # 2 x .5 + .5 x 1 = 1.5; the answer of the second could not be judged; no true box: the answer alone; nothing at all
    assert total[0, 0].item() == 1.5 and total[0, 1].isnan()
    assert total[1].tolist() == [0.0, 0.5] and total[2].isnan().all()


def test_credit_of_a_step_or_of_the_whole_chain():
    found = {"iou": torch.tensor([[0.5]]), "format": torch.tensor([[1.0]]), "answer": torch.tensor([[0.0]])}
    values = {"box": found, "answer": found}
    plan = RewardPlan({"iou": 1.0, "format": 0.1}, {"answer": 1.0, "format": 0.2})
    assert plan.total("box", values).item() == pytest.approx(0.6)  # .5 + .1
    assert plan.total("answer", values).item() == pytest.approx(0.2)  # 0 + .2
    chain = RewardPlan({"iou": 1.0, "format": 0.1}, {"answer": 1.0, "format": 0.2}, credit="chain")
    # .5 + (.1 + .2) x 1 + 0, for both
    assert chain.total("box", values).item() == chain.total("answer", values).item() == pytest.approx(0.8)
