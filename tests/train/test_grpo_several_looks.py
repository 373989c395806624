"""GRPO over several looks: what is drawn, what a look is credited with, and loss and gradients against a computation by hand.

Five chains of a question under a protocol of two looks: two that look twice (alike at first), one that looks once, one whose call
cannot be carried out and which then answers, and one that answers at once.
"""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from grpo_made import said
from test_grpo_exact import by_hand, config, hand_loss, same_step
from test_train_exact import gradients, perturb
from test_train_exact_looks import SHORT
from train_made import sample, tiny

from visrl.core.boxes import Box
from visrl.core.types import Score
from visrl.errors import UsageError
from visrl.policies.protocol import Output, Policy, Sampling
from visrl.train.common.conversations import look_text, opened
from visrl.train.config.protocols import protocol_of
from visrl.train.critics.judged import Judged
from visrl.train.data.candidates import CandidateLook
from visrl.train.grpo.batches import GroupEncoder
from visrl.train.grpo.credit import RewardPlan, taken, turn_values
from visrl.train.grpo.rewards import RewardTools
from visrl.train.grpo.rollouts import RolloutPlan, draw_groups
from visrl.train.grpo.trainer import GroupTrainer

FIRST, SECOND, ELSEWHERE = Box(2.0, 3.0, 24.0, 25.0), Box(6.0, 8.0, 16.0, 15.0), Box(5.0, 1.0, 28.0, 9.0)
FAULTY = "<c>7</c>"
LOOKS = ((FIRST, SECOND), (FIRST, ELSEWHERE), (ELSEWHERE,), (None,), ())
ANSWERS = ("A B", "yes", "green", "blue", "A")
TURNS = ("look1", "look2", "box", "answer")
K = len(LOOKS)


@pytest.fixture
def brief(tmp_path):
    (tmp_path / "short.yaml").write_text(SHORT)
    return str(tmp_path / "short.yaml")


class Script(Policy):
    """Says of each chain what LOOKS and ANSWERS have of it, as tokens of the family."""

    name = "script"

    def __init__(self, trainable, item, answers=ANSWERS):
        self.encoder, self.box_format, self.asked = trainable.encoder, trainable.encoder.box_format, []
        self.texts = [[*self.looks(item, looks), answer] for looks, answer in zip(LOOKS, answers, strict=True)]

    def looks(self, item, boxes):
        so_far = []
        for box in boxes:
            look = CandidateLook(box)
            yield FAULTY if box is None else look_text(item, so_far, look, self.box_format)
            so_far.append(look)

    def generate(self, requests, sampling):
        self.asked.append([(r.stream, len([p for t in r.turns for p in t.pictures]), sampling.n) for r in requests])
        return [self.output(request, sampling.n) for request in requests]

    def output(self, request, n):
        if n > 1:
            texts = [chain[0] for chain in self.texts]
        else:
            _, _, attempt, turn = request.stream.split(":")
            texts = [self.texts[int(attempt)][int(turn) - 1]]
        ids = tuple(said(self.encoder, request.turns, text).ids for text in texts)
        return Output(tuple(texts), token_ids=ids)

    def describe(self):
        return {}


def question(i, **more):
    return replace(sample(i), answers=("A B",), **more)


def drawn(trainable, protocol, i=0, answers=ANSWERS, **more):
    """(the group, the policy that was asked)."""
    policy = Script(trainable, opened(question(i, **more), protocol), answers)
    (group,) = draw_groups(policy, [question(i, **more)], plan(protocol), ":9")
    return group, policy


def plan(protocol):
    return RolloutPlan(protocol_of(protocol), Sampling(K, 1.0, max_tokens=64))


def test_chains_part_after_their_first_turn_and_go_on_as_evaluation_has_it(brief):
    group, policy = drawn(tiny("llava"), brief)
    # one request of five; four go on from their first look or their fault (the picture, and a crop where there is one); two look again
    assert policy.asked == [
        [(":9", 1, 5)],
        [(":9:0:2", 2, 1), (":9:1:2", 2, 1), (":9:2:2", 2, 1), (":9:3:2", 1, 1)],
        [(":9:0:3", 3, 1), (":9:1:3", 3, 1)],
    ]
    turns = [["look1", "look2", "answer"]] * 2 + [["look1", "answer"]] * 2 + [["answer"]]
    assert [list(chain.replies) for chain in group.chains] == turns
    boxes = [[look.candidate.box and look.candidate.box.xyxy for look in chain.looks] for chain in group.chains]
    # boxes are written in thousandths of at most 44 pixels: .05 apart at most
    assert boxes[0][0] == pytest.approx(FIRST.xyxy, abs=0.05) and boxes[0][1] == pytest.approx(SECOND.xyxy, abs=0.05)
    assert boxes[3] == [None] and boxes[4] == []
    unread = [[bool(look.unparsed) for look in chain.looks] for chain in group.chains]
    assert unread == [[False, False], [False, False], [False], [True], []]
    assert [chain.unread for chain in group.chains] == [0, 0, 0, 1, 0]
    assert (
        group.chains[0].looks[1].crop.ref != group.chains[1].looks[1].crop.ref and group.chains[3].looks[0].crop is None
    )
    assert [chain.candidate.answer for chain in group.chains] == list(ANSWERS)
    assert {look.candidate.answer for look in group.chains[0].looks} == {"A B"}  # what critics by margin are told
    assert group.chains[0].length == sum(len(reply.ids) for reply in group.chains[0].replies.values())


