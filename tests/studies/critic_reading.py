"""Why M_SFT judges as well as M_org here (docs/science.md): a critic is as good as its reading of crops, and this warm-up keeps it.

    python tests/studies/critic_reading.py --limit 1500 --seeds 3 --output runs/study-critics

The paper's M_SFT is fine-tuned on boxes, and judges worse than M_org (poster, table 4). Tested here: the same warm-up on the same 40
pictures with boxes alone as targets, for more and more steps, so that reading is forgotten by degrees. Per critic: how often it reads
the true crop rightly (all world_viscot splits), and how many winning boxes of the pairs it selects from the same policy's chains are
right (IoU > 0.5), mean ± standard error over seeds, paired with M_org's.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pairs_world import mean_se, row, run_of

from visrl.core.prompts import PROTOCOLS
from visrl.evals.benchmarks import GROUPS
from visrl.evals.scorers.scoring import score_group
from visrl.policies.protocol import Policy, Sampling
from visrl.policies.registry import load_policy
from visrl.rollout.config import RolloutConfig
from visrl.train.critics.critics import make_critic
from visrl.train.data.questions import load_questions
from visrl.train.pairs.recipe import PairsRecipe
from visrl.train.small_model.model_card import VISCOT, run
from visrl.world import checkpoint_path

WARM_UP = Path(__file__).parents[2] / "recipes" / "world-sft.yaml"


def boxes_only(folder: Path, steps: int) -> str:
    """The warm-up with boxes alone as targets. Returns the folder of its weights; trained once."""
    if not (folder / "model.safetensors").is_file():
        sets = {
            "output": folder,
            "start": checkpoint_path("base"),
            "steps": steps,
            "lessons": "{box: [1, 1]}",
            "watch_every": 0,
        }
        words = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
        subprocess.run(["visrl-train", str(WARM_UP), *words], check=True)
    return str(folder)


def reading(policy: Policy) -> tuple[float, float]:
    """Percent of true crops answered rightly, and the standard error by picture: the mean over the splits, as on the cards."""
    look = RolloutConfig(PROTOCOLS["direct"], crop="tight", sampling=Sampling(max_tokens=6))
    scores = {task: run(policy, task, look, crops=True) for task in VISCOT}
    (mean,) = [m for m in score_group("world_viscot", scores) if m.metric == "answer"]
    assert mean.value is not None and mean.se is not None
    return 100 * mean.value, 100 * mean.se


def _said(found: tuple[float, float], sign: str = "") -> str:
    return f"{found[0]:{sign}.1f} ± {found[1]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="*", default=[35, 70, 140], help="of warm-ups on boxes alone")
    parser.add_argument("--output", type=Path, default=Path("runs/study-critics"))
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    critics = {"M_org": "base", "M_SFT": "sft"}
    critics |= {f"boxes alone, {n} steps": boxes_only(args.output / f"boxes-{n}", n) for n in args.steps}
    policy = load_policy("sft")
    data = {"format": "world", "limit": args.limit}
    named = {
        "kind": "pairs",
        "output": args.output,
        "policy": {"model": "sft"},
        "critic": {"model": "base"},
        "data": data,
    }
    samples = load_questions(PairsRecipe.model_validate(named).data)
    print(f"{args.limit} questions, {args.seeds} seeds, policy sft, splits {', '.join(GROUPS['world_viscot'])}\n")
    print("| critic | reads true crops | winning boxes right | against M_org | pairs |\n|---|---:|---:|---:|---:|")
    first: list[float] = []
    for name, model in critics.items():
        critic = load_policy(model)
        models: Mapping[str, Any] = {"policy": policy, "critic": make_critic("likelihood", critic, "exact")}
        how = argparse.Namespace(
            output=args.output / name.replace(" ", "-").replace(",", ""),
            policy="sft",
            critic=model,
            limit=args.limit,
            temperature=2.0,
            top_p=0.7,
            batch_size=64,
        )
        rows = [row(run_of(how, "full", seed, dict(models), samples)) for seed in range(args.seeds)]
        right = [r["wp"] for r in rows]
        first = first or right
        gap = [a - b for a, b in zip(right, first, strict=True)]
        some = all(r["pairs"] for r in rows)  # of no pairs there is no share
        cells = [_said(reading(critic)), _said(mean_se(right)) if some else "—"]
        cells += [_said(mean_se(gap), "+") if some and right is not first else "—"]
        print(f"| {name} | {' | '.join(cells)} | {mean_se([r['pairs'] for r in rows])[0]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
