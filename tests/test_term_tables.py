"""A term per look against the last look's alone, from records made by hand."""

import pytest
from test_phase_tables import record

from visrl.tables.cost_tables import Cost, costs_table, paths
from visrl.tables.formats import render
from visrl.tables.reproduction_page import text
from visrl.tables.science.sections import Apart
from visrl.tables.science.term_tables import ANSWERS, METRICS, TASKS, ends, looks_taken, terms_table


def phase(name, run, seed, answers, first, second):
    metrics = {
        "answer": answers,
        "answer/takes=1": 0.5,
        "box_acc/look=1": first,
        "box_acc/look=2": second,
        "looks": 1.5 + 0.1 * seed + (0.5 if run == "last_look" and name != "sft" else 0.0),
    }
    return [
        record(name, value, seed=seed, run=run, metric=metric, task="world_deep") for metric, value in metrics.items()
    ]


@pytest.fixture
def made():
    """Three seeds, .01 apart; both variants copy the warm-up. last_look of seed 2 has not come further than its warm-up."""
    found = []
    for seed, more in ((0, 0.0), (1, 0.01), (2, 0.02)):
        for run in ("last_look", "full"):
            found += phase("sft", run, seed, 0.30 + more, 0.40, 0.10)
        found += phase("iter1/rl1", "full", seed, 0.90, 0.90, 0.90)
        found += phase("iter1/rl2", "full", seed, 0.36 + more, 0.45, 0.15)
        if seed < 2:
            found += phase("iter1/rl2", "last_look", seed, 0.32 + more, 0.41, 0.12)
    return found


def test_rows_are_the_warm_up_and_each_variants_last_phase(made):
    found = ends(made)
    assert list(found) == ["sft", "full", "last_look"]
    assert found["sft"]["answers"] == pytest.approx({"0": 30.0, "1": 31.0, "2": 32.0})
    assert found["full"]["answers"] == pytest.approx({"0": 36.0, "1": 37.0, "2": 38.0})  # not stage 1's 90
    assert found["last_look"]["box 1"] == pytest.approx({"0": 41.0, "1": 41.0})


def test_differences_are_paired_by_seed(made):
    """Of one look 50 everywhere. Answers: 31, 37 ± .58 (s = 1 over sqrt 3), and -6 in every seed; last_look -4 in both of its seeds, 32.5 ± .5."""
    shown = render(terms_table(ends(made)), "md")
    assert (
        "| sft | 31.0 ± 0.6 | -6.0 ± 0.0 | 50.0 ± 0.0 | +0.0 ± 0.0 | 40.0 ± 0.0 | -5.0 ± 0.0 | 10.0 ± 0.0 | -5.0 ± 0.0 | 3 |"
        in shown
    )
    assert "| full | 37.0 ± 0.6 | — | 50.0 ± 0.0 | — | 45.0 ± 0.0 | — | 15.0 ± 0.0 | — | 3 |" in shown
    assert (
        r"| last\_look | 32.5 ± 0.5 | -4.0 ± 0.0 | 50.0 ± 0.0 | +0.0 ± 0.0 | 41.0 ± 0.0 | -4.0 ± 0.0 | 12.0 ± 0.0 | -3.0 ± 0.0 | 2 |"
        in shown
    )


def test_the_page_shows_them_or_says_that_they_were_not_measured(made):
    base = [record("sft", 0.4)]
    section = text(base, Apart(terms=made)).partition("## A term per look")[2]
    assert "| full | 37.0 ± 0.6 |" in section
    assert "Not measured" in text(base).partition("## A term per look")[2]


def test_methods_on_walls_on_equal_compute(made):
    """full ends with 36 to 38 % at 2 M tokens and 20 s. last_look of seeds 0 and 1: 30 -> 32 and 31 -> 33 over 4 M and 10 s: at 2 M half
    way, 31 and 32, differences to 36 and 37: -5; at 20 s at its end, 32 and 33: -4."""
    costs = [
        Cost(run="full", seed=seed, phase=f"iter1/rl{k}", tokens=10**6, seconds=10) for seed in (0, 1) for k in (1, 2)
    ]
    costs += [Cost(run="last_look", seed=seed, phase="iter1/rl2", tokens=4 * 10**6, seconds=10) for seed in (0, 1)]
    found = paths(made, costs, METRICS, TASKS)
    assert found["last_look"][0].scores["answers"] == pytest.approx((30.0, 32.0))
    shown = render(costs_table(found, ANSWERS, "Methods"), "md")
    assert r"| last\_look | 4.0 | 0.2 | 31.5 ± 0.5 (-5.0 ± 0.0) | 50.0 ± 0.0 (+0.0 ± 0.0) |" in shown
    assert "| 32.5 ± 0.5 (-4.0 ± 0.0) |" in shown
    section = text([record("sft", 0.4)], Apart(on_walls=found, walls=made)).partition("GRPO over several looks")[2]
    assert "Methods on walls, each at its end" in section and "Methods on walls on equal compute" in section
    assert "recipes/world-deep-methods.yaml` defines the comparison" in text([record("sft", 0.4)])


def test_looks_per_question_are_counts(made):
    """1.5, 1.6, 1.7 over three seeds: 1.6 ± .1 over sqrt 3 = .06; last_look has seeds 0 and 1, 2.0 and 2.1: 2.05 ± .05."""
    assert looks_taken(made) == "- Looks per question: `sft` 1.60 ± 0.06, `full` 1.60 ± 0.06, `last_look` 2.05 ± 0.05."
