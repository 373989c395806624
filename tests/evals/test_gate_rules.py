"""The gates' rules by hand, without a run: verdicts' numbers, texts on file, recorded values, what a suite may say."""

from dataclasses import replace

import numpy as np
import pytest
import yaml

from visrl.errors import UsageError
from visrl.evals import gates
from visrl.evals.compare import Difference, Flip, Pair, difference
from visrl.evals.compare import Paired as PairedRuns
from visrl.evals.gates import Prompt, check_difference, check_prompts
from visrl.evals.suite import load_suite

KEY = ("refcoco_val", "direct/v1", "turns")


def diff(delta, se, least=0.1, n=1000):
    return Difference("refcoco_val", "acc@0.5", "percent", 70.0, 70.0 + delta, delta, se, None, 0.5, n, n, least)


def test_the_larger_of_both_errors_counts_in_limit_power_and_need():
    # se .3 < least .6: limit max(1, 2 * .6) = 1.2; visible 1.2 + .841621 * .6 = 1.704973; n_needed 1000 * (1.2 / 1)^2 = 1440
    found = check_difference(diff(-1.1, 0.3, least=0.6), floor=1.0)
    assert (found.status, found.facts["n_needed"]) == ("inconclusive", 1440)
    assert found.facts["smallest_visible"] == pytest.approx(1.704973, abs=1e-6)
    assert "about 1440 samples" in found.reason and "could have seen: 1.7" in found.reason
    # z 3: limit 3 * .5 = 1.5
    assert check_difference(diff(-1.4, 0.5), floor=1.0, z=3.0).status == "inconclusive"
    assert check_difference(diff(-1.6, 0.5), floor=1.0, z=3.0).status == "fail"


@pytest.mark.parametrize(
    ("better", "delta", "status"),
    [
        ("more", -1.1, "fail"), ("more", 9.0, "pass"),
        ("less", 1.1, "fail"), ("less", 1.0, "pass"), ("less", -9.0, "pass"),
        ("neither", 1.1, "fail"), ("neither", -1.1, "fail"), ("neither", 1.0, "pass"), ("neither", -1.0, "pass"),
    ],
)  # fmt: skip
def test_a_loss_is_a_drop_a_rise_or_any_change(better, delta, status):
    """Limit max(1, 2 x .4) = 1."""
    found = check_difference(diff(delta, 0.4), 1.0, better=better)
    assert (found.status, found.facts["better"]) == (status, better)
    noun, verb = {"more": ("drop", "dropped"), "less": ("rise", "rose"), "neither": ("change", "changed")}[better]
    assert f"{verb} by more than 1" in found.reason if status == "fail" else f"no {noun} beyond 1" in found.reason
    assert f"smallest {noun} it could have seen" in found.reason


def test_unpaired_samples_beyond_the_limit_do_not_pass_and_hide_no_drop():
    """10 of 1,000 + 10 samples are 0.99 %."""
    found = replace(diff(0.0, 0.4), unpaired=10)
    assert check_difference(found, 1.0, max_unpaired=0.0099).status == "inconclusive"
    assert check_difference(found, 1.0, max_unpaired=0.0100).status == "pass"
    assert check_difference(replace(diff(-5.0, 0.4), unpaired=10), 1.0, max_unpaired=0.0).status == "fail"


def test_the_worst_flips_are_those_against_the_direction():
    flips = tuple(Flip("t", name, 0.0, change) for name, change in (("a", -0.5), ("b", 1.0), ("c", 0.2), ("d", 0.0)))
    pair = Pair(np.zeros(3), np.zeros(3), ("x", "y", "z"))
    whole = PairedRuns("t", "m", "fraction", (pair,), flips)
    worst = {
        better: "".join(f.sample_id for f in difference(whole, better).worst) for better in ("more", "less", "neither")
    }
    assert worst == {"more": "a", "less": "bc", "neither": "bac"}


def test_a_metric_s_direction():
    from visrl.evals.benchmarks import better_of

    found = [
        better_of(*what) for what in (("f1", True), ("faulty_calls", False), ("yes_ratio", False), ("looks", False))
    ]
    assert found == ["more", "less", "neither", "neither"]


def test_two_standard_errors_that_are_just_the_floor_are_enough():
    assert check_difference(diff(0.0, 0.5), floor=1.0).status == "pass"
    assert check_difference(diff(0.0, 0.5), floor=0.99).status == "inconclusive"


