"""Issue 6 on the small world: questions without boxes -> pairs, with and without critics and controller, over seeds.

    python tests/studies/pairs_world.py --limit 5000 --seeds 3 --output runs/study-pairs [--policy sft] [--critic base]

Per setting: yield, WP-LP / WP-LN / WN-LP / WN-LN in percent of the pairs, mean over seeds ± standard error over seeds, and
beside it the standard error by picture within one seed. Differences are paired by seed; "beyond 2 SE" is said of each.
``--policy scripted``: no warm-up needed. Where to look is drawn from a script (35 % the asked thing, 45 % another thing of the
picture, 20 % anywhere, all jittered); reading, answering and judging are the base's own. It shows what critics and controller
do with boxes of a known quality, and nothing about M_SFT. Runs resume: the same command goes on. Tokens per kept pair: tests/perf/pairs_tokens.py.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from visrl.core.boxes import Box, iou
from visrl.core.crops import compat_visrl
from visrl.core.types import CoTSample
from visrl.policies.protocol import Output, Policy, Request, Sampling
from visrl.policies.registry import load_policy
from visrl.train.critics.critics import Critic, make_critic
from visrl.train.data.questions import load_questions
from visrl.train.pairs.recipe import PairsRecipe
from visrl.train.pairs.run import finished, make_pairs, plan_of
from visrl.train.pairs.sampling import PairSampler, QuestionState
from visrl.train.pairs.statistics import outcomes, table
from visrl.world.splits import redraw

SCRIPTED = "scripted"
CHAINS_OF = {"w/o box critics": "full", "w/o both": "w/o controller"}
"""Settings without box critics are selected from the chains of another one: the same chains, only nobody asks about boxes."""
KINDS = ("wp_lp", "wp_ln", "wn_lp", "wn_ln", "wp")
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "w/o box critics": {},  # selected from the chains of "full"
    "w/o controller": {"diversity": "none"},
    "w/o both": {},  # selected from the chains of "w/o controller"
    "resample": {"diversity": "resample"},
    "M_SFT as critic": {"critic": "policy"},
    "compat crop": {"crop": "compat_visrl"},
}
ASKED = (
    ("full", "w/o box critics", "wp", 1),
    ("full", "w/o controller", "wp_lp", -1),
    ("w/o box critics", "w/o both", "wp_lp", -1),
    ("full", "resample", "wp_ln", -1),
)
"""Two settings, a kind of pairs, and whether the first should have more of it."""
POSTER = {"full": "VisRL-Full 30k", "w/o box critics": "86k", "w/o controller": "19k", "M_SFT as critic": "3k"}


class ScriptedLooks:
    """The base, told where to look. Its own box turn is really run, so that caches and token counts are real."""

    needs_pictures = True
    default_protocol = "visrl_train"

    def __init__(self, inner: Policy, samples: list[CoTSample]) -> None:
        self.inner, self.name, self.box_format = inner, f"{SCRIPTED}:{inner.name}", inner.box_format
        self.known = {sample.id: sample for sample in samples}

    def describe(self) -> Mapping[str, Any]:
        return {**self.inner.describe(), "kind": SCRIPTED}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        outputs = self.inner.generate(requests, sampling)
        return [
            self._scripted(r, o, sampling) if r.step == "box" else o for r, o in zip(requests, outputs, strict=True)
        ]

    def _scripted(self, request: Request, output: Output, sampling: Sampling) -> Output:
        sample = self.known[request.key]
        dice = [random.Random(f"{sampling.seed}:{request.key}:{i}") for i in range(sampling.n)]
        return replace(output, texts=tuple(self._look(sample, rng) for rng in dice))

    def _look(self, sample: CoTSample, rng: random.Random) -> str:
        truth, size = sample.box, sample.size
        assert truth is not None and size is not None
        things = [thing.as_box() for thing in redraw(sample.meta["picture"]).things]
        others = [box for box in things if box.xyxy != truth.xyxy] or [truth]
        dice, wide, high = rng.random(), truth.x2 - truth.x1, truth.y2 - truth.y1
        x, y = rng.random() * (size[0] - wide), rng.random() * (size[1] - high)
        box = truth if dice < 0.35 else rng.choice(others) if dice < 0.8 else Box(x, y, x + wide, y + high)
        w, h = box.x2 - box.x1, box.y2 - box.y1
        x1, y1, x2, y2 = (v + rng.gauss(0, 0.08) * side for v, side in zip(box.xyxy, (w, h, w, h), strict=True))
        return self.box_format.write(Box(x1, y1, x2, y2).clipped(size), size)


def run_of(
    args: argparse.Namespace, name: str, seed: int, models: dict[str, Any], samples: list[CoTSample]
) -> list[QuestionState]:
    """The finished chains of a setting."""
    setting = dict(SETTINGS[name])
    critic = models["self"] if setting.pop("critic", None) else models["critic"]
    folder = args.output / f"{name.replace(' ', '-').replace('/', '')}-{seed}"
    recipe = PairsRecipe.model_validate(
        {
            "kind": "pairs",
            "output": folder,
            "seed": seed,
            "policy": {"model": args.policy},
            "critic": {"model": args.critic, "kind": "likelihood"},
            "data": {"format": "world", "limit": args.limit},
            "sampling": {"max_tokens": 8, "temperature": args.temperature, "top_p": args.top_p},
            "batch_size": args.batch_size,
            **setting,
        }
    )
    policy: Policy = models["policy"]
    judge: Critic = critic
    make_pairs(PairSampler(policy, judge, plan_of(recipe, policy)), samples, recipe)
    done = finished(folder / "chains.jsonl", {sample.id: sample for sample in samples})
    return [done[sample.id] for sample in samples]


def row(works: list[QuestionState], *, box_critic: bool = True) -> dict[str, float]:
    """Yield and percentages of one run."""
    from visrl.train.pairs.selection import Rule

    found = outcomes(works, Rule(box_critic=box_critic))
    shares = table(found)
    values = {kind: float(shares[kind]["percent"] or 0.0) for kind in KINDS}
    errors = {f"se_{kind}": float(shares[kind]["se"] or 0.0) for kind in KINDS}
    looked = [iou(t.box, w.sample.box) for w in works for t in w.candidates if w.sample.box and t.box_text is not None]
    right = 100 * sum(value > 0.5 for value in looked) / max(len(looked), 1)
    return {"pairs": float(len(found)), "sampled boxes right": right, **values, **errors}


def mean_se(values: list[float]) -> tuple[float, float]:
    se = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.fmean(values), se


def show(rows: dict[str, list[dict[str, float]]]) -> None:
    """The table and the differences that issue 6 asks about, as Markdown."""
    print("| setting | poster | pairs | sampled boxes right % | WP-LP | WP-LN | WN-LP | WN-LN | WP (SE by picture) |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, found in rows.items():
        cells = [
            f"{mean_se([r['pairs'] for r in found])[0]:.0f}",
            f"{mean_se([r['sampled boxes right'] for r in found])[0]:.1f}",
        ]
        for kind in KINDS:
            mean, se = mean_se([r[kind] for r in found])
            cells.append(f"{mean:.2f} ± {se:.2f}" + (f" ({found[0]['se_wp']:.2f})" if kind == "wp" else ""))
        print(f"| {name} | {POSTER.get(name, '')} | {' | '.join(cells)} |")
    print()
    for name, other, kind, sign in ASKED:
        if name in rows and other in rows:
            gaps = [a[kind] - b[kind] for a, b in zip(rows[name], rows[other], strict=True)]
            mean, se = mean_se(gaps)
            word = "beyond 2 SE" if sign * mean > 2 * se else "NOT beyond 2 SE in the expected direction"
            print(f"- {kind}: {name} - {other} = {mean:+.2f} ± {se:.2f} over {len(gaps)} seeds: {word}")


def wrong_frame(samples: Sequence[CoTSample]) -> str:
    """How far the official crop of a true box is from that box, here (docs/method.md g1 has VisCoT's sets: .26 to .74)."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for sample in samples:
        assert sample.box is not None and sample.size is not None
        crop = Box(*map(float, compat_visrl(sample.box, sample.size)))
        found[sample.size[0] == sample.size[1]].append(iou(crop, sample.box))
    return (
        f"IoU of the official crop of a true box with it: {statistics.fmean(found[True] + found[False]):.2f}"
        f" ({statistics.fmean(found[False]):.2f} on the {len(found[False])} of {len(samples)} pictures that are not square)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="sft")
    parser.add_argument("--critic", default="base")
    parser.add_argument("--limit", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--top-p", type=float, default=0.7)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--output", type=Path, default=Path("runs/study-pairs"))
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    samples = load_questions(PairsRecipe.model_validate(_tree(args)).data)
    other = load_policy(args.critic)
    policy: Policy = ScriptedLooks(other, samples) if args.policy == SCRIPTED else load_policy(args.policy)
    models = {
        "policy": policy,
        "critic": make_critic("likelihood", other, "exact"),
        "self": make_critic("likelihood", other if args.policy == SCRIPTED else policy, "exact"),
    }
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.seeds):
        for name in args.settings:
            works = run_of(args, CHAINS_OF.get(name, name), seed, models, samples)
            rows.setdefault(name, []).append(row(works, box_critic=name not in CHAINS_OF))
    print(f"{args.limit} questions, {args.seeds} seeds, policy {args.policy}, critic {args.critic}\n")
    show(rows)
    print(f"\n{wrong_frame(samples)}")
    (args.output / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")


def _tree(args: argparse.Namespace) -> dict[str, Any]:
    named = {"policy": {"model": args.policy}, "critic": {"model": args.critic}}
    return {"kind": "pairs", "output": args.output, "data": {"format": "world", "limit": args.limit}, **named}


if __name__ == "__main__":
    main()
