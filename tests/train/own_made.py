"""What a researcher brings, tiny: a checkpoint of a family, VisCoT's training file, a benchmark set, and pictures drawn here."""

import json
import random

from PIL import Image, ImageDraw
from tiny_models import save

ASK = " Please provide the bounding box coordinate of the region that can help you answer the question better."
COLOURS = {"A": "red", "B": "blue"}
BOXES = ((0, 0, 24, 24), (24, 24, 48, 48))  # pixels of a square picture of 48
EDGE = 48


def picture(folder, name, box, answer):
    image = Image.new("RGB", (EDGE, EDGE), "white")
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=COLOURS[answer])
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / name)


def turns(box, answer):
    text = "[" + ", ".join(f"{value / EDGE:.3f}" for value in box) + "]"
    said = [f"<image>\nblue ?{ASK}", text, "<image>", answer]
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(said)]


def bring(folder, family, n=12):
    """``model/`` and ``data/`` below ``folder``: n chains, as many questions, and a set of 4 that is scored."""
    save(family, folder / "model")
    dice = random.Random(0)
    chains, benchmark, boxes = [], [], []
    for i in range(2 * n + 4):
        box, answer = BOXES[i % 2], dice.choice("AB")
        name = f"cot/cub/{i}.png"
        picture(folder / "data/images/cot/cub", f"{i}.png", box, answer)
        item = {
            "dataset": "cub", "question_id": i, "image": [name, f"{name}###[{', '.join(map(str, box))}]"],
            "conversations": turns(box, answer),
        }  # fmt: skip
        if i < 2 * n:
            chains.append(item)
            continue
        benchmark.append(item)
        boxes.append({"question_id": i, "img_path": name, "bbox": list(box), "width": EDGE, "height": EDGE})
    (folder / "data/viscot_benchmark").mkdir()
    (folder / "data/viscot_363k.json").write_text(json.dumps(chains))
    (folder / "data/viscot_benchmark/cub.json").write_text(json.dumps(benchmark))
    (folder / "data/viscot_benchmark/det_cub.jsonl").write_text("".join(json.dumps(row) + "\n" for row in boxes))
