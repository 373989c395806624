"""Files that come from elsewhere: benchmark files, predictions, and what is trained on; and the commands that read them."""

import gzip
import io
import json
import zipfile

import openpyxl
from fuzz_mutations import RAW, VALUES, of_bytes, structural

OUTPUT = "fresh"
"""Below the folder: where a run of a damaged benchmark or prediction goes, and is taken away again."""
CELLS = (
    "",
    "\t",
    "nan",
    "-1",
    "1e400",
    "9" * 400,
    "\u2028",
    "é",
    "'",
    '"',
    "A" * 5000,
    "=1+1",
    "\0",
    "[" * 300,
    "-" * 9000 + "1",
    "[[1, 2",
    "[None]",
    "{}",
)


def make(folder):
    """Beside the drawn VisCoT data: rows of REC, MME and POPE, predictions of several layouts, and rows to train on."""
    data = folder / "data"
    _lines(data / "rec/REC_refcoco_unc_val.jsonl", [
        {"img_path": "cot/vsr/0.png", "expression": f"thing {i}", "bbox": [1, 2, 30 + i, 40], "width": 320, "height": 200, "image_id": i, "sent_id": i}
        for i in range(4)
    ])  # fmt: skip
    found = folder / "predictions"
    ids = [str(1000 + i) for i in range(12)]
    _lines(found / "answers.jsonl", [{"id": name, "text": "red", "box_text": "[0.1, 0.1, 0.6, 0.6]"} for name in ids])
    (found / "answers.jsonl.gz").write_bytes(gzip.compress((found / "answers.jsonl").read_bytes(), mtime=0))
    rows = [["index", "question", "A", "B", "C", "D", "answer", "category", "prediction"]]
    rows += [[7 + 1000000 * i, "What?", "a cat", "a dog", "a bird", "a fish", "A", "x", "B"] for i in range(4)]
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(found / "mmbench.xlsx")
    (found / "mmbench.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    _training(folder / "rows", data)


def _lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _training(folder, data):
    row = {"picture": "cot/vsr/0.png", "question": "What?", "size": [320, 200]}
    good, bad = (
        {"box": [1, 2, 30, 40], "answer": "red"},
        {"box": [5, 6, 70, 80], "answer": "no", "scores": {"box": 0.1}},
    )
    _lines(folder / "pairs.jsonl", [{**row, "id": f"q{i}", "win": good, "lose": bad} for i in range(3)])
    _lines(folder / "chains.jsonl", [{**row, "id": f"q{i}", "chain": good} for i in range(3)])
    _lines(folder / "questions.jsonl", [{**row, "id": f"q{i}", "answers": ["red"]} for i in range(3)])
    viscot = json.loads((data / "viscot_benchmark" / "vsr.json").read_text())[:3]
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    turns = {
        "images": ["cot/vsr/0.png"],
        "conversations": [talk[0]],
        "chosen": "red",
        "rejected": {"from": "gpt", "value": "no"},
    }
    steps = {
        "chosen_step": {"from": "gpt", "value": "[0.250, 0.500, 0.500, 0.625]"},
        "rejected_step": "[0.000, 0.300, 0.100, 0.400]",
    }
    for name, rows in (
        ("viscot", viscot),
        ("llava", [{"id": f"l{i}", "image": "cot/vsr/0.png", "conversations": talk} for i in range(2)]),
        ("official", [{**turns, **steps} for _ in range(2)]),
    ):
        (folder / f"{name}.json").write_text(json.dumps(rows))


def targets(folder):
    """(name, path, kind, commands) of each file."""
    data, out = str(folder / "data"), str(folder / OUTPUT)

    def run(model, task, *more):
        return ("visrl-eval", "run", "--model", model, "--tasks", task, *more, "-o", out, "-q")

    def replay(name, task, *more):
        return (run(f"replay:{folder / 'predictions' / name}", task, *more),)

    box = "constant:[0.1, 0.1, 0.6, 0.6]"
    asked = ("--data", data)
    yield "benchmark", "data/viscot_benchmark/vsr.json", "json", (run(box, "viscot_vsr", *asked),)
    yield "benchmark", "data/viscot_benchmark/det_vsr.jsonl", "jsonl", (run(box, "viscot_vsr", *asked),)
    yield "benchmark", "data/rec/REC_refcoco_unc_val.jsonl", "jsonl", (run(box, "refcoco_val", *asked),)
    yield "predictions", "predictions/answers.jsonl", "jsonl", replay("answers.jsonl", "viscot_vsr", *asked)
    yield "predictions", "predictions/answers.jsonl.gz", "gz", replay("answers.jsonl.gz", "viscot_vsr", *asked)
    yield "predictions", "predictions/mmbench.xlsx", "xlsx", replay("mmbench.xlsx", "mmbench")
    yield "predictions", "predictions/mmbench.tsv", "tsv", replay("mmbench.tsv", "mmbench")

    def train(kind, name, form, *more):
        sets = (
            f"data.path={folder / 'rows' / name}",
            f"data.format={form}",
            f"data.pictures={folder / 'data/images'}",
            *more,
        )
        words = [word for each in sets for word in ("--set", each)]
        return (("visrl-train", str(folder / "recipes" / f"{kind}.yaml"), *words, "--dry-run"),)

    model = ("model.path=tiny",)
    yield "training rows", "rows/pairs.jsonl", "jsonl", train("dpo", "pairs.jsonl", "visrl", *model)
    yield "training rows", "rows/official.json", "json", train("dpo", "official.json", "official", *model)
    yield "training rows", "rows/chains.jsonl", "jsonl", train("sft", "chains.jsonl", "visrl", *model)
    yield "training rows", "rows/viscot.json", "json", train("sft", "viscot.json", "viscot", *model)
    yield "training rows", "rows/llava.json", "json", train("sft", "llava.json", "llava", *model)
    yield "training rows", "rows/questions.jsonl", "jsonl", train("pairs", "questions.jsonl", "visrl")


def mutated(data, kind, dice):
    """One damaged version of a valid file of these kinds."""
    if dice.random() < 0.3:
        return of_bytes(data, dice)
    if kind == "gz":
        inner = structural(gzip.decompress(data), "jsonl", dice)
        return gzip.compress(inner, mtime=0)
    return _workbook(data, dice) if kind == "xlsx" else _table(data, dice)


def _table(data, dice):
    """A cell changed, a cell more or less, a line twice or gone."""
    rows = [line.split("\t") for line in data.decode().splitlines()]
    row = dice.choice(rows)
    how = dice.randrange(5)
    if how == 0:
        row[dice.randrange(len(row))] = dice.choice(CELLS)
    elif how == 1:
        del row[dice.randrange(len(row))]
    elif how == 2:
        row.append(dice.choice(CELLS))
    elif how == 3:
        rows.append(row)
    else:
        rows.remove(row)
    return "".join("\t".join(each) + "\n" for each in rows).encode()


def _workbook(data, dice):
    """One file within it damaged, missing, twice, or with a number or a name changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    name = dice.choice(list(parts))
    how = dice.randrange(5)
    if how == 0:
        del parts[name]
    elif how == 1:
        parts[name] = of_bytes(parts[name], dice)
    elif how == 2:
        parts[name] = b""
    else:
        parts[name] = _xml(parts[name], dice)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as book:
        for inner, content in parts.items():
            book.writestr(inner, content)
    return file.getvalue()


def _xml(content, dice):
    """The text between two marks, or within quotes, replaced."""
    text = content.decode(errors="replace")
    mark = dice.choice(('"', ">", "<"))
    at = [i for i, letter in enumerate(text) if letter == mark]
    if len(at) < 2:
        return content
    number = dice.randrange(len(at) - 1)
    said = str(dice.choice((*RAW[:6], *VALUES, "A1:XFD1048576", "&lol;", "s", "inlineStr", "t")))
    return (text[: at[number] + 1] + said + text[at[number + 1] :]).encode(errors="surrogatepass")
