"""A small-world-sized fake: policy and critic as seeded functions, so that tests of pairs need no model."""

import hashlib
import json
import random
import re

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box, iou
from visrl.core.types import CoTSample, Picture
from visrl.policies.protocol import Output, Policy
from visrl.train.pairs.run import RECIPE

SIZE = (400, 300)
REGION = re.compile(r"#xyxy=(\d+),(\d+),(\d+),(\d+)$")


def no_pixels():
    raise AssertionError("nothing here needs pixels")


def question(i):
    """Question ``i``: the answer is written inside its true box, 80 x 60 somewhere in the picture."""
    rng = random.Random(f"q{i}")
    x, y = rng.randrange(320), rng.randrange(240)
    picture = Picture(f"p{i // 2}.png", no_pixels)
    return CoTSample(
        id=f"q{i}",
        task="pairs",
        kind="qa",
        question=f"What is written on thing {i}?",
        picture=picture,
        size=SIZE,
        box=Box(x, y, x + 80, y + 60),
        answers=(rng.choice("ABCDE"),),
        cluster=picture.ref,
    )


def questions(n):
    return [question(i) for i in range(n)]


def recipe(output, **more):
    tree = {
        "kind": "pairs",
        "output": output,
        "policy": {"model": "fake"},
        "critic": {"model": "fake"},
        "data": {"path": "made.jsonl"},
        **more,
    }
    return RECIPE.model_validate(tree)


class Asked(Policy):
    """Counts requests, and says what a request looked at."""

    needs_pictures = False
    box_format = FORMATS["padded_square_3dp"]
    default_protocol = "visrl_train"
    faults = 0.0

    def __init__(self, name, samples, faults=0.0):
        self.name, self.known = name, {sample.id: sample for sample in samples}
        self.requests, self.calls, self.faults = 0, 0, faults
        self._dice = random.Random("faults")

    def describe(self):
        return {"kind": "fake"}

    def generate(self, requests, sampling):
        self.calls += 1
        self.requests += len(requests)
        return [self._one(request, sampling) for request in requests]

    def _one(self, request, sampling):
        if self._dice.random() < self.faults:
            return Output(error="503 try later")
        texts = []
        for i in range(sampling.n):
            rng = random.Random(f"{sampling.seed}:{request.key}:{request.step}{request.stream}:{i}")
            texts.append(self.say(request, self.known[request.key], rng))
        return Output(
            tuple(texts), prompt_tokens=100, output_tokens=5 * sampling.n, cached_tokens=40 * (request.step == "answer")
        )


def seen_in(request):
    """The crop of a request as a box, None without one."""
    match = REGION.search(request.turns[-1].pictures[-1].ref)
    return Box(*map(int, match.groups())) if match else None


class FakePolicy(Asked):
    """Boxes: near the true one two times in five, else anywhere, one in ten unreadable. Answers: right where it looked there."""

    def say(self, request, sample, rng):
        if request.step == "answer":
            looked = seen_in(request)
            right = iou(looked, sample.box) > 0.3 if looked else False
            return sample.answers[0] if rng.random() < (0.95 if right else 0.2) else rng.choice("ABCDE")
        if rng.random() < 0.1:
            return "no idea"
        truth, (width, height) = sample.box, sample.size
        wide, high = truth.x2 - truth.x1, truth.y2 - truth.y1
        anywhere = rng.randrange(int(width - wide)), rng.randrange(int(height - high))
        x, y = (truth.x1, truth.y1) if rng.random() < 0.4 else anywhere
        x, y = x + rng.randrange(-12, 13), y + rng.randrange(-12, 13)
        return self.box_format.write(Box(x, y, x + wide, y + high), sample.size)


class FakeCritic(Asked):
    """A model that judges in words: JSON, bare, fenced, or, one time in twenty, in none of these."""

    def say(self, request, sample, rng):
        text, looked = request.turns[-1].parts[-1], seen_in(request)
        if looked is not None:
            score = 1.0 if iou(looked, sample.box) > 0.35 else 0.0
        else:
            score = float(text.rpartition("given answer: ")[2] == sample.answers[0])
        dice = int(hashlib.sha256(repr((text, looked)).encode()).hexdigest(), 16) % 20
        wrong = "I would rather not say"
        return (
            [json.dumps({"score": score}), f"```json\n{json.dumps({'score': score})}\n```", str(score)][dice % 3]
            if dice
            else wrong
        )
