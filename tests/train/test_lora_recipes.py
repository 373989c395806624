"""Every shipped LoRA recipe twice, on a tiny random checkpoint of its family: one seed, equal weights, whatever was drawn before."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from own_made import BOXES, bring

from visrl.cli.train import run
from visrl.train.grpo import rewards

ROOT = Path(__file__).parents[2]
FAMILIES = {
    "llava-1.5-7b": "llava",
    "llava-next-7b": "llava_next",
    "llama-3.2-vision-11b": "mllama",
    "paligemma2-10b": "paligemma2",
    "qwen2.5-vl-7b": "qwen2_5_vl",
    "yi-vl-6b": "yi_vl",
}
MODEL = ["model.path=model", "model.dtype=float32"]
STEPS = [
    *("trainer.gradient_accumulation_steps=1", "trainer.per_device_train_batch_size=2"),
    *("trainer.num_train_epochs=1", "trainer.learning_rate=1e-2"),
]
GROUPS = [  # a random critic judges nothing, and a random model answers nothing: rewards by the drawn tokens themselves
    *("critic=null", "grpo.box={even_box: 1.0}", "grpo.answer={even_answer: 1.0}", "data.skip=0", "data.limit=2"),
    *("trainer.num_generations=4", "trainer.per_device_train_batch_size=4", "trainer.max_completion_length=8"),
]


def test_every_lora_recipe_is_tried_here():
    """Those with an adapter of their own, and those that go on with it."""
    found = {
        path.stem
        for path in (ROOT / "recipes").glob("*.yaml")
        if any(f"{k}:" in path.read_text() for k in ("lora", "  adapter"))
    }
    assert found == {f"{name}-{phase}" for name in FAMILIES for phase in ("sft", "rl", "grpo")}


def pairs(folder):
    """Four preferences for the true box and answer, over the other ones."""
    rows = [
        {
            "id": str(i), "picture": f"cot/cub/{i}.png", "question": "blue ?",
            "win": {"box": BOXES[i % 2], "answer": "A"}, "lose": {"box": BOXES[1 - i % 2], "answer": "B"},
        }
        for i in range(4)
    ]  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def weights(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("final/adapter_model.safetensors"))}


def twice(recipe, *settings):
    """The adapters that two runs of a recipe left."""
    found = []
    for number in (1, 2):
        torch.manual_seed(number)  # what another library drew before
        out = Path(f"out{number}/{Path(recipe).stem}")
        words = [word for setting in (f"output={out}", *settings) for word in ("--set", setting)]
        assert run([str(recipe), *words]) == 0
        found.append(weights(out))
    return found


def even(step):
    """The share of even token ids in a turn."""
    return rewards.each(lambda group, chain: share(chain.replies[step].ids) if step in chain.replies else None)


def share(ids):
    return sum(i % 2 == 0 for i in ids) / len(ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_runs_of_a_recipe_end_with_equal_weights(name, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    for step in ("box", "answer"):
        monkeypatch.setitem(rewards.REWARDS, f"even_{step}", even(step))
    bring(tmp_path, FAMILIES[name])
    pairs(Path(f"runs/{name}-pairs"))
    here = ROOT / "recipes"
    first, second = twice(here / f"{name}-sft.yaml", *MODEL, *STEPS, "data.limit=4")
    assert first == second and list(first) == ["final/adapter_model.safetensors"]
    shutil.copytree(f"out1/{name}-sft/final", f"runs/{name}-sft/final")
    before = set(weights(Path(f"runs/{name}-sft")).values())
    first, second = twice(here / f"{name}-rl.yaml", *MODEL, *STEPS)
    assert first == second and len({*first.values(), *before}) == 3, "both stages train"
    first, second = twice(here / f"{name}-grpo.yaml", *MODEL, *STEPS, *GROUPS)
    assert first == second and len({*first.values(), *before}) == 2, "it trains"
