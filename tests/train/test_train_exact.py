"""Loss, gradients and metrics of stages 1 and 2 equal a computation by hand, for every family; shared rows equal plain rows.

By hand: every completion in a row of its own without padding, through the family's plain batch and the model's plain forward;
the loss from the poster's equation. In double precision, so that equal means equal.
"""

import math

import pytest
import torch
from tiny_models import save
from train_made import FAMILIES, preference, tiny
from trl import DPOConfig

from visrl.policies.hf.decoding import sliding_window
from visrl.train.common import logprobs
from visrl.train.common.branch_attention import use_branch_attention
from visrl.train.common.logprobs import BranchScorer
from visrl.train.common.models import load_trainable
from visrl.train.config.recipe import ModelSection
from visrl.train.dpo.collator import PairCollator
from visrl.train.dpo.losses import stage_terms
from visrl.train.dpo.trainer import StepDPOTrainer

KNOBS = {"beta_box": 0.1, "beta_answer": 0.3, "lambda_box": 0.6, "lambda_answer": 0.4}


def config(folder, **more):
    return DPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", max_length=None,
        save_strategy="no", dataloader_pin_memory=False, **more,
    )  # fmt: skip


def log_probability(trainable, prompt, completion):
    """log pi(completion | prompt), summed: token t of a reply of n stands at -n + t and is predicted one before."""
    batch = trainable.family.collate([prompt.continued(completion.tolist())])
    batch.pop("labels")
    batch = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    logp = trainable.base(**batch).logits[0].log_softmax(-1)
    n = len(completion)
    return sum(logp[-n - 1 + t, completion[t]] for t in range(n))


def by_hand(trainable, collator, term):
    """[B, 2]: log pi of chosen and of rejected per pair."""
    rows = []
    for i in range(len(collator.pairs)):
        pair = collator._encode(collator.pairs[i], term)
        first, last = pair.prompts[0], pair.prompts[-1]
        rows.append(
            torch.stack(
                [log_probability(trainable, first, pair.chosen), log_probability(trainable, last, pair.rejected)]
            )
        )
    return torch.stack(rows)


