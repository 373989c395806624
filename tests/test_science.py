"""docs/science.md: written from records, the same bytes again, nothing invented."""

from pathlib import Path

import pytest
from test_phase_tables import record

from visrl.cli.evaluate import main
from visrl.core.records import TaskResult, write_results
from visrl.tables.claims import Claim, claims, holm, pairs_by_seed
from visrl.tables.cost_tables import Cost
from visrl.tables.generated import generated
from visrl.tables.reproduction_page import text
from visrl.tables.science.sections import Apart

ROOT = Path(__file__).parents[1]


def test_the_page_on_file_is_what_the_records_give():
    assert main(["reproduction-page", "--check", "--results", str(ROOT / "results"), "--docs", str(ROOT / "docs")]) == 0


def test_without_records_it_says_that_nothing_was_measured():
    said = text([])
    assert "nothing has been measured, so nothing is claimed" in said
    assert " seed" not in said.partition("nothing is claimed")[2] and "| claim |" not in said


def test_a_claim_over_seeds():
    """Differences +4, +6, +8: mean 6, s = 2, se 2 / sqrt 3 = 1.15. t = 5.196, of 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2) = .035."""
    before, after = {"0": 50.0, "1": 51.0, "2": 52.0}, {"0": 54.0, "1": 57.0, "2": 60.0}
    claim, turned = Claim("c", before, after), Claim("c", after, before)
    assert claim.p == pytest.approx(1 - 5.196 / (5.196**2 + 2) ** 0.5, abs=1e-4)
    assert claim.row(0.04) == "| c | +6.0 ± 1.2 | 51.0 → 57.0 | .035 | .040 | reproduced, 3 seeds |"
    assert turned.row(0.04).endswith("| contradicted, 3 seeds |")
    assert claim.row(0.05).endswith("| .050 | undecided, beyond two errors alone, 3 seeds |")
    assert Claim("c", {"9": 50.0}, after).row(None) == ""


def test_what_a_test_could_have_found():
    """Five seeds, differences -2, -1, 0, 1, 2: s = sqrt 2.5, se sqrt .5 = .7071. With 4 degrees of freedom |t| must exceed 2.776; at 3.77
    standard errors a noncentral t does so with a chance of .8 (.745 at 3.5, .843 at 4)."""
    before = {str(seed): 50.0 for seed in range(5)}
    claim = Claim("c", before, {str(seed): 48.0 + seed for seed in range(5)})
    assert claim.detectable == pytest.approx(3.77 * 0.5**0.5, abs=0.01)
    assert Claim("c", {"0": 50.0}, {"0": 51.0}, se_by_picture=1.0).detectable is None
    assert Claim("c", before, dict(before)).detectable is None  # no error


def test_of_fewer_than_three_seeds_nothing_is_decided_but_of_one_with_an_error_by_picture():
    after = {"0": 54.0, "1": 57.0}
    assert Claim("c", {"0": 50.0}, after).row(None) == "| c | +4.0 | 50.0 → 54.0 | — | — | undecided, 1 seed |"
    two = Claim("c", {"0": 50.0, "1": 51.0}, after)  # +4 and +6: 5 ± 1
    assert two.p is None and two.verdict(None) == "undecided"
    by_picture = Claim("c", {"0": 50.0}, after, se_by_picture=1.5)
    assert by_picture.p == pytest.approx(0.00766, abs=1e-5)  # 4 / 1.5 = 2.667: twice the normal's tail .00383
    assert by_picture.verdict(0.01) == "reproduced"
    assert Claim("c", {"0": 50.0}, after, se_by_picture=2.5).verdict(0.11) == "undecided"  # 1.6 standard errors


def test_no_difference_has_no_verdict_and_no_error_no_p():
    same = {"0": 50.0, "1": 51.0, "2": 52.0}
    assert Claim("c", same, dict(same)).p is None and Claim("c", same, dict(same)).verdict(None) == "undecided"


