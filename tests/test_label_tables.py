"""Labels against reinforcement, from records and costs made by hand: two numbers of labels, three seeds, both arms."""

import pytest
from test_phase_tables import record

from visrl.errors import UsageError
from visrl.evals import stats
from visrl.tables.cost_tables import Cost
from visrl.tables.formats import render
from visrl.tables.reproduction_page import text
from visrl.tables.science.label_tables import (
    Arms,
    arm,
    arms,
    crossing,
    crossings,
    draw_labels,
    labels_table,
    seconds,
    section,
)
from visrl.tables.science.sections import Apart


def more(phase, value, **about):
    """A record of SFT continued: a phase that the other tests' loops do not have."""
    shape = record("sft", value, **about)
    of = shape.model_info["phase"] | {"phase": "more", "label": "SFT+more"}
    return shape.model_copy(update={"model_info": {"phase": of}}) if phase == "more" else shape


def both_arms(rl, continued, seed, warm_up, gain, other):
    """Both runs of a seed: ``gain`` of reinforcement, ``other`` of continued SFT, as fractions; answers are .1 above boxes."""
    found = []
    for metric, above in (("box_acc", 0.0), ("answer", 0.1)):
        about = {"seed": seed, "metric": metric}
        found += [record("sft", warm_up + above, run=rl, **about), more("sft", warm_up + above, run=continued, **about)]
        found += [record("iter1/rl1", 0.99, run=rl, **about)]
        found += [record("iter1/rl2", warm_up + gain + above, run=rl, **about)]
        found += [more("more", warm_up + other + above, run=continued, **about)]
    return found


@pytest.fixture
def made():
    """40 labels (`full`): SFT 48, 50, 52; reinforcement +10, +12, +14, continued +4. 160 labels: SFT 70, +1, +2, +3 against +6."""
    found = []
    for seed in range(3):
        found += both_arms("rl160", "more160", seed, 0.70, 0.01 * (seed + 1), 0.06)
        found += both_arms("full", "more40", seed, 0.48 + 0.02 * seed, 0.10 + 0.02 * seed, 0.04)
    return found


@pytest.fixture
def costs():
    """Reinforcement from 40: 60 + 20 + 40 s, 132 s of seed 1, 144 s of seed 2; continued 90 s. Seed 2's time from 160 is not known."""
    found = []
    for seed in range(3):
        for phase, spent in (
            ("sft", 50.0),
            ("iter1/pairs", 60.0 + 12 * seed),
            ("iter1/rl1", 20.0),
            ("iter1/rl2", 40.0),
        ):
            found.append(Cost(run="full", seed=seed, phase=phase, tokens=None, seconds=spent))
        found.append(Cost(run="more40", seed=seed, phase="sft", tokens=None, seconds=50.0, first="full"))
        found.append(Cost(run="more40", seed=seed, phase="more", tokens=None, seconds=90.0))
        known = None if seed == 2 else 30.0
        found.append(Cost(run="rl160", seed=seed, phase="iter1/rl2", tokens=None, seconds=known))
    return found


def test_names_of_runs():
    assert arm("rl1280") == ("rl", 1280) and arm("more10") == ("more", 10)
    assert arm("full") == ("rl", 40)  # world-sft.yaml's own number
    assert arm("more-sft") is None and arm("url40") is None and arm("base") is None


def test_gains_are_over_the_warm_up_of_the_same_seed_at_the_end_of_each_arm(made):
    found = arms(made)
    assert list(found) == [40, 160]
    of = found[40]["box"]
    assert of.warm_up == pytest.approx({"0": 48.0, "1": 50.0, "2": 52.0})
    assert of.reinforced == pytest.approx({"0": 10.0, "1": 12.0, "2": 14.0})  # not stage 1's 99 %
    assert of.continued == pytest.approx({"0": 4.0, "1": 4.0, "2": 4.0})
    assert found[40]["answers"].warm_up["0"] == pytest.approx(58.0)


def test_a_row_per_number_of_labels(made, costs):
    """40 labels: SFT 50 ± 2 / sqrt 3 = 1.15; +12 ± 1.15; +4 ± 0; differences 6, 8, 10: +8 ± 1.15. Reinforcement 120, 132, 144 s: 2.2 min ±
    .2 / sqrt 3 = .115; continued 1.5. 160 labels: differences -5, -4, -3, se 1 / sqrt 3 = .58; two seeds' time, .5 min each."""
    shown = render(labels_table(arms(made), costs), "md")
    row = "| 50.0 ± 1.2 | +12.0 ± 1.2 | +4.0 ± 0.0 | +8.0 ± 1.2 |"
    answers = "60.0 ± 1.2 | +12.0 ± 1.2 | +4.0 ± 0.0 | +8.0 ± 1.2 |"
    assert f"| 40 {row} {answers} 2.2 ± 0.1 | 1.5 ± 0.0 | 3 |" in shown
    assert "| 160 | 70.0 ± 0.0 | +2.0 ± 0.6 | +6.0 ± 0.0 | -4.0 ± 0.6 |" in shown
    assert "| 0.5 ± 0.0 | — | 3 |" in shown  # nothing is on file of more160
    assert seconds(costs, 160, "rl", ["0", "1", "2"]) == {"0": 30.0, "1": 30.0}
    assert seconds(costs, 40, "more", ["0"]) == {"0": 90.0}  # the warm-up is no part of it


def test_only_seeds_with_both_arms_count_and_only_numbers_with_both(made):
    """Seed 3 of 40 labels has no continued SFT, seed 4 stopped after stage 1; 10 labels have one arm."""
    lone = both_arms("full", "x", 3, 0.9, 0.0, 0.0) + both_arms("rl10", "x", 0, 0.1, 0.1, 0.1)
    halfway = [
        r for r in both_arms("full", "more40", 4, 0.9, 0.0, 0.0) if r.model_info["phase"]["phase"] != "iter1/rl2"
    ]
    found = arms([*made, *lone, *halfway])
    assert list(found) == [40, 160] and list(found[40]["box"].warm_up) == ["0", "1", "2"]