def test_a_finding_s_facts_are_the_difference_s():
    facts = check_difference(diff(-0.5, 0.4), 1.0).facts
    assert {name: facts[name] for name in ("before", "after", "delta", "se", "floor", "z", "n", "unit", "p")} == {
        "before": 70.0, "after": 69.5, "delta": -0.5, "se": 0.4, "floor": 1.0, "z": 2.0, "n": 1000, "unit": "percent", "p": 0.5,
    }  # fmt: skip
    assert (facts["fixed"], facts["broken"], facts["unpaired"], facts["ci"], facts["n_clusters"]) == (
        0,
        0,
        0,
        None,
        1000,
    )
    assert check_difference(replace(diff(0, 0.1), se=None), 1.0).facts["smallest_visible"] is None


def test_no_value_on_either_side_is_no_difference():
    for side in ("before", "after", "delta"):
        found = check_difference(replace(diff(0, 0.1), **{side: None}), 1.0)
        assert found.status == "fail" and found.reason == "no difference: 1000 samples have a value in both runs"
    assert check_difference(replace(diff(0, 0.1), least_se=None), 1.0).status == "inconclusive"


def test_reasons_make_an_invalid_finding_and_none_make_none():
    assert gates.invalid("x", []) is None
    found = gates.invalid("x", iter(["one", "two"]))
    assert (found.status, found.name, found.reason) == ("fail", "x", "one; two")


def test_texts_as_on_file_are_one_finding_per_task_with_their_number():
    on_file = {("a", "p", f): Prompt.of("1", f) for f in "xyz"} | {("b", "p", "x"): Prompt.of("1", "x")}
    first, second = check_prompts(on_file, dict(on_file))
    assert (first.name, first.status, first.reason, first.facts) == ("a", "pass", "3 texts as on file", {"n": 3})
    assert (second.name, second.facts) == ("b", {"n": 1})


def test_other_tasks_pass_beside_a_changed_one_and_equal_changes_are_counted():
    on_file = {("a", "p", f): Prompt.of("1", "old") for f in "xy"} | {("b", "p", "x"): Prompt.of("1", "x")}
    changed = {("a", "p", f): Prompt.of("1", "new") for f in "xy"} | {("b", "p", "x"): Prompt.of("1", "x")}
    first, second = check_prompts(on_file, changed)
    assert (first.name, first.status) == ("b", "pass")
    assert (second.name, second.status) == ("a · p · x (and 1 more)", "fail")
    assert second.facts["hash"] == gates.text_hash("new") and second.facts["on_file"] == gates.text_hash("old")
    (alone,) = check_prompts({KEY: Prompt.of("1", "a")}, {KEY: Prompt.of("1", "b")})
    assert alone.name == " · ".join(KEY)  # no "and 0 more"


def test_the_diff_is_of_a_text_that_is_on_file_where_there_is_one():
    hashed = replace(Prompt.of("1", "old"), text=None)
    on_file = {("a", "p", "x"): hashed, ("a", "p", "y"): Prompt.of("1", "old")}
    new = {("a", "p", f): Prompt.of("1", "new") for f in "xy"}
    (found,) = check_prompts(on_file, new)
    assert found.name == "a · p · y (and 1 more)" and "-old" in found.detail and "+new" in found.detail
    (found,) = check_prompts({("a", "p", "x"): hashed}, {("a", "p", "x"): new["a", "p", "x"]})
    assert found.detail == "only its hash is on file; now\nnew"


def test_what_is_only_on_one_side_says_so():
    (gone,) = check_prompts({KEY: Prompt.of("1", "a")}, {})
    (added,) = check_prompts({}, {KEY: Prompt.of("1", "a")})
    assert gone.reason.startswith("on file, but no longer rendered") and added.reason.startswith("not on file")
    assert gates.unbumped({KEY: Prompt.of("1", "a")}, {}) == gates.unbumped({}, {KEY: Prompt.of("1", "a")}) == []
    assert gates.unbumped({KEY: Prompt.of("1", "a")}, {KEY: Prompt.of("1", "a")}) == []


def test_a_hash_is_sixteen_digits_of_sha256():
    assert gates.text_hash("abc") == "ba7816bf8f01cfea"  # FIPS 180-2's example begins so


