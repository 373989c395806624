"""Loops whose phases are quick fakes: a fake training phase writes weights that say what they were made from."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from visrl.core.records import dump_json, write_atomically
from visrl.train.config.recipe import load_recipe
from visrl.train.dpo import stages
from visrl.train.grpo import phase as grpo_phase
from visrl.train.loop import run as loop
from visrl.train.sft import sft as sft_module

SFT = "kind: sft\noutput: x\nmodel: {path: elsewhere, dtype: float32}\ndata: {path: %s}\n"
PAIRS = (
    "kind: pairs\noutput: x\npolicy: {model: elsewhere}\ncritic: {kind: likelihood, model: elsewhere}\n"
    "data: {path: q.jsonl, limit: 50, skip: 7}\n"
)
RL = "kind: dpo\noutput: x\nmodel: {path: elsewhere, dtype: float32}\ndata: {path: elsewhere}\n"
GRPO = (
    "kind: grpo\noutput: x\nmodel: {path: elsewhere, dtype: float32}\ndata: {path: q.jsonl, limit: 40, skip: 3}\n"
    "critic: {kind: likelihood, model: elsewhere}\n"
)
LOOP = (
    "kind: loop\noutput: %s/run\nseed: 5\nbase: %s/base\nsft: {recipe: sft.yaml}\npairs: {recipe: pairs.yaml}\n"
    "rl: {recipe: rl.yaml, set: {step.beta_box: 0.3}}\niterations: 2\n"
)


def weights(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(text)
    (folder / "config.json").write_text("{}")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Recipes on disk; each kind's ``run``, the pairs and the scoring replaced. ``ran``: what ran, in order."""
    weights(tmp_path / "base", "base")
    (tmp_path / "chains.jsonl").write_text("chains")
    (tmp_path / "sft.yaml").write_text(SFT % (tmp_path / "chains.jsonl"))
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    (tmp_path / "rl.yaml").write_text(RL)
    (tmp_path / "grpo.yaml").write_text(GRPO)
    (tmp_path / "loop.yaml").write_text(LOOP % (tmp_path, tmp_path))
    ran = []

    def said(path):
        return (Path(path) / "model.safetensors").read_text()

    def sft(recipe):
        ran.append("sft")
        weights(recipe.output / "final", f"sft({said(recipe.model.path)})")

    def pairs(recipe):
        ran.append(f"pairs skip {recipe.data.skip}")
        policy, critic = (said(m.partition(":")[2]) for m in (recipe.policy.model, recipe.critic.model))
        write_atomically(recipe.output / "pairs.jsonl", f"pairs of {policy} by {critic} from {recipe.data.skip}")
        manifest = {"funnel": {"pairs": 12, "questions": {"asked": 50}}}
        write_atomically(recipe.output / "manifest.json", dump_json(manifest))
        return manifest

    def rl(recipe):
        (stage,) = recipe.step.stages
        ran.append(f"rl{stage} beta {recipe.step.beta_box} seed {recipe.seed}")
        made = f"rl{stage}({said(recipe.model.path)}; {recipe.data.file.read_text()})"
        weights(recipe.output / f"stage{stage}" / "final", made)

    def grpo(recipe):
        section, critic = recipe.grpo, said(recipe.critic.model.removeprefix("hf:"))
        ran.append(f"grpo {section.baseline} skip {recipe.data.skip} seed {recipe.seed}")
        weights(recipe.output / "final", f"grpo({said(recipe.model.path)} by {critic} from {recipe.data.skip})")

    for module, fake in ((sft_module, sft), (stages, rl), (grpo_phase, grpo)):
        monkeypatch.setattr(module, "KIND", replace(module.KIND, run=fake))
    monkeypatch.setattr(loop, "generate_pairs", pairs)
    monkeypatch.setattr(loop, "score_phase", score)
    monkeypatch.setattr(loop, "free", lambda: None)  # collecting torch's garbage takes a second each time
    return tmp_path, ran


def score(folder, label, found, section, answering="hf"):
    """Right answers as a function of the weights' bytes: 4 questions on 2 pictures."""
    digest = hashlib.sha256(found.sha256().encode()).digest()
    rows = [
        {"task": "world_viscot_doc", "sample_id": str(i), "cluster": str(i // 2), "group": "",
         "scores": {"answer": digest[i] % 2, "box_acc": digest[i + 4] % 2}}
        for i in range(4)
    ]  # fmt: skip
    write_atomically(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def recipe(folder, *settings):
    return load_recipe(folder / "loop.yaml", settings).recipe
