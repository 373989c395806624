"""A run holds ids and numbers of its samples, not their text: neither while it generates nor while it scores."""

import json
import random
import tracemalloc

from visrl.evaluation.evaluate import Options, evaluate, score
from visrl.policies.registry import load_policy

TASK = "refcoco_val"
POLICY = "constant:[0.25, 0.25, 0.75, 0.75]"


def data(folder, n):
    """``n`` expressions of 1,000 characters, ten to a picture."""
    (folder / "rec").mkdir(parents=True)
    rows = (
        {"img_path": f"{i // 10}.jpg", "expression": f"{i:01000}", "bbox": [1, 2, 30, 40 + i % 50]}
        | {"width": 100, "height": 100, "image_id": i // 10, "sent_id": i}
        for i in range(n)
    )
    (folder / "rec/REC_refcoco_unc_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def peak(folder, n):
    """The highest memory of a run of ``n`` samples, in bytes."""
    options = Options(data=data(folder / f"data{n}", n), output=folder / f"run{n}", quiet=True)
    tracemalloc.start()
    try:
        evaluate(load_policy(POLICY), [TASK], options)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_sample_leaves_less_than_its_text(tmp_path):
    """An expression has 1,000 bytes, and so has the prompt that asks for it; holding samples and episodes would cost 3,000."""
    peak(tmp_path, 50)  # imports
    small, large = peak(tmp_path, 1500), peak(tmp_path, 4500)
    assert (large - small) / 3000 < 1000


def test_episodes_in_any_order_score_the_same(tmp_path):
    """As several processes leave them; a line that a later one replaces does not count."""
    evaluate(
        load_policy(POLICY), [TASK], Options(data=data(tmp_path / "data", 60), output=tmp_path / "run", quiet=True)
    )
    before, path = (tmp_path / "run/scores.jsonl").read_bytes(), tmp_path / "run/episodes.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    old = json.dumps({"task": TASK, "sample_id": json.loads(lines[7])["sample_id"], "error": "a server was down"})
    random.Random(1).shuffle(lines)
    path.write_text("".join([old + "\n", *lines]))
    score(tmp_path / "run")
    assert (tmp_path / "run/scores.jsonl").read_bytes() == before