def test_a_referring_expression_s_last_turn_is_its_box(brief):
    trainable = tiny("llava")
    written = trainable.encoder.box_format.write(SECOND, (40, 30))
    group, _ = drawn(trainable, brief, answers=(written, "none", written, written, written), kind="rec", box=SECOND)
    assert [list(chain.replies)[-1] for chain in group.chains] == ["box"] * K
    assert group.chains[0].candidate.box.xyxy == pytest.approx(SECOND.xyxy, abs=0.05)
    assert [bool(chain.unparsed) for chain in group.chains] == [False, True, False, False, False]
    values = turn_values([group], RewardPlan({"acc@0.5": 1.0}, {}), TURNS, RewardTools())
    assert values["box"]["acc@0.5"].tolist() == [[1, 0, 1, 1, 1]]


class Width:
    """s^b is (50 - the width of what was looked at, in pixels) over 100."""

    name, needs_pictures = "width", False

    def boxes(self, questions):
        return [Judged(Score((50 - round(q.box.x2 - q.box.x1)) / 100)) for q in questions]


def rewards(**more):
    return RewardPlan({"box_critic": 1.0}, {"answer": 1.0}, baseline="mean", **more)


def valued(group, plan):
    return turn_values([group], plan, TURNS, RewardTools(Width()))


def test_a_look_is_credited_with_the_best_of_it_and_of_what_followed_among_those_that_took_it(brief):
    """Widths: first looks 22, 22, 23, a fault and none: .28, .28, .27, 0; second looks 10 and, cut to the crop it was called in,
    24 - 5 = 19: .40, .31.

    best: first looks are worth .40, .31, .27, 0, on average over the four that looked .98 / 4 = .245; second ones .355 over two.
    """
    from visrl.train.grpo.advantages import advantages

    group, _ = drawn(tiny("llava"), brief)
    own, best = valued(group, rewards(inner="own")), valued(group, rewards())
    nan = pytest.approx(math.nan, nan_ok=True)
    assert own["look1"]["box_critic"][0].tolist() == [*map(pytest.approx, (0.28, 0.28, 0.27, 0.0)), nan]
    assert best["look1"]["box_critic"][0].tolist() == [*map(pytest.approx, (0.40, 0.31, 0.27, 0.0)), nan]
    assert best["look2"]["box_critic"][0].tolist() == [pytest.approx(0.40), pytest.approx(0.31), nan, nan, nan]
    found = {turn: advantages(rewards().total(turn, best), "mean")[0].tolist() for turn in ("look1", "look2", "answer")}
    assert found["look1"] == pytest.approx([0.155, 0.065, 0.025, -0.245, 0.0])
    assert found["look2"] == pytest.approx([0.045, -0.045, 0.0, 0.0, 0.0])
    assert found["answer"] == pytest.approx([0.8, -0.2, -0.2, -0.2, -0.2])  # one of five is right
    assert taken([group], "look2").tolist() == [[True, True, False, False, False]]


def test_a_chain_s_credit_has_the_mean_of_its_looks(brief):
    """Chain 1: (.40 + .40) / 2 + 1 for its answer, chain 2: (.31 + .31) / 2; the last never looked, and is not scored."""
    group, _ = drawn(tiny("llava"), brief)
    whole = rewards(credit="chain")
    total = whole.total("look1", valued(group, whole))
    assert total[0, :4].tolist() == pytest.approx([1.40, 0.31, 0.27, 0.0]) and total[0, 4].isnan()
    only = RewardPlan({}, {"answer": 1.0}, credit="chain")  # looks learn from the answer
    assert only.total("look2", valued(group, only)).tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]


def test_each_look_is_held_against_its_own_true_box(brief):
    group, _ = drawn(tiny("llava"), brief, boxes=(FIRST, SECOND), box=SECOND)
    values = turn_values([group], RewardPlan({"acc@0.5": 1.0}, {}), TURNS, RewardTools())
    assert values["look1"]["acc@0.5"][0, :4].tolist() == [1, 1, 0, 0]  # ELSEWHERE is neither, a fault is wrong
    assert values["look2"]["acc@0.5"][0, :2].tolist() == [1, 0]


