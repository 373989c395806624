"""One training step of a real shape, measured: ``python step.py NAME FOLDER`` prints JSON. A process of its own: its memory is measured."""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import real_shapes
import torch
from peak import Peak
from PIL import Image
from trl.trainer import utils as trl_utils

from visrl.estimate.phase import EstimateRequest
from visrl.estimate.shape import describe_model
from visrl.estimate.training import sft_phases
from visrl.estimate.work import GPUS
from visrl.train.common.models import load_trainable
from visrl.train.data.load import load_demonstrations
from visrl.train.data.rows import Chain, ChainRow, write_rows
from visrl.train.sft.sft import SFTRecipe, run_sft

SIZE = (640, 480)
ROWS = 2


def write_data(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    chain = Chain(box=(101, 67, 303, 211), answer="stop")
    question = "What is written on the sign?"
    write_rows(folder / "chains.jsonl", [ChainRow(id="s0", picture="a.png", question=question, chain=chain)])


def recipe_of(name: str, folder: Path, rank: int) -> SFTRecipe:
    attention = {"attn": "eager"} if name == "paligemma2" else {}
    return SFTRecipe.model_validate(
        {
            "kind": "sft",
            "output": folder / "out",
            "model": {"path": str(folder / "model"), "dtype": "bfloat16", "box_format": "paper", **attention},
            "data": {"path": folder / "chains.jsonl", "pictures": folder},
            "lora": {"r": rank, "alpha": 16},
            "trainer": {
                "per_device_train_batch_size": ROWS,
                "gradient_accumulation_steps": 1,
                "num_train_epochs": 1,
                "gradient_checkpointing": True,  # as on a GPU
            },
        }
    )


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(name: str, folder: Path) -> dict[str, float]:
    trl_utils._use_triton = lambda _: True  # as on a GPU: only trained places are projected
    real_shapes.save(name, folder / "model")
    write_data(folder)
    recipe = recipe_of(name, folder, 8)
    (estimate,) = sft_phases(
        recipe, describe_model(str(folder / "model"), lora=recipe.lora), EstimateRequest(GPUS["h100"])
    )
    trainable = load_trainable(recipe.model, recipe.lora, recipe.seed)
    for parameter in trainable.model.parameters():  # files are mapped: what is not touched is not there
        parameter.data = parameter.data.clone()
    weights = sum(p.numel() * p.element_size() for p in trainable.model.parameters())
    rows = load_demonstrations(recipe.data)
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    with Peak(trainable.model.parameters()) as peak:
        run_sft(recipe, trainable, rows)
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    memory = estimate.memory
    return {
        "weights": weights,
        "estimated_weights": memory.weights,
        "estimated": memory.total,
        "activations": memory.activations,
        "logits": memory.logits,
        "gradients": memory.gradients,
        "optimiser": memory.optimiser,
        "counted": weights + peak.bytes,
        "resident": weights + int(line.split()[1]) * 1024 - before,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
