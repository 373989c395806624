"""One seed, one result: whatever was drawn in the process before, in every phase, with an adapter and without."""

import pytest
import torch
from tiny_models import build, save
from train_made import demonstration, preference

from visrl.train.common.models import add_lora, load_trainable
from visrl.train.config.recipe import DataSection, LoraSection, ModelSection
from visrl.train.dpo.stages import DPORecipe, run_stage
from visrl.train.sft.sft import SFTRecipe, run_sft

FAST = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_train_epochs": 1, "logging_steps": 1,
    "learning_rate": 2e-3, "save_steps": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ModelSection(path=str(save("llava", tmp_path_factory.mktemp("seeds") / "model")), dtype="float32")


def sft(asked, output, lora):
    recipe = SFTRecipe(kind="sft", model=asked, data=DataSection(), output=output, trainer=FAST, lora=lora)
    run_sft(recipe, load_trainable(asked, lora, recipe.seed), [demonstration(i) for i in range(4)])
    return output / "final"


def dpo(stage):
    def run(asked, output, lora):
        recipe = DPORecipe(kind="dpo", model=asked, data=DataSection(), output=output, trainer=FAST, lora=lora)
        run_stage(recipe, stage, load_trainable(asked, lora, recipe.seed), [preference(i) for i in range(4)])
        return output / f"stage{stage}/final"

    return run


@pytest.mark.parametrize("phase", [sft, dpo(1), dpo(2)], ids=["sft", "stage1", "stage2"])
@pytest.mark.parametrize("lora", [None, LoraSection(dropout=0.1)], ids=["whole", "lora"])
def test_two_runs_with_one_seed_are_equal_to_the_byte(phase, lora, model, tmp_path):
    file = "adapter_model.safetensors" if lora else "model.safetensors"
    weights = []
    for run in (1, 2):
        torch.manual_seed(run)  # what another library drew before
        weights.append((phase(model, tmp_path / str(run), lora) / file).read_bytes())
    assert weights[0] == weights[1]


def test_the_seed_decides_a_new_adapter_and_nothing_else():
    def first_matrix(seed):
        tuned = add_lora(build("llava")[0], LoraSection(), seed)
        return next(p for n, p in tuned.named_parameters() if "lora_A" in n)

    assert torch.equal(first_matrix(1), first_matrix(1)) and not torch.equal(first_matrix(1), first_matrix(2))
    bare = build("llava")[0]
    before = torch.get_rng_state()
    add_lora(bare, LoraSection(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
