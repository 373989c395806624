"""docs/science.md: written from records, the same bytes again, nothing invented."""

from pathlib import Path

import pytest
from test_phase_tables import record

from visrl.claims import Claim, decided
from visrl.cli import main
from visrl.records import write_results
from visrl.science import text

ROOT = Path(__file__).parents[1]


def test_the_page_on_file_is_what_the_records_give():
    assert main(["science", "--check", "--results", str(ROOT / "results"), "--docs", str(ROOT / "docs")]) == 0


def test_without_records_it_says_that_nothing_was_measured():
    said = text([])
    assert "nothing has been measured, so nothing is claimed" in said
    assert " seed" not in said.partition("nothing is claimed")[2] and "| claim |" not in said


def test_two_standard_errors_over_seeds_decide():
    """Differences +4, +6, +8: mean 6, s = 2, se 2 / sqrt 3 = 1.15: beyond 2 se. Of one seed there is no error and no verdict."""
    before, after = {"0": 50.0, "1": 51.0, "2": 52.0}, {"0": 54.0, "1": 57.0, "2": 60.0}
    assert Claim("c", before, after).row() == "| c | 51.0 | 57.0 | +6.0 ± 1.2 | reproduced, 3 seeds |"
    assert "| -6.0 ± 1.2 | contradicted, 3 seeds |" in Claim("c", after, before).row()
    assert Claim("c", {"0": 50.0}, after).row() == "| c | 50.0 | 54.0 | +4.0 | undecided, 1 seed |"
    assert Claim("c", {"9": 50.0}, after).row() == ""
    two = Claim("c", {"0": 50.0, "1": 51.0}, after)
    assert two.verdict == "undecided"  # +4 and +6: 5 ± 1, but of two seeds
    assert Claim("c", {"0": 50.0}, after, se_by_picture=1.5).verdict == "reproduced"  # +4 of one seed, 1.5 by picture
    assert Claim("c", {"0": 50.0}, after, se_by_picture=2.5).verdict == "undecided"


@pytest.mark.parametrize(
    ("change", "se", "word"), [(2.0, 1.0, "undecided"), (2.1, 1.0, "reproduced"), (0.0, 0.0, "undecided")]
)
def test_exactly_two_is_not_beyond(change, se, word):
    assert decided(change, se) == word


def test_the_same_records_give_the_same_bytes_and_a_changed_one_is_noticed(tmp_path):
    of_seeds = [
        record(phase, value + seed / 50, seed=seed, run=run, metric=metric)
        for seed in range(3)
        for run, less in (("full", 0.0), ("no-box-critic", 0.05 + seed / 1000))
        for metric in ("answer", "box_acc")
        for phase, value in (
            ("base", 0.2),
            ("sft", 0.4),
            ("iter1/rl1", 0.5),
            ("iter1/rl2", 0.6 - less),
            ("iter2/rl2", 0.7 - less),
        )
    ]
    write_results(tmp_path / "results/records/a/r.json", of_seeds)
    arguments = ["science", "--results", str(tmp_path / "results"), "--docs", str(tmp_path / "docs")]
    assert main(arguments) == 0
    page, figure = tmp_path / "docs/science.md", tmp_path / "docs/figures/iterations.svg"
    first = page.read_bytes(), figure.read_bytes()
    assert main(arguments) == 0
    assert (page.read_bytes(), figure.read_bytes()) == first
    assert main([*arguments, "--check"]) == 0
    said = page.read_text()
    assert (
        "| RL1 points better than SFT | 42.0 | 52.0 | +10.0 ± 0.0 | reproduced, 3 seeds |" in said
    )  # means of .40, .42, .44
    assert (
        "| Box critics help | 66.9 | 72.0 | +5.1 ± 0.1 | reproduced, 3 seeds |" in said
    )  # 5.0, 5.1, 5.2 points of the last phase
    assert (
        "Not measured: RL2 points better than the best of the SFT checkpoints; The diversity controller helps" in said
    )
    assert (
        "| Iteration 2: better box than SFT | 42.0 | 72.0 | +30.0 ± 0.0 | reproduced, 3 seeds |" in said
    )  # .72 on average at the end of the longest run, .42 after SFT
    write_results(tmp_path / "results/records/a/r.json", of_seeds[1:])
    assert main([*arguments, "--check"]) == 1