def test_two_warm_ups_of_a_seed_are_no_comparison(made):
    other = [more("sft", 0.49, run="more40", seed=0, metric="box_acc")]
    with pytest.raises(
        UsageError, match=r"full and more40, seed 0: their warm-ups score differently \(box 48\.00 and 49\.00 %"
    ):
        arms([*made, *other])


def test_between_two_numbers_the_line_is_over_the_logarithm():
    """+3 at 10 and -1 at 160, ratio 16: three quarters of the way, 10 x 16^.75 = 80. Zero itself counts; two changes are two."""
    assert crossings([10, 160], [3.0, -1.0]) == pytest.approx([80.0])
    assert crossings([10, 20, 40], [1.0, 0.0, -1.0]) == [20.0]
    assert crossings([10, 40, 160], [1.0, -1.0, 1.0]) == pytest.approx(
        [20.0, 80.0]
    )  # half way: sqrt(10 x 40), sqrt(40 x 160)
    assert crossings([10, 20], [1.0, 2.0]) == [] and crossings([10], [1.0]) == []


def at(*differences):
    """(labels, mean difference, its standard error) -> both arms over two seeds: mean ± se are differences mean - se, mean + se."""
    zero = {"0": 0.0, "1": 0.0}
    return {labels: {"box": Arms(zero, {"0": mean - se, "1": mean + se}, zero)} for labels, mean, se in differences}


def test_the_range_of_a_crossing():
    """+3 ± 1 at 10, -1 ± 1 at 160: the line less its errors goes from 2 to -2, half way: 10 x 16^.5 = 40; the line plus them from 4 to 0: 160.
    Rising, the same mirrored. ± 2: from 1 to -3, a quarter of the way, 20; and 5 to 1: not by 160."""
    said = "Boxes: the gain of reinforcement over that of continued SFT crosses zero at 80 labelled pictures"
    assert at((10, 3, 1))[10]["box"].difference == stats.mean([2.0, 4.0], ["0", "1"])
    assert crossing(at((10, 3, 1), (160, -1, 1)), "box") == f"{said} (40 to 160 within one standard error)."
    assert crossing(at((10, -3, 1), (160, 1, 1)), "box") == f"{said} (40 to 160 within one standard error)."
    assert crossing(at((10, 3, 2), (160, -1, 2)), "box") == f"{said} (20 to more than 160 within one standard error)."
    flipped = crossing(
        at((10, 1, 2), (160, -3, 1)), "box"
    )  # a quarter: 20; less: -1 at 10 already; plus: 3 to -2, 10 x 16^.6 = 53
    assert flipped.endswith("crosses zero at 20 labelled pictures (fewer than 10 to 53 within one standard error).")
    assert round(10 * 16**0.6) == 53


def test_no_crossing_several_and_one_seed():
    assert crossing(at((10, 3, 9), (1280, 1, 9)), "box").endswith(
        "does not cross zero between 10 and 1,280 labelled pictures: it is above zero throughout."
    )
    assert crossing(at((10, -3, 1), (1280, -1, 1)), "box").endswith("it is below zero throughout.")
    assert crossing(at((40, 3, 1)), "box").endswith("is above zero at 40 labelled pictures, the only number measured.")
    several = crossing(at((10, 1, 1), (40, -1, 1), (160, 1, 1)), "box")
    assert several.endswith("crosses zero more than once, at 20, 80 labelled pictures.")
    alone = {n: {"box": Arms({"0": 0.0}, {"0": gain}, {"0": 0.0})} for n, gain in ((10, 3.0), (160, -1.0))}
    assert crossing(alone, "box").endswith("crosses zero at 80 labelled pictures, of one seed, so without a range.")


def test_the_section_of_the_page(made, costs):
    """+8 at 40, -4 at 160: two thirds of the way, 40 x 4^(2/3) = 101; the errors move it to 6.85 / (6.85 + 4.58) and 9.15 / (9.15 + 3.42)."""
    shown = "\n".join(section(made, costs))
    low, high = (40 * 4 ** (a / (a + b)) for a, b in ((8 - 2 / 3**0.5, 4 + 3**-0.5), (8 + 2 / 3**0.5, 4 - 3**-0.5)))
    expected = f"crosses zero at {40 * 4 ** (2 / 3):.0f} labelled pictures ({low:.0f} to {high:.0f} within one standard error)."
    assert f"Boxes: the gain of reinforcement over that of continued SFT {expected}" in shown
    assert f"Answers: the gain of reinforcement over that of continued SFT {expected}" in shown
    assert "figures/labels.svg" in shown
    # 170 + 182 + 194 of `full`, 90 of each `more40` beside the warm-up that it shares, 30 of two seeds of rl160: 876 s
    timed = "15 processor minutes for the 8 of them whose time is on file, scoring left out"
    assert f"`visrl-train recipes/world-labels.yaml` measures this again (12 runs; {timed})." in shown
    on_page = text([record("sft", 0.4)], Apart(labels=made)).partition("## Labels against reinforcement")[2]
    assert "| 40 | 50.0 ± 1.2 |" in on_page
    nothing = text([record("sft", 0.4)]).partition("## Labels against reinforcement")[2].partition("## ")[0]
    assert "Not measured, so nothing is claimed" in nothing and "| 40 |" not in nothing


def test_the_figure_is_the_same_bytes_again(made, tmp_path):
    for name in ("a.svg", "b.svg"):
        draw_labels(arms(made), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
