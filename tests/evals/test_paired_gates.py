"""The paired gate where runs are incomplete, data lie in a folder, or a metric is none of which more is better."""

import json
import re
from pathlib import Path

import pytest
import yaml

from visrl.cli.evaluate import main
from visrl.errors import UsageError
from visrl.evals.baselines import read_baseline
from visrl.evals.compare import compare
from visrl.evals.sample_scores import Row
from visrl.evals.suite import Cell
from visrl.policies import registry
from visrl.regression.paired import pair_cell
from visrl.regression.prompt_snapshots import data_folder
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


# --- data in a folder, and runs that cannot be made

EXACT = data_folder() / "exact"
REC = {"task": "refcoco_val", "metric": "acc@0.5", "floor": 20.0}  # 12 pictures: 2 x 100 / 12 = 16.7


def rec_baseline():
    """A constant box, accepted, and the gate that runs it again."""
    args = ["--model", "constant:[0, 0, 1, 1]", "--tasks", "refcoco_val", "--data", str(EXACT), "-q", "-o", "rec"]
    assert main([*args, "--fail-on-error", "1000"]) == 0
    assert main(["accept", "rec", "--name", "b", *BASELINES]) == 0
    return {
        "baseline": "b",
        "model": "constant:[0, 0, 1, 1]",
        "tasks": "refcoco_val",
        "cells": [REC],
        "max_unparsed": 1.0,
    }


def suite_of(*gates):
    Path("suite.yaml").write_text(yaml.safe_dump({"paired": list(gates)}))


def test_a_gate_runs_on_the_folder_of_its_suite_or_of_the_command_line(capsys):
    gate = rec_baseline()
    suite_of({**gate, "data": str(EXACT)})
    assert check() == 0
    suite_of({**gate, "data": "nowhere"})
    assert check("--data", str(EXACT)) == 0  # the command line wins
    suite_of(gate)
    assert check("--data", str(EXACT)) == 0
    capsys.readouterr()
    assert check("--data", "nowhere") == 2
    assert "error: no data folder nowhere" in capsys.readouterr().err


def test_a_run_that_cannot_be_made_leaves_its_cells_inconclusive_and_the_rest_is_published(place, capsys):
    """Two gates pass and one has no data: exit code 3, and all three findings are in every file."""
    gate = rec_baseline()
    good = {**gate, "data": str(EXACT)}
    suite_of(good, {**gate, "data": "nowhere", "cells": [REC, {**REC, "metric": "miou"}]}, good)
    code, found = findings(capsys, "--save", "out")
    assert code == 3
    assert [f["status"] for f in found] == ["pass", "inconclusive", "inconclusive", "pass"]
    assert found[1]["name"] == "refcoco_val acc@0.5" and found[2]["name"] == "refcoco_val miou"
    assert "could not be judged: no data folder nowhere" in found[1]["reason"]
    assert json.loads((place / "out/check.json").read_text())["counts"] == {
        "pass": 2,
        "fail": 0,
        "inconclusive": 2,
        "info": 0,
    }
    assert "no data folder nowhere" in (place / "out/check.md").read_text()
    assert 'errors="2"' in (place / "out/check.xml").read_text()


