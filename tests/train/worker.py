"""A training run in a process of its own, for tests that kill it or run several."""

import os
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from train_made import preference

from visrl.train.common.models import load_trainable
from visrl.train.config.recipe import DataSection, ModelSection
from visrl.train.dpo.stages import DPORecipe, run_stage


def recipe(folder: Path, **trainer) -> DPORecipe:
    model = ModelSection(path=str(folder / "model"), dtype="float32", box_format="paper")
    fast = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "num_train_epochs": 6, "logging_steps": 1,
        "learning_rate": 1e-3, "save_steps": 3, "save_total_limit": 2,
    }  # fmt: skip
    return DPORecipe(kind="dpo", model=model, data=DataSection(), output=folder / "out", trainer=fast | trainer)


def train(folder: Path, stage: int = 2, lora=None, **trainer):
    asked = recipe(folder, **trainer)
    return run_stage(asked, stage, load_trainable(asked.model, lora, asked.seed), [preference(i) for i in range(8)])


def child(folder: Path, environment: dict[str, str], trainer: dict[str, int]) -> None:
    """Train in a forked process: torch and transformers are imported already, accelerate's state is not inherited."""
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    train(folder, **trainer)
