"""Model tokens (prefill + decode) per kept pair, against the official procedure on the same questions, both counted.

    python tests/perf/pairs_tokens.py --policy sft --critic base --limit 200     (or --policy scripted, see the study)

Ours: one `visrl-train pairs` run. Official (docs/method.md d and g4): for each of 3 attempts B1, R1, B2, R2, each a request
of its own with a full prefill, then for each of the up to 6 chains two critic requests, s^r (whole picture) and s^b (crop).
The chains are those of our run, so the pairs are the same. In its favour: an attempt whose first box is unreadable costs one
request, repeated chains and answers to a box whose attempt was dropped cost none. The requests are really sent to the policy and the critic; only
how many is the official's. ``once``: without its mistake of processing every result twice. ``critics twice``: only critics
repeated. ``twice``: every step repeated, as g4 reads ("2x cost").

The small critic cannot judge in words, so the run's own critic is the likelihood critic. That is not what the official
script asks, so both are counted: "same critic": the official schedule with likelihood requests; "worded critic": ours and
theirs with the worded requests, each different one asked, in ours only those that selection needed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from visrl.policies.protocol import Policy, Request, Sampling, Tokens
from visrl.policies.registry import load_policy
from visrl.rollout.retry import total
from visrl.train.common.conversations import answer_prompt, box_prompt, crop_of, opened
from visrl.train.critics.critics import Critic, Question, ScoreCritic, make_critic, without_repeats
from visrl.train.data.questions import QuestionSection, load_questions
from visrl.train.pairs.recipe import PairsRecipe
from visrl.train.pairs.run import finished, make_pairs, plan_of
from visrl.train.pairs.sampling import PairSampler, QuestionState, SamplingPlan
from visrl.train.pairs.statistics import STAGES, pairs_of

sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))
from pairs_world import SCRIPTED, ScriptedLooks


@dataclass
class Official:
    """What the official schedule spends on generation and on critics."""

    generation: Tokens
    likelihood: Tokens
    worded: Tokens


def generate(policy: Policy, request: Request) -> Tokens:
    """One request, alone: nothing cached."""
    (output,) = policy.generate([request], Sampling(max_tokens=8, temperature=2.0, top_p=0.7, top_k=50))
    found = Tokens.of(output)
    assert found is not None and found.cached == 0
    return found


def official(
    policy: Policy, likelihood: Critic, worded: Critic, works: list[QuestionState], plan: SamplingPlan
) -> Official:
    """The official requests for the chains of our run."""
    generation, critics, words = Tokens(), [], []
    for work in works:
        item = opened(work.sample, plan.protocol)
        size, key = item.size, work.sample.id
        for _ in range(sum(1 if a.dropped.startswith("first") else 2 for a in work.attempts)):  # B1, and B2
            generation += generate(policy, Request(f"{key}!", "answer", box_prompt(item), size))
        for candidate in work.candidates:
            prompt = answer_prompt(item, candidate, plan.crop, policy.box_format)
            generation += generate(policy, Request(f"{key}!", "answer", prompt, size))
            crop = crop_of(item, candidate, plan.crop)
            critics.append(Question(work.sample, item.picture, crop, candidate.box))
            words.append(Question(work.sample, item.picture, answer=candidate.answer))
    spent_l = total(j.tokens for j in likelihood.boxes(critics)) or Tokens()
    one_by_one = [worded.answers([q])[0].tokens for q in words] + [worded.boxes([q])[0].tokens for q in critics]
    return Official(generation, spent_l, total(one_by_one) or Tokens())


def ours_worded(worded: Critic, works: list[QuestionState], plan: SamplingPlan) -> Tokens:
    """Worded requests in our schedule: each different answer, and those boxes whose score was needed."""
    spent: list[Tokens | None] = []
    for work in works:
        item = opened(work.sample, plan.protocol)
        answers, _ = without_repeats([Question(work.sample, item.picture, answer=t.answer) for t in work.candidates])
        crops = [crop_of(item, t, plan.crop) for t in work.candidates if t.box_score is not None]
        boxes, _ = without_repeats([Question(work.sample, item.picture, crop) for crop in crops])
        spent += [j.tokens for j in (*worded.answers(answers), *worded.boxes(boxes))]
    return total(spent) or Tokens()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="sft")
    parser.add_argument("--critic", default="base")
    parser.add_argument("--limit", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    other = load_policy(args.critic)
    known = load_questions(QuestionSection(format="world", limit=args.limit))
    policy: Policy = ScriptedLooks(other, known) if args.policy == SCRIPTED else load_policy(args.policy)
    likelihood, worded = make_critic("likelihood", other, "exact"), ScoreCritic(other)
    with tempfile.TemporaryDirectory() as folder:
        recipe = PairsRecipe.model_validate(
            {
                "kind": "pairs",
                "output": folder,
                "policy": {"model": args.policy},
                "critic": {"kind": "likelihood", "model": args.critic},
                "data": {"format": "world", "limit": args.limit},
                "sampling": {"max_tokens": 8},
            }
        )
        plan, samples = plan_of(recipe, policy), load_questions(recipe.data)
        make_pairs(PairSampler(policy, likelihood, plan), samples, recipe)
        done = finished(Path(folder) / "chains.jsonl", {sample.id: sample for sample in samples})
    works = [done[sample.id] for sample in samples]
    report(works, plan, official(policy, likelihood, worded, works, plan), ours_worded(worded, works, plan))


def report(works: list[QuestionState], plan: SamplingPlan, theirs: Official, words: Tokens) -> None:
    """Totals and ratios, as JSON."""
    stages = {stage: total(w.tokens.get(stage, Tokens()) for w in works) or Tokens() for stage in STAGES}
    ours = {name: count.computed for name, count in stages.items()}
    generated, n = ours["boxes"] + ours["answers"], sum(len(pairs_of(w, plan.rule)) for w in works)
    mine = {"same critic": sum(ours.values()), "worded critic": generated + words.computed}
    judged = {"same critic": theirs.likelihood.computed, "worded critic": theirs.worded.computed}
    found = {}
    for name, spent in mine.items():
        base, critics = theirs.generation.computed, judged[name]
        schedules = {"once": base + critics, "critics twice": base + 2 * critics, "twice": 2 * (base + critics)}
        found[name] = {
            "ours": spent,
            "ours per pair": round(spent / n, 1) if n else None,
            **{f"official, {k}": v for k, v in schedules.items()},
            **{f"ratio to official, {k}": round(spent / v, 3) for k, v in schedules.items()},
        }
    print(json.dumps({"questions": len(works), "pairs": n, "ours by stage": ours, **found}, indent=1))


if __name__ == "__main__":
    main()
