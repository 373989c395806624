"""Ablations as a queue: order, what is shared, resuming, and the summary by hand."""

import json

import pytest

from visrl.errors import UsageError
from visrl.tables.cost_tables import read_costs
from visrl.train.config.recipe import load_recipe
from visrl.train.loop import ablations
from visrl.train.loop import run as loop

TEXT = (
    "kind: ablations\noutput: %s/abl\nseed: 3\nrecipe: loop.yaml\nseeds: 2\nset: {iterations: 1}\n"
    "variants: {full: {}, own-crop: {rl.set: {step.context: own_crop}}, stage-2: {stages: [2]}}\n"
)


@pytest.fixture
def queue(world):
    folder, ran = world
    (folder / "ablations.yaml").write_text(TEXT % folder)
    return folder, ran


def load(folder, *more):
    return load_recipe(folder / "ablations.yaml", more).recipe


def test_seed_by_seed_and_a_variant_runs_only_what_it_does_not_share(queue):
    folder, ran = queue
    ablations.run(load(folder))
    of_seed_3 = [
        "sft", "pairs skip 7", "rl1 beta 0.3 seed 3", "rl2 beta 0.3 seed 3",  # full
        "rl1 beta 0.3 seed 3", "rl2 beta 0.3 seed 3",  # own-crop: SFT and pairs are the full one's; beta is the loop's own
        "rl2 beta 0.3 seed 3",  # stage 2 only
    ]  # fmt: skip
    assert ran[:7] == of_seed_3
    assert ran[7:] == [line.replace("seed 3", "seed 4") for line in of_seed_3]
    ran.clear()
    ablations.run(load(folder))
    assert ran == []
    assert json.loads((folder / "abl/summary.json").read_text())[0]["seeds"] == 2
    assert set(ablations.status(load(folder))) == {
        f"{v}, seed {s}, {p}: done"
        for s in (3, 4)
        for v in ("full", "own-crop", "stage-2")
        for p in ("base", "sft", "iter1/pairs", "iter1/rl1", "iter1/rl2")
        if (v, p) != ("stage-2", "iter1/rl1")
    }


def test_phases_are_shared_with_any_variant_before_and_cost_once(queue):
    """`a` asks other questions than `full`, after its warm-up; `b` has the pairs and the first stage of `a`. Costs name who had each first."""
    folder, ran = queue
    variants = "{full: {}, a: {pairs.set: {data.skip: 9}}, b: {pairs.set: {data.skip: 9}, stages: [1]}}"
    ablations.run(load(folder, "seeds=1", f"variants={variants}"))
    whole = ["rl1 beta 0.3 seed 3", "rl2 beta 0.3 seed 3"]
    assert ran == ["sft", "pairs skip 7", *whole, "pairs skip 9", *whole]
    costs = {(cost.run, cost.phase): cost for cost in read_costs(folder / "abl/costs.csv")}
    assert list(costs) == [
        *((run, phase) for run in ("full", "a") for phase in ("sft", "iter1/pairs", "iter1/rl1", "iter1/rl2")),
        *(("b", phase) for phase in ("sft", "iter1/pairs", "iter1/rl1")),
    ]
    shared = {key: cost.first for key, cost in costs.items() if cost.first}
    assert shared == {("a", "sft"): "full", ("b", "sft"): "full", ("b", "iter1/pairs"): "a", ("b", "iter1/rl1"): "a"}
    assert costs["b", "sft"].seconds == costs["full", "sft"].seconds is not None and costs["full", "sft"].tokens is None


def test_a_job_that_another_process_runs_is_left_to_it(queue, capsys):
    folder, _ = queue
    with loop.exclusive(folder / "abl/stage-2/seed3"):
        ablations.run(load(folder))
    assert "another process is at it" in capsys.readouterr().err
    assert not (folder / "abl/stage-2/seed3/base").exists()
    assert (folder / "abl/stage-2/seed4/iter1/rl2/metrics.json").is_file()


def test_the_summary_is_paired_by_seed():
    """full 60, 70, 80; less 58, 66, 74: differences -2, -4, -6, mean -4, s = 2, se 2 / sqrt 3. Means 70 and 66, se 10 / sqrt 3 and
    8 / sqrt 3. A seed that only one of both has is in its mean, not in the difference.
    """
    seeds = ("0", "1", "2")
    found = {
        "full": {"box": dict(zip(seeds, (60.0, 70.0, 80.0), strict=True))},
        "less": {"box": dict(zip(seeds, (58.0, 66.0, 74.0), strict=True))},
        "late": {"box": {"2": 81.0, "3": 99.0}},
    }
    full, less, late = ablations.summary(found)
    assert (full["value"], less["value"], late["value"]) == pytest.approx((70.0, 66.0, 90.0))
    assert (full["se"], less["se"]) == pytest.approx((10 / 3**0.5, 8 / 3**0.5))
    assert (less["difference"], less["difference_se"]) == pytest.approx((-4.0, 2 / 3**0.5))
    assert (late["difference"], late["difference_se"], late["paired_seeds"]) == (1.0, None, 1)
    text = ablations.render(ablations.table_of([full, less, late]), "md")
    assert "66.0 ± 4.6" in text and "-4.0 ± 1.2" in text


def test_the_method_itself_must_be_among_the_variants(queue):
    with pytest.raises(UsageError, match="the method itself"):
        load(queue[0], "variants={a: {}}")
