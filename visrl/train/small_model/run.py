"""Training of the small models, phase by phase, in one plain loop: the base (M_org), the warm-up (M_SFT), the best (tiny).

    visrl-train recipes/world-base.yaml

The base is this package's stand-in for a pre-trained model, so it may use what no VisRL phase uses: targets on picture tokens
("a few patches of the asked thing: here, as many elsewhere: away"), which bind words to regions without a box in sight.
Muon for the hidden matrices and AdamW for the rest. Same recipe, same seed: same data, by its hash.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from visrl.core.arguments import MOST_PROCESSES
from visrl.core.json_files import read_object
from visrl.core.records import write_atomically
from visrl.errors import EXIT_DONE, Interrupted, UsageError
from visrl.train.common.models import shipped
from visrl.train.common.trainer_args import end_with_parent
from visrl.train.common.writing import writing
from visrl.train.config.recipe import Kind, Recipe
from visrl.train.small_model.inputs import IGNORE, Example, collate
from visrl.train.small_model.pretext_tasks import TWO_PICTURES, ExampleBuilder
from visrl.world.model import build_model, build_processor, build_tokenizer, extend
from visrl.world.rng import Dice
from visrl.world.textured.scenery import PLAIN, Scenery

Named = tuple[str, Example]  # lesson, example
MUON_RATIO = 10.0  # Muon's learning rate over AdamW's: its updates are orthogonal, of unit spectral norm


class SmallModelRecipe(Recipe):
    """A phase of a small model. ``seed`` draws weights, lessons and questions."""

    kind: Literal["small_model"]
    split: str = Field(description="whose pictures are shown")
    pictures: int | None = Field(default=None, ge=1, description="only the split's first pictures: label scarcity")
    scenery: Scenery | None = Field(
        default=None, description="what pictures are drawn over: plain (also if left out) or textured"
    )
    start: str | None = Field(
        default=None, description="a checkpoint to go on from, a shipped name or a folder; random weights otherwise"
    )
    steps: int = Field(ge=1)
    batch: int = Field(default=32, ge=1)
    lr: float = Field(default=1.5e-3, gt=0, description="AdamW's peak; Muon's is ten times that")
    decay: float = Field(default=0.1, ge=0, description="weight decay of Muon's matrices")
    warmup: int = Field(default=100, ge=1, description="steps of linear warm-up")
    hold: float = Field(
        default=0.3, ge=0, le=1, description="the share of the steps before the rate falls along a half cosine to 5 %"
    )
    lessons: dict[str, tuple[float, float]] = Field(
        description="lesson -> share of the batches at the start and at the end, linear in between"
    )
    log_every: int = Field(default=100, ge=1)
    watch_every: int = Field(default=500, ge=0, description="steps between looks at val; 0: never")
    workers: int = Field(
        default=1, ge=0, le=MOST_PROCESSES, description="processes that draw; the model itself runs on one thread"
    )

    @model_validator(mode="after")
    def _walls_are_plain(self) -> SmallModelRecipe:
        if "several" in self.lessons and (self.scenery or PLAIN) != PLAIN:
            raise ValueError(f"the lesson several is of walls, which are drawn plain, not {self.scenery}")
        return self

    @property
    def folder(self) -> Path | None:
        """Where ``start`` lies. Raises UsageError where nothing does."""
        if self.start is None:
            return None
        found = Path(shipped(self.start))
        if not (found / "config.json").is_file():
            hint = "a folder that another phase left, or one of the shipped base, sft, tiny, deep"
            raise UsageError(f"start: no checkpoint in {found}", hint)
        return found


def factor(step: int, recipe: SmallModelRecipe) -> float:
    """The learning rate's share at ``step``: linear warm-up, held, then half a cosine down to 5 %."""
    done = step / recipe.steps
    fall = 1.0 if done < recipe.hold else 0.5 * (1 + math.cos(math.pi * (done - recipe.hold) / (1 - recipe.hold)))
    return min(1.0, (step + 1) / recipe.warmup) * (0.05 + 0.95 * fall)