def test_every_difference_is_named_with_its_place():
    recorded = {"a": [1, 2, {"b": 3.0}], "only": 1, "t": "x", "flag": True}
    fresh = {"a": [1, 5, {"b": 4.0}, 9], "new": 2, "t": "y", "flag": 1}
    assert list(gates.differences(recorded, fresh)) == [
        "/a: 3 recorded, 4 now",
        "/a/1: recorded 2, now 5",
        "/a/2/b: recorded 3.0, now 4.0",
        "/only: gone",
        "/t: recorded 'x', now 'y'",
        "/flag: recorded True, now 1",  # equal in Python, not in a record
        "/new: not recorded",
    ]
    assert list(gates.differences({"a": [1]}, {"a": {"0": 1}})) == ["/a: recorded [1], now {'0': 1}"]


def test_reproduced_values_are_counted_and_at_most_forty_differences_shown():
    found = gates.check_exact(
        "x", {"a": [1, 2, {"b": 3.0, "c": "t"}], "d": None}, {"a": [1, 2, {"b": 3.0, "c": "t"}], "d": None}
    )
    assert (found.reason, found.facts) == ("5 recorded values reproduced", {"n": 5})
    found = gates.check_exact("x", {"a": list(range(50))}, {"a": [i + 1 for i in range(50)]})
    assert found.reason == "50 numbers differ; the first: /a/0: recorded 0, now 1"
    assert (len(found.detail.splitlines()), found.facts) == (40, {"n_different": 50})


def test_a_suite_s_numbers_may_lie_at_their_bounds_and_not_beyond(tmp_path):
    def load(**more):
        gate = {
            "baseline": "b",
            "model": "m",
            "tasks": "refcoco_val",
            "cells": [{"task": "refcoco_val", "floor": 0.1}],
            **more,
        }
        (tmp_path / "s.yaml").write_text(yaml.safe_dump({"paired": [gate]}))
        return load_suite(str(tmp_path / "s.yaml")).paired[0]

    gate = load()
    assert (gate.limit, gate.focus, gate.judge, gate.seed, gate.batch_size) == (None, "predicted", "exact", 0, 32)
    assert (gate.max_unscored, gate.max_unparsed, gate.protocol, gate.crop) == (0.0, 0.05, None, None)
    assert load(limit=1, batch_size=1).limit == 1
    assert load(max_unscored=1, max_unparsed=1).max_unscored == load(max_unscored=1, max_unparsed=1).max_unparsed == 1
    for wrong in ({"limit": 0}, {"batch_size": 0}, {"cells": []}, {"max_unscored": -0.01}, {"max_unparsed": -0.01}):
        with pytest.raises(UsageError):
            load(**wrong)
    for wrong in ({"max_unscored": 1.01}, {"max_unparsed": 1.01}):
        with pytest.raises(UsageError):
            load(**wrong)


def test_what_a_cell_gates():
    from visrl.evals.suite import Cell

    assert Cell(task="refcoco_val", floor=1).whats == [("refcoco_val", "acc@0.5")]
    assert Cell(task="pope", floor=1).whats == [("pope", "f1")]
    assert Cell(task="pope", metric="accuracy", floor=1).name == "pope accuracy"
    pool = Cell(pool={"refcoco": "miou", "viscot_cub": "answer"}, floor=1)
    splits = [("refcoco_val", "miou"), ("refcoco_testA", "miou"), ("refcoco_testB", "miou")]
    assert pool.whats == [*splits, ("viscot_cub", "answer")] and pool.name == "refcoco miou + viscot_cub answer"
    for wrong in ({}, {"task": "pope", "pool": {"mme": "x"}}, {"pool": {"pope": "f1"}, "metric": "f1"}):
        with pytest.raises(ValueError, match="a cell has a task"):
            Cell(floor=1, **wrong)
    with pytest.raises(ValueError, match="a pool has metrics of one direction"):
        Cell(pool={"pope": "yes_ratio", "refcoco_val": "miou"}, floor=1)
    assert Cell(pool={"pope": "yes_ratio"}, floor=1).two_sided and not pool.two_sided


def test_long_values_of_a_mismatch_are_cut_at_sixty_characters():
    from visrl.evals.baselines import _short

    assert _short("x" * 60) == "x" * 60 and _short("x" * 61) == "x" * 57 + "…"
    assert _short({"a": 1, "b": "c"}) == "1+c" and _short(None) == "None"


@pytest.mark.parametrize(("delta", "se"), [(-1e200, 0.5), (0.0, 1e200), (float("nan"), 0.5)])
def test_numbers_that_are_no_scores_fail(delta, se):
    """(2 · 1e200 / 1)² overflows, and a count of samples would be made of it."""
    found = check_difference(diff(delta, se), floor=1.0)
    assert (found.status, "is a file damaged?" in found.reason) == ("fail", True)
