"""Loss, gradients and metrics of GRPO equal a computation by hand, for every family; one row per group equals plain rows.

By hand: every reply in a row of its own without padding, through the family's plain batch and the model's plain forward, and
the loss from GRPO's equation. In double precision, so that equal means equal.

    rho = pi / pi_old          kl = rho (pi_ref / pi - log(pi_ref / pi) - 1)      (TRL's use_bias_correction_kl: the factor rho)
    token loss = -min(rho A, clip(rho, 1 - eps, 1 + eps) A) + beta kl
    loss = mean over chains of the mean over a chain's tokens (loss_type grpo)

Three policies: the reference is where the phase began, the old policy drew the chains, and the new one has moved since.
"""

import pytest
import torch
from grpo_made import group
from test_train_exact import gradients, perturb
from train_made import FAMILIES, tiny
from trl import GRPOConfig

from visrl.core.prompts import PROTOCOLS
from visrl.policies.protocol import Sampling
from visrl.train.config.recipe import LoraSection
from visrl.train.grpo.batches import GroupEncoder
from visrl.train.grpo.credit import RewardPlan
from visrl.train.grpo.rollouts import RolloutPlan
from visrl.train.grpo.trainer import GroupTrainer

K, BETA, EPSILON = 4, 0.05, 0.002
# a step that mixes both signs and magnitudes; box tokens have their own, answer tokens theirs
ADVANTAGES = {"box": torch.tensor([1.0, -0.5, 0.25, -1.5] * 2), "answer": torch.tensor([-0.75, 1.25, 2.0, -1.0] * 2)}


def config(folder, **more):
    settings = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
        "save_strategy": "no", "dataloader_pin_memory": False, "num_generations": K, "per_device_train_batch_size": 2 * K,
        "beta": BETA, "epsilon": EPSILON, "num_iterations": 2, "loss_type": "grpo", "max_completion_length": 32,
    }  # fmt: skip
    return GRPOConfig(**settings | more)


def trainer_of(trainable, folder, *, shared=True, **more):
    encoder = GroupEncoder(trainable.encoder, shared=shared, store=trainable.feature_store(1.0))
    plans = (encoder, RolloutPlan(PROTOCOLS["visrl_train"], Sampling(K)), RewardPlan({"iou": 1.0}, {"answer": 1.0}))
    questions = [group(i, trainable).sample for i in range(2)]
    trainer = GroupTrainer(trainable, questions, plans, config(folder, **more), folder, title="test")
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    return trainer


def distributions(trainable, reply, temperature=1.0):
    """[C, V] log-probabilities that predict each token of a reply: token t of n is predicted at -n - 1 + t."""
    prompt = trainable.encoder.chat(reply.turns, sample="s")
    batch = trainable.family.collate([prompt.continued(reply.ids)])
    batch.pop("labels")
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    n = len(reply.ids)
    return (trainable.base(**batch).logits[0, -n - 1 : -1] / temperature).log_softmax(-1)


def by_hand(trainable, groups, **more):
    """Per chain and turn: log pi of each token [C], and the entropy there [C]."""
    out = []
    for chain in [chain for g in groups for chain in g.chains]:
        found = {}
        for step, reply in chain.replies.items():
            logs = distributions(trainable, reply, **more)
            found[step] = logs[torch.arange(len(reply.ids)), list(reply.ids)], -(logs.exp() * logs).sum(-1)
        out.append(found)
    return out


def hand_loss(new, old, ref, advantages):
    """(loss, kl, share of clipped tokens, entropy), the last three over all tokens."""
    losses, kls, clipped, entropies = [], [], [], []
    for i, turns in enumerate(new):
        tokens = []
        for step, (logs, entropy) in turns.items():
            advantage = advantages[step][i]
            rho = (logs - old[i][step][0]).exp()
            gap = ref[i][step][0] - logs
            kl = rho * (gap.exp() - gap - 1)
            surrogate = torch.minimum(rho * advantage, rho.clamp(1 - EPSILON, 1 + EPSILON) * advantage)
            tokens.append(-surrogate + BETA * kl)
            low, high = (rho < 1 - EPSILON) & (advantage < 0), (rho > 1 + EPSILON) & (advantage > 0)
            kls.append(kl.detach()), clipped.append((low | high).double()), entropies.append(entropy.detach())
        losses.append(torch.cat(tokens).mean())
    means = [torch.cat(found).mean().item() for found in (kls, clipped, entropies)]
    return torch.stack(losses).mean(), *means


def step(trainer, batch):
    """(loss, metrics, gradients) of one batch."""
    trainer._metrics["train"].clear()
    loss = trainer._compute_loss(trainer.model.train(), batch)
    loss.backward()
    metrics = {key: values[-1] for key, values in trainer._metrics["train"].items()}
    return loss.item(), metrics, gradients(trainer.model)


