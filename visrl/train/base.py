"""Training of the small models, phase by phase, in one plain loop: base (M_org), warm-up (M_SFT), tiny.

    python -m visrl.train.base recipes/world-base.yaml --out visrl/world/checkpoints/base

The base is this package's stand-in for a pre-trained model, so it may use what no VisRL phase uses: targets on picture tokens
("a few patches inside the asked thing: here, as many outside: away"), which bind words to regions without a box in sight.
Muon for the hidden matrices and AdamW for the rest (training.md, point 3). Same recipe, same seed: same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from visrl.errors import UsageError
from visrl.train.lessons import IGNORE, Example, Teacher
from visrl.world.dice import Dice
from visrl.world.model import build_model, build_processor, build_tokenizer

MUON_RATIO = 10.0  # Muon's learning rate over AdamW's: its updates are orthogonal, of unit spectral norm


@dataclass(frozen=True, slots=True)
class Recipe:
    """A phase. lessons: lesson -> (share of the batches at the start, at the end), linear in between. pictures: how many of the split's are used (None: all).

    start: a checkpoint folder to begin from, None for random weights. lr: AdamW's peak; Muon's is ten times that.
    """

    name: str
    split: str
    steps: int
    lessons: dict[str, tuple[float, float]]
    batch: int = 32
    lr: float = 1.5e-3
    warmup: int = 100
    hold: float = 0.3
    seed: int = 0
    pictures: int | None = None
    start: str | None = None
    log_every: int = 100
    model: dict[str, int] = field(default_factory=dict)


def read_recipe(path: Path) -> Recipe:
    """A recipe from YAML. Raises UsageError for keys that are not known or missing."""
    values = yaml.safe_load(path.read_text())
    values.pop("kind", None)
    try:
        return Recipe(**values)
    except TypeError as error:
        raise UsageError(f"{path}: {error}", f"a recipe has {', '.join(Recipe.__slots__)}") from error


def factor(step: int, recipe: Recipe) -> float:
    """The learning rate's share at ``step``: linear warm-up, held, then half a cosine down to 5 %."""
    done = step / recipe.steps
    fall = 1.0 if done < recipe.hold else 0.5 * (1 + math.cos(math.pi * (done - recipe.hold) / (1 - recipe.hold)))
    return min(1.0, (step + 1) / recipe.warmup) * (0.05 + 0.95 * fall)


def optimisers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for two-dimensional hidden weights, AdamW for embeddings, convolutions, norms and biases."""
    matrices, rest = [], []
    for name, weight in model.named_parameters():
        hidden = weight.ndim == 2 and "embed" not in name and "lm_head" not in name and "positions" not in name
        (matrices if hidden else rest).append(weight)
    return [
        torch.optim.Muon(matrices, lr=MUON_RATIO * lr, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def collate(examples: list[Example], pad: int) -> dict[str, torch.Tensor]:
    """input_ids, labels, attention_mask [B, T], padded on the right; pixel_values [pictures, 3, 64, 64] in -2..2."""
    length = max(len(example.ids) for example in examples)
    ids = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), IGNORE)
    mask = torch.zeros((len(examples), length), dtype=torch.long)
    for row, example in enumerate(examples):
        n = len(example.ids)
        ids[row, :n], labels[row, :n], mask[row, :n] = torch.tensor(example.ids), torch.tensor(example.labels), 1
    views = np.stack([view for example in examples for view in example.views])
    pixels = (torch.from_numpy(views).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": pixels}


def lesson_at(recipe: Recipe, step: int) -> str:
    """Which lesson a batch is of: drawn by the recipe's shares, the same for every run of the seed."""
    done = step / recipe.steps
    shares = {name: a + (b - a) * done for name, (a, b) in recipe.lessons.items()}
    mark = Dice("lesson", recipe.seed, step).between(0, 9999) / 10_000 * sum(shares.values())
    for name, share in shares.items():
        mark -= share
        if mark < 0:
            return name
    return list(shares)[-1]


def batches(recipe: Recipe, teacher: Teacher) -> Iterator[tuple[str, list[Example]]]:
    for step in range(recipe.steps):
        lesson = lesson_at(recipe, step)
        yield (
            lesson,
            [teacher.example(lesson, Dice("example", recipe.seed, step, row)) for row in range(recipe.batch)],
        )


def load(folder: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A checkpoint in float32 (shipped files hold float16)."""
    processor = LlavaProcessor.from_pretrained(folder, backend="pil")
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), processor


def train(
    recipe: Recipe, watch: Any = None
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, list[dict[str, Any]], str]:
    """Run a phase. Returns model, processor, the log (a row per ``log_every`` steps) and the SHA-256 of all it was shown."""
    torch.manual_seed(recipe.seed)
    if recipe.start is None:
        tokenizer = build_tokenizer()
        model, processor = build_model(tokenizer, recipe.seed, **recipe.model), build_processor(tokenizer)
    else:
        model, processor = load(Path(recipe.start))
    teacher = Teacher(processor, recipe.split, recipe.pictures)
    tools = optimisers(model, recipe.lr)
    peaks = [[group["lr"] for group in tool.param_groups] for tool in tools]
    shown, log, losses = hashlib.sha256(), [], {}
    started = time.process_time()
    model.train()
    for step, (lesson, examples) in enumerate(batches(recipe, teacher)):
        for tool, rates in zip(tools, peaks, strict=True):
            for group, peak in zip(tool.param_groups, rates, strict=True):
                group["lr"] = peak * factor(step, recipe)
        for example in examples:
            shown.update(repr((example.ids, example.labels)).encode() + b"".join(v.tobytes() for v in example.views))
        loss = model(**collate(examples, processor.tokenizer.pad_token_id)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for tool in tools:
            tool.step()
            tool.zero_grad(set_to_none=True)
        losses.setdefault(lesson, []).append(loss.item())
        if (step + 1) % recipe.log_every == 0:
            row = {"step": step + 1, "cpu_seconds": round(time.process_time() - started)}
            row |= {f"loss/{name}": round(sum(values) / len(values), 4) for name, values in losses.items()}
            if watch is not None:
                row |= watch(step + 1, model, processor)
            log.append(row)
            losses = {}
            print(json.dumps(row), flush=True)
    model.eval()
    return model, processor, log, shown.hexdigest()


def save(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """float16 safetensors, tokenizer, processor, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.half().save_pretrained(folder)
    model.float().load_state_dict(weights)
    processor.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a small model of the small world from a recipe.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    from dataclasses import replace

    recipe = read_recipe(options.recipe)
    recipe = recipe if options.seed is None else replace(recipe, seed=options.seed)
    from visrl.train.watch import watch

    model, processor, log, shown = train(recipe, watch)
    save(options.out, model, processor)
    record = {"recipe": asdict(recipe), "data_sha256": shown, "log": log}
    (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
