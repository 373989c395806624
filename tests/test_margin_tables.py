"""Two critics domain by domain, from records made by hand."""

from xml.etree import ElementTree

import pytest
from test_phase_tables import record

from visrl.tables.formats import render
from visrl.tables.science.margin_tables import domains_table, draw_margin, ends, verdict
from visrl.tables.science.sections import Apart, sections

FINE, DOC = "world_viscot_fine", "world_viscot_doc"


def run(name, by_phase):
    """by_phase: phase -> task -> a value per seed."""
    return [
        record(phase, value, task=task, seed=seed, run=name)
        for phase, tasks in by_phase.items()
        for task, values in tasks.items()
        for seed, value in enumerate(values)
    ]


def records():
    start = {FINE: (0.62,) * 3, DOC: (0.60,) * 3}
    full = run(
        "full", {"sft": start, "iter1/rl2": start, "iter2/rl2": {FINE: (0.50, 0.52, 0.54), DOC: (0.8, 0.8, 0.8)}}
    )
    more = {FINE: (0.60, 0.62, 0.64), DOC: (0.78, 0.80, 0.82)}
    return [*full, *run("margin", {"sft": start, "iter1/rl2": start, "iter2/rl2": more})]


def test_the_ends_are_compared_domain_by_domain_and_by_seed():
    """fine: 50, 52, 54 and 60, 62, 64, each 52 ± 1.2 and 62 ± 1.2 (s = 2, over sqrt 3), seed by seed +10 ± 0. doc: -2, 0, +2:
    0 ± 1.2."""
    rows = ends(records())
    said = render(domains_table(rows), "md")
    assert "| domain | SFT | full | margin | margin less full | seeds |" in said
    assert "| fine answers | 62.0 ± 0.0 | 52.0 ± 1.2 | 62.0 ± 1.2 | +10.0 ± 0.0 | 3 |" in said
    assert "| doc answers | 60.0 ± 0.0 | 80.0 ± 0.0 | 80.0 ± 1.2 | +0.0 ± 1.2 | 3 |" in said
    assert verdict(rows) == (
        "`margin` against `full`, beyond two standard errors over 3 seeds or more:"
        " above it: fine answers +10.0 ± 0.0; below it: nothing."
    )


def test_of_two_seeds_nothing_is_told_apart():
    two = [r for r in records() if r.model_info["phase"]["seed"] < 2]
    assert verdict(ends(two)).endswith("above it: nothing; below it: nothing.")


def test_the_section_says_what_fell_and_has_the_figure(tmp_path):
    """full ends at 52 ± 1.2 from 62 ± 0, ten below and beyond 2.3; the margin's 62 is where it began."""
    said = "\n".join(sections(Apart(margin=records())))
    assert "`full`: Below the warm-up at the end, by more than two standard errors: fine answers 62.0 → 52.0." in said
    assert "`margin`: No domain ends below the warm-up by more than two standard errors." in said
    assert "(figures/margin.svg)" in said
    draw_margin(records(), tmp_path / "margin.svg")
    assert ElementTree.parse(tmp_path / "margin.svg").getroot().tag.endswith("svg")


def test_without_the_other_critic_the_section_has_no_comparison():
    said = "\n".join(sections(Apart(margin=[r for r in records() if r.model_info["phase"]["run"] == "full"])))
    assert "margin less full" not in said and "`full`: Below" in said


@pytest.mark.parametrize("missing", [FINE, DOC])
def test_a_domain_that_one_run_lacks_has_no_difference(missing):
    some = [r for r in records() if not (r.task == missing and r.model_info["phase"]["run"] == "margin")]
    name = missing.removeprefix("world_viscot_")
    (row,) = [line for line in render(domains_table(ends(some)), "md").splitlines() if line.startswith(f"| {name} ")]
    assert row.endswith("| — | — | 0 |")
