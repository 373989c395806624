"""The study's own arithmetic, on sources small enough to know the answer."""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import false_alarms as fa

from visrl.evals.sample_scores import Row
from visrl.evals.suite import Cell

GATE = SimpleNamespace(cells=(Cell(task="refcoco_val", metric="acc@0.5", floor=3.0),))


def runs(k, n, p, seed=0):
    """k runs of n samples, three to a picture, each right with probability p."""
    rng = random.Random(seed)
    made = [{str(i): Row(str(i // 3), "", {"acc@0.5": float(rng.random() < p)}) for i in range(n)} for _ in range(k)]
    return fa.Generated([{"refcoco_val": rows} for rows in made])


def test_a_deterministic_model_never_alarms_and_a_clear_drop_is_always_seen():
    out = fa.study(runs(3, 900, 1.0), GATE, reps=20, points=20.0, seed=1, baselines=2)
    assert out["false alarms"].startswith("0.0%") and out["inconclusive"].startswith("0.0%")
    assert out["true standard deviation"] == 0.0 and out["accuracy"] == 100.0
    assert out["a drop of 20, per sample, caught"].startswith("100.0%")
    assert out["whole runs"] == {
        "runs": 3, "pairs": 6, "false alarms": 0, "inconclusive": 0, "true standard deviation": 0.0
    }  # fmt: skip
    assert out["false alarms, one baseline each"] == {"mean": 0.0, "each": [0.0, 0.0]}


def test_the_standard_error_is_that_of_reruns():
    # independent right and wrong at 1/2: sd of a difference is 100 sqrt(2 * .25 / 900) = 2.36
    out = fa.study(runs(20, 900, 0.5), GATE, reps=60, points=3.0, seed=1, baselines=0)
    assert out["mean standard error"] == pytest.approx(2.36, abs=0.1)
    assert out["true standard deviation"] == pytest.approx(2.36, rel=0.25)


def test_whole_runs_are_held_against_each_other_both_ways():
    """100 pictures of three, all right in one run and wrong in the other: down is an alarm, up is none."""
    good, bad = runs(1, 300, 1.0).runs[0], runs(1, 300, 0.0).runs[0]
    found = fa.whole_runs([good, bad], GATE)
    assert (found["pairs"], found["false alarms"], found["true standard deviation"]) == (2, 1, 100.0)


def test_a_narrower_suite_takes_the_first_samples_of_its_tasks():
    source = runs(2, 9, 0.5)
    wide = fa.Generated([{**run, "pope_coco_random": {}} for run in source.runs])
    found = wide.within(SimpleNamespace(tasks="refcoco_val", limit=4))
    assert [list(run) for run in found.runs] == [["refcoco_val"]] * 2
    assert list(found.runs[0]["refcoco_val"]) == ["0", "1", "2", "3"]


def test_spoiling_takes_the_share_asked_for_and_never_mends():
    rows = runs(1, 3000, 0.8).runs[0]["refcoco_val"]
    before = sum(r.values["acc@0.5"] for r in rows.values())
    for by_picture in (False, True):
        after = fa.spoil({"t": rows}, 0.1, random.Random(1), by_picture)["t"]
        assert all(after[i].values["acc@0.5"] <= row.values["acc@0.5"] for i, row in rows.items())
        assert sum(r.values["acc@0.5"] for r in after.values()) == pytest.approx(0.9 * before, rel=0.02)


def test_wilson_interval_and_round_trip(tmp_path):
    assert fa.rate([True] * 5 + [False] * 195) == "2.5% (95 %: 1.1% to 5.7%)"
    source = runs(2, 6, 0.5)
    source.save(tmp_path / "k.jsonl.gz")
    assert fa.Generated.load(tmp_path / "k.jsonl.gz").runs == source.runs


def test_the_simulated_policy_has_the_accuracy_asked_for():
    source = fa.Simulated("world_pope_random", 0.7, 1.5, seed=3)
    rng = random.Random(0)
    values = [row.values["accuracy"] for _ in range(20) for row in source.run(rng)["world_pope_random"].values()]
    assert sum(values) / len(values) == pytest.approx(0.7, abs=0.03)