def perturb(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                parameter.add_(noise * 0.02)


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def step(trainer, rows):
    """(loss, metrics, gradients) of one batch."""
    trainer._metrics["train"].clear()
    inputs = trainer._prepare_inputs(trainer.collator([{"row": row} for row in rows]))
    loss = trainer._compute_loss(trainer.model.train(), inputs)
    loss.backward()
    metrics = {key: values[-1] for key, values in trainer._metrics["train"].items()}
    return loss.item(), metrics, gradients(trainer.model)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("stage", [1, 2])
def test_loss_gradients_and_metrics_equal_a_computation_by_hand(name, stage, tmp_path):
    trainable, terms = tiny(name, torch.float64), stage_terms(stage, **KNOBS)
    pairs = [preference(0), preference(1), preference(2)]
    names = tuple(term.name for term in terms)
    collator = PairCollator(pairs, trainable.encoder, names, store=trainable.feature_store(1.0))
    trainer = StepDPOTrainer(trainable, collator, terms, config(tmp_path), tmp_path, title="test")
    trainer._began = True  # policy and reference differ here on purpose
    with torch.no_grad():
        reference = {term: by_hand(trainable, collator, term) for term in names}
    collator.references = reference
    perturb(trainable.model)

    expected, margins = 0.0, {}
    for term in terms:
        ratio = by_hand(trainable, collator, term.name) - reference[term.name]  # log pi/pi_ref, [B, 2]
        delta = term.beta * (ratio[:, 0] - ratio[:, 1])
        margins[term.name] = delta.detach()
        expected = expected + term.weight * -torch.log(torch.sigmoid(delta)).mean()
    expected.backward()
    wanted = gradients(trainable.model)
    largest = max(g.abs().max() for g in wanted.values())
    assert abs(expected.item() - math.log(2) * sum(t.weight for t in terms)) > 1e-4  # the policy did move

    results = {}
    for layout in ("plain", "dense mask"):
        collator.shared = layout != "plain"
        loss, metrics, found = results[layout] = step(trainer, [0, 1, 2])
        assert loss == pytest.approx(expected.item(), abs=1e-6)
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert (found[key] - wanted[key]).abs().max() <= 1e-6 * largest, key
        for term in names:
            assert metrics[f"{term}/rewards/margins"] == pytest.approx(margins[term].mean().item(), abs=1e-5)
            right = (margins[term] > 0).double().mean().item()
            assert metrics[f"{term}/rewards/accuracies"] == pytest.approx(right, abs=1e-6)
    for key, value in results["plain"][1].items():  # every metric, TRL's own too, is the same in all layouts
        if key not in ("num_tokens", "tokens/trained"):  # counts on from batch to batch; what sharing saves
            assert results["dense mask"][1][key] == pytest.approx(value, abs=1e-6), key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_flex_mask_gives_the_values_of_the_dense_one(name, monkeypatch):
    """Without gradients, which FlexAttention has on GPUs alone: tests/gpu compares them there."""
    trainable = tiny(name, torch.float64)
    collator = PairCollator([preference(i) for i in range(3)], trainable.encoder, ("box",))
    batch = collator([{"row": i} for i in range(3)])["box"]
    assert batch["completions"].shape[:2] == (3, 2)  # one row per pair

    def values():
        with torch.no_grad():
            return BranchScorer(trainable.model, trainable.base, trainable.family, batch)(detail=False).log_probs

    dense = values()
    use_branch_attention(trainable.base)
    assert torch.equal(values(), dense)  # on a CPU the mask stays dense
    taken = []
    monkeypatch.setattr(logprobs, "wants_flex_mask", lambda model: taken.append(model) or True)
    assert (values() - dense).abs().max() < 1e-6  # Gemma2 takes its softmax in float32
    assert taken


@pytest.mark.parametrize(
    ("name", "plainly"), [("llava", "sdpa"), ("paligemma2", "eager"), ("qwen2_5_vl", "sdpa"), ("mllama", "sdpa")]
)
def test_flex_attention_is_asked_for_by_name(name, plainly, tmp_path):
    """Also where transformers' class says no to it (Qwen), and where sdpa does (Gemma2's capped scores); not in what is saved."""
    save(name, tmp_path / "model")
    section = ModelSection(path=str(tmp_path / "model"), dtype="float32", box_format="paper")
    found = {
        attn: load_trainable(section.model_copy(update={"attn": attn}), None, 0) for attn in (plainly, "flex_attention")
    }
    language = [t.base.config.get_text_config()._attn_implementation for t in found.values()]
    assert language == [plainly, f"visrl_branches_{plainly}"]
    values = []
    for t in found.values():
        batch = PairCollator([preference(0), preference(1)], t.encoder, ("box",), shared=False)(
            [{"row": 0}, {"row": 1}]
        )["box"]
        with torch.no_grad():
            values.append(BranchScorer(t.model, t.base, t.family, batch)(detail=False).log_probs)
    assert (
        values[0] - values[1]
    ).abs().max() < 1e-4  # plain rows attend as before; Gemma2's tower by sdpa, not eagerly
    found["flex_attention"].base.save_pretrained(tmp_path / "out")
    assert "visrl_branches" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("context", ["win_crop", "own_crop"])
def test_the_losing_answer_follows_the_win_crop_unless_its_own_is_asked_for(context):
    trainable = tiny("llava")
    collator = PairCollator([preference(0)], trainable.encoder, ("answer",), context=context)
    prompts = collator._encode(preference(0), "answer").prompts
    crops = {prompt.pictures[1].digest for prompt in prompts}
    assert len(crops) == (1 if context == "win_crop" else 2)
    assert collator([{"row": 0}])["answer"]["completions"].shape[:2] == ((1, 2) if context == "win_crop" else (2, 1))


def test_own_crop_equals_a_computation_by_hand(tmp_path):
    trainable, terms = tiny("qwen2_5_vl", torch.float64), stage_terms(2, **KNOBS)[1:]
    collator = PairCollator([preference(0), preference(1)], trainable.encoder, ("answer",), context="own_crop")
    trainer = StepDPOTrainer(trainable, collator, terms, config(tmp_path), tmp_path, title="test")
    trainer._began = True
    collator.references = {"answer": torch.zeros(2, 2, dtype=torch.float64)}
    logs = by_hand(trainable, collator, "answer")
    expected = 0.4 * -torch.log(torch.sigmoid(0.3 * (logs[:, 0] - logs[:, 1]))).mean().item()
    assert step(trainer, [0, 1])[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "window"), [("paligemma2", 1024), ("qwen2_5_vl", None), ("llava", None)])
def test_only_families_that_slide_have_a_window(name, window):
    assert sliding_window(tiny(name).base) == window


def test_rows_longer_than_a_sliding_window_are_not_shared():
    trainable = tiny("llava")
    whole = PairCollator([preference(0)], trainable.encoder, ("box",), window=10_000)
    short = PairCollator([preference(0)], trainable.encoder, ("box",), window=10)
    assert whole([{"row": 0}])["box"]["completions"].shape[:2] == (1, 2)
    assert short([{"row": 0}])["box"]["completions"].shape[:2] == (2, 1)


@pytest.mark.parametrize("loss", [["sigmoid", "sft"], ["ipo"], ["hinge"], ["apo_zero"], ["robust"], ["sppo_hard"]])
def test_every_loss_of_trl_sees_the_same_numbers_in_both_layouts(loss, tmp_path):
    trainable, terms = tiny("llava", torch.float64), stage_terms(1, **KNOBS)
    collator = PairCollator([preference(0), preference(1)], trainable.encoder, ("box",))
    args = config(tmp_path, loss_type=loss, loss_weights=[1.0, 0.2][: len(loss)])
    trainer = StepDPOTrainer(trainable, collator, terms, args, tmp_path, title="test")
    trainer._began = True
    collator.references = {"box": torch.tensor([[-200.0, -201.0], [-190.0, -195.0]], dtype=torch.float64)}
    found = []
    for shared in (False, True):
        collator.shared = shared
        found.append(step(trainer, [0, 1])[0])
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    if loss == ["sigmoid", "sft"]:  # RPO: DPO + .2 times the mean negative log-probability of the winners' tokens
        logs = by_hand(trainable, collator, "box")
        ratio = logs - collator.references["box"]
        dpo = -torch.log(torch.sigmoid(0.1 * (ratio[:, 0] - ratio[:, 1]))).mean()
        tokens = sum(len(collator._encode(pair, "box").chosen) for pair in collator.pairs)
        assert found[0] == pytest.approx((dpo - 0.2 * logs[:, 0].sum() / tokens).item(), rel=1e-6)
