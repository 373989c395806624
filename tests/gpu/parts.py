"""The parts of run.py: each takes (device, small) and returns the rows of its table."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dpo
import generation
import grpo
import tiny_models as tiny
import torch
from clock import Peak, timed
from real_shapes import SHAPES, Scale
from train_made import preference

from visrl.estimate.memory import RESERVE, Step, training_memory
from visrl.estimate.shape import shape_of
from visrl.policies.families import family_for
from visrl.policies.hf.loading import Loaded
from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import Sampling
from visrl.train.common.branch_attention import use_branch_attention
from visrl.train.common.logprobs import BranchScorer
from visrl.train.common.models import trainable
from visrl.train.config.recipe import ModelSection
from visrl.train.dpo.collator import PairCollator

Rows = list[dict[str, Any]]
MIB = 2**20


def scale(device: str, small: bool, **more: Any) -> Scale:
    return Scale(layers=2, shrink=8, device=device, **more) if small else Scale(device=device, **more)


def moved(batch: dict[str, Any], device: str) -> dict[str, Any]:
    """A collated batch with its tensors on the device."""
    out: dict[str, Any] = {}
    for key, value in batch.items():
        if isinstance(value, dict):
            out[key] = moved(value, device)
        else:
            out[key] = value.to(device) if isinstance(value, torch.Tensor) else value
    return out


# --- texts


def texts(device: str, small: bool) -> Rows:
    """Greedy texts and log-probabilities of the tiny families on the device and on the CPU."""
    rows = []
    for name in tiny.TINY:
        try:
            found = {place: _said(name, place) for place in ("cpu", device)}
        except ImportError as error:
            rows.append({"family": name, "equal texts": f"not run: {error}"})
            continue
        (ours, theirs) = (found["cpu"], found[device])
        equal = sum(a == b for a, b in zip(ours[0], theirs[0], strict=True))
        rows.append({
            "family": name,
            "equal texts": f"{equal} of {len(ours[0])}",
            "log-probabilities differ by": (ours[1] - theirs[1]).abs().max().item(),
        })  # fmt: skip
    return rows


def _said(name: str, device: str) -> tuple[list[str], torch.Tensor]:
    """Two turns of six questions, greedy and one sample each; and log-probabilities of three pairs' completions."""
    model, processor = tiny.build(name)
    model = model.to(device)
    policy = HFPolicy(name, Loaded(model, processor, family_for(model.config, processor), {}))
    asked = generation.samples(6, 2)
    said: list[str] = []
    for sampling in (Sampling(max_tokens=12), Sampling(n=2, temperature=1.0, max_tokens=12)):
        boxes = policy.generate([generation.box_request(s) for s in asked], sampling)
        second = [generation.answer_request(s, b.texts[0]) for s, b in zip(asked, boxes, strict=True)]
        said += [text for out in (*boxes, *policy.generate(second, sampling)) for text in out.texts]
    section = ModelSection(path="none", dtype="float32", box_format="paper")
    t = trainable(model, processor, section, None, seed=0)
    batch = PairCollator([preference(i) for i in range(3)], t.encoder, ("box",))([{"row": i} for i in range(3)])["box"]
    with torch.no_grad():
        scorer = BranchScorer(t.model, t.base, t.family, moved(batch, device))
        return said, scorer(detail=False).log_probs.cpu()


# --- flex


def flex(device: str, small: bool) -> Rows:
    """Loss and gradients of branched rows by FlexAttention and by the dense mask in float32; seconds of long rows in bfloat16."""
    rows: Rows = []
    with wide_heads():
        rows += [{"rows": f"tiny {name}, float32", **_tried(lambda n=name: _tiny_both(n, device))} for name in KERNEL]
    for name in SHAPES:
        model, processor = SHAPES[name](Scale(layers=1 if small else 4, shrink=8 if small else 1, device=device))
        section = ModelSection(path="none", dtype="bfloat16", box_format="paper")
        scored = _scored(model, processor, section, device, 2)
        for p in model.parameters():
            p.requires_grad_(False)
        for p in model.get_decoder().parameters():
            p.requires_grad_(True)
        rows.append(
            {
                "rows": f"{name}, {model.config.get_text_config().num_hidden_layers} layers, bfloat16",
                **_both(*scored, device=device, repeats=1 if small else 5),
            }
        )
        del model, scored
        _clean()
    return rows


