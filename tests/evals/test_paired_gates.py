"""The paired gate where runs are incomplete, data lie in a folder, or a metric is none of which more is better."""

import json
from pathlib import Path

import pytest
import yaml

from visrl.cli.evaluate import main
from visrl.evals.compare import compare
from visrl.evals.sample_scores import Row
from visrl.tasks import load

TASK = "world_viscot_doc"
BASELINES = ("--baseline", "baselines.yaml")
FAILED = {"error": "no memory"}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(output, answer, task=TASK, code=0, **about):
    """A run of the answers ``answer(number, true answer)``; a dict is what else the line of a sample says: a failure."""
    lines = []
    for i, sample in enumerate(load(task, None, with_pictures=False)):
        said = answer(i, sample.answers[0])
        more = said if isinstance(said, dict) else {"answer_step": {"prompt": "", "output": said}}
        lines.append(json.dumps({"task": task, "sample_id": sample.id, **more, **about}) + "\n")
    Path(f"{output}.jsonl").write_text("".join(lines))
    args = ["--model", f"replay:{output}.jsonl", "--tasks", task, "--protocol", "direct", "-q", "-o", output]
    assert main(args) == code
    return output


def accept(run, *more):
    return main(["accept", run, "--name", "b", *BASELINES, *more])


def suite(cells, name="suite.yaml", **more):
    gate = {"baseline": "b", "model": "constant:x", "tasks": TASK, "cells": cells, **more}
    Path(name).write_text(yaml.safe_dump({"paired": [gate]}))
    return name


def check(*more, suite="suite.yaml"):
    return main(["check", "--suite", suite, *BASELINES, *more])


def findings(capsys, *more, **kwargs):
    """Exit code and findings."""
    capsys.readouterr()
    code = check("--json", *more, **kwargs)
    return code, json.loads(capsys.readouterr().out)["findings"]


# --- incomplete runs


def half(i, true):
    return true if i < 125 else FAILED


def test_a_run_with_failed_samples_is_no_baseline_unless_that_is_said(place, capsys):
    """125 of 250 failed: what they would have been right or wrong about is not known."""
    made("base", half, code=3)
    capsys.readouterr()
    assert accept("base") == 2 and not Path("baselines.yaml").exists()
    said = capsys.readouterr().err
    assert (
        f"125 of 250 samples of {TASK} answer are unscored: no memory" in said
        and "accept a run that is complete" in said
    )
    assert accept("base", "--allow-unscored") == 0
    assert yaml.safe_load(Path("baselines.yaml").read_text())["b"]["allow_unscored"] is True
    whole = made("whole", lambda i, true: true)
    assert accept(whole) == 0
    assert "allow_unscored" not in Path("baselines.yaml").read_text()


def test_a_drop_among_samples_that_the_baseline_has_no_score_of_does_not_pass(capsys):
    """100 % of 125 scored samples, then 50 % of 250: the 125 pairs show no drop, the other 125 are none."""
    made("base", half, code=3)
    assert accept("base", "--allow-unscored") == 0
    made("new", lambda i, true: true if i < 125 else "wrong")
    cells = [{"task": TASK, "metric": "answer", "floor": 0.05}]
    suite(cells, max_unparsed=1.0)
    code, (found,) = findings(capsys, "--run", "new")
    assert (code, found["status"], found["facts"]["delta"], found["facts"]["unpaired"]) == (3, "inconclusive", 0.0, 125)
    assert "125 of 250 samples have no value in one of the runs, 0.0% allowed" in found["reason"]
    suite(cells, max_unparsed=1.0, max_unscored=0.5)  # 125 / 250: just allowed
    assert findings(capsys, "--run", "new")[0] == 0
    suite(cells, max_unparsed=1.0, max_unscored=0.499)
    assert findings(capsys, "--run", "new")[0] == 3


def test_a_drop_among_the_pairs_fails_whatever_is_unpaired(capsys):
    """Of the 125 pairs 25 are lost: 1 - 100 / 125 = 0.2."""
    made("base", half, code=3)
    accept("base", "--allow-unscored")
    made("new", lambda i, true: "wrong" if i < 25 else true)
    suite([{"task": TASK, "floor": 0.05}], max_unparsed=1.0)
    code, (found,) = findings(capsys, "--run", "new")
    assert (code, found["status"]) == (1, "fail") and found["facts"]["delta"] == pytest.approx(-0.2)


def test_a_baseline_of_part_of_the_documents_does_not_pass(capsys):
    """100 of 250 documents were run: the baseline has no failed sample, and no score of 150."""
    made("base", lambda i, true: true)
    scores = Path("base/scores.jsonl")
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:100]))
    accept("base")
    suite([{"task": TASK, "floor": 0.05}], max_unparsed=1.0)
    made("new", lambda i, true: true)
    code, (found,) = findings(capsys, "--run", "new")
    assert (code, found["facts"]["unpaired"], found["facts"]["n"]) == (3, 150, 100)


def test_accepting_another_run_leaves_older_entries_as_they_were(place):
    made("base", lambda i, true: true)
    accept("base")
    path = place / "baselines.yaml"
    value = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120))
    before = path.read_text()
    assert main(["accept", "base", "--name", "z", *BASELINES]) == 0
    assert before in path.read_text()


def test_unpaired_samples_are_those_without_a_value_on_either_side():
    """Of five samples one is scored twice; the others lack a value, the metric, or the sample, on one side. Circular accuracy
    counts questions: two of four rotations each, one of which has no value.
    """

    def rows(**values):
        return {"t": {i: Row(i, "", {} if v == "" else {"m": v}) for i, v in values.items()}}

    (d,) = compare(rows(a=1.0, b=None, c=1.0, d=1.0), rows(a=1.0, b=1.0, c="", e=0.0))
    assert (d.n, d.unpaired) == (1, 4)

    def rotations(first, second):
        values = {f"{g}{i}": Row(g, g, {"circular": v}) for g, v in (("p", first), ("q", second)) for i in range(4)}
        return {"mmbench": values}

    (d,) = compare(rotations(1.0, None), rotations(1.0, 1.0))
    assert (d.metric, d.n, d.unpaired) == ("circular", 1, 1)


def test_failed_samples_of_lmms_eval_count_as_wrong_there_and_refuse_the_run(capsys):
    made("base", lambda i, true: true)
    meta = json.loads(Path("base/run.json").read_text())
    meta["request"]["tasks"] = {"lmms:x": "1"}
    meta["request"]["data"] = {"lmms:x": {}}
    Path("base/run.json").write_text(json.dumps(meta))
    with open("base/episodes.jsonl", "a") as file:
        file.write(json.dumps({"task": "lmms:x", "sample_id": "0", "error": "no memory"}) + "\n")
    capsys.readouterr()
    assert accept("base") == 2
    assert "1 samples failed, for example lmms:x 0: no memory" in capsys.readouterr().err
