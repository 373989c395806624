"""Methods on equal compute, by hand: two methods, two seeds."""

import csv

import pytest
from test_phase_tables import record

from visrl.errors import UsageError
from visrl.tables.cost_tables import (
    Cost,
    Progress,
    costs_table,
    draw_costs,
    minutes,
    paths,
    read_costs,
    rerun,
    write_costs,
)
from visrl.tables.formats import render
from visrl.tables.reproduction_page import text
from visrl.tables.science.sections import Apart

TASK = "world_viscot"


def cost(run, seed, phase, tokens, seconds):
    return Cost(run=run, seed=seed, phase=phase, tokens=tokens, seconds=seconds)


def scored(run, seed, **values):
    """sft, rl1, rl2 … of a run, as fractions; answers are 0.1 above boxes."""
    return [
        record(
            phase if phase == "sft" else f"iter1/{phase}", value + more, seed=seed, run=run, metric=metric, task=TASK
        )
        for phase, value in values.items()
        for metric, more in (("box_acc", 0.0), ("answer", 0.1))
    ]


@pytest.fixture
def made():
    """full costs 4 M tokens and 60 s each seed: pairs 1 M, rl1 1 M, rl2 2 M. grpo costs 8 M tokens, 60 s, in one phase."""
    results, costs = [], []
    for seed, more in ((0, 0.0), (1, 0.02)):
        results += scored("full", seed, sft=0.4, rl1=0.5, rl2=0.6 + more)
        results += scored("grpo", seed, sft=0.4, rl1=0.7)
        costs += [
            cost("full", seed, "iter1/rl2", 2_000_000, 30),
            cost("full", seed, "iter1/pairs", 1_000_000, 10),
            cost("full", seed, "iter1/rl1", 1_000_000, 20),
            cost("grpo", seed, "iter1/rl1", 8_000_000, 60),
        ]
    return results, costs


def test_a_path_counts_pairs_to_the_training_that_follows(made):
    found = paths(*made)["full"][1]
    assert found.tokens == (0.0, 2e6, 4e6) and found.seconds == (0.0, 30.0, 60.0)
    assert found.scores["box"] == pytest.approx((40.0, 50.0, 62.0))
    assert found.scores["answers"] == pytest.approx((50.0, 60.0, 72.0))


def test_a_seed_that_has_not_come_as_far_as_another_is_left_out(made):
    """full of seed 1 has ended with RL1: its 2 M tokens are half of what the method takes."""
    results, costs = made
    costs = [c for c in costs if (c.run, c.seed, c.phase) != ("full", 1, "iter1/rl2")]
    found = paths(results, costs)
    assert list(found["full"]) == [0] and list(found["grpo"]) == [0, 1]


def test_between_phases_a_line_and_after_the_last_its_end():
    path = Progress((0.0, 2.0, 4.0), (0.0, 1.0, 5.0), {"box": (40.0, 50.0, 62.0)})
    assert path.at("tokens", 3.0, "box") == 56.0  # half way from 50 to 62
    assert path.at("seconds", 2.0, "box") == 53.0  # a quarter of it
    assert path.at("tokens", 9.0, "box") == 62.0


def test_equal_tokens_and_equal_time(made):
    """grpo at 4 M of its 8 M tokens: half way from 40 to 70, 55; full: 60 and 62, 61 ± 1 (s = 1.41, over sqrt 2). Differences -5, -7: -6 ± 1.
    At 60 s it is at its end, 70: +10 and +8, 9 ± 1."""
    said = render(costs_table(paths(*made)), "md")
    assert "| full | 4.0 | 1.0 | 61.0 ± 1.0 | 71.0 ± 1.0 | 61.0 ± 1.0 | 71.0 ± 1.0 | 2 |" in said
    row = "| grpo | 8.0 | 1.0 | 55.0 ± 0.0 (-6.0 ± 1.0) | 65.0 ± 0.0 (-6.0 ± 1.0) | 70.0 ± 0.0 (+9.0 ± 1.0) | 80.0 ± 0.0 (+9.0 ± 1.0) | 2 |"
    assert row in said