KERNEL = ("paligemma2", "llava", "llava_next", "internvl", "yi_vl")
"""Families whose tiny model can have heads of 16."""


def _tiny_both(name: str, device: str) -> dict[str, Any]:
    model, processor = tiny.build(name)
    section = ModelSection(path="none", dtype="float32", box_format="paper")
    return _both(*_scored(model.to(device), processor, section, device, 3))


@contextmanager
def wide_heads() -> Iterator[None]:
    """Tiny models with heads of 16: the least that the compiled kernel takes."""
    before = dict(tiny._H)
    tiny._H.update(num_attention_heads=2)
    gemma = tiny.hf.Gemma2Config
    tiny.hf.Gemma2Config = lambda **more: gemma(**{**more, "head_dim": 16})
    try:
        yield
    finally:
        tiny._H.update(before)
        tiny.hf.Gemma2Config = gemma


def _scored(model: Any, processor: Any, section: ModelSection, device: str, n: int) -> tuple[Any, Any]:
    t = trainable(model, processor, section, None, seed=0)
    batch = PairCollator([preference(i) for i in range(n)], t.encoder, ("box",))([{"row": i} for i in range(n)])["box"]
    return t, moved(batch, device)


def _both(t: Any, batch: Any, device: str = "", repeats: int = 0) -> dict[str, Any]:
    """The same batch with both masks."""
    found = {}
    for kind in ("dense", "flex"):
        if kind == "flex":
            torch._dynamo.reset()  # a model after another would run into the limit of recompilations
            use_branch_attention(t.base)

        def step() -> torch.Tensor:
            t.model.zero_grad()
            scorer = BranchScorer(t.model, t.base, t.family, batch)
            loss = -scorer(detail=False).log_probs.sum()
            loss.backward()
            return loss.detach()

        with Peak(device or "cpu") as peak:
            seconds, loss = timed(step, device or "cpu", max(repeats, 1))
        norm = torch.stack([p.grad.float().norm() for p in t.model.parameters() if p.grad is not None]).norm()
        flat = torch.cat([p.grad.flatten() for p in t.model.parameters() if p.grad is not None][:8]).float()
        found[kind] = (loss.item(), norm.item(), flat, seconds, peak.bytes - peak.before)
        t.model.zero_grad()
    dense, flexed = found["dense"], found["flex"]
    out: dict[str, Any] = {
        "tokens a row": batch["prompt_ids"].shape[1] + 2 * (batch["completions"].shape[2] - 1),
        "loss differs by": abs(dense[0] - flexed[0]) / abs(dense[0]),
        "gradients differ by": ((dense[2] - flexed[2]).norm() / dense[2].norm()).item(),
    }
    if repeats:
        out |= {
            "dense, ms": 1e3 * dense[3], "flex, ms": 1e3 * flexed[3], "ratio": dense[3] / flexed[3],
            "dense, MiB": dense[4] / MIB, "flex, MiB": flexed[4] / MIB,
        }  # fmt: skip
    return out


# --- evaluate


def evaluate(device: str, small: bool) -> Rows:
    """Two turns, 8 pictures x 4 questions, 25 new tokens a text, against ``generate`` per sample on the same model."""
    model, processor = SHAPES["llava-1.5-7b"](scale(device, small, **({"dtype": torch.float32} if small else {})))
    policy = HFPolicy("7b", Loaded(model, processor, family_for(model.config, processor), {}))
    policy.family.__dict__["end_ids"] = frozenset()  # nothing ends early
    rows = []
    new = 5 if small else 25
    for pictures, each in ((2, 2),) if small else ((8, 4), (32, 1)):
        asked = generation.samples(pictures * each, each)

        def theirs(asked: Any = asked) -> list[str]:
            boxes = [_generated(policy, generation.box_request(s).turns, new) for s in asked]
            return [
                _generated(policy, generation.answer_request(s, b).turns, new)
                for s, b in zip(asked, boxes, strict=True)
            ]

        def ours(asked: Any = asked) -> list[str]:
            generation.fresh_caches(policy)
            boxes = policy.generate([generation.box_request(s) for s in asked], Sampling(max_tokens=new))
            second = [generation.answer_request(s, b.texts[0]) for s, b in zip(asked, boxes, strict=True)]
            return [o.texts[0] for o in policy.generate(second, Sampling(max_tokens=new))]

        with Peak(device) as peak:
            fast, got = timed(ours, device, 2)
        theirs(asked[:1])
        slow, expected = timed(theirs, device, 1, warm=0)
        rows.append({
            "two turns": f"{pictures} pictures x {each}", "generate, samples/s": len(asked) / slow,
            "ours, samples/s": len(asked) / fast, "ratio": slow / fast,
            "equal answers": f"{sum(a == b for a, b in zip(expected, got, strict=True))} of {len(asked)}",
            "peak above the model, MiB": (peak.bytes - peak.before) / MIB,
        })  # fmt: skip
    return rows


