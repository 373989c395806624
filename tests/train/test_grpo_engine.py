"""Chains drawn by an engine that is handed the trained adapter: here another copy of the model, loaded anew at every hand-over.

Draws hang on seed, question and step alone, so that this engine draws the very chains of the model in training.
"""

import pytest
import torch
from grpo_worker import recipe, train
from safetensors.torch import load_file
from tiny_models import save

from visrl.errors import UsageError
from visrl.policies.protocol import Policy
from visrl.policies.registry import load_policy
from visrl.train.config.recipe import LoraSection
from visrl.train.grpo.engine import Engine, engine_policy
from visrl.train.grpo.recipe import EngineSection, GRPORecipe
from visrl.train.grpo.trainer import GroupTrainer


class Reloading(Policy):
    """``hf:`` with another adapter, as an engine is used: it remembers what it was handed."""

    name = "reloading"

    def __init__(self, model):
        self.model, self.handed, self.inner = str(model), [], None

    def use_adapter(self, folder):
        self.handed.append(load_file(f"{folder}/adapter_model.safetensors"))
        args = {"dtype": "float32", "box_format": "paper", "adapter": folder}
        self.inner = load_policy(f"hf:{self.model}", args)
        self.box_format = self.inner.box_format

    def generate(self, requests, sampling):
        return self.inner.generate(requests, sampling)

    def describe(self):
        return {}


def adapter(folder):
    return load_file(folder / "out/final/adapter_model.safetensors")


def made(folder, *, engine=None, **more):
    """(trainer, engine) after 6 steps: 8 questions, 2 groups a step, an epoch and a half."""
    save("llava", folder / "model")
    used = None if engine is None else Engine(Reloading(folder / "model"), folder / "out/handed", engine)
    return train(folder, LoraSection(), engine=used, max_steps=6, **more), used


def test_an_engine_handed_every_step_s_adapter_gives_the_weights_of_drawing_in_process(tmp_path):
    trainer, engine = made(tmp_path / "engine", engine=1)
    made(tmp_path / "plain")
    assert len(engine.policy.handed) == 6  # one generation a step
    moved = [torch.equal(a["base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight"],
                         b["base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight"])
             for a, b in zip(engine.policy.handed, engine.policy.handed[1:], strict=False)]  # fmt: skip
    assert not any(moved)
    ours, plain = adapter(tmp_path / "engine"), adapter(tmp_path / "plain")
    assert ours.keys() == plain.keys()
    assert all(torch.allclose(ours[name], plain[name], atol=1e-6) for name in ours)
    assert trainer.state.log_history[0]["clip_ratio/region_mean"] == 0.0


def test_between_two_hand_overs_ratios_are_held_against_the_weights_that_sampled(tmp_path, monkeypatch):
    """Handed over before steps 0, 2 and 4. Then the policy is the one that sampled, and no ratio differs from 1; a step later it has moved."""
    ratios = []
    original = GroupTrainer._compute_loss

    def watched(self, model, inputs):
        with torch.no_grad():
            now = self._log_probs(self.model.eval(), inputs["turns"])
        gap = (now - inputs["old_per_token_logps"]).abs()[inputs["completion_mask"].bool()]
        ratios.append(gap.max().item())
        return original(self, model, inputs)

    monkeypatch.setattr(GroupTrainer, "_compute_loss", watched)
    _, engine = made(tmp_path, engine=2)
    assert len(engine.policy.handed) == 3 and len(ratios) == 6
    assert all(gap < 1e-5 for gap in ratios[0::2]) and all(gap > 1e-4 for gap in ratios[1::2])


def test_a_checkpoint_is_taken_where_the_engine_gets_new_weights(tmp_path):
    """save_steps 3 becomes 4, the next multiple of 2: what is sampled after a resume then comes from the same weights."""
    trainer, _ = made(tmp_path, engine=2)
    assert trainer.args.save_steps == 4
    with pytest.raises(UsageError, match=r"every 3 is not a multiple of the 2 steps") as caught:
        made(tmp_path / "odd", engine=3, steps_per_generation=2)
    assert "4, for example" in caught.value.hint


def test_what_an_engine_is_started_with_and_that_it_needs_an_adapter(tmp_path):
    asked = recipe(tmp_path).model_dump()
    asked["grpo"]["engine"] = EngineSection(args={"gpu_memory_utilization": 0.3}, every=4).model_dump()
    with pytest.raises(ValueError, match="needs the section lora"):
        GRPORecipe.model_validate(asked)
    asked["lora"] = {"r": 16}
    with pytest.raises(ValueError, match="from the base without its rounding"):
        GRPORecipe.model_validate({**asked, "model": {**asked["model"], "load_in_4bit": True}})
    spec, args = engine_policy(GRPORecipe.model_validate(asked))
    assert spec == f"vllm:{tmp_path / 'model'}"
    assert args == {"dtype": "float32", "max_lora_rank": "16", "box_format": "paper", "gpu_memory_utilization": "0.3"}
