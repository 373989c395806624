"""Runs made here: a data folder in VisCoT's layout over pictures drawn in code, and policies of known skill."""

import json
import random

from PIL import Image, ImageDraw

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box
from visrl.core.prompts import P_BOX
from visrl.evaluation.evaluate import Options, evaluate
from visrl.policies.protocol import FunctionPolicy

COLOURS = ("red", "green", "blue", "orange", "purple", "black")
FORMAT = FORMATS["padded_square_3dp"]


def row(number, picture, size, box, question, answer, data="vsr"):
    """A chain and its detection line."""
    chain = {
        "dataset": data,
        "split": "test",
        "question_id": number,
        "image": [picture, f"{picture}###{list(box)}"],
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}{P_BOX}"},
            {"from": "gpt", "value": FORMAT.write(Box(*box), size)},
            {"from": "human", "value": "<image>"},
            {"from": "gpt", "value": answer},
        ],
    }
    found = {"img_path": picture, "expression": question, "bbox": list(box), "width": size[0], "height": size[1]}
    return chain, {**found, "question_id": number, "split": "test"}


def write_data(folder, rows, name="vsr"):
    place = folder / "viscot_benchmark"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}.json").write_text(json.dumps([chain for chain, _ in rows]))
    (place / f"det_{name}.jsonl").write_text("".join(json.dumps(found) + "\n" for _, found in rows))
    return folder


def drawn(folder, n=12, size=(320, 200)):
    """``n`` questions about the colour of a square, two to a picture; returns the data folder."""
    dice = random.Random(7)
    rows = []
    for i in range(n):
        name = f"cot/vsr/{i // 2}.png"
        if i % 2 == 0:
            picture = Image.new("RGB", size, "white")
            paint = ImageDraw.Draw(picture)
        colour = COLOURS[i % len(COLOURS)]
        x, y = dice.randrange(size[0] - 60), dice.randrange(size[1] - 60)
        box = (x, y, x + 50, y + 40)
        paint.rectangle(box, fill=colour)
        rows.append(row(1000 + i, name, size, box, f"What colour is thing {i}?", colour))
        if i % 2 or i == n - 1:
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return write_data(folder, rows)


def truth(data):
    """sample id -> (true box as text, answer)"""
    chains = json.loads((data / "viscot_benchmark" / "vsr.json").read_text())
    turns = {str(c["question_id"]): c["conversations"] for c in chains}
    return {i: (turn[1]["value"], turn[3]["value"]) for i, turn in turns.items()}


def scripted(name, box, answer, pictures=True, **about):
    """A policy from ``box(sample id) -> text`` and ``answer(sample id) -> text``."""

    def say(request):
        return box(request.key) if request.step == "box" else answer(request.key)

    return FunctionPolicy(name, say, FORMAT, needs_pictures=pictures, default_protocol="visrl_train", about=about)


def run(policy, data, output, tasks=("viscot_vsr",), **options):
    evaluate(policy, list(tasks), Options(data=data, output=output, quiet=True, **options))
    return output


EVIL = "<script>window.hacked=1</script><img src=x onerror=window.hacked=2></textarea></script><!--\u202eevil\x1b[2J"


def hostile(folder):
    """A run with ``EVIL`` in every field that comes from a model or a data file; returns the run folder."""
    rows = [row(i, "cot/vsr/x.png", (320, 200), (1, 1, 50, 50), f"{EVIL} {i}", EVIL) for i in range(3)]
    data = write_data(folder / "data", rows)

    def box(i):
        if i == "2":
            raise ValueError(EVIL)
        return EVIL if i == "1" else "[0, 0, 1, 1]" + EVIL * 10_000  # a megabyte

    return run(scripted(EVIL, box, lambda i: EVIL, pictures=False, **{EVIL: EVIL}), data, folder / "run")
