"""How often the paired gate cries wolf, and how often it sleeps: reruns of an unchanged model, and of one that truly got worse.

    python tests/studies/false_alarms.py --simulate                                    # a simulated policy, seconds
    python tests/studies/false_alarms.py --model tiny --k 8 --temperature 1 --save k8.jsonl.gz    # generates, then studies
    python tests/studies/false_alarms.py --load k8.jsonl.gz

The gate is a suite's own (``--suite``, its first paired gate): same tasks, limit, cells, floors and z. Every repeat draws two
runs, a baseline and a rerun, and asks for the verdict.

A model: ``k`` outputs of every sample are generated with k sampling seeds and scored; a run takes one of them for each sample
(the rerun never the baseline's). That is a rerun with another seed, at 1/25 of the cost of 200 of them, because a sample's randomness
hangs on (seed, sample, turn) alone (policies/hf/decoding.py): mixing seeds across samples is one more seed. ``whole runs`` does
without it: the k runs as they were generated, each held against each other one.

Simulated: the small world's own documents and pictures; sample i is right with probability sigmoid(a + u + v), u normal
for its picture and v for itself: some pictures are hard for every question. a is set for the accuracy asked for.

The drop: right answers are spoiled, so that the expected loss of the first cell is ``--drop`` points; sample by sample, or
whole pictures at a time, which is harder to see.

Each repeat has a baseline of its own. In use one baseline is accepted and reruns come to it: ``one baseline`` reports the
alarm rate of single baselines, each with as many reruns, because a lucky baseline makes every rerun look a little worse.
"""

import argparse
import json
import math
import random
import sys
from collections import defaultdict
from dataclasses import replace
from itertools import islice, permutations
from pathlib import Path

from visrl.evals import gates
from visrl.evals.benchmarks import resolve
from visrl.evals.sample_scores import Row, compact, of_baseline
from visrl.evals.suite import load_suite
from visrl.regression.paired import cell_difference
from visrl.tasks import load

METRICS = {"rec": ("acc@0.5",), "viscot": ("box_acc", "answer"), "pope": ("accuracy",)}


class Simulated:
    """Scores of a policy that is right by chance, sample by sample and picture by picture."""

    def __init__(self, tasks, accuracy, spread, seed):
        rng = random.Random(seed)
        picture = defaultdict(lambda: rng.gauss(0, spread))
        self.rows, self.logit = {}, {}
        for spec in resolve([tasks]):
            for sample in load(spec.name, None, with_pictures=False):
                for metric in METRICS[spec.benchmark]:
                    self.logit[spec.name, sample.id, metric] = picture[sample.cluster] + rng.gauss(0, spread)
                self.rows.setdefault(spec.name, {})[sample.id] = Row(sample.cluster, sample.group, {})
        self.shift = _shift(list(self.logit.values()), accuracy)

    def pair(self, rng):
        return self.run(rng), self.run(rng)

    def run(self, rng):
        def right(*key):
            return float(rng.random() < _sigmoid(self.logit[key] + self.shift))

        return {
            task: {
                i: replace(row, values={m: right(task, i, m) for m in METRICS[resolve([task])[0].benchmark]})
                for i, row in rows.items()
            }
            for task, rows in self.rows.items()
        }


def _sigmoid(x):
    return 1 / (1 + math.exp(-x))


def _shift(logits, accuracy):
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = sum(_sigmoid(x + middle) for x in logits) / len(logits)
        low, high = (middle, high) if mean < accuracy else (low, middle)
    return low


class Generated:
    """k scored outputs of every sample of a real policy; a run takes one of them."""

    def __init__(self, runs):
        self.runs = runs

    def pair(self, rng):
        first, second = {}, {}
        for task, rows in self.runs[0].items():
            for i in rows:
                a, b = rng.sample(range(len(self.runs)), 2)
                first.setdefault(task, {})[i] = self.runs[a][task][i]
                second.setdefault(task, {})[i] = self.runs[b][task][i]
        return first, second

    def run(self, rng):
        return self.pair(rng)[0]

    def within(self, gate):
        """Of a wider study: the gate's tasks, and the first ``limit`` samples of each, as a run takes them."""
        names = [spec.name for spec in resolve([gate.tasks])]
        return Generated([{t: dict(islice(run[t].items(), gate.limit)) for t in names} for run in self.runs])

    @classmethod
    def of_model(cls, model, gate, k, temperature):
        from visrl.core.prompts import PROTOCOLS
        from visrl.evals.judge import make_judge
        from visrl.evals.scorers.columns import cluster_of
        from visrl.evals.scorers.scoring import score_task
        from visrl.policies.protocol import Sampling
        from visrl.policies.registry import load_policy
        from visrl.rollout.config import RolloutConfig
        from visrl.rollout.rollout import look_then_answer

        policy = load_policy(model)
        protocol = PROTOCOLS[gate.protocol or policy.default_protocol]
        crop = gate.crop or policy.default_crop
        runs = [{} for _ in range(k)]
        for spec in resolve([gate.tasks]):
            samples = list(load(spec.name, None, with_pictures=True, limit=gate.limit))
            for seed in range(k):
                look = RolloutConfig(protocol, "predicted", crop, Sampling(temperature=temperature, seed=seed), seed)
                episodes = {e.sample_id: e for e in look_then_answer(policy, samples, look, batch_size=gate.batch_size)}
                scores = score_task(spec, samples, episodes, make_judge(gate.judge)).samples
                runs[seed][spec.name] = {
                    s.id: Row(cluster_of(s), s.group, {m: v.value for m, v in scores[s.id].items()}) for s in samples
                }
                print(f"{spec.name} seed {seed}", file=sys.stderr, flush=True)
        return cls(runs)

    def save(self, path):
        joined = {f"{seed} {task}": rows for seed, run in enumerate(self.runs) for task, rows in run.items()}
        Path(path).write_bytes(compact(joined))

    @classmethod
    def load(cls, path):
        runs = defaultdict(dict)
        for name, rows in of_baseline(Path(path)).items():
            seed, task = name.split()
            runs[int(seed)][task] = rows
        return cls([runs[seed] for seed in sorted(runs)])


