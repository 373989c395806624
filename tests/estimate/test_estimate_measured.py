"""Estimates against runs: tokens and bytes predicted from config and a few questions, counted while three tiny families really run.

A prediction builds no weights (visrl/estimate/shape.py) and sees a third of the rows at most; a measurement counts ids that enter the model and the
storages that live (peak.py). Every figure within 20 %.
"""

import numpy as np
import pytest
import tiny_models as tiny
import torch
from peak import Peak
from PIL import Image

from visrl.core.prompts import PROTOCOLS
from visrl.core.types import CoTSample, Picture
from visrl.estimate import training
from visrl.estimate.generating import evaluation_phase
from visrl.estimate.memory import Memory
from visrl.estimate.phase import EstimateRequest
from visrl.estimate.shape import describe_model
from visrl.estimate.training import dpo_phases
from visrl.estimate.work import GPUS
from visrl.policies.hf.loading import CheckpointArguments, load_checkpoint
from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import Sampling
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer
from visrl.train.common.models import load_trainable
from visrl.train.data.rows import Chain, PairRow, write_rows
from visrl.train.dpo.stages import DPORecipe, run_stage

torch.set_num_threads(1)
FAMILIES = ("llava", "qwen2_5_vl", "paligemma2")
SIZES = [(90, 50), (40, 44), (64, 64), (120, 100)]
QUESTIONS = ["what letter is on the red circle ?", "blue ?", "is the square that lies to the left of it green ?"]
MAX_TOKENS = 6  # a random model never ends its answer: so many are written, and as many are predicted
within = pytest.approx


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("estimated")

    def saved(name):
        return str(root / name if (root / name).exists() else tiny.save(name, root / name))

    return saved


def image(i):
    width, height = SIZES[i % 4]
    return Image.fromarray(np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8))


def samples(n):
    made = [(i, image(i)) for i in range(n)]
    return [
        CoTSample(f"s{i}", "t", "qa", QUESTIONS[i % 3], Picture(f"p{i}", lambda x=x: x), x.size) for i, x in made
    ]  # fmt: skip


def spent(memory: Memory, but=("weights",)):
    return memory.total - sum(getattr(memory, name) for name in but)


def said(name, phase, estimate, first, second, estimated, bytes_):
    """The row of docs/estimating.md; seen with pytest -s."""
    other = estimate.work.trained or estimate.work.decode
    print(
        f"| {name} | {phase} | {estimate.work.prefill:.0f} / {first} | {other:.0f} / {second} | {estimated / 1e6:.2f} / {bytes_ / 1e6:.2f} ({estimated / bytes_ - 1:+.0%}) |"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_evaluation(name, folder):
    many, request = samples(20), EstimateRequest(GPUS["h100"], answer=MAX_TOKENS)
    how = {
        "protocol": "visrl_train",
        "crop": "tight",
        "dtype": "float32",
        "rows": 4,
        "requests": 16,
        "max_tokens": MAX_TOKENS,
    }
    estimate = evaluation_phase(
        "t", describe_model(folder(name)), many[:6], len(many), request, box_format="paper", **how
    )

    policy = HFPolicy(
        name, load_checkpoint(folder(name), CheckpointArguments(dtype="float32")), box_format="paper", rows=4
    )
    counted = {"computed": 0, "written": 0}
    inner = policy.generate

    def generate(requests, sampling):
        outputs = inner(requests, sampling)
        counted["computed"] += sum(o.prompt_tokens - o.cached_tokens for o in outputs)
        counted["written"] += sum(o.output_tokens for o in outputs)
        return outputs

    policy.generate = generate
    look = RolloutConfig(PROTOCOLS["visrl_train"], crop="tight", sampling=Sampling(max_tokens=MAX_TOKENS))
    with Peak(policy.model.parameters()) as peak:
        episodes = list(look_then_answer(policy, many, look, batch_size=16))
    assert all(e.error is None for e in episodes)
    said(
        name,
        "evaluation",
        estimate,
        counted["computed"],
        counted["written"],
        spent(estimate.memory) + estimate.memory.host,
        peak.bytes,
    )
    assert estimate.work.prefill == within(counted["computed"], rel=0.2)
    assert estimate.work.decode == within(counted["written"], rel=0.2)
    assert estimate.memory.weights == sum(p.numel() * 4 for p in policy.model.parameters())
    assert spent(estimate.memory) + estimate.memory.host == within(peak.bytes, rel=0.2)  # here one memory is both


def write_pairs(where, n):
    rows = []
    for i in range(n):
        image(i).save(where / f"{i}.png")
        win, lose = Chain(box=(2, 3, 20, 25), answer="yes"), Chain(box=(5, 1, 28, 9 + i % 5), answer="no")
        rows.append(PairRow(id=f"s{i}", picture=f"{i}.png", question=QUESTIONS[i % 3], win=win, lose=lose))
    write_rows(where / "pairs.jsonl", rows)


def recipe_of(name, folder, where, **more):
    attention = {"attn": "eager"} if name == "paligemma2" else {}  # Gemma2 has no other
    request = {
        "kind": "dpo", "output": where / "out", "model": {"path": folder(name), "dtype": "float32", "box_format": "paper", **attention},
        "data": {"path": where / "pairs.jsonl", "pictures": where}, "step": {"stages": [1]},
        "trainer": {
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_train_epochs": 1, "save_steps": 100,
            "gradient_checkpointing": False,
        },
    }  # fmt: skip
    return DPORecipe.model_validate({**request, **more})


@pytest.mark.parametrize("name", FAMILIES)
def test_dpo_stage_one(name, folder, tmp_path, monkeypatch):
    write_pairs(tmp_path, 12)
    recipe = recipe_of(name, folder, tmp_path)
    monkeypatch.setattr(training, "LOOKED_AT", 4)  # two in three rows are never looked at
    (estimate,) = dpo_phases(recipe, describe_model(folder(name)), EstimateRequest(GPUS["h100"]))

    from visrl.train.data.load import load_preferences

    trainable = load_trainable(recipe.model, None, recipe.seed)
    fed = {True: 0, False: 0}

    def count(module, args, kwargs):
        fed[torch.is_grad_enabled()] += kwargs["input_ids"].numel()

    trainable.model.register_forward_pre_hook(count, with_kwargs=True)
    before = [p.numel() * 4 for p in trainable.model.parameters()]
    with Peak(trainable.model.parameters()) as peak:
        run_stage(recipe, 1, trainable, load_preferences(recipe.data))
    said(name, "dpo stage 1", estimate, fed[False], fed[True], spent(estimate.memory), peak.bytes)
    assert estimate.work.prefill == within(fed[False], rel=0.2), "the reference"
    assert estimate.work.trained == within(fed[True], rel=0.2)
    assert estimate.memory.weights == sum(before)
    assert estimate.memory.optimiser == 2 * 4 * sum(p.numel() for p in trainable.model.parameters() if p.requires_grad)
    assert spent(estimate.memory) == within(peak.bytes, rel=0.2)