ADVANTAGES = {
    "look1": torch.tensor([1.0, -0.5, 0.25, -1.5, 0.0] * 2),
    "look2": torch.tensor([0.5, -0.75, 0.0, 0.0, 0.0] * 2),
    "answer": torch.tensor([-0.75, 1.25, 2.0, -1.0, 0.4] * 2),
}


def trainer_of(trainable, protocol, folder):
    encoder = GroupEncoder(trainable.encoder, store=trainable.feature_store(1.0))
    args = config(folder, num_generations=K, per_device_train_batch_size=2 * K)
    trainer = GroupTrainer(
        trainable, [question(i) for i in range(2)], (encoder, plan(protocol), rewards()), args, folder, title="t"
    )
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "paligemma2", "internvl", "mllama"])
def test_loss_and_gradients_equal_a_computation_by_hand_in_both_layouts(name, brief, tmp_path):
    """GRPO's equation as in test_grpo_exact.py, over look 1, look 2 and the answer."""
    trainable = tiny(name, torch.float64)
    trainer = trainer_of(trainable, brief, tmp_path)
    groups = [drawn(trainable, brief, i)[0] for i in range(2)]
    with torch.no_grad():
        ref = by_hand(trainable, groups)
        perturb(trainable.model)
        old = by_hand(trainable, groups)
    batches = {}
    for shared in (False, True):
        trainer.encoding = GroupEncoder(trainable.encoder, shared=shared, store=trainer.encoding.store)
        batches[shared] = trainer._encoded(groups, ADVANTAGES)
    perturb(trainable.model)
    expected, *_ = hand_loss(by_hand(trainable, groups), old, ref, ADVANTAGES)
    expected.backward()
    wanted = gradients(trainable.model)
    rows = {shared: Counter() for shared in (False, True)}
    for shared, found in rows.items():
        for key, turn in batches[shared]["turns"].items():
            found[key.partition("/")[0]] += len(turn["prompt_ids"])
    answers = [key for key in batches[True]["turns"] if key.startswith("answer")]
    assert answers == (["answer/1", "answer/2", "answer/3"] if name in ("mllama", "paligemma2") else ["answer"])
    # of a group: four first looks, two second ones, five answers. Shared: one row for the first looks, one for the second ones, which
    # come after the same crop; the answers come after five different conversations
    assert rows == {False: {"look1": 8, "look2": 4, "answer": 10}, True: {"look1": 2, "look2": 2, "answer": 10}}
    for batch in batches.values():
        same_step(trainer, batch, expected.item(), wanted)


def test_a_generation_is_logged_by_turn_and_kept_with_all_its_looks(brief, tmp_path):
    trainable = tiny("llava")
    trainer = trainer_of(trainable, brief, tmp_path)
    trainer.rewards = rewards(tools=RewardTools(Width()))
    group, _ = drawn(trainable, brief)
    trainer._rollouts = lambda questions: [group]
    trainer._generation([question(0)])
    logged = {name: found[-1] for name, found in trainer._metrics["train"].items()}
    assert logged["look1/reward"] == pytest.approx(0.245) and logged["look2/reward"] == pytest.approx(0.355)
    assert logged["look2/advantage"] == pytest.approx(0.045) and logged["answer/reward"] == pytest.approx(0.2)
    assert "box/reward" not in logged  # no chain had such a turn
    # chains: (.40 + .40) / 2 and so on, the last unscored: (.40 + .31 + .27 + 0) / 4
    assert logged["rewards/box_critic"] == pytest.approx(0.245)
    first, fault = trainer._last[0]["chains"][0], trainer._last[0]["chains"][3]
    assert first["box_text"].count(" → ") == 1 and first["box"] == pytest.approx(SECOND.xyxy, abs=0.05)
    assert first["advantages"] == {"look1": 0.155, "look2": 0.045, "answer": 0.8}
    assert fault["box"] is None and fault["unparsed"] and fault["rewards"]["look1 box_critic"] == 0.0


def test_a_model_that_takes_too_few_pictures_and_another_crop_are_refused(tmp_path):
    from trl import GRPOConfig

    from visrl.train.grpo.phase import rollout_plan
    from visrl.train.grpo.recipe import GRPOSection

    args = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False, num_generations=2, per_device_train_batch_size=2)
    trainable = tiny("llava")
    assert rollout_plan(GRPOSection(protocol="zoom:2"), trainable, args, 0).turns == TURNS
    with pytest.raises(UsageError, match="says itself what comes back"):
        rollout_plan(GRPOSection(protocol="zoom:2", crop="viscot_square112"), trainable, args, 0)
    trainable.family.max_pictures = 2
    with pytest.raises(UsageError, match=r"takes 2 pictures, and zoom:2 may look 2 times"):
        rollout_plan(GRPOSection(protocol="zoom:2"), trainable, args, 0)
