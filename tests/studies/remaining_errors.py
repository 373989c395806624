"""What a loop's last model still gets wrong on the small world's test split, and why: exploration, critic or capacity.

    python tests/studies/remaining_errors.py runs/world-saturation results/saturation/errors.csv

Each question whose greedy box is wrong (IoU with the true one at most .5) is asked 64 times more, at temperature 1:

unexplored   no sample is right: nothing to choose (exploration)
misjudged    one is, but M_org reads the answer in a wrong sample's crop at least as surely as in every right one's (critic)
unlearnt     one is, and the critic prefers it: training has not made it the most probable one (capacity, or not yet)

A line per seed, domain and size of the true box (terciles of its share of the picture, over the whole split): counts.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from visrl.core.boxes import Box, iou
from visrl.core.prompts import PROTOCOLS
from visrl.core.types import CoTSample
from visrl.policies.protocol import Policy, Request, Sampling
from visrl.policies.registry import load_policy
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer
from visrl.rollout.steps import ask_where, crop_picture, parse_box, region_of
from visrl.tables.csv_files import write_lines
from visrl.tables.phase_tables import order
from visrl.tables.science.saturation_tables import REASONS, SIZES, Errors
from visrl.train.common.conversations import box_prompt, opened
from visrl.train.critics.critics import make_critic
from visrl.train.critics.judged import Critic, Question
from visrl.train.data.questions import QuestionSection, load_questions

K, BATCH, CROP = 64, 32, "tight"
LOOK = RolloutConfig(PROTOCOLS["visrl_train"], "predicted", CROP, Sampling(max_tokens=8))
DOMAINS = ("general", "relation", "doc", "chart", "fine")


def right(box: object, sample: CoTSample) -> bool:
    assert sample.box is not None, "questions of the small world have one"
    return isinstance(box, Box) and iou(box, sample.box) > 0.5


def reasons(policy: Policy, critic: Critic, samples: Sequence[CoTSample], seed: int) -> Iterator[str]:
    """Of each question, in order, "" where the greedy box is right, else why not."""
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        greedy = list(look_then_answer(policy, part, LOOK, batch_size=BATCH))
        wrong = [s for s, e in zip(part, greedy, strict=True) if not right(e.box, s)]
        found = iter(why(policy, critic, wrong, seed))
        yield from ("" if right(e.box, s) else next(found) for s, e in zip(part, greedy, strict=True))


def why(policy: Policy, critic: Critic, samples: Sequence[CoTSample], seed: int) -> list[str]:
    items = [opened(sample, "visrl_train") for sample in samples]
    requests = [Request(item.sample.id, "box", box_prompt(item), item.size, ":why") for item in items]
    outputs = ask_where(policy, requests, Sampling(K, 1.0, max_tokens=8, seed=seed))
    asked: list[tuple[int, bool, Question]] = []
    for i, (item, output) in enumerate(zip(items, outputs, strict=True)):
        assert output.error is None, output.error
        boxes = [parse_box(policy.box_format, text, item.size) for text in output.texts]
        regions = {region_of(box, item.size, CROP): box for box in boxes if isinstance(box, Box)}
        for region, box in regions.items():
            question = Question(item.sample, item.picture, crop_picture(item.picture, region), box)
            asked.append((i, right(box, item.sample), question))
    known = {i for i, good, _ in asked if good}
    asked = [one for one in asked if one[0] in known]  # where nothing is right the critic has no say
    best: dict[tuple[int, bool], float] = {}
    for (i, good, _), judged in zip(asked, critic.boxes([q for *_, q in asked]), strict=True):
        assert judged.score is not None and judged.score.value is not None, judged.error
        best[i, good] = max(best.get((i, good), 0.0), judged.score.value)
    return [
        "unexplored" if i not in known else "unlearnt" if best[i, True] > best.get((i, False), 0.0) else "misjudged"
        for i in range(len(samples))
    ]


def share(sample: CoTSample) -> float:
    assert sample.box is not None and sample.size is not None
    x1, y1, x2, y2 = sample.box.xyxy
    return (x2 - x1) * (y2 - y1) / (sample.size[0] * sample.size[1])


def last_model(folder: Path) -> Path:
    """The weights of a loop's last phase."""
    found = [path.parent for path in folder.glob("iter*/rl*/**/model.safetensors") if path.parent.name == "final"]
    return max(found, key=lambda path: (order("/".join(path.relative_to(folder).parts[:2])), len(path.parts)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of recipes/world-saturation.yaml")
    parser.add_argument("to", type=Path, help="the CSV to write")
    parser.add_argument("--limit", type=int, default=1250, help="questions, evenly over the domains")
    args = parser.parse_args()
    torch.set_num_threads(1)
    section = QuestionSection(format="world", split="test", tasks=list(DOMAINS), limit=args.limit)
    samples = load_questions(section)
    cuts = np.quantile([share(sample) for sample in samples], [1 / 3, 2 / 3])
    critic = make_critic("likelihood", load_policy("base", {"dtype": "float32"}), "exact")
    lines: list[Errors] = []
    for folder in sorted((args.runs / "full").glob("seed*")):
        seed = int(folder.name.removeprefix("seed"))
        policy = load_policy(f"hf:{last_model(folder)}", {"dtype": "float32"})
        counts: Counter[tuple[str, str, str]] = Counter()
        for sample, reason in zip(samples, reasons(policy, critic, samples, seed), strict=True):
            size = SIZES[int(np.searchsorted(cuts, share(sample)))]
            counts[sample.id.split(":")[1], size, reason] += 1  # test:DOMAIN:picture:number
        cells = sorted({(domain, size) for domain, size, _ in counts})
        for domain, size in cells:
            by_reason = {reason: counts[domain, size, reason] for reason in REASONS}
            n = sum(by_reason.values()) + counts[domain, size, ""]
            lines.append(Errors(seed=seed, domain=domain, size=size, questions=n, **by_reason))
        write_lines(args.to, Errors, lines)
        print(f"seed {seed}: {sum(counts[key] for key in counts if key[2])} of {len(samples)} wrong", flush=True)


if __name__ == "__main__":
    main()