def test_holms_correction():
    """.01, .02, .04 of three: 3 x .01, 2 x .02, 1 x .04; none below one before it: .03, .02 would be below .03, so .03 … and 1 at most."""
    assert holm([0.02, 0.01, 0.04]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.01, 0.012, 0.5]) == pytest.approx([0.03, 0.03, 0.5])  # 2 x .012 = .024 is raised to .03
    assert holm([0.4, None, 0.6]) == pytest.approx(
        [0.8, None, 0.8]
    )  # 1 x .6 is raised to .8; what has no p is not counted
    assert holm([0.7, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_a_claims_cost_is_that_of_the_runs_it_is_read_from_or_is_said_not_to_be_recorded():
    """Three seeds; full takes 600 s each, no-box-critic copies 120 of them and adds 300: 3 x 900 s are 45 minutes. No-diversity's are not on
    file. RL2 against SFT is read from `full` alone: 30 minutes."""
    made, costs = [], []
    for seed in range(3):
        for run, worse in (("full", 0.0), ("no-box-critic", 0.1), ("no-diversity", 0.1)):
            about = {"seed": seed, "run": run, "metric": "box_acc"}
            made += [record("sft", 0.4 + seed / 50, **about), record("iter1/rl2", 0.6 - worse + seed / 40, **about)]
        costs += [Cost(run="full", seed=seed, phase="sft", tokens=None, seconds=120)]
        costs += [Cost(run="full", seed=seed, phase="iter1/rl2", tokens=9, seconds=480)]
        costs += [Cost(run="no-box-critic", seed=seed, phase="sft", tokens=None, seconds=120, first="full")]
        costs += [Cost(run="no-box-critic", seed=seed, phase="iter1/rl2", tokens=9, seconds=300)]
    said = text(made, Apart(costs={"recipes/world-ablations.yaml": costs})).splitlines()

    def last(claim):
        (row,) = [line for line in said if line.startswith(f"| {claim} |")]
        return row.split("|")[-2].strip()

    assert last("claim") == "CPU, min"
    assert last("Box critics help") == "45" and last("RL2 predicts better boxes than SFT") == "30"
    assert last("The diversity controller helps") == "not recorded"
    without = text(made).splitlines()
    assert "Their processor time: not recorded." in without[without.index("## Claims") + 2]
    assert "| claim | difference | from → to | p | p, corrected | verdict |" in without


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
        "| RL1 predicts better boxes than SFT | +10.0 ± 0.0 | 42.0 → 52.0 | < .001 | < .001 | reproduced, 3 seeds |"
        in said
    )  # means of .40, .42, .44
    assert (
        "| Box critics help | +5.1 ± 0.1 | 66.9 → 72.0 | < .001 | < .001 | reproduced, 3 seeds |" in said
    )  # 5.0, 5.1, 5.2 points of the last phase
    assert (
        "Not measured: RL2 predicts better boxes than the best of the SFT checkpoints; The diversity controller helps"
        in said
    )
    assert (
        "| Iteration 2: better box than SFT | +30.0 ± 0.0 | 42.0 → 72.0 | < .001 | < .001 | reproduced, 3 seeds |"
        in said
    )  # .72 on average at the end of the longest run, .42 after SFT
    write_results(tmp_path / "results/records/a/r.json", of_seeds[1:])
    assert main([*arguments, "--check"]) == 1


def pairs(run, seed, **percent):
    """A run's records of its first iteration's pairs; phases of the same run beside them."""
    about = {"run": run, "phase": "iter1/pairs", "label": "pairs 1", "iteration": 1, "seed": seed}
    shape = record("sft", 0.5).model_dump() | {"task": "datagen", "unit": "percent", "model_info": {"phase": about}}
    return [TaskResult(**{**shape, "metric": kind, "value": value}) for kind, value in percent.items()]


def rows(results):
    return {claim.text: claim for claim in claims(results)}


def test_fewer_pairs_of_two_right_boxes_are_what_the_controller_should_bring():
    """1.0, 1.5, 2.0 without and .4, .5, .6 with: -.6, -1.0, -1.4, so -1.0 ± .23, t = 4.33, p = .049: fewer, as claimed. Right winners are the sum of two
    kinds: 51 + 4 and 70 + 1 percent.
    """
    made = [record("sft", 0.5, run="full")]
    for seed, (less, more) in enumerate(((0.4, 1.0), (0.5, 1.5), (0.6, 2.0))):
        made += pairs("full", seed, wp_lp=less) + pairs("no-diversity", seed, wp_lp=more)
        made += pairs("no-box-critic", seed, wp_lp=4.0, wp_ln=51.0 + seed) + pairs("full", seed, wp_ln=70.0)
    found = rows(made)
    fewer = found["With the diversity controller fewer pairs have two right boxes"]
    assert fewer.row(fewer.p).endswith("| -1.0 ± 0.2 | 1.5 → 0.5 | .049 | .049 | reproduced, 3 seeds |")
    critics = found["With box critics more winning boxes are right"]
    assert (critics.before["0"], critics.after["0"], critics.verdict(critics.p)) == (55.0, 70.4, "reproduced")
    turned = [*pairs("full", 0, wp_lp=2.0), *pairs("full", 1, wp_lp=2.1), *pairs("full", 2, wp_lp=2.2), made[0]]
    turned += [r for seed in range(3) for r in pairs("no-diversity", seed, wp_lp=1.0)]
    more = rows(turned)["With the diversity controller fewer pairs have two right boxes"]
    assert more.verdict(more.p) == "contradicted"


def test_the_best_sft_checkpoint_is_chosen_seed_by_seed_and_only_where_all_ran():
    """Seed 0: SFT .50, others .30, .60, .40, the best .60; seed 1: .50 is. RL2 .70 and .55. Seed 2 lacks a variant and is left out."""
    made = [record("sft", 0.5, seed=seed, run="full", metric="box_acc") for seed in range(3)]
    made += [record("iter1/rl2", v, seed=seed, run="full", metric="box_acc") for seed, v in enumerate((0.7, 0.55, 0.9))]
    for run, values in (
        ("short-sft", (0.3, 0.3, 0.3)),
        ("more-sft", (0.6, 0.4, 0.4)),
        ("more-sft-compute", (0.4, 0.4)),
    ):
        made += [record("sft", value, seed=seed, run=run, metric="box_acc") for seed, value in enumerate(values)]
    best = rows(made)["RL2 predicts better boxes than the best of the SFT checkpoints"]
    assert best.before == pytest.approx({"0": 60.0, "1": 50.0})
    assert {seed: best.after[seed] for seed in best.before} == pytest.approx({"0": 70.0, "1": 55.0})


def test_what_is_known_of_a_failed_claim_is_told_once_and_only_then():
    made = [record("sft", 0.5, seed=seed, run=run) for run in ("full", "sft-as-critic") for seed in range(3)]
    same = [r for run in ("full", "sft-as-critic") for seed in range(3) for r in pairs(run, seed, wp_ln=70.0 + seed)]
    assert text([*made, *same]).count("The critic here reads the crop") == 1
    better = [
        r
        for seed in range(3)
        for r in [*pairs("full", seed, wp_ln=70.0), *pairs("sft-as-critic", seed, wp_ln=50.0 + seed)]
    ]
    assert "The critic here reads" not in text([*made[:3], *better])


def test_phases_of_the_small_world_stay_out_of_the_papers_tables(tmp_path):
    write_results(tmp_path / "r.json", pairs("full", 0, wp_lp=1.0, wp_ln=64.0, wn_lp=2.0, wn_ln=33.0))
    assert "None of the given runs has a result for this table" in generated(tmp_path)["datagen.md"]


def test_records_that_lack_a_warm_up_or_hold_a_seed_twice():
    """A loop without SFT claims nothing about it; of a record that is there twice the last counts, 70 and not 140 %."""
    bare = [record(phase, 0.5, run="bare") for phase in ("base", "iter1/rl2", "iter2/rl2")]
    assert "Iteration 2: better answers than SFT" not in text(bare)
    assert "Iteration 2: better answers than the first iteration" in text(bare)
    assert "## Phases" in text([record("base", 0.5, run="bare")])
    twice = 2 * pairs("full", 0, wp_ln=70.0)
    assert pairs_by_seed(twice, "full", ("wp_ln", "wp_lp")) == {"0": 70.0}


def test_a_variant_whose_pairs_are_the_methods_is_not_shown_beside_it():
    """Seeds 0 and 2 of a variant that changes only training: the same pairs, of fewer seeds."""
    made = [
        record("sft", 0.5, run=run, seed=seed) for run in ("full", "winners-only", "no-diversity") for seed in range(3)
    ]
    for seed in range(3):
        made += pairs("full", seed, wp_lp=1.0 + seed) + pairs("no-diversity", seed, wp_lp=2.0 + seed)
    made += pairs("winners-only", 0, wp_lp=1.0) + pairs("winners-only", 2, wp_lp=3.0)
    table = text(made).partition("## Pairs")[2]
    assert "no-diversity" in table and "winners-only" not in table


def test_the_readme_says_what_the_page_says():
    page, readme = ((ROOT / name).read_text() for name in ("docs/science.md", "README.md"))
    table = page.partition("**full: phases")[2].partition("\n- ")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    titles, *rows = [row for row in cells if not row[1].startswith("-")]
    answers, boxes = titles.index("mean answers"), titles.index("mean box")
    assert len(rows) == 4
    for row in rows:
        assert f"| {row[0]} | {row[answers].split()[0]} | {row[boxes].split()[0]} |" in readme
    longer, _in_the_textured_world = [
        line
        for line in page.splitlines()
        if line.startswith("| Reinforcement beats continued SFT with the same compute")
    ]
    assert f"more SFT gets {longer.split('|')[3].split(' → ')[0].strip()} % of boxes right" in readme
    last = {
        metric: line.split("|")[3].split(" → ")[1].strip()
        for line in page.splitlines()
        for metric in ("box", "answers")
        if line.startswith(f"| Iteration 4: better {metric} than SFT")
    }
    assert f"fresh questions reach {last['box']} % (and {last['answers']} % of the answers)" in readme
    margin = page.partition("**Two critics")[2].partition("\n| fine answers |")[2].splitlines()[0]
    sft, full, by_margin = (cell.split()[0] for cell in margin.split("|")[:3])
    assert f"fall from {sft} to about {float(full):.0f} %, and rise to {by_margin} % with a critic by margin" in readme