def spoil(rows, share, rng, by_picture):
    """A run in which each right answer is wrong with probability ``share``: drawn per sample, or once per picture."""
    drawn = defaultdict(rng.random) if by_picture else None

    def value(row, v):
        lost = drawn[row.cluster] if by_picture else rng.random()
        return 0.0 if v and lost < share else v

    return {
        task: {i: replace(row, values={m: value(row, v) for m, v in row.values.items()}) for i, row in of_task.items()}
        for task, of_task in rows.items()
    }


def verdicts(gate, before, after):
    z = gates.z_for(len(gate.cells))
    return [gates.check_difference(cell_difference(c, before, after), c.floor, z) for c in gate.cells]


def rate(outcomes):
    """Share with Wilson's 95 % interval."""
    n, p = len(outcomes), sum(outcomes) / len(outcomes)
    centre, half = p + 1.92 / n, 1.96 * math.sqrt(p * (1 - p) / n + 0.96 / n**2)
    low, high = ((centre + s * half) / (1 + 3.84 / n) for s in (-1, 1))
    return f"{p:.1%} (95 %: {max(0, low):.1%} to {high:.1%})"


def study(source, gate, reps, points, seed, baselines):
    rng = random.Random(seed)
    out = {"cells": [c.name for c in gate.cells], "floors": [c.floor for c in gate.cells], "repeats": reps}
    flat, alarms, dropped, by_picture = [], [], [], []
    for _ in range(reps):
        before, after = source.pair(rng)
        found = verdicts(gate, before, after)
        flat.append(found)
        alarms.append(any(f.status == "fail" for f in found))
        if found[0].facts["after"] < points:
            raise SystemExit(f"accuracy {found[0].facts['after']:g}: there are no {points:g} points to lose")
        share = points / found[0].facts["after"]
        for list_, pictures in ((dropped, False), (by_picture, True)):
            worse = verdicts(gate, before, spoil(after, share, rng, pictures))
            list_.append(any(f.status == "fail" for f in worse))
    first = [found[0] for found in flat]
    out["n"], out["pictures"] = first[0].facts["n"], first[0].facts["n_clusters"]
    out["accuracy"] = round(sum(f.facts["before"] for f in first) / reps, 2)
    out["mean standard error"] = round(sum(f.facts["se"] for f in first) / reps, 3)
    spread = [f.facts["delta"] for f in first]
    out["true standard deviation"] = round(math.sqrt(sum(d * d for d in spread) / reps), 3)
    out["false alarms"] = rate(alarms)
    out["inconclusive"] = rate([any(f.status == "inconclusive" for f in found) for found in flat])
    out[f"a drop of {points:g}, per sample, caught"] = rate(dropped)
    out[f"a drop of {points:g}, per picture, caught"] = rate(by_picture)
    if isinstance(source, Generated):
        out["whole runs"] = whole_runs(source.runs, gate)
    if baselines:
        out["false alarms, one baseline each"] = one_baseline(source, gate, reps, rng, baselines)
    return out


def whole_runs(runs, gate):
    """Every run as it was generated, as a rerun of every other one. The pairs share runs: no interval."""
    found = [verdicts(gate, a, b) for a, b in permutations(runs, 2)]
    spread = [f[0].facts["delta"] for f in found]
    return {
        "runs": len(runs),
        "pairs": len(found),
        "false alarms": sum(any(f.status == "fail" for f in pair) for pair in found),
        "inconclusive": sum(any(f.status == "inconclusive" for f in pair) for pair in found),
        "true standard deviation": round(math.sqrt(sum(d * d for d in spread) / len(spread)), 3),
    }


def one_baseline(source, gate, reps, rng, baselines):
    """Alarm rates of single baselines with ``reps`` reruns each."""
    rates = []
    for _ in range(baselines):
        before = source.run(rng)
        failed = [any(f.status == "fail" for f in verdicts(gate, before, source.run(rng))) for _ in range(reps)]
        rates.append(round(sum(failed) / reps, 3))
    return {"mean": round(sum(rates) / baselines, 4), "each": sorted(rates)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--suite", default="nightly")
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--accuracy", type=float, default=0.75)
    parser.add_argument("--spread", type=float, default=2.0, help="standard deviation of u and v, in logits")
    parser.add_argument("--model")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--save")
    parser.add_argument("--load")
    parser.add_argument("--reps", type=int, default=200)
    parser.add_argument("--drop", type=float, default=3.0)
    parser.add_argument(
        "--baselines", type=int, default=0, help="also: so many single baselines, each with --reps reruns"
    )
    parser.add_argument("--seed", type=int, default=1)
    o = parser.parse_args()
    gate = load_suite(o.suite).paired[0]
    if o.simulate:
        source = Simulated(gate.tasks, o.accuracy, o.spread, o.seed)
    elif o.load:
        source = Generated.load(o.load).within(gate)
    elif o.model:
        source = Generated.of_model(o.model, gate, o.k, o.temperature)
        if o.save:
            source.save(o.save)
    else:
        parser.error("--simulate, --model or --load")
    print(json.dumps(study(source, gate, o.reps, o.drop, o.seed, o.baselines), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
