"""A GRPO run in a process of its own, for tests that kill it or run several. A tiny model says nonsense: it is rewarded for
even tokens, which some chains have more of than others.
"""

import os
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from train_made import sample

from visrl.train.common.models import load_trainable
from visrl.train.config.recipe import ModelSection
from visrl.train.data.questions import QuestionSection
from visrl.train.grpo import rewards
from visrl.train.grpo.phase import reward_plan, run_phase
from visrl.train.grpo.recipe import GRPORecipe, GRPOSection

K = 4


def even(turn):
    def value(group, chain):
        ids = chain.replies[turn].ids
        return sum(i % 2 == 0 for i in ids) / len(ids)

    return rewards.each(value)


rewards.REWARDS["even_box"], rewards.REWARDS["even_answer"] = even("box"), even("answer")


def recipe(folder: Path, section=None, **trainer) -> GRPORecipe:
    model = ModelSection(path=str(folder / "model"), dtype="float32", box_format="paper")
    fast = {
        "num_generations": K, "per_device_train_batch_size": 2 * K, "gradient_accumulation_steps": 1, "num_train_epochs": 3,
        "logging_steps": 1, "learning_rate": 1e-3, "save_steps": 3, "save_total_limit": 2, "max_completion_length": 6,
        "beta": 0.05, "loss_type": "grpo",
    }  # fmt: skip
    asked = {"box": {"even_box": 1.0}, "answer": {"even_answer": 1.0}, "protocol": "visrl_train"}
    return GRPORecipe(
        kind="grpo", model=model, data=QuestionSection(), output=folder / "out", trainer=fast | trainer,
        grpo=GRPOSection(**asked | (section or {})),
    )  # fmt: skip


def train(folder: Path, lora=None, section=None, engine=None, **trainer):
    asked = recipe(folder, section, **trainer)
    trainable = load_trainable(asked.model, lora, asked.seed)
    return run_phase(asked, trainable, [sample(i) for i in range(8)], reward_plan(asked), engine)


def child(folder: Path, environment: dict[str, str], trainer: dict[str, int]) -> None:
    """Train in a forked process: torch and transformers are imported already, accelerate's state is not inherited."""
    os.environ.update(environment)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    train(folder, **trainer)