def _generated(policy: HFPolicy, turns: Any, new: int) -> str:
    """generation.by_generate with the batch where the model is."""
    rendered = policy.family.render(turns)
    images = [policy.family.prepare(p.open()) for p in rendered.pictures]
    batch = policy.family.processor(text=[rendered.text], images=images, return_tensors="pt").to(policy.model.device)
    batch["pixel_values"] = batch["pixel_values"].to(policy.model.dtype)
    with torch.inference_mode():
        out = policy.model.generate(**batch, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, do_sample=False)
    return policy._text.text(out[0, batch["input_ids"].shape[1] :].tolist())


# --- dpo and grpo


@contextmanager
def built(device: str, small: bool) -> Iterator[None]:
    """tests/perf's contenders on a model of real shape instead of theirs, where it is asked for."""
    build, of_dpo, of_grpo = dpo.build, dpo.arguments, grpo.arguments
    place = {"use_cpu": device == "cpu"}

    def arguments(folder: str, groups: int) -> Any:
        from trl import GRPOConfig

        args = of_grpo(folder, groups)
        kept = ("num_generations", "num_iterations", "max_completion_length", "per_device_train_batch_size")
        return GRPOConfig(
            **{name: getattr(args, name) for name in kept}, output_dir=folder, loss_type="grpo", save_strategy="no", bf16=False,
            report_to="none", gradient_checkpointing=False, disable_tqdm=True, remove_unused_columns=False, **place,
        )  # fmt: skip

    dpo.build = lambda: SHAPES["llava-1.5-7b"](scale(device, small))
    dpo.arguments = lambda folder: {**of_dpo(folder), **place}
    grpo.arguments = arguments
    try:
        yield
    finally:
        dpo.build, dpo.arguments, grpo.arguments = build, of_dpo, of_grpo


def _step(trainer: Any, loss: Callable[[], torch.Tensor], device: str, repeats: int) -> dict[str, float]:
    """Seconds and peak memory of a step, forward and backward."""

    def step() -> float:
        trainer.model.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    with Peak(device) as peak:
        seconds, value = timed(step, device, repeats)
    norm = torch.stack([p.grad.float().norm() for p in trainer.model.parameters() if p.grad is not None]).norm().item()
    return {
        "seconds": seconds,
        "bytes": float(peak.bytes - peak.before),
        "loss": value,
        "norm": norm,
        "held": float(peak.before),
    }


def dpo_steps(device: str, small: bool) -> Rows:
    """A policy step of 2 pairs: TRL, plain rows, shared rows with either mask; then ours with its optimiser against the estimate."""
    repeats = 1 if small else 5
    with built(device, small), tempfile.TemporaryDirectory() as folder:
        found = {"TRL": _tried(lambda: _trl_step(folder, device, repeats))}
        trainer = dpo.ours(2, folder)  # one for all: every trainer reads and hashes all weights

        def ours(*, shared: bool) -> dict[str, Any]:
            trainer.collator.shared, trainer._began = shared, True
            inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(2)]))
            inputs["box"]["reference"] = torch.zeros(2, 2, device=device)
            return _step(trainer, lambda: trainer._compute_loss(trainer.model, inputs, False), device, repeats)

        found["ours, plain rows"] = _tried(lambda: ours(shared=False))
        found["ours, shared rows"] = _tried(lambda: ours(shared=True))
        use_branch_attention(trainer.trainable.base)
        found["ours, shared rows, flex"] = _tried(lambda: ours(shared=True))
        batch = trainer._prepare_inputs(trainer.collator([{"row": i} for i in range(2)]))["box"]
        estimated = _tried(lambda: _estimated(trainer, batch, device))
    return [*_compared(found, "pairs/s", 2), estimated]


