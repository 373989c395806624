"""A policy and a critic of several looks as seeded functions: the answer is written on a sign, and the sign hangs in a poster."""

import json
import random
import re

from pairs_made import SIZE, Asked, FakeCritic, no_pixels

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box, iou
from visrl.core.types import CoTSample, Picture

REGION = re.compile(r"#xyxy=(\d+),(\d+),(\d+),(\d+)")


def question(i, load=no_pixels, ref="p{}.png"):
    """Question ``i``: a poster of 160 x 120 somewhere, and in it a sign of 40 x 30, on which the answer is."""
    rng = random.Random(f"deep{i}")
    x, y = rng.randrange(240), rng.randrange(180)
    u, v = x + rng.randrange(120), y + rng.randrange(90)
    poster, sign = Box(x, y, x + 160, y + 120), Box(u, v, u + 40, v + 30)
    picture = Picture(ref.format(i // 2), load)
    answers = (rng.choice("ABCDE"),)
    return CoTSample(
        f"q{i}", "pairs", "qa", f"What is on sign {i}?", picture, SIZE, poster, answers, cluster=picture.ref,
        boxes=(poster, sign),
    )  # fmt: skip


def questions(n, **more):
    return [question(i, **more) for i in range(n)]


def call(x, y, wide, high):
    box = [x, y, x + wide, y + high]
    return f'<tool_call>{{"name": "image_zoom_in_tool", "arguments": {{"bbox_2d": {json.dumps(box)}}}}}</tool_call>'


def crops(request):
    found = [REGION.search(p.ref) for turn in request.turns for p in turn.pictures]
    return [Box(*map(int, match.groups())) for match in found if match]


class DeepPolicy(Asked):
    """First a poster, the right one four times in ten; then in it a sign, the right one every other time where it is there. One
    turn in ten is a faulty call, one in ten answers at once. Answers: right where it looked at the sign last.
    """

    box_format = FORMATS["json_pixel"]
    default_protocol = "zoom:2"

    def say(self, request, sample, rng):
        looked, dice = crops(request), rng.random()
        if "No look is left" in request.turns[-1].text() or dice < 0.1:
            right = bool(looked) and iou(looked[-1], sample.boxes[1]) > 0.3
            said = sample.answers[0] if rng.random() < (0.95 if right else 0.2) else rng.choice("ABCDE")
            return f"<think>{len(looked)}</think><answer>{said}</answer>"
        if dice < 0.2:
            return call(500, 500, 9, 9)
        if not looked:
            at = (sample.boxes[0].x1, sample.boxes[0].y1) if dice < 0.6 else (rng.randrange(240), rng.randrange(180))
            return call(int(at[0]), int(at[1]), 160, 120)
        sign, crop = sample.boxes[1], looked[-1]
        there = crop.x1 <= sign.x1 and crop.y1 <= sign.y1 and sign.x2 <= crop.x2 and sign.y2 <= crop.y2
        anywhere = crop.x1 + rng.randrange(110), crop.y1 + rng.randrange(80)
        x, y = (sign.x1 + 1, sign.y1 - 1) if there and dice < 0.6 else anywhere
        return call(int(x), max(0, int(y)), 40, 30)


class DeepCritic(FakeCritic):
    """Reads the sign where the crop is the sign; a whole poster is too much to read it."""

    def __init__(self, name, samples, faults=0.0):
        super().__init__(name, samples, faults)
        self.known = {sample.id: _sign(sample) for sample in samples}


def _sign(sample):
    from dataclasses import replace

    return replace(sample, box=sample.boxes[1])
