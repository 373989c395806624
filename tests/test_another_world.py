"""The main claims in the textured world, from records made by hand."""

import pytest
from test_phase_tables import record
from test_science import pairs

from visrl.tables.reproduction_page import text
from visrl.tables.science.sections import CLAIMS_AGAIN, Apart, another_world

TASK = "world_textured_viscot"


def ended(run, seed, phase, answers, boxes):
    made = [
        record("sft" if phase == "more" else phase, value, seed=seed, run=run, metric=metric, task=TASK)
        for metric, value in (("answer", answers), ("box_acc", boxes))
    ]
    for found in made if phase == "more" else ():
        found.model_info["phase"] |= {"phase": "more", "label": "SFT+more"}
    return made


@pytest.fixture
def made():
    """Three seeds: base 10 and 0 %; SFT 40, 42, 44; RL2 50, 53, 56; without box critics 48, 50, 52; more SFT 42, 44, 46."""
    found = []
    for seed in range(3):
        s = seed / 100
        found += ended("full", seed, "base", 0.1, 0.0) + ended("full", seed, "sft", 0.40 + 2 * s, 0.40 + 2 * s)
        found += ended("full", seed, "iter1/rl1", 0.45, 0.45)
        found += ended("full", seed, "iter1/rl2", 0.50 + 3 * s, 0.50 + 3 * s)
        found += ended("no-box-critic", seed, "iter1/rl2", 0.5, 0.48 + 2 * s)
        found += ended("more-sft-compute", seed, "sft", 0.4, 0.4) + ended(
            "more-sft-compute", seed, "more", 0.4, 0.42 + 2 * s
        )
    return found


def test_claims_are_corrected_among_themselves(made):
    """RL2 - SFT: 10, 11, 12, so 11.0 ± .58, t = 19.05 of two degrees of freedom: p = 1 - t / sqrt(t^2 + 2) = .00274. Without box
    critics: 2, 3, 4, so 3.0 ± .58, t = 5.196: p = .0351. More SFT: 8, 9, 10, so 9.0 ± .58, t = 15.59: p = .00409. SFT - base: 30, 32,
    34 and 40, 42, 44, each ± 1.15: t = 27.7 and 36.4, p = .0013 and .00075. Of six, in order: 6 x .00075 = .0045, 5 x .0013 = .0065,
    4 x .00274 = .011, .011 of the other's equal p, 2 x .00409 = .0082 raised to .011, 1 x .0351.
    """
    said = "\n".join(another_world(made))
    for row in (
        "| SFT predicts better boxes than the base | +42.0 ± 1.2 | 0.0 → 42.0 | < .001 | .005 | reproduced, 3 seeds |",
        "| SFT answers better than the base | +32.0 ± 1.2 | 10.0 → 42.0 | .001 | .006 | reproduced, 3 seeds |",
        "| RL2 predicts better boxes than SFT | +11.0 ± 0.6 | 42.0 → 53.0 | .003 | .011 | reproduced, 3 seeds |",
        "| RL2 answers better than SFT | +11.0 ± 0.6 | 42.0 → 53.0 | .003 | .011 | reproduced, 3 seeds |",
        "| Reinforcement beats continued SFT with the same compute | +9.0 ± 0.6 | 44.0 → 53.0 | .004 | .011 | reproduced, 3 seeds |",
        "| Box critics help | +3.0 ± 0.6 | 50.0 → 53.0 | .035 | .035 | reproduced, 3 seeds |",
    ):
        assert row in said, row
    assert said.count(", 3 seeds |") == 6 and "RL1 predicts" not in said
    assert "Not measured: With box critics more winning boxes are right." in said


def test_with_pairs_every_claim_speaks(made):
    both = [
        *made,
        *(r for s in range(3) for r in [*pairs("full", s, wp_ln=70.0), *pairs("no-box-critic", s, wp_ln=50.0 + s)]),
    ]
    said = "\n".join(another_world(both))
    assert "Not measured" not in said and all(f"| {claim} |" in said for claim in CLAIMS_AGAIN)
    assert "| With box critics more winning boxes are right | +19.0 ± 0.6 | 51.0 → 70.0 |" in said


def test_phases_and_variants_are_shown(made):
    said = "\n".join(another_world(made))
    assert "| SFT+RL1+RL2 | 53.0 ±1.7 | 53.0 ±1.7 |" in said  # s = 3 over sqrt 3
    assert "| full | 53.0 ± 1.7 | — | 53.0 ± 1.7 | — | 3 |" in said
    assert "| no-box-critic | 50.0 ± 0.0 | -3.0 ± 1.7 | 50.0 ± 1.2 | -3.0 ± 0.6 | 3 |" in said
    assert "| more-sft-compute | 40.0 ± 0.0 |" in said


def test_the_page_has_the_section_and_its_other_claims_stay_as_they_are(made):
    base = [record(phase, 0.4 + s / 50, seed=s, run="full") for s in range(3) for phase in ("base", "sft")]
    without, with_them = text(base), text(base, Apart(textured=made))
    assert "## Another world\n\n**Not measured, so nothing is claimed.** `recipes/world-textured.yaml`" in without
    before, _, section_ = with_them.partition("## Another world")
    assert before == without.partition("## Another world")[0] and "| Box critics help | +3.0 ± 0.6 |" in section_
    assert section_.index("## Limits") > section_.index("Variants in the textured world")
