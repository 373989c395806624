"""Draw the picture at the top of README.md: ``python docs/img/hero.py``. A question is asked of the shipped model, twice.

The picture, what the model sees of it, box and crop are what visrl makes of the sample; both answers are the model's own; the
bars are the numbers of the README's table.
"""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from draw import BLUE, GREY, INK, ORANGE, rect, svg, text
from PIL import Image

import visrl
from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Episode
from visrl.tasks import load
from visrl.world import IMAGE_SIZE

HERE = Path(__file__).parent
TASK, LOOKED_AT = "world_viscot_general", 8
MEAN = (122, 116, 104)
GREEN, RED = "#1b6e3c", "#a8321a"


def chosen() -> tuple[CoTSample, str, Episode]:
    """The first question that the model answers wrong directly and right after looking; its direct answer; the episode."""
    with TemporaryDirectory() as place:
        looked = visrl.evaluate("tiny", TASK, limit=LOOKED_AT, output=f"{place}/looked")
        direct = visrl.evaluate("tiny", TASK, limit=LOOKED_AT, output=f"{place}/direct", protocol="direct")
        said = {episode.sample_id: episode.answer or "" for episode in direct.episodes}
        after = {episode.sample_id: episode for episode in looked.episodes}
        for sample in load(TASK, None, with_pictures=True, limit=LOOKED_AT):
            right = {run: runs.scores[TASK][sample.id].values["answer"] for run, runs in (("d", direct), ("l", looked))}
            if (right["d"], right["l"]) == (0.0, 1.0):
                return sample, said[sample.id], after[sample.id]
    raise AssertionError("looking fixes one of the first questions")


def seen(picture: Image.Image) -> Image.Image:
    """The picture as the model sees it: on a square of the mean colour, at 64 pixels."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), MEAN)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)


def image(picture: Image.Image, x: float, y: float, side: float, *, pixels: bool = False) -> str:
    """The picture within a square of ``side``, its pixels left square where they are to be seen."""
    out = io.BytesIO()
    picture.quantize(64).save(out, "PNG", optimize=True)
    scale = side / max(picture.size)
    width, height = picture.width * scale, picture.height * scale
    data = base64.b64encode(out.getvalue()).decode()
    how = ' style="image-rendering:pixelated"' if pixels else ""
    left, top = x + (side - width) / 2, y + (side - height) / 2
    place = f'x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"'
    return f'<image {place} href="data:image/png;base64,{data}"{how}/>'


def numbers() -> list[tuple[str, float]]:
    """(name, percent) of the README's table of controls."""
    readme = (HERE.parents[1] / "README.md").read_text(encoding="utf-8")
    rows = (("no look", "`--protocol direct`"), ("predicted box", "default: crop"))
    rows += (("true box", "`--focus gold`"), ("random box", "`--focus random`"))
    found = []
    for name, start in rows:
        value = re.search(rf"^\| {re.escape(start)}.*\| ([\d.]+) ± [\d.]+ \|$", readme, re.M)
        assert value is not None, f"README.md has no row {start}"
        found.append((name, float(value[1])))
    return found


def arrow(x: float, y: float) -> str:
    return f'<path d="M{x:g} {y:g} h22 m-7 -6 l7 6 l-7 6" fill="none" stroke="{GREY}" stroke-width="2.5"/>'


def hero() -> str:
    """Drawing, what the model sees, box, crop, both answers; below, the four bars."""
    sample, direct, episode = chosen()
    assert sample.picture is not None and isinstance(episode.box, Box) and episode.looked_at is not None
    picture = sample.picture.open()
    side, top = 180.0, 62.0
    lefts = [20.0 + 232.0 * i for i in range(4)]
    parts = [text(20, 30, sample.question, more='font-size="19" font-weight="650"')]
    titles = (f"the picture, {max(picture.size)} px", f"what the model sees, {IMAGE_SIZE} px", "it says where to look")
    for left, words in zip(lefts, (*titles, "it sees the crop"), strict=True):
        parts.append(text(left, top - 8, words, fill="#565d66"))
    crop = picture.crop(episode.looked_at)
    parts += [image(picture, lefts[0], top, side), image(seen(picture), lefts[1], top, side, pixels=True)]
    parts += [image(picture, lefts[2], top, side), image(seen(crop), lefts[3], top, side, pixels=True)]
    parts += [arrow(left + side + 14, top + side / 2) for left in lefts[:3]]
    scale = side / max(picture.size)
    x1, y1, x2, y2 = (value * scale for value in episode.box.xyxy)
    dx, dy = (side - picture.width * scale) / 2, (side - picture.height * scale) / 2
    place = (lefts[2] + x1 + dx, top + y1 + dy, x2 - x1, y2 - y1)
    parts += [rect(*place, stroke=colour, more=f'stroke-width="{w}"') for colour, w in (("#fff", 7), (ORANGE, 3.5))]
    bold = 'font-size="19" font-weight="700"'
    parts.append(text(lefts[1], top + side + 28, f"“{direct}” ✗", fill=RED, more=bold))
    parts.append(text(lefts[3], top + side + 28, f"“{episode.answer}” ✓", fill=GREEN, more=bold))
    parts += bars(20.0, top + side + 58)
    return svg(
        916,
        int(top + side + 58 + 4 * 26 + 6),
        parts,
        f"{sample.question} Directly {direct}, after looking {episode.answer}",
    )


def bars(x: float, y: float) -> list[str]:
    """The four numbers, a bar each, of 100 percent."""
    parts = []
    for i, (name, value) in enumerate(numbers()):
        at = y + 26 * i
        parts.append(text(x, at + 14, name))
        parts.append(rect(x + 200, at, 620, 18, fill="#f1efe9"))
        parts.append(rect(x + 200, at, 6.2 * value, 18, fill=BLUE if i in (1, 2) else GREY))
        parts.append(text(x + 830, at + 14, f"{value:.1f} %", more='font-weight="650"', fill=INK))
    return parts


if __name__ == "__main__":
    (HERE / "hero.svg").write_text(hero(), encoding="utf-8")
