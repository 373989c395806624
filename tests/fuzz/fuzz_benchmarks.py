"""A small file of every benchmark's layout beside VisCoT's and RefCOCO's (fuzz_foreign.py), and the run that reads it."""

import base64
import io
import json

import pyarrow
from fuzz_mutations import VALUES, of_bytes, structural
from PIL import Image
from pyarrow import parquet

BOX = "constant:[0.1, 0.1, 0.6, 0.6]"


def _picture():
    out = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(out, "PNG")
    return out.getvalue()


def make(data):
    """Beside the others in the data folder: a few rows of each."""
    coded = base64.b64encode(_picture()).decode()
    options = {"A": "a cat", "B": "a dog", "C": "a bird", "D": "a fish"}
    question = {"question": "What?", **options, "category": "single", "image": coded}
    _table(data / "hrbench/hr_bench_4k.tsv", [
        {"index": i, **question, "answer": "ABCD"[i], "cycle_category": i} for i in range(4)
    ])  # fmt: skip
    _table(data / "treebench/TreeBench.tsv", [
        {"index": i, **question, "answer": "A", "target_instances": "[[0, 0, 20, 20], [5, 5, 9, 9]]"} for i in range(2)
    ])  # fmt: skip
    _table(data / "mmbench/mmbench_dev_en.tsv", [
        {"index": 7 + 1000000 * i, "hint": "", **question, "answer": "B", "l2-category": "x", "split": "dev"} for i in range(2)
    ])  # fmt: skip
    seen = [{"question": "Which?", "options": ["red", "blue"], "target_object": ["x"], "bbox": [[1, 1, 20, 10]]}]
    _text(data / "images/vstar/direct_attributes/a1.json", json.dumps(seen[0]))
    (data / "images/vstar/direct_attributes/a1.jpg").write_bytes(_picture())
    one = {"id": 7, "sentences": ["left cat", "cat"], "bbox": [0, 0, 50, 90], "mask": {"counts": "", "size": [100, 99]}}
    rows = [{"file_name": f"COCO_{i}.jpg", "image_id": i, "samples": [one]} for i in range(2)]
    _text(data / "refcoco_m/refcoco_m.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    screen = {"img_filename": "a.png", "bbox": [4, 1, 19, 7], "instruction": "view", "data_type": "text", "data_source": "shop"}  # fmt: skip
    for kind in ("mobile", "desktop", "web"):
        _text(data / f"screenspot/screenspot_{kind}.json", json.dumps([screen] * 2))
    pro = {"id": "w0", "img_filename": "a.png", "bbox": [4, 4, 6, 6], "img_size": [200, 100], "instruction": "Save", "ui_type": "icon"}  # fmt: skip
    _text(data / "screenspot_pro/annotations/word.json", json.dumps([pro, {**pro, "id": "w1"}]))
    asked = [{"question_id": i, "image": "a.jpg", "text": "Is there a cat?", "label": "yes"} for i in range(3)]
    _text(data / "pope/coco_pope_random.json", "".join(json.dumps(row) + "\n" for row in asked))
    _parquet(data)


def _parquet(data):
    row = {"caption": "thing", "bbox": [0.0, 0.0, 9.0, 9.0], "file_name": "p.jpg", "width": 100, "height": 90,
           "ori_category_id": "o365_1", "is_rewrite": False}  # fmt: skip
    (data / "ref_l4").mkdir(parents=True)
    for number, split in enumerate(("val", "test")):
        rows = [{"id": f"{number}{i}", **row, "split": split} for i in range(2)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), data / "ref_l4" / f"ref-l4-{split}.parquet")


def _text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _table(path, rows):
    _text(path, "".join("\t".join(map(str, row)) + "\n" for row in (list(rows[0]), *(row.values() for row in rows))))


def targets(folder, output):
    """(name, path, kind, commands) of each file."""
    for task, path, kind in (
        ("hrbench_4k", "hrbench/hr_bench_4k.tsv", "tsv"),
        ("treebench", "treebench/TreeBench.tsv", "tsv"),
        ("mmbench", "mmbench/mmbench_dev_en.tsv", "tsv"),
        ("vstar", "images/vstar/direct_attributes/a1.json", "json"),
        ("refcoco_m", "refcoco_m/refcoco_m.jsonl", "jsonl"),
        ("screenspot", "screenspot/screenspot_web.json", "json"),
        ("screenspot_pro", "screenspot_pro/annotations/word.json", "json"),
        ("pope_coco_random", "pope/coco_pope_random.json", "jsonl"),
        ("ref_l4", "ref_l4/ref-l4-test.parquet", "parquet"),
    ):
        words = ("--model", BOX, "--tasks", task, "--data", str(folder / "data"), "-o", str(folder / output), "-q")
        yield "other benchmarks", f"data/{path}", kind, (("visrl-eval", "run", *words),)


def mutated(data, dice):
    """A damaged parquet file: its bytes, a value or a row changed, or a value in all rows; the bytes where no parquet holds the change."""
    try:
        changed = _written(_changed(parquet.read_table(io.BytesIO(data)).to_pylist(), dice))
    except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError, pyarrow.ArrowException):
        changed = data
    return of_bytes(data, dice) if changed == data or dice.random() < 0.3 else changed


def _changed(rows, dice):
    if dice.random() < 0.5:
        return json.loads(structural(json.dumps(rows).encode(), "json", dice))
    name, value = dice.choice(list(rows[0])), dice.choice(VALUES)
    return [{**row, name: value} for row in rows]


def _written(rows):
    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()
