"""docs/errors.md: what is said of forty damaged files. ``python tests/fuzz/error_table.py`` writes it; a test compares."""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_made import TASK, call, make, run_words

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
HEAD = """# Messages for damaged files

Whatever is wrong with a file, a command ends with one of its four exit codes (0 done, 1 a gate failed, 2 wrong use or bad input,
3 incomplete), says `error: …` with file, line and field, and `hint: …`, and leaves the other files as they are. The table is made by
damaging a valid folder and running the command; `python tests/fuzz/error_table.py` writes it anew. `tests/fuzz/run.py` does the same with
thousands of random damages.

| file | damage | command | exit code | error |
|---|---|---|---|---|
"""
META, EPISODES, SCORES, RECORD = "run/run.json", "run/episodes.jsonl", "run/scores.jsonl", f"run/records/{TASK}.json"
DEEP = "[" * 100_000


def _set(*keys, to):
    """A change of one value of JSON, or of the second line of a file of lines."""

    def change(path):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [None, path.read_text()]
        value = json.loads(lines[1])
        if path.suffix == ".jsonl":
            value.pop("crc32", None)  # as somebody would who writes such a line
        inner = value
        for key in keys[:-1]:
            inner = inner[key]
        if to is GONE:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = to
        lines[1] = json.dumps(value)
        path.write_text("\n".join(line for line in lines if line is not None) + "\n")

    return change


GONE = type(None)


def _text(text):
    return lambda path: path.write_text(text)


def _bytes(data):
    return lambda path: path.write_bytes(data)


def _add(text):
    return lambda path: path.write_text(path.read_text() + text)


def _put(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


def _delete(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _folder(path):
    _delete(path)
    path.mkdir()


def _file(path):
    _delete(path)
    path.write_text("x")


ROWS = (
    (META, "deleted", _delete, "show"),
    (META, "deleted", _delete, "run"),
    (META, "empty", _text(""), "show"),
    (META, "`null`", _text("null"), "show"),
    (META, "a list", _text("[]"), "score"),
    (META, "nested 100,000 deep", _text(DEEP), "show"),
    (META, "Latin-1 bytes", _bytes(b'{"request": "\xe9"}'), "show"),
    (META, "a folder", _folder, "show"),
    (META, "a seed of 4,000 digits", _put('"seed": 0', '"seed": ' + "9" * 4000), "show"),
    (META, "a seed that is text", _set("request", "seed", to="x"), "show"),
    (META, "no `tasks`", _set("request", "tasks", to=GONE), "score"),
    (META, "`limit: -5`", _set("request", "limit", to=-5), "score"),
    (META, "other documents", _set("request", "data", TASK, "origin", to="elsewhere"), "compare"),
    (EPISODES, "deleted", _delete, "score"),
    (EPISODES, "empty", _text(""), "score"),
    (EPISODES, "a folder", _folder, "score"),
    (EPISODES, "a line that is no JSON", _add("x\n"), "score"),
    (EPISODES, "a line `null`", _add("null\n"), "run"),
    (EPISODES, "a bit flipped in a box", _put("[", "[1"), "score"),
    (EPISODES, "a box of texts", _set("box", to=["a", "b", "c", "d"]), "score"),
    (EPISODES, "a box of three numbers", _set("box", to=[1, 2, 3]), "score"),
    (EPISODES, "`sample_id` missing", _set("sample_id", to=GONE), "view"),
    (EPISODES, "`1e400` in a line", _add('{"sample_id": 1e400}\n'), "score"),
    (SCORES, "deleted", _delete, "compare"),
    (SCORES, "`NaN` as a score", _add('{"task": "t", "sample_id": "1", "cluster": "c", "scores": {"m": NaN}}\n'), "compare"),
    (SCORES, "a score that is text", _set("scores", "answer", to="1"), "accept"),
    (SCORES, "`scores` a list", _set("scores", to=[1]), "view"),
    (RECORD, "a number", _text("5"), "show"),
    (RECORD, "no value of `n`", _text('[{"task": "x"}]'), "tables"),
    (RECORD, "cut in the middle", lambda path: path.write_bytes(path.read_bytes()[:300]), "accept"),
    ("run/records", "a file", _file, "score"),
    ("base/baselines.yaml", "a list", _text("[1]"), "check"),
    ("base/baselines.yaml", "`.nan` as a value", _put("value: 0.0", "value: .nan"), "accept"),
    ("suite.yaml", "not YAML", _text("a: [1"), "check"),
    ("suite.yaml", "a floor of 0", _put("floor: 5.0", "floor: 0"), "check"),
    ("suite.yaml", "an alias within itself", _text("about: &a [*a]"), "check"),
    ("recipes/dpo.yaml", "`limit: -5`", _put("limit: 5", "limit: -5"), "train"),
    ("recipes/small_model.yaml", "`lr: .nan`", _put("lr: 0.001", "lr: .nan"), "train"),
    ("recipes/pairs.yaml", "`kind: []`", _put("kind: pairs", "kind: []"), "train"),
    ("recipes/sft.yaml", "a tag", _put("output: out", "output: !!python/name:os.system"), "train"),
    ("recipes/sft.yaml", "Latin-1 bytes", _bytes(b"kind: sft # \xe9"), "train"),
    ("training/manifest.json", "a list", _text("[]"), "view-training"),
    ("loop/base/phase_config.json", "a text", _text('"x"'), "train-loop"),
)  # fmt: skip


def _words(command, path, folder):
    run, baseline = str(folder / "run"), ["--baseline", str(folder / "base" / "baselines.yaml")]
    page = ["-o", str(folder / "page.html")]
    found = {
        "run": run_words(folder, folder / "run"),
        "view": ("view", run, *page),
        "view-training": ("view", str(folder / "training"), *page),
        "compare": ("compare", run, str(folder / "other")),
        "accept": ("accept", run, "--name", "accepted", *baseline),
        "check": ("check", "--suite", str(folder / "suite.yaml"), "--run", run, *baseline),
        "tables": ("tables", "--paper", "viscot", run),
        "train": (str(folder / path), "--dry-run"),
        "train-loop": (str(folder / "recipes" / "loop.yaml"), "--dry-run"),
    }
    program = "visrl-train" if command.startswith("train") else "visrl-eval"
    return program, *found.get(command, (command, run))


def _row(row, valid, folder):
    """A line of the table. Its folder is a copy of the valid one at the same place: recipes name it."""
    path, damage, change, command = row
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid, folder)
    change(folder / path)
    words = _words(command, path, folder)
    code, said = call(*words)
    found = re.search(r"(?:error|fail|WARNING): (.*)", said)
    error = found.group(1).replace(f"{folder}/", "").replace("|", "\\|") if found else ""
    shown = " ".join([words[0], *(["RECIPE"] if words[0] == "visrl-train" else words[1:2])])
    return f"| {path} | {damage} | `{shown}` | {code} | {error} |\n"


def text(folder):
    """The page."""
    work = folder / "work"
    make(work)
    shutil.copytree(work, folder / "valid")
    return HEAD + "".join(_row(row, folder / "valid", work) for row in ROWS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        PAGE.write_text(text(Path(place)))
