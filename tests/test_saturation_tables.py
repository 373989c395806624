"""Where iterations saturate, and what is still wrong, from records and counts made by hand."""

import pytest
from test_phase_tables import TaskResult

from visrl.errors import UsageError
from visrl.tables.csv_files import read_lines, write_lines
from visrl.tables.formats import render
from visrl.tables.science.saturation_tables import (
    Errors,
    ceiling,
    errors_table,
    iterations_table,
    saturates,
)

TASK = "world_viscot"


def record(iteration, seed, value, metric="box_acc"):
    phase, label = (f"iter{iteration}/rl2", f"iteration {iteration}: RL2") if iteration else ("sft", "SFT")
    about = {"run": "full", "phase": phase, "label": label, "iteration": iteration, "seed": seed}
    return TaskResult(
        task=TASK, task_version="1", metric=metric, value=value, se=0.01, ci=None, unit="fraction", n=9, n_expected=9,
        n_clusters=9, protocol="visrl_train/v1", focus="predicted", crop="tight", model="m", model_info={"phase": about},
        small_world=True,
    )  # fmt: skip


def records(*by_iteration):
    """Boxes of two seeds, iteration by iteration; answers .1 above."""
    return [
        record(iteration, seed, value + more, metric)
        for iteration, values in enumerate(by_iteration)
        for seed, value in enumerate(values)
        for metric, more in (("box_acc", 0.0), ("answer", 0.1))
    ]


def test_what_each_iteration_adds_is_paired_by_seed():
    """+.10 and +.12: 11 ± 1 (s = 1.414, over sqrt 2); the ends are 60 and 66: 63 ± 3."""
    said = render(iterations_table(records((0.50, 0.54), (0.60, 0.66)), "full"), "md")
    assert "| SFT | 52.0 ± 2.0 | — | 62.0 ± 2.0 | — | 2 |" in said
    assert "| 1 | 63.0 ± 3.0 | +11.0 ± 1.0 | 73.0 ± 3.0 | +11.0 ± 1.0 | 2 |" in said


def test_it_saturates_before_two_in_a_row_that_add_at_most_two_errors():
    """Added: 11 ± 1, then +1 and +3 (2 ± 1, not above two errors), then -1 and +1 (0 ± 1): saturated at 1."""
    rows = [(0.50, 0.54), (0.60, 0.66), (0.61, 0.69), (0.60, 0.70)]
    assert saturates(records(*rows), "full", "box") == 1
    # 2 ± 1 alone, then +9 and +11: not yet
    assert saturates(records(*rows[:3], (0.70, 0.80)), "full", "box") is None
    assert saturates(records(*rows[:2]), "full", "box") is None


def lines():
    """Seed 0: 10 of 40 wrong, 5 unexplored, 3 misjudged, 2 unlearnt. Seed 1: 5 of 40, all unexplored."""
    return [
        Errors(seed=0, domain="doc", size="small", questions=20, unexplored=5, misjudged=0, unlearnt=1),
        Errors(seed=0, domain="fine", size="large", questions=20, unexplored=0, misjudged=3, unlearnt=1),
        Errors(seed=1, domain="doc", size="small", questions=20, unexplored=5, misjudged=0, unlearnt=0),
        Errors(seed=1, domain="fine", size="large", questions=20, unexplored=0, misjudged=0, unlearnt=0),
    ]


def test_errors_by_domain_and_size():
    """25 % and 12.5 %: 18.8 ± 6.2 (halves to even); unexplored 50 % and 100 %: 75 ± 25; misjudged 30 and 0; unlearnt 20 and 0."""
    said = render(errors_table(lines()), "md")
    assert "| all | 18.8 ± 6.2 | 75.0 ± 25.0 | 15.0 ± 15.0 | 10.0 ± 10.0 | 2 |" in said
    # fine: 4 of 20 and none, whose reasons are then of one seed, 3 and 1 of 4
    assert "| fine | 10.0 ± 10.0 | 0.0 | 75.0 | 25.0 | 2 |" in said
    assert "| medium regions | — | — | — | — | 0 |" in said


def test_the_ceiling_names_a_reason_only_where_it_leads_beyond_two_errors():
    """Seeds have 50 and 100 % unexplored, 30 and 0 % misjudged: lead 20 and 100, 60 ± 40, below 80. Of 7 and 8 in 10 unexplored
    against 2 and 2 misjudged, 1 and 0 unlearnt: lead 50 and 60, 55 ± 5, above 10."""
    assert ceiling(lines()) == (
        "No reason leads by more than two standard errors (`unexplored` over `misjudged`: +60.0 ± 40.0 points)."
    )
    clear = [
        Errors(seed=0, domain="doc", size="small", questions=20, unexplored=7, misjudged=2, unlearnt=1),
        Errors(seed=1, domain="doc", size="small", questions=20, unexplored=8, misjudged=2, unlearnt=0),
    ]
    said = ceiling(clear)
    assert said.startswith("The most frequent reason is exploration")
    assert said.endswith("(lead over `misjudged`: +55.0 ± 5.0 points).")
    none = [Errors(seed=0, domain="doc", size="small", questions=20, unexplored=0, misjudged=0, unlearnt=0)]
    assert ceiling(none) == ceiling([]) == ""


def test_errors_on_file_and_a_damaged_line(tmp_path):
    write_lines(tmp_path / "errors.csv", Errors, lines())
    assert read_lines(tmp_path / "errors.csv", Errors) == lines() and read_lines(tmp_path / "none.csv", Errors) == []
    (tmp_path / "errors.csv").write_text(
        "seed,domain,size,questions,unexplored,misjudged,unlearnt\n0,doc,small,x,0,0,0\n"
    )
    with pytest.raises(UsageError, match=r"errors\.csv:2: questions"):
        read_lines(tmp_path / "errors.csv", Errors)
    (tmp_path / "errors.csv").write_text(
        "seed,domain,size,questions,unexplored,misjudged,unlearnt\n0,doc,small,1,0,0,0,7\n"
    )
    with pytest.raises(UsageError, match=r"errors\.csv:2: more fields than the header has columns"):
        read_lines(tmp_path / "errors.csv", Errors)
