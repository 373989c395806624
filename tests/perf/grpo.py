"""The learner's step of our GRPO against stock TRL ``GRPOTrainer``: old log-probabilities, and the policy forward and backward,
on the same groups of k = 8.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python tests/perf/grpo.py [--groups 1] [--rounds 2]

The model is that of tests/perf/dpo.py: a LLaVA of real token geometry (576 picture tokens, about 40 tokens of text), small in
width, the head's share of the work that of a 7B model. Completions of 25 tokens, one turn. Both get the very same tokens and
pixels, and both losses are compared. Vision tower frozen on both sides. Times are CPU seconds of one thread; contenders run in
processes of their own, in turn.

The limit of sharing the prefix is k (P + C) / (P + k C) = 8 (620 + 25) / (620 + 8 x 25) = 6.3.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
K, COMPLETION = 8, 25


def groups_of(trainable: Any, n: int) -> list[Any]:
    """Groups of K chains of one turn, ``COMPLETION`` tokens each, drawn by dice."""
    import random

    from dpo import preferences

    from visrl.train.common.conversations import box_prompt, opened
    from visrl.train.data.candidates import Candidate
    from visrl.train.grpo.rollouts import Chain, Group, Reply

    rng, tokenizer = random.Random(1), trainable.family.tokenizer
    plain = [
        i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids and i != trainable.family.image_token_id
    ]
    groups = []
    for pair in preferences(n, trainable.processor):
        item = opened(pair.sample, "visrl_train")
        turns = box_prompt(item)
        chains = [Chain(Candidate(attempt=i)) for i in range(K)]
        for chain in chains:
            chain.replies["box"] = Reply(turns, tuple(rng.choice(plain) for _ in range(COMPLETION)))
        groups.append(Group(item, chains))
    return groups


def arguments(folder: str, groups: int) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=folder, per_device_train_batch_size=K * groups, num_generations=K, num_iterations=2, loss_type="grpo",
        save_strategy="no", report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        dataloader_pin_memory=False, max_completion_length=COMPLETION, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip


def ours(n: int, folder: str, *, shared: bool = True) -> tuple[Any, Any, Any]:
    """(trainer, old log-probabilities as a function, loss as a function)."""
    import torch
    from dpo import build

    from visrl.core.prompts import PROTOCOLS
    from visrl.policies.protocol import Sampling
    from visrl.train.common.models import trainable as prepared
    from visrl.train.config.recipe import ModelSection
    from visrl.train.grpo.batches import GroupEncoder
    from visrl.train.grpo.credit import RewardPlan
    from visrl.train.grpo.rollouts import RolloutPlan
    from visrl.train.grpo.trainer import GroupTrainer

    model, processor = build()
    t = prepared(model, processor, ModelSection(path="", dtype="float32"), None, seed=0)
    groups = groups_of(t, n)
    encoder = GroupEncoder(t.encoder, shared=shared, store=t.feature_store(1.0))
    plans = (encoder, RolloutPlan(PROTOCOLS["visrl_train"], Sampling(K)), RewardPlan({"format": 1.0}, {}))
    trainer = GroupTrainer(t, [g.sample for g in groups], plans, arguments(folder, n), Path(folder), title="perf")
    trainer.current_gradient_accumulation_steps = 1
    advantage = torch.linspace(-1, 1, K * n)
    batch = trainer._encoded(groups, {"box": advantage, "answer": advantage})
    return trainer, lambda: trainer._log_probs(trainer.model, batch["turns"]), batch


def stock(n: int, folder: str) -> tuple[Any, Any, Any]:
    """The same tokens and pixels in TRL's own layout."""
    import datasets
    import torch
    from dpo import build
    from trl import GRPOTrainer

    from visrl.train.common.models import trainable as prepared
    from visrl.train.config.recipe import ModelSection

    model, processor = build()
    t = prepared(model, processor, ModelSection(path="", dtype="float32"), None, seed=0)
    rows = datasets.Dataset.from_dict({"prompt": ["x"] * n})
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[lambda **_: [0.0]],
        args=arguments(folder, n),
        train_dataset=rows,
        processing_class=processor,
    )
    trainer.current_gradient_accumulation_steps = 1
    chains = [(g, c) for g in groups_of(t, n) for c in g.chains]
    chats = {g.sample.id: t.encoder.chat(g.chains[0].replies["box"].turns, sample="") for g, _ in chains}
    prompts = torch.tensor([chats[g.sample.id].ids for g, _ in chains])
    completions = torch.tensor([c.replies["box"].ids for _, c in chains])
    pixels = torch.cat([chats[g.sample.id].pictures[0].pixels["pixel_values"] for g, _ in chains])
    batch = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": completions,
        "completion_mask": torch.ones_like(completions), "advantages": torch.linspace(-1, 1, K * n), "pixel_values": pixels,
        "num_images": [1] * len(chains),
    }  # fmt: skip

    def old() -> Any:
        return trainer._get_per_token_logps_and_entropies(
            trainer.model, torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1), COMPLETION, batch_size=len(chains),
            pixel_values=batch["pixel_values"], num_images=batch["num_images"],
        )[0]  # fmt: skip

    return trainer, old, batch


CONTENDERS = {"TRL": None, "ours, plain rows": False, "ours": True}


def measure(name: str, n: int, repeats: int = 3) -> dict[str, float]:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    shared = CONTENDERS[name]
    with tempfile.TemporaryDirectory() as folder:
        trainer, old, batch = stock(n, folder) if shared is None else ours(n, folder, shared=shared)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times, parts = [], []
        for _ in range(repeats):
            began = time.process_time()
            with torch.no_grad():
                batch["old_per_token_logps"] = old()
            between = time.process_time()
            loss = trainer._compute_loss(trainer.model, batch)
            loss.backward()
            times.append(time.process_time() - began)
            parts.append(between - began)
            norm = torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm().item()
            trainer.model.zero_grad()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": sorted(times)[len(times) // 2], "old": sorted(parts)[len(parts) // 2], "loss": loss.item(), "norm": norm,
        "grown_mib": (peak - before) / 1024,
    }  # fmt: skip


def child(name: str, n: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, "--groups", str(n)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", choices=CONTENDERS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child, args.groups)))
        return
    best: dict[str, dict[str, float]] = {}
    for _ in range(args.rounds):
        for name in CONTENDERS:
            found = child(name, args.groups)
            best[name] = min(found, best.get(name, found), key=lambda r: r["seconds"])
    theirs = best["TRL"]
    print(f"{args.groups} groups of {K}, 1 thread, best of {args.rounds}")
    for name, found in best.items():
        print(
            f"{name:18s} {found['seconds']:6.2f} s (old {found['old']:.2f})  {theirs['seconds'] / found['seconds']:.2f}x  "
            f"+{found['grown_mib']:.0f} MiB at the peak  loss {found['loss']:+.7f}  gradient norm {found['norm']:.6f}"
        )


if __name__ == "__main__":
    main()