def optimisers(model: torch.nn.Module, lr: float, decay: float) -> list[torch.optim.Optimizer]:
    """Muon for two-dimensional hidden weights, AdamW for embeddings, convolutions, norms and biases.

    Muon's updates never shrink, so its weights grow until ``decay`` balances them; grown ones learn slowly.
    """
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, weight in model.named_parameters():
        hidden = weight.ndim == 2 and "embed" not in name and "lm_head" not in name and "positions" not in name
        (matrices if hidden else rest).append(weight)
    return [
        torch.optim.Muon(matrices, lr=MUON_RATIO * lr, weight_decay=decay, momentum=0.95),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def lesson_of(shares: dict[str, float], mark: float) -> str:
    """The lesson that ``mark`` (0 to below 1) falls on when the shares are laid end to end."""
    rest = mark * sum(shares.values())
    for name, share in shares.items():
        rest -= share
        if rest < 0:
            return name
    return list(shares)[-1]


def shares_at(recipe: SmallModelRecipe, step: int) -> dict[str, float]:
    done = step / recipe.steps
    return {name: start + (end - start) * done for name, (start, end) in recipe.lessons.items()}


class PretextTasks(Dataset[list[Named]]):
    """Batch ``step`` of a recipe, made when it is asked for and the same in whatever process that is.

    PretextTasks are mixed within a batch, or one lesson's gradients would pull at a time; only those with two pictures, twice as
    long, have batches of their own.
    """

    def __init__(self, recipe: SmallModelRecipe, builder: ExampleBuilder) -> None:
        self.recipe, self.builder = recipe, builder

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> list[Named]:
        shares = shares_at(self.recipe, step)
        mark = Dice("batch", self.recipe.seed, step).between(0, 9999) / 10_000
        if lesson_of(shares, mark) in TWO_PICTURES:
            shares = {name: share for name, share in shares.items() if name in TWO_PICTURES}
        else:
            shares = {name: share for name, share in shares.items() if name not in TWO_PICTURES}
        return [self._example(shares, Dice("example", self.recipe.seed, step, row)) for row in range(self.recipe.batch)]

    def _example(self, shares: dict[str, float], dice: Dice) -> Named:
        lesson = lesson_of(shares, dice.between(0, 9999) / 10_000)
        return lesson, self.builder.example(lesson, dice)


def load(folder: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A checkpoint in float32 (shipped files hold float16)."""
    processor = LlavaProcessor.from_pretrained(folder, backend="pil")
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32), processor


def beginning(recipe: SmallModelRecipe) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    if recipe.folder is None:
        tokenizer = build_tokenizer()
        model, processor = build_model(tokenizer, recipe.seed), build_processor(tokenizer)
    else:
        model, processor = load(recipe.folder)
    if "several" in recipe.lessons:
        extend(model, processor.tokenizer)
    return model, processor


def train(
    recipe: SmallModelRecipe, model: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> tuple[list[dict[str, Any]], str]:
    """Train ``model`` in place. Returns the log, a row per ``log_every`` steps, and the SHA-256 of all that was shown."""
    torch.manual_seed(recipe.seed)
    loader = DataLoader(
        PretextTasks(recipe, ExampleBuilder(processor, recipe.split, recipe.pictures, recipe.scenery or PLAIN)),
        batch_size=None,
        num_workers=recipe.workers,
        prefetch_factor=8 if recipe.workers else None,
        worker_init_fn=end_with_parent,
    )
    tools = optimisers(model, recipe.lr, recipe.decay)
    peaks = [[group["lr"] for group in tool.param_groups] for tool in tools]
    shown, started = hashlib.sha256(), time.monotonic()
    log: list[dict[str, Any]] = []
    losses: dict[str, list[float]] = {}
    model.train()
    for step, batch in enumerate(loader):
        for tool, rates in zip(tools, peaks, strict=True):
            for group, peak in zip(tool.param_groups, rates, strict=True):
                group["lr"] = peak * factor(step, recipe)
        examples = [example for _, example in batch]
        for example in examples:
            shown.update(example.digest())
        each = _update(model, tools, collate(examples, processor.tokenizer.pad_token_id))
        for (lesson, _), value in zip(batch, each, strict=True):
            losses.setdefault(lesson, []).append(value)
        if (step + 1) % recipe.log_every == 0:
            means = {f"loss/{name}": round(sum(values) / len(values), 4) for name, values in losses.items()}
            row = {"step": step + 1, "seconds": round(time.monotonic() - started), **means}
            log.append({**row, **_look_at_val(recipe, step + 1, model, processor)})
            print(_line(recipe, log[-1]), file=sys.stderr, flush=True)
            losses = {}
    model.eval()
    return log, shown.hexdigest()


def _line(recipe: SmallModelRecipe, row: dict[str, Any]) -> str:
    """A row of the log for a reader: how many steps there are, and the losses always in one order."""
    ordered = {name: row[name] for name in sorted(row.keys() - {"step", "seconds"})}
    return json.dumps({"step": row["step"], "of": recipe.steps, "seconds": row["seconds"], **ordered})


def example_losses(logits: torch.Tensor, labels: torch.Tensor, on_picture: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row, [B]: the mean over its words' targets, over its picture tokens' targets, or over those two
    means where it has both. So every example weighs the same, and its answer is not drowned by its patches. One without a target
    (a caption of a page on which no name is unique) is 0.

    logits [B, T, V]; labels, on_picture [B, T], on_picture true where the token is a patch; as everywhere, the target at
    t + 1 is scored from t.
    """
    targets = labels[:, 1:]
    wanted = targets != IGNORE
    each = cross_entropy(logits[:, :-1][wanted], targets[wanted], reduction="none")
    spread = torch.zeros(targets.shape, dtype=each.dtype).masked_scatter(wanted, each)
    means, kinds = torch.zeros(len(labels)), torch.zeros(len(labels))
    for part in (wanted & on_picture[:, :-1], wanted & ~on_picture[:, :-1]):
        count = part.sum(1)
        means = means + (spread * part).sum(1) / count.clamp(min=1)
        kinds = kinds + (count > 0)
    return means / kinds.clamp(min=1)


def _update(
    model: LlavaForConditionalGeneration, tools: list[torch.optim.Optimizer], batch: dict[str, torch.Tensor]
) -> list[float]:
    labels = batch.pop("labels")
    each = example_losses(model(**batch).logits, labels, batch["input_ids"] == model.config.image_token_id)
    each.mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for tool in tools:
        tool.step()
        tool.zero_grad(set_to_none=True)
    return [float(loss) for loss in each.detach()]


def _look_at_val(
    recipe: SmallModelRecipe, step: int, model: LlavaForConditionalGeneration, processor: LlavaProcessor
) -> dict[str, float]:
    if not recipe.watch_every or step % recipe.watch_every:
        return {}
    from visrl.train.small_model.probes import watch, watch_looks

    if "several" in recipe.lessons:
        return watch_looks(model, processor)
    return watch(model, processor, recipe.scenery or PLAIN)


def save(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """float16 safetensors, tokenizer, processor, chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.half().save_pretrained(folder)
    model.float().load_state_dict(weights)
    processor.save_pretrained(folder)


def _before(start: Path | None) -> dict[str, Any] | None:
    """What the phases before this one were: recipe, data hash, and the last row of the log, back to random weights."""
    path = start and start / "training.json"
    if not path or not path.is_file():
        return None
    record = read_object(path, "start from another checkpoint")
    if not isinstance(record.get("log"), list):
        raise UsageError(f"{path}: damaged: log is not a list", "start from another checkpoint")
    return {**record, "log": record["log"][-1:]}


def run(recipe: SmallModelRecipe) -> int:
    """Train, and leave in ``output``: checkpoint, training.json (recipe, data hash, log, what came before), training.png."""
    torch.set_num_threads(1)  # two threads are slower here, and much slower on a shared machine
    torch.set_flush_denormal(True)  # gradients fade into denormal numbers, on which a CPU is ten times slower
    before = _before(recipe.folder)  # a damaged one stops it here, not at the end
    model, processor = beginning(recipe)
    try:
        log, shown = train(recipe, model, processor)
    except KeyboardInterrupt as stop:
        raise Interrupted(
            f"what was finished before is kept; {recipe.output} has no checkpoints and begins again"
        ) from stop
    with writing(recipe.output):
        save(recipe.output, model, processor)
    record = {
        "recipe": recipe.model_dump(mode="json"),
        "data_sha256": shown,
        "log": log,
        "before": before,
    }
    write_atomically(recipe.output / "training.json", json.dumps(record, indent=1) + "\n")
    from visrl.train.small_model.probes import plot

    plot(log, recipe.output / "training.png", recipe.output.name)
    return EXIT_DONE


def check(recipe: SmallModelRecipe) -> None:
    """Raises UsageError where the checkpoint to start from is not there."""
    _ = recipe.folder


KIND = Kind(SmallModelRecipe, run, check)
