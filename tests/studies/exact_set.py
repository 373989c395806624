"""Makes the documents and recorded outputs that the replay gate scores again: evals/suites/data/exact. Run by hand, then `visrl-eval accept --exact`.

    python tests/studies/exact_set.py [FOLDER]

Everything is invented here, nothing is taken from a benchmark's files. The outputs are chosen for what they catch: IoU of
exactly 0.5 and 0.75, boxes at the edge, reversed, missing, in the reasoning before the answer; "No." and "NO"; pairs of MME
that do not stand on consecutive lines; MMBench questions with one rotation wrong; failed samples; several questions per
picture; wide, tall and odd-sized pictures.
"""

import json
import random
import sys
from pathlib import Path

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import Box
from visrl.core.prompts import P_BOX
from visrl.evals.scorers.mme import COGNITION, PERCEPTION

SIZES = [(1000, 1000), (640, 427), (427, 640), (333, 500), (901, 300), (448, 961)]
PADDED = FORMATS["padded_square_3dp"]
HERE = Path(__file__).parents[2] / "evals" / "suites" / "data" / "exact"


def jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def boxes(rng, n):
    """(picture number, size, box): three boxes to a picture; the first picture's are round numbers."""
    for i in range(n):
        size = SIZES[(i // 3) % len(SIZES)]
        if i < 3:
            yield i // 3, size, [100, 100, 300, 300]
            continue
        x1, y1 = rng.uniform(0, size[0] * 0.6), rng.uniform(0, size[1] * 0.6)
        wide, high = rng.uniform(20, size[0] - x1), rng.uniform(20, size[1] - y1)
        yield i // 3, size, [round(v, 2) for v in (x1, y1, x1 + wide, y1 + high)]


def moved(rng, box, size, by):
    """``box`` with every edge moved by up to ``by`` of its sides."""
    x1, y1, x2, y2 = box
    wide, high = (x2 - x1) * by, (y2 - y1) * by
    out = [x1 + rng.uniform(-wide, wide), y1 + rng.uniform(-high, high)]
    out += [x2 + rng.uniform(-wide, wide), y2 + rng.uniform(-high, high)]
    return Box(*out).clipped(size).xyxy


def box_text(rng, i, box, size):
    odd = {
        0: "[0.100, 0.100, 0.300, 0.200]",  # IoU exactly 0.5: wrong, because the rule is >
        1: "[0.100, 0.100, 0.300, 0.250]",  # exactly 0.75
        2: "[0.100, 0.100, 0.300, 0.201]",  # .505: right
        5: "I cannot see it.",
        8: "[0.1, 0.2, 0.3]",
        11: "[0.500, 0.500, 0.400, 0.600]",
        14: "",
        17: "[-0.05, 0.3, 1.2, 0.9]",
    }
    if i in odd:
        return odd[i]
    text = PADDED.write(Box(*moved(rng, box, size, rng.choice([0.02, 0.1, 0.2, 0.35]))), size)
    return f"<think>maybe [0.0, 0.0, 0.1, 0.1]</think> {text}" if i % 7 == 3 else text


def json_text(rng, i, box, size):
    numbers = [round(v) for v in moved(rng, box, size, rng.choice([0.02, 0.1, 0.25]))]
    forms = [
        f'<answer>{{"bbox_2d": {numbers}}}</answer>',
        f'<think>no: [1, 2, 3, 4]</think><answer>```json\n[{{"bbox_2d": {numbers}, "label": "x"}}]\n```</answer>',
        f'<answer>[{{"bbox_2d": [1, 2, 30, 40]}}, {{"bbox_2d": {numbers}}}]</answer>',
        f"the box is {numbers}",  # strict reading finds none
    ]
    return forms[i % 4]


def rec(rng, folder, task, file, write, n):
    documents, episodes = [], []
    for i, (picture, size, box) in enumerate(boxes(rng, n)):
        name = f"{task}_{picture:03}.jpg"
        row = {"img_path": name, "expression": f"the {i}th Thing", "bbox": box, "width": size[0], "height": size[1]}
        documents.append({**row, "image_id": picture, "sent_id": i})
        episode = {"task": task, "sample_id": f"{picture}_{i}"}
        step = {"box_step": {"prompt": "", "output": write(rng, i, box, size)}}
        episodes.append({**episode, **({"error": "picture: it would not open"} if i == 20 else step)})
    jsonl(folder / "rec" / file, documents)
    return episodes


def viscot(rng, folder, name, n):
    chains, found, episodes = [], [], []
    for i, (picture, size, box) in enumerate(boxes(rng, n)):
        answer = rng.choice(["no", "two dogs", "Open", "17.50", "the red one"])
        turns = [f"<image>\nWhat does sign {i} Say?{P_BOX}", PADDED.write(Box(*box), size), "<image>", answer]
        talk = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(turns)]
        ref = f"{name}/{picture:03}.jpg"
        chains.append({"question_id": i, "image": [f"cot/{ref}"], "conversations": talk})
        found.append({"question_id": i, "img_path": ref, "bbox": box, "width": size[0], "height": size[1]})
        said = rng.choice([answer, answer.upper() + ".", "The " + answer, "blue", ""])
        episode = {"task": f"viscot_{name}", "sample_id": str(i)}
        steps = {
            "box_step": {"prompt": "", "output": box_text(rng, i, box, size)},
            "answer_step": {"prompt": "", "output": said},
        }
        episodes.append({**episode, **({"error": "judge: timed out"} if i == 13 else steps)})
    (folder / "viscot_benchmark").mkdir(parents=True, exist_ok=True)
    (folder / "viscot_benchmark" / f"{name}.json").write_text(json.dumps(chains))
    jsonl(folder / "viscot_benchmark" / f"det_{name}.jsonl", found)
    return episodes


YES_NO = ["Yes", "yes, there is one.", "No", "No.", "no, none", "There is not. Yes?", "NO", "Not sure", "Maybe", ""]


def pope(rng, folder, split, n):
    documents, episodes = [], []
    for i in range(n):
        label = ("yes", "no")[i % 2]
        row = {"question_id": i + 1, "image": f"pope_{i // 6:03}.jpg", "text": f"Is there a thing{i} in the image?"}
        documents.append({**row, "label": label})
        said = YES_NO[i] if i < len(YES_NO) else rng.choice(["Yes", "No"]) if i % 3 else label.capitalize()
        step = {"answer_step": {"prompt": "", "output": said}}
        episodes.append({"task": f"pope_coco_{split}", "sample_id": str(i + 1), **step})
    jsonl(folder / "pope" / f"coco_pope_{split}.json", documents)
    return episodes


def mme(rng, folder):
    episodes = []
    (folder / "mme").mkdir(parents=True, exist_ok=True)
    for subtask in [*PERCEPTION, *COGNITION]:
        pictures = [f"{i:04}.jpg" for i in range(3)]  # the same names in every subtask: other pictures
        lines = []
        for nth, truth in ((1, "Yes"), (2, "No")):  # first questions of all pictures, then the second ones
            for picture in pictures:
                lines.append(f"{picture}\tIs {nth} in {picture}? Please answer yes or no.\t{truth}\n")
                said = rng.choice([truth, truth, truth, f"{truth}, it is", "No", "not at all", "Perhaps yes"])
                step = {"answer_step": {"prompt": "", "output": said}}
                episodes.append({"task": "mme", "sample_id": f"{subtask}/{picture[:4]}/{nth}", **step})
        (folder / "mme" / f"{subtask}.txt").write_text("".join(lines))
    return episodes


def mmbench(rng, folder):
    """Eight questions of two to four options in all rotations; of question 2 one rotation is wrong, of 5 one is missing."""
    lines, episodes = ["index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\n"], []
    for q in range(1, 9):
        options = [f"thing {q}{letter}" for letter in "wxyz"][: 2 + q % 3]
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            right = "ABCD"[turned.index(options[0])]
            index = q + 1_000_000 * turn
            cells = [*turned, *[""] * (4 - len(turned))]
            lines.append("\t".join([str(index), f"Which is {q}?", "", *cells, right, "kind", ""]) + "\n")
            wrong = (q, turn) == (2, 1) or (q == 4 and turn > 0)
            letter = "ABCD"[("ABCD".index(right) + 1) % len(options)] if wrong else right
            said = [letter, f"{letter}. it is", f"The answer is {letter}", turned["ABCD".index(letter)], "A cat"][
                rng.randrange(5) if q == 7 else rng.randrange(4)
            ]
            step = {"answer_step": {"prompt": "", "output": said}}
            if (q, turn) != (5, 2):
                episodes.append({"task": "mmbench", "sample_id": str(index), **step})
    (folder / "mmbench").mkdir(parents=True, exist_ok=True)
    (folder / "mmbench" / "mmbench_dev_en.tsv").write_text("".join(lines))
    return episodes


def main(folder):
    rng = random.Random(20261122)
    episodes = rec(rng, folder, "refcoco_val", "REC_refcoco_unc_val.jsonl", box_text, 36)
    episodes += viscot(rng, folder, "cub", 30) + viscot(rng, folder, "vsr", 24)
    for split in ("random", "popular", "adversarial"):
        episodes += pope(rng, folder, split, 24)
    episodes += mme(rng, folder) + mmbench(rng, folder)
    jsonl(folder / "outputs.jsonl", episodes)
    jsonl(folder / "outputs_json.jsonl", rec(rng, folder, "refcocog_val", "REC_refcocog_umd_val.jsonl", json_text, 30))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
