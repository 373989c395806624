"""What a training run is watched by, on ``val``: do words and regions bind, can it read, can it point.

Box accuracy alone cannot tell "the wrong thing" from "no thing": ``any`` counts a hit on any thing of the picture, and
accuracies are split by how many things there are to confuse.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from visrl.core.boxes import iou
from visrl.core.types import Unparsed
from visrl.train.small_model.inputs import IGNORE, Example, collate, patches_in
from visrl.train.small_model.pretext_tasks import ExampleBuilder
from visrl.train.small_model.several_looks import SeveralLooks, held
from visrl.world import questions, splits
from visrl.world.chat_format import BOX_FORMAT
from visrl.world.model import PICTURE_TOKENS
from visrl.world.questions import Document, true_box
from visrl.world.rng import Dice
from visrl.world.textured.scenery import PLAIN, Scenery

N, BATCH = 192, 48


def watch(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, scenery: Scenery = PLAIN
) -> dict[str, float]:
    """Pointing, reading and box accuracy on ``N`` val questions each, their pictures over ``scenery``."""
    model.eval()
    builder = ExampleBuilder(processor, "val", scenery=scenery)
    with torch.no_grad():
        row = {**_pointing(model, builder), **_reading(model, builder), **_boxes(model, builder)}
    model.train()
    return {name: round(value, 4) for name, value in row.items()}


def plot(log: list[dict[str, Any]], path: Path, title: str) -> None:
    """Loss per lesson and accuracies on val over the steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4))
    names = sorted({name for row in log for name in row} - {"step", "seconds"})
    for name in names:
        steps, values = zip(*((row["step"], row[name]) for row in log if name in row), strict=True)
        panels[0 if name.startswith("loss/") else 1].plot(steps, values, label=name.removeprefix("loss/"), marker=".")
    for panel, what in zip(panels, ("training loss per lesson", f"accuracy on {N} val questions"), strict=True):
        panel.set(title=f"{title}: {what}", xlabel="step")
        if panel.lines:
            panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def _prompts(examples: list[Example], pad: int) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, for reading the next token or generating."""
    prompts = [e.ids[: next((i for i, t in enumerate(e.labels) if t != -100), len(e.ids))] for e in examples]
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    views = torch.from_numpy(np.stack([v for e in examples for v in e.views])).permute(0, 3, 1, 2).float()
    return {"input_ids": ids, "attention_mask": (ids != pad).long(), "pixel_values": (views / 255 - 0.5) / 0.25}


def _pointing(model: LlavaForConditionalGeneration, builder: ExampleBuilder) -> dict[str, float]:
    """Does the patch that says "here" loudest lie in the asked thing (``point``), or in any thing (``point_any``)?"""
    hits: list[bool] = []
    anywhere: list[bool] = []
    by_things: dict[int, list[bool]] = {}
    for start in range(0, N, BATCH):
        rows = _asked(start)
        examples = [builder.prompt(row) for row in rows]
        batch = _prompts(examples, builder.tokenizer.pad_token_id)
        logits = model(**batch).logits
        for row, ids, scores in zip(rows, batch["input_ids"], logits, strict=True):
            where = (ids == builder.image_id).nonzero().flatten()[:PICTURE_TOKENS]
            best = int((scores[where, builder.here] - scores[where, builder.away]).argmax())
            things = splits.redraw(row["picture"]).things
            hit = bool(patches_in(true_box(row), row["size"])[best])
            hits.append(hit)
            by_things.setdefault(len(things), []).append(hit)
            anywhere.append(any(patches_in(t.as_box(), row["size"])[best] for t in things))
    shares = {f"point/{n}_things": float(np.mean(v)) for n, v in sorted(by_things.items())}
    return {"point": float(np.mean(hits)), "point_any": float(np.mean(anywhere)), **shares}


def _asked(start: int) -> list[Document]:
    """Expressions for scenes ``start`` and on of val, ``BATCH`` of them at most."""
    scenes = (6 * (i // 4) + i % 4 for i in range(start, start + BATCH))
    return [row for row in (questions.rec("val", i) for i in scenes) if row is not None]


def _reading(model: LlavaForConditionalGeneration, builder: ExampleBuilder) -> dict[str, float]:
    """Next-token accuracy of answers: ``read`` from a crop alone, ``look`` from picture and crop, ``whole`` without."""
    scores = {}
    for lesson in ("read", "look", "whole"):
        right = 0
        for start in range(0, N, BATCH):
            examples = [builder.example(lesson, Dice("watch", lesson, i)) for i in range(start, start + BATCH)]
            plain = [_without_targets(e, builder) for e in examples]
            logits = model(**_prompts(plain, builder.tokenizer.pad_token_id)).logits[:, -1]
            right += sum(int(t == e.ids[-2]) for t, e in zip(logits.argmax(-1).tolist(), examples, strict=True))
        scores[lesson] = right / N
    return scores


def _without_targets(example: Example, builder: ExampleBuilder) -> Example:
    return Example(example.ids[:-2], [-100] * (len(example.ids) - 2), example.views)


def _boxes(model: LlavaForConditionalGeneration, builder: ExampleBuilder) -> dict[str, float]:
    """Box accuracy at IoU 0.5 of greedy outputs, and the same counting a hit on any thing."""
    hits, anywhere = [], []
    for start in range(0, N, BATCH):
        rows = _asked(start)
        batch = _prompts([builder.prompt(row) for row in rows], builder.tokenizer.pad_token_id)
        out = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, batch["input_ids"].shape[1] :]
        for row, ids in zip(rows, out, strict=True):
            size = (row["size"][0], row["size"][1])
            box = BOX_FORMAT.parse(builder.tokenizer.decode(ids), size)
            things = splits.redraw(row["picture"]).things
            scores = [0.0 if isinstance(box, Unparsed) else iou(box, t.as_box()) for t in things]
            anywhere.append(max(scores) > 0.5)
            hits.append(not isinstance(box, Unparsed) and iou(box, true_box(row)) > 0.5)
    return {"box": float(np.mean(hits)), "box_any": float(np.mean(anywhere))}


def watch_looks(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> dict[str, float]:
    """On ``N`` walls of val, the true boxes and looks given: is the next token the true one? Of each look's box (within a step),
    and of the answer after the first look and after the second, by how many looks the sign takes.
    """
    model.eval()
    builder = SeveralLooks(processor, "val", splits.SPLITS["val"].pictures)
    right: dict[str, list[float]] = {}
    for start in range(0, N, BATCH):
        talks = [held("val", i, Dice("watch", i), 3) for i in range(start, min(start + BATCH, N))]
        batch = collate([builder.encoded(talk) for talk in talks], processor.tokenizer.pad_token_id)
        labels = batch.pop("labels")
        with torch.no_grad():
            best = model(**batch).logits.argmax(-1)
        for talk, found, true in zip(talks, best, labels, strict=True):
            _count(right, len(talk.sample.boxes), found[:-1][true[1:] != IGNORE], true[true != IGNORE])
    model.train()
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(right.items())}


def _count(right: dict[str, list[float]], looks: int, found: torch.Tensor, true: torch.Tensor) -> None:
    """Enter one conversation: per look four steps and an end, then the answer. found, true: [5 * looks + 2] tokens."""
    for look in range(looks):
        near = (found - true).abs()[5 * look : 5 * look + 4] <= 1
        right.setdefault(f"box{look + 1}", []).append(float(near.all()))
    right.setdefault(f"answer{looks}", []).append(float(found[5 * looks] == true[5 * looks]))