def test_a_model_that_crashes_is_inconclusive_with_its_traceback(monkeypatch, capsys):
    gate = rec_baseline()

    def crash(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("visrl.policies.registry.load_policy", crash)
    suite_of({**gate, "data": str(EXACT)})
    code, (found,) = findings(capsys)
    assert (code, found["status"]) == (3, "inconclusive")
    assert found["reason"] == "could not be judged: RuntimeError: out of memory" and "in crash" in found["detail"]


def test_a_damaged_run_is_inconclusive(place, capsys):
    gate = rec_baseline()
    suite_of(gate)
    (place / "rec/scores.jsonl").write_text("x")
    code, (found,) = findings(capsys, "--run", "rec")
    assert (code, found["status"]) == (3, "inconclusive") and "scores.jsonl:1: damaged" in found["reason"]


def test_an_error_in_another_gate_is_a_finding_too(monkeypatch, capsys):
    def crash(*_):
        raise KeyError("x")

    monkeypatch.setattr("visrl.regression.gates.check_replays", crash)
    gate = rec_baseline()
    Path("suite.yaml").write_text(yaml.safe_dump({"exact": ["shipped"], "paired": [{**gate, "data": str(EXACT)}]}))
    code, found = findings(capsys)
    assert code == 3 and [(f["gate"], f["status"]) for f in found] == [("replay", "inconclusive"), ("paired", "pass")]


def test_what_was_found_is_published_when_the_check_is_stopped(place, monkeypatch, capsys):
    gate = rec_baseline()
    calls = []

    def load(*arguments, load=registry.load_policy):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return load(*arguments)

    monkeypatch.setattr(registry, "load_policy", load)
    good = {**gate, "data": str(EXACT)}
    suite_of(good, good)
    assert check("--save", "out") == 3
    saved = json.loads((place / "out/check.json").read_text())
    assert [(f["gate"], f["status"]) for f in saved["findings"]] == [("paired", "pass"), ("suite", "inconclusive")]
    assert saved["exit_code"] == 3


@pytest.mark.parametrize(
    "wrong", [{"tasks": "nosuch"}, {"protocol": "nosuch"}, {"cells": [{"task": "nosuch", "floor": 1}]}]
)
def test_unknown_names_in_a_suite_are_said_before_anything_is_judged(wrong, capsys):
    gate = {"baseline": "b", "model": "constant:x", "tasks": "refcoco_val", "cells": [REC]}
    Path("suite.yaml").write_text(yaml.safe_dump({"exact": ["shipped"], "paired": [{**gate, **wrong}]}))
    assert check("--save", "out") == 2 and not Path("out").exists()
    assert "unknown" in capsys.readouterr().err


def test_the_table_is_printed_where_the_files_are_refused(capsys):
    gate = rec_baseline()
    suite_of(gate)
    Path("out").write_text("a file")
    capsys.readouterr()
    assert check("--save", "out", "--run", "rec") == 2
    assert "1 pass: exit code 0" in capsys.readouterr().out


# --- metrics without scores per sample


def with_record(run, metric, **about):
    """The run with a further number in its record, as protocols of several looks have them."""
    path = Path(run) / "records" / f"{TASK}.json"
    records = json.loads(path.read_text())
    path.write_text(json.dumps([*records, {**records[0], "metric": metric, **about}]))


def test_a_metric_that_only_records_have_is_inconclusive_before_a_model_is_loaded(monkeypatch, capsys):
    made("base", lambda i, true: true)
    for metric in ("answer/looks=1", "looks", "faulty_calls"):
        with_record("base", metric)
    assert accept("base") == 0

    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(registry, "load_policy", load)
    suite([{"task": TASK, "metric": m, "floor": 0.1} for m in ("answer/looks=1", "looks", "faulty_calls")])
    code, found = findings(capsys)
    assert code == 3 and {f["status"] for f in found} == {"inconclusive"}
    assert (
        f"{TASK} answer/looks=1 has no scores per sample" in found[0]["reason"]
        and "gate one of answer" in found[0]["reason"]
    )
    suite([{"pool": {TASK: "looks"}, "floor": 1.0}])
    assert "has no scores per sample" in findings(capsys)[1][0]["reason"]
    suite(
        [{"task": TASK, "metric": "nosuch", "floor": 0.1}]
    )  # nor is one loaded for a number that the baseline has not
    code, (found,) = findings(capsys)
    assert (code, found["reason"]) == (1, f"the baseline has no {TASK} nosuch")


def test_the_other_cells_are_judged(capsys):
    made("base", lambda i, true: true)
    with_record("base", "looks")
    accept("base")
    suite([{"task": TASK, "metric": "looks", "floor": 0.1}, {"task": TASK, "floor": 0.05}], max_unparsed=1.0)
    code, found = findings(capsys, "--run", "base")
    assert code == 3 and [f["status"] for f in found] == ["inconclusive", "pass"]


def test_a_run_without_the_scores_that_the_baseline_has_is_inconclusive(capsys):
    made("base", lambda i, true: true)
    accept("base")
    scores = Path("base/scores.jsonl")
    scores.write_text(scores.read_text().replace('"answer"', '"other"'))
    suite([{"task": TASK, "floor": 0.05}], max_unparsed=1.0)
    code, (found,) = findings(capsys, "--run", "base")
    assert (code, found["status"]) == (3, "inconclusive") and "has no scores per sample" in found["reason"]


def test_no_member_of_a_pool_is_left_out():
    rows = {task: {"a": Row("p", "", {"answer": 1.0})} for task in ("viscot_cub", "viscot_vsr")}
    assert (
        pair_cell(Cell(pool={"viscot_cub": "answer", "viscot_vsr": "answer"}, floor=1), rows, rows).pairs[0].before.size
        == 2
    )
    with pytest.raises(UsageError, match="viscot_vsr box_acc has no scores per sample"):
        pair_cell(Cell(pool={"viscot_cub": "answer", "viscot_vsr": "box_acc"}, floor=1), rows, rows)
    with pytest.raises(UsageError, match="pope f1 has no scores per sample"):
        pair_cell(Cell(task="pope", floor=1), rows, rows)


# --- metrics of which less is better, or neither


def pope(output, word):
    args = ["--model", f"constant:{word}", "--tasks", "world_pope_random", "-q", "-o", output]
    assert main(args) == 0
    return output


@pytest.mark.parametrize(("before", "after", "delta"), [("no", "yes", 100.0), ("yes", "no", -100.0)])
def test_more_and_less_yes_both_fail(before, after, delta, capsys):
    """Always no, then always yes, of 200 questions about 36 pictures: 0 -> 100 %, and back."""
    accept(pope("base", before))
    cells = [{"task": "world_pope_random", "metric": "yes_ratio", "floor": 10.0}]
    suite(cells, tasks="world_pope_random", max_unparsed=1.0)
    code, (found,) = findings(capsys, "--run", pope("new", after))
    assert (code, found["status"], found["facts"]["delta"]) == (1, "fail", delta)
    assert "changed by more than 10" in found["reason"] and len(found["detail"].splitlines()) == 5
    assert findings(capsys, "--run", "base")[0] == 0


def test_a_cell_of_which_both_directions_fail_counts_as_two(capsys):
    """Three alarms at stake in two cells: z = 2.13, the normal quantile of 1 - .05 / 3."""
    accept(pope("base", "no"))
    cells = [{"task": "world_pope_random", "metric": metric, "floor": 10.0} for metric in ("yes_ratio", "accuracy")]
    suite(cells, tasks="world_pope_random", max_unparsed=1.0)
    assert [round(f["facts"]["z"], 2) for f in findings(capsys, "--run", "base")[1]] == [2.13, 2.13]


def lower_is_better(run, to):
    path = Path(run) / "records" / f"{TASK}.json"
    path.write_text(json.dumps([{**r, "higher_is_better": to} for r in json.loads(path.read_text())]))


def test_a_rise_of_what_should_be_low_fails_and_a_drop_passes(capsys):
    """All right -> half right and back, of a metric whose record says that less is better; also against a baseline that was
    accepted before the direction was recorded.
    """
    made("low", lambda i, true: true if i % 2 else "wrong")
    made("high", lambda i, true: true)
    suite([{"task": TASK, "floor": 0.2}], max_unparsed=1.0)
    for run in ("low", "high"):
        lower_is_better(run, False)
    for old in (False, True):
        for before, after, code in (("low", "high", 1), ("high", "low", 0), ("low", "low", 0)):
            accept(before)
            path = Path("baselines.yaml")
            assert "higher_is_better: false" in path.read_text()
            if old:
                path.write_text(re.sub(r"\n *higher_is_better: false", "", path.read_text()))
                assert read_baseline(path, "b").entry.numbers[0].higher_is_better is None
            assert findings(capsys, "--run", after)[0] == code, (old, before, after)
    accept("low")
    lower_is_better("low", True)
    code, (found,) = findings(capsys, "--run", "low")
    assert code == 1 and "higher_is_better is True, the baseline's False" in found["reason"]


def test_a_comparison_calls_no_change_of_the_yes_ratio_better(capsys):
    capsys.readouterr()
    assert main(["compare", pope("a", "no"), pope("b", "yes"), "--format", "md"]) == 0
    rows = {
        line.split("|")[1].strip().replace("\\", ""): line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|")
    }
    assert rows["world_pope_random accuracy"].rstrip(" |").endswith("100/100")
    assert rows["world_pope_random yes_ratio"].rstrip(" |").endswith("—")