def test_the_page_has_them_or_says_that_nothing_was_measured(made):
    results, _ = made
    assert "Methods on equal compute" in text(results, Apart(methods=paths(*made)))
    assert "**Not measured, so nothing is claimed.** `recipes/world-methods.yaml`" in text(results)


def test_costs_on_file_and_a_damaged_line(made, tmp_path):
    _, costs = made
    write_costs(tmp_path / "costs.csv", costs)
    assert read_costs(tmp_path / "costs.csv") == costs and read_costs(tmp_path / "none.csv") == []
    (tmp_path / "costs.csv").write_text("run,seed,phase,tokens,seconds\nfull,0,iter1/rl1,many,3\n")
    with pytest.raises(UsageError, match=r"costs\.csv:2: tokens"):
        read_costs(tmp_path / "costs.csv")


def test_what_is_not_known_is_an_empty_cell_and_older_files_have_no_column_first(tmp_path):
    unknown = [Cost(run="more", seed=0, phase="sft", tokens=None, seconds=None, first="full")]
    write_costs(tmp_path / "costs.csv", unknown)
    assert (tmp_path / "costs.csv").read_text() == "run,seed,phase,tokens,seconds,first\nmore,0,sft,,,full\n"
    assert read_costs(tmp_path / "costs.csv") == unknown
    (tmp_path / "costs.csv").write_text("run,seed,phase,tokens,seconds\nfull,0,iter1/rl1,7,3\n")
    assert read_costs(tmp_path / "costs.csv") == [cost("full", 0, "iter1/rl1", 7, 3)]


def test_a_phase_that_two_runs_share_costs_once():
    """full: 60 + 120 s; less copied the 60 and took 30: 3.5 minutes together, 1.5 alone. Of other seeds, or of unknown time, nothing is known."""
    lines = [cost("full", 0, "sft", None, 60), cost("full", 0, "iter1/rl2", 5, 120)]
    lines += [
        cost("less", 0, "sft", None, 60).model_copy(update={"first": "full"}),
        cost("less", 0, "iter1/rl2", 5, 30),
    ]
    both = {("full", 0), ("less", 0)}
    assert minutes(lines, both) == 3.5 and minutes(lines, {("less", 0)}) == 1.5
    assert minutes(lines, {*both, ("full", 1)}) is None
    assert minutes([*lines, cost("less", 0, "more", None, None)], both) is None
    said = rerun("recipes/a.yaml", both, lines)
    assert said == "`visrl-train recipes/a.yaml` measures this again (2 runs; 4 processor minutes, scoring left out).\n"
    said = rerun("recipes/a.yaml", {*both, ("full", 1)}, lines)
    assert "(3 runs; 4 processor minutes for the 2 of them whose time is on file, scoring left out)" in said
    assert "(1 runs; processor time not recorded)" in rerun("recipes/a.yaml", {("full", 1)}, lines)


def test_methods_are_compared_by_what_follows_the_warm_up_and_only_where_all_of_it_is_known(made):
    results, costs = made
    more = [cost("full", 0, "sft", None, 99), cost("grpo", 1, "iter2/rl1", None, 3)]
    found = paths(results, [*costs, *more])
    assert found["full"] == paths(results, costs)["full"] and list(found["grpo"]) == [0]


def test_the_figure_is_the_same_bytes_again(made, tmp_path):
    for name in ("a.svg", "b.svg"):
        draw_costs(paths(*made), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_field_too_long_to_be_read_names_its_line(tmp_path):
    path = tmp_path / "costs.csv"
    path.write_text("run,seed,phase,tokens,seconds,first\nfull,0,sft,1,2,\nfull," + "1" * 10**6 + ",sft,1,2,\n")
    before = csv.field_size_limit(1 << 17)  # the module's own; reading MMBench's tables raises it for the whole process
    try:
        with pytest.raises(UsageError, match=r"costs\.csv:3: field larger"):
            read_costs(path)
    finally:
        csv.field_size_limit(before)
