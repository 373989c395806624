"""Which pairs the critics ``likelihood`` and ``margin`` give, from the same chains of the small world's ``rl`` split, by domain.

    python tests/studies/margin_critic.py --limit 300 --calibrate 300 --domains fine

Per critic and least difference: pairs, in percent of them WP-LN, WN-LP and right winning boxes (WP, ± by picture), and how the box
scores of all chains lie to .2 and .8. ``fine`` is also told apart by its standard answer. What margins are fitted on are --calibrate
questions of ``val``, of the domains of --calibrate-on; that is kept in --output. Each crop and answer is read once, whatever the
settings. --open likelihood: open questions are scored as the likelihood critic scores them.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visrl.core.box_formats import BoxFormat
from visrl.core.types import CoTSample
from visrl.policies.protocol import LogLikelihood, Output, Policy, Request, Sampling
from visrl.policies.registry import load_policy
from visrl.train.critics.calibration import Calibration, Target, fit
from visrl.train.critics.critics import make_critic
from visrl.train.critics.judged import Critic
from visrl.train.critics.margin_critic import MarginCritic
from visrl.train.data.questions import load_questions
from visrl.train.pairs.calibration import looks_read
from visrl.train.pairs.question_state import QuestionState
from visrl.train.pairs.recipe import PairsRecipe
from visrl.train.pairs.run import plan_of
from visrl.train.pairs.sampling import PairSampler
from visrl.train.pairs.statistics import outcomes, table

DOMAINS = ("general", "relation", "doc", "chart", "fine")
LIKELIHOOD, MARGIN = "likelihood", "margin"
FITTED: dict[Target, str] = {"answer": "margin, fitted to answer", "box": "margin, fitted to box"}
BATCH = 64


@dataclass
class Remembering(Policy):
    """A critic's model that reads each text after each conversation once."""

    inner: Policy
    name: str
    box_format: BoxFormat
    scores_texts: bool = True
    known: dict[tuple[str, tuple[str, ...], str], LogLikelihood] = field(default_factory=dict)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Sequence[Output]:
        return self.inner.generate(requests, sampling)

    def describe(self) -> Mapping[str, Any]:
        return self.inner.describe()

    def loglikelihood(self, requests: Sequence[Request], completions: Sequence[str]) -> list[LogLikelihood]:
        keys = [
            (r.key, tuple(p.ref for turn in r.turns for p in turn.pictures), text)
            for r, text in zip(requests, completions, strict=True)
        ]
        new = {key: i for i, key in enumerate(keys) if key not in self.known}
        found = self.inner.loglikelihood([requests[i] for i in new.values()], [completions[i] for i in new.values()])
        self.known |= dict(zip(new, found, strict=True))
        return [self.known[key] for key in keys]


def recipe_of(args: argparse.Namespace, domains: Sequence[str], limit: int, split: str) -> PairsRecipe:
    return PairsRecipe.model_validate(
        {
            "kind": "pairs",
            "output": args.output,
            "seed": args.seed,
            "policy": {"model": args.policy},
            "critic": {"model": args.critic, "kind": "likelihood"},
            "data": {"format": "world", "limit": limit, "tasks": list(domains), "split": split},
            "sampling": {"max_tokens": 8},
        }
    )


def drawn(sampler: PairSampler, samples: Sequence[CoTSample]) -> list[QuestionState]:
    return [state for at in range(0, len(samples), BATCH) for state in sampler.draw(samples[at : at + BATCH])]


def row(states: Sequence[QuestionState], sampler: PairSampler, least: float | None) -> str:
    """pairs | WP-LN | WN-LP | WP | scores at most .2, between, at least .8"""
    rule = replace(sampler.plan.rule, min_difference=least)
    found = outcomes(states, rule)
    shares = table(found)
    values = [c.box_score.value for s in states for c in s.candidates if c.box_score and c.box_score.value is not None]
    low, high = (sum(v <= 0.2 for v in values), sum(v >= 0.8 for v in values))
    parts = [100 * n / max(len(values), 1) for n in (low, len(values) - low - high, high)]
    cells = [str(len(found)), *(_percent(shares[kind]["percent"]) for kind in ("wp_ln", "wn_lp"))]
    wp = f"{_percent(shares['wp']['percent'])} ± {_percent(shares['wp']['se'])}"
    return " | ".join([*cells, wp, " / ".join(f"{part:.0f}" for part in parts)])


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value:.1f}"