def _trl_step(folder: str, device: str, repeats: int) -> dict[str, Any]:
    trainer = dpo.stock(2, folder)
    inputs = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[i] for i in range(2)]))
    trainer.precompute_ref_logps = True
    zero = torch.zeros(2, device=device)
    inputs |= {"ref_chosen_logps": zero, "ref_rejected_logps": zero}
    return _step(trainer, lambda: trainer._compute_loss(trainer.model, inputs, False), device, repeats)


def _tried(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a contender gives, or how it failed: the others are still measured. Its memory is free afterwards."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this contender's
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    finally:
        _clean()


def _estimated(trainer: Any, batch: Any, device: str) -> dict[str, Any]:
    """Peak memory of a step with AdamW beside the estimate of it."""
    layout = BranchScorer(trainer.model, trainer.trainable.base, trainer.trainable.family, batch).layout
    shape = shape_of(trainer.trainable.base, None)
    step = Step(rows=len(batch["prompt_ids"]), tokens=layout.length, kept=layout.kept)
    size = trainer.trainable.base.dtype.itemsize
    said = training_memory(shape, step, size=size, checkpointing=False, accumulates=False)
    optimiser = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-6, foreach=False)
    with Peak(device) as peak:
        for _ in range(2):  # the second step has the optimiser's state
            trainer.model.zero_grad()
            scorer = BranchScorer(
                trainer.model, trainer.trainable.base, trainer.trainable.family, batch, trainer.collator.store
            )
            (-scorer(detail=True).log_probs.sum()).backward()
            optimiser.step()
    return {
        "step": "ours, shared rows, with AdamW: peak and estimate", "peak above the model, MiB": peak.bytes / MIB,
        "estimate, MiB": said.total / MIB, "estimate / peak": said.total / peak.bytes,
        "reserve of the estimate, MiB": RESERVE / MIB,
    }  # fmt: skip


def grpo_steps(device: str, small: bool) -> Rows:
    """Old log-probabilities, forward and backward of one group of 8: TRL, plain rows, one row per group with either mask."""
    names = ("TRL", "ours, plain rows", "ours, one row", "ours, one row, flex")
    found = {name: _tried(lambda name=name: _grpo_step(name, device, small)) for name in names}
    return _compared(found, "groups/s", 1)


def _grpo_step(name: str, device: str, small: bool) -> dict[str, Any]:
    with built(device, small), tempfile.TemporaryDirectory() as folder:
        ours = name != "TRL"
        trainer, old, batch = grpo.ours(1, folder, shared="one row" in name) if ours else grpo.stock(1, folder)
        if "flex" in name:
            use_branch_attention(trainer.trainable.base)
        if not ours:
            batch.update(moved({k: v for k, v in batch.items() if k != "num_images"}, device))
            batch["pixel_values"] = batch["pixel_values"].to(trainer.model.dtype)

        def loss() -> torch.Tensor:
            with torch.no_grad():
                batch["old_per_token_logps"] = old()
            value: torch.Tensor = trainer._compute_loss(trainer.model, batch)
            return value

        return _step(trainer, loss, device, 1 if small else 5)


def _compared(found: dict[str, dict[str, Any]], unit: str, count: int) -> Rows:
    rows: Rows = []
    theirs = found["TRL"].get("seconds")
    for name, one in found.items():
        if "failed" in one:
            rows.append({"step": name, "failed": one["failed"]})
            continue
        rows.append({
            "step": name, unit: count / one["seconds"], "ratio": theirs / one["seconds"] if theirs else "",
            "peak above the model, MiB": one["bytes"] / MIB, "loss": one["loss"], "gradient norm": one["norm"],
        })  # fmt: skip
    return rows


def _clean() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


PARTS: dict[str, Callable[[str, bool], Rows]] = {
    "texts": texts, "flex": flex, "evaluate": evaluate, "dpo": dpo_steps, "grpo": grpo_steps,
}  # fmt: skip
