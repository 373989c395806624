"""What a small model can do: every number of its card, through the package's own rollout and scorers.

    python -m visrl.train.small_model.model_card tiny    # a shipped name or a folder; prints a table, --json writes the numbers

Of a model of several looks, on walls: so many looks allowed (``looks=K``), and controls look by look. Of the others:
direct; looking at the predicted, the gold, a random, the central, the whole region; blind (same model, pictures
blanked); the commonest answer; and the true crop alone, which is what a critic is shown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from visrl.core.crops import FOCUSES, tight
from visrl.core.prompts import PROTOCOLS, SEVERAL
from visrl.core.types import CoTSample, Picture
from visrl.evals.benchmarks import GROUPS, TASKS
from visrl.evals.judge import make_judge
from visrl.evals.scorers.scoring import TaskScores, score_group, score_task
from visrl.policies.blind import Blind
from visrl.policies.protocol import FunctionPolicy, Policy, Sampling
from visrl.rollout.config import RolloutConfig, rollout_config, with_looks
from visrl.rollout.rollout import look_then_answer
from visrl.tasks import load
from visrl.world import CHECKPOINTS, checkpoint_path
from visrl.world.chat_format import BOX_FORMAT

VISCOT = GROUPS["world_viscot"]
LOOKING = PROTOCOLS["visrl_train"]
WAYS = ("gold", "random", "gold,random", "random,gold", "gold,predicted")
"""Whose boxes are looked at on walls, look by look; one for all looks where it stands alone."""


@dataclass(frozen=True, slots=True)
class Row:
    """One number: task or group, condition, metric, value with its standard error, samples."""

    task: str
    condition: str
    metric: str
    value: float | None
    se: float | None
    n: int


def commonest(task: str) -> Policy:
    """Always the commonest answer of the task's own samples: the most that a constant can score."""
    answers = Counter(sample.answers[0] for sample in load(task, None, with_pictures=False))
    return FunctionPolicy("majority", lambda _: answers.most_common(1)[0][0], BOX_FORMAT)


def cropped(sample: CoTSample) -> CoTSample:
    """The sample with the true region as its whole picture."""
    assert sample.picture is not None and sample.box is not None and sample.size is not None
    region = tight(sample.box, sample.size)
    picture, size = sample.picture, (region[2] - region[0], region[3] - region[1])
    return replace(
        sample, picture=Picture(f"{picture.ref}#{region}", lambda: picture.open().crop(region)), size=size, box=None
    )


def run(policy: Policy, task: str, look: RolloutConfig, *, crops: bool = False) -> TaskScores:
    """One task under one condition, scored. Raises RuntimeError if a sample fails: nothing here may."""
    samples = list(load(task, None, with_pictures=True))
    asked = [cropped(sample) for sample in samples] if crops else samples
    episodes = {e.sample_id: e for e in look_then_answer(policy, asked, look, batch_size=64)}
    failed = [e for e in episodes.values() if e.error]
    if failed:
        raise RuntimeError(f"{len(failed)} samples of {task} failed: {failed[0].error}")
    return score_task(TASKS[task], samples, episodes, make_judge("exact"))


def measure(policy: Policy, *, short: bool = False) -> Iterator[Row]:
    """Every row of the table, as it is known; ``short``: without the controls, the general tasks and most held-out ones."""
    tokens = Sampling(max_tokens=6)
    if policy.default_protocol in SEVERAL:
        yield from _walls(policy, tokens)
        return
    looks = {focus: RolloutConfig(LOOKING, focus, "tight", tokens) for focus in FOCUSES}
    direct = RolloutConfig(PROTOCOLS["direct"], crop="tight", sampling=tokens)
    yield from _rows("world_rec", "predicted", [run(policy, "world_rec", looks["predicted"])])
    yield from _group("world_viscot", "direct", policy, direct)
    for focus in FOCUSES[:3]:
        yield from _group("world_viscot", focus, policy, looks[focus])
    yield from _group("world_viscot", "crop alone", policy, direct, crops=True)
    yield from _rows("world_viscot", "majority", [run(commonest(task), task, direct) for task in VISCOT])
    yield from _rows("world_heldout_rec", "predicted", [run(policy, "world_heldout_rec", looks["predicted"])])
    if short:
        return
    yield from _group("world_viscot", "blind, predicted", Blind(policy), looks["predicted"])
    yield from _group("world_viscot", "blind, direct", Blind(policy), direct)
    for task in ("world_pope", "world_mme", "world_mmbench"):
        yield from _group(task, "direct", policy, direct)
        yield from _group(task, "predicted", policy, looks["predicted"])
    for focus in FOCUSES[3:]:
        yield from _group("world_viscot", focus, policy, looks[focus])
    for task in GROUPS["world_heldout"][1:]:
        yield from _rows(task, "predicted", [run(policy, task, looks["predicted"])])


def _walls(policy: Policy, tokens: Sampling) -> Iterator[Row]:
    protocol = SEVERAL[policy.default_protocol]
    for allowed in range(4):
        look = rollout_config(policy, protocol=with_looks(protocol, allowed), sampling=tokens)
        yield from _rows("world_deep", f"looks={allowed}", [run(policy, "world_deep", look)])
    for focus in WAYS:
        look = rollout_config(policy, protocol=protocol, box_source=focus, sampling=tokens)
        yield from _rows("world_deep", focus, [run(policy, "world_deep", look)])


def _group(group: str, condition: str, policy: Policy, look: RolloutConfig, *, crops: bool = False) -> Iterator[Row]:
    yield from _rows(group, condition, [run(policy, t, look, crops=crops) for t in GROUPS.get(group, (group,))])


def _rows(name: str, condition: str, scores: Sequence[TaskScores]) -> Iterator[Row]:
    wanted = {"acc@0.5", "answer", "box_acc", "accuracy", "f1", "perception", "circular"}
    if name in GROUPS:
        for m in score_group(name, {s.spec.name: s for s in scores}):
            if m.metric in wanted:
                yield Row(name, condition, m.metric, m.value, m.se, m.n)
    for score in scores:
        for m in score.metrics:
            if m.metric in wanted or score.spec.benchmark == "way":
                yield Row(score.spec.name, condition, m.metric, m.value, m.se, m.n)


def main() -> None:
    """Print rows as they come; write them all as JSON."""
    parser = argparse.ArgumentParser(description="Measure a small model on the small world.")
    parser.add_argument("model", help="tiny, sft, base, deep, or a folder")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--short", action="store_true", help="boxes, answers and the true crop only")
    options = parser.parse_args()
    import torch

    from visrl.policies.hf.policy import HFPolicy

    torch.set_num_threads(1)
    path = checkpoint_path(options.model) if options.model in CHECKPOINTS else Path(options.model)
    rows = []
    for row in measure(HFPolicy.load(str(path), dtype="float32", rows="64"), short=options.short):
        rows.append(asdict(row))
        value = "-" if row.value is None else f"{row.value:.4g} ± {row.se or 0:.2g}"
        sys.stdout.write(f"| {row.task} | {row.condition} | {row.metric} | {value} | {row.n} |\n")
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
