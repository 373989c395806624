"""Boxes right, answers right and readable boxes on the small world's val split: what recipes are chosen by (test reports, once).

python tests/studies/world_val.py --limit 1000 sft runs/world/iter1/rl1/stage1/final runs/world/iter1/rl2/stage2/final
"""

import argparse

import torch

from visrl.core.boxes import Box, iou
from visrl.core.prompts import PROTOCOLS
from visrl.evals.judge import JudgeItem, make_judge
from visrl.policies.protocol import Sampling
from visrl.policies.registry import load_policy
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer
from visrl.train.data.questions import QuestionSection, load_questions
from visrl.world import CHECKPOINTS

LOOK = RolloutConfig(PROTOCOLS["visrl_train"], "predicted", "tight", Sampling(max_tokens=8))


def measure(model, samples):
    """Percent of boxes with IoU > 0.5, of right answers, and of boxes that could be read."""
    policy = load_policy(model if model in CHECKPOINTS else f"hf:{model}", {"dtype": "float32"})
    episodes = list(look_then_answer(policy, samples, LOOK, batch_size=64))
    read = [isinstance(e.box, Box) for e in episodes]
    right = [r and iou(e.box, s.box) > 0.5 for r, e, s in zip(read, episodes, samples, strict=True)]
    items = [JudgeItem(s.id, s.question, s.answers, e.answer or "") for s, e in zip(samples, episodes, strict=True)]
    answers = [score.value for score in make_judge("exact").judge_many(items)]
    return [100 * sum(values) / len(samples) for values in (right, answers, read)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="shipped names or folders")
    parser.add_argument("--limit", type=int, default=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    samples = load_questions(QuestionSection(format="world", split="val", limit=args.limit))
    for model in args.models:
        boxes, answers, readable = measure(model, samples)
        print(
            f"{model}: boxes {boxes:.1f}, answers {answers:.1f}, readable {readable:.1f} ({len(samples)} questions)",
            flush=True,
        )


if __name__ == "__main__":
    main()