def critics_of(args: argparse.Namespace, sampler: PairSampler, model: Policy) -> dict[str, Critic]:
    """The critics by what the table calls them; says on the way what was fitted."""
    margin = MarginCritic(model, open_answers=args.open)
    every: dict[str, Critic] = {LIKELIHOOD: make_critic("likelihood", model, "exact"), MARGIN: margin}
    found = {name: critic for name, critic in every.items() if name in args.critics}
    for target, name in FITTED.items():
        if name not in args.critics:
            continue
        on = "-".join([*args.calibrate_on, args.open])
        kept = args.output / f"fitted-{target}-{on}-{args.calibrate}-{args.seed}.json"
        if not kept.is_file():
            samples = load_questions(recipe_of(args, args.calibrate_on, args.calibrate, "val").data)
            looks, _ = looks_read(replace(sampler, critic=margin), samples, target, BATCH)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(fit(looks, target).to_json()))
        calibration = Calibration.from_json(json.loads(kept.read_text()))
        print(f"fitted on {args.calibrate} questions of val: {calibration.to_json()}\n", flush=True)
        found[name] = replace(margin, calibration=calibration)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="sft")
    parser.add_argument("--critic", default="base")
    parser.add_argument("--limit", type=int, default=300, help="questions of all domains named")
    parser.add_argument("--calibrate", type=int, default=300, help="questions of val")
    parser.add_argument("--calibrate-on", nargs="*", default=list(DOMAINS))
    parser.add_argument("--open", choices=["policy", "likelihood"], default="policy")
    parser.add_argument("--domains", nargs="*", default=list(DOMAINS))
    parser.add_argument("--critics", nargs="*", default=[LIKELIHOOD, MARGIN, *FITTED.values()])
    parser.add_argument("--differences", nargs="*", type=float, default=[0.1, 0.2, 0.3])
    parser.add_argument("--output", type=Path, default=Path("runs/study-margin"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    recipe = recipe_of(args, args.domains, args.limit, "rl")
    policy, other = (load_policy(name, {"dtype": "float32"}) for name in (args.policy, args.critic))
    model = Remembering(other, other.name, other.box_format)
    plan = replace(plan_of(recipe, policy), exhaustive=True)
    sampler = PairSampler(policy, make_critic("likelihood", model, "exact"), plan)
    states = drawn(sampler, load_questions(recipe.data))
    critics = critics_of(args, sampler, model)
    print("| questions | critic | least difference | pairs | WP-LN | WN-LP | WP | scores ≤ .2 / between / ≥ .8, % |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for name, critic in critics.items():
        scored = [copy.copy(state) for state in states]
        for state in scored:
            state.candidates = [replace(c, box_score=None, answer_score=None) for c in state.candidates]
        for at in range(0, len(scored), BATCH):
            replace(sampler, critic=critic).judge(scored[at : at + BATCH])
        for label, part in parts_of(scored).items():
            for least in (None, *args.differences):
                print(f"| {label} | {name} | {least or '—'} | {row(part, sampler, least)} |", flush=True)


def parts_of(states: Sequence[QuestionState]) -> dict[str, list[QuestionState]]:
    """By domain, ``fine`` also by its standard answer."""
    found: dict[str, list[QuestionState]] = {}
    for state in states:
        domain = state.sample.id.split(":")[1]
        found.setdefault(domain, []).append(state)
        if domain == "fine":
            found.setdefault(f"fine, {state.sample.answers[0]}", []).append(state)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    main()