def same_step(trainer, batch, loss, wanted):
    """The metrics of a step whose loss and gradients are these."""
    value, metrics, found = step(trainer, batch)
    assert value == pytest.approx(loss, abs=1e-6)
    assert found.keys() == wanted.keys()
    largest = max(g.abs().max() for g in wanted.values())
    for key in wanted:
        assert (found[key] - wanted[key]).abs().max() <= 1e-6 * largest, key
    return metrics


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_gradients_and_metrics_equal_a_computation_by_hand(name, tmp_path):
    trainable = tiny(name, torch.float64)
    trainer = trainer_of(trainable, tmp_path)
    groups = [group(i, trainable) for i in range(2)]
    with torch.no_grad():
        ref = by_hand(trainable, groups)
        perturb(trainable.model)
        old = by_hand(trainable, groups)
    batches = {}
    for shared in (False, True):
        trainer.encoding = GroupEncoder(trainable.encoder, shared=shared, store=trainer.encoding.store)
        batches[shared] = trainer._encoded(groups, ADVANTAGES)
    perturb(trainable.model)  # moves on the way it moved before

    expected, kl, clipped, entropy = hand_loss(by_hand(trainable, groups), old, ref, ADVANTAGES)
    expected.backward()
    wanted = gradients(trainable.model)
    assert kl > 1e-4 and 0.05 < clipped < 0.95  # the policy did move, and some of it too far
    # one row for the box turn of a group, and one for each of the three crops looked at
    rows = {shared: {s: len(t["prompt_ids"]) for s, t in batches[shared]["turns"].items()} for shared in (False, True)}
    assert rows == {False: {"box": 8, "answer": 8}, True: {"box": 2, "answer": 6}}
    for batch in batches.values():
        metrics = same_step(trainer, batch, expected.item(), wanted)
        assert metrics["kl"] == pytest.approx(kl, abs=1e-5)
        assert metrics["clip_ratio/region_mean"] == pytest.approx(clipped, abs=1e-5)
        assert metrics["entropy"] == pytest.approx(entropy, abs=1e-5)


EVERY_LOSS = [(loss, "token") for loss in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo")]


@pytest.mark.parametrize(("loss", "level"), [*EVERY_LOSS, ("luspo", "sequence"), ("grpo", "sequence")])
def test_every_loss_of_trl_sees_the_same_numbers_in_both_layouts(loss, level, tmp_path):
    trainable = tiny("qwen2_5_vl", torch.float64)
    trainer = trainer_of(trainable, tmp_path, loss_type=loss, importance_sampling_level=level, entropy_coef=0.01)
    groups = [group(i, trainable) for i in range(2)]
    perturb(trainable.model)
    batches = []
    for shared in (False, True):
        trainer.encoding = GroupEncoder(trainable.encoder, shared=shared, store=trainer.encoding.store)
        # 8 chains' tokens, all drawn at once: what dapo, cispo and vespo divide by
        batches.append(trainer._encoded(groups, ADVANTAGES))
        batches[-1]["num_items_in_batch"] = batches[-1]["completion_mask"].sum()
    perturb(trainable.model)
    (plain, plain_metrics, plain_grads), (one, metrics, grads) = (step(trainer, batch) for batch in batches)
    assert one == pytest.approx(plain, rel=1e-9, abs=1e-12)
    assert metrics == pytest.approx(plain_metrics, abs=1e-9)
    largest = max(g.abs().max() for g in plain_grads.values())
    assert all((grads[key] - plain_grads[key]).abs().max() <= 1e-6 * largest for key in plain_grads)


def test_an_adapter_s_reference_is_the_adapter_as_the_phase_began(tmp_path):
    trainable = tiny("llava", torch.float64, lora=LoraSection())
    perturb(trainable.model)  # an adapter that goes on: not the base model
    trainer = trainer_of(trainable, tmp_path)
    groups = [group(0, trainable)]
    with torch.no_grad():
        ref = by_hand(trainable, groups)
        perturb(trainable.model)
        old = by_hand(trainable, groups)
    batch = trainer._encoded(groups, {step: a[:K] for step, a in ADVANTAGES.items()})
    expected, kl, *_ = hand_loss(by_hand(trainable, groups), old, ref, ADVANTAGES)
    loss, metrics, _ = step(trainer, batch)
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    assert kl > 1e-6 and metrics["kl"] == pytest.approx(kl, abs=1e-7)
    assert torch.equal(batch["old_per_token_logps"], trainer._log_probs(trainer.model, batch["turns"]).detach())


def test_log_probabilities_are_those_of_the_temperature_that_chains_are_drawn_at(tmp_path):
    trainable = tiny("llava", torch.float64)
    trainer = trainer_of(trainable, tmp_path, temperature=1.5)
    groups = [group(0, trainable)]
    batch = trainer._encoded(groups, {step: a[:K] for step, a in ADVANTAGES.items()})
    wanted = by_hand(trainable, groups, temperature=1.5)
    flat = torch.cat([turns[s][0] for turns in wanted for s in ("box", "answer")])
    found = batch["old_per_token_logps"][batch["completion_mask"].bool()]
    assert (found - flat).abs().max() < 1e-9


@pytest.mark.parametrize(("protocol", "kind", "turns"), [("direct", "qa", ["answer"]), ("visrl_train", "rec", ["box"])])
def test_chains_of_one_turn_have_the_other_s_tokens_nowhere(protocol, kind, turns, tmp_path):
    trainable = tiny("llava", torch.float64)
    encoder = GroupEncoder(trainable.encoder)
    assert list(encoder.turns([group(0, trainable, protocol, kind)], ("box", "answer"))) == turns


def test_a_question_without_a_box_turn_stands_beside_one_with_it(tmp_path):
    """A referring expression has no answer: its chains' answer columns are empty."""
    trainable = tiny("llava", torch.float64)
    trainer = trainer_of(trainable, tmp_path, num_iterations=1, beta=0.0)
    groups = [group(0, trainable, kind="rec"), group(1, trainable)]
    batch = trainer._encoded(groups, ADVANTAGES)
    box, answer = (batch["turns"][s]["taken"].sum(1).tolist() for s in ("box", "answer"))
    assert box == [len(c.replies["box"].ids) for g in groups for c in g.chains]
    assert answer == [0] * K + [len(c.replies["answer"].ids) for c in groups[1].chains]
    new = by_hand(trainable, groups)
    loss, *_ = step(trainer, batch)
    assert loss == pytest.approx(hand_loss(new, new, new, ADVANTAGES)[0].item(), abs=1e-6)
