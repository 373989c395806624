"""``rl.method: grpo`` or ``rloo`` in a loop: one phase an iteration, its start, critic and questions wired, resumed and redone.

The phases are the quick fakes of loop_made.py: a fake training phase writes weights that say what they were made from.
"""

import json

import pytest
from loop_made import recipe

from visrl.errors import UsageError
from visrl.tables.phase_tables import order
from visrl.train.loop import run as loop
from visrl.train.loop.phases import phases

GRPO = ("pairs=null", "rl={method: grpo, recipe: grpo.yaml}")


def made(folder, name):
    return (folder / "run" / name / "final/model.safetensors").read_text()


def test_an_iteration_is_one_phase_from_the_newest_model_with_fresh_questions_and_the_base_as_critic(world):
    folder, ran = world
    loop.run(recipe(folder, *GRPO))
    assert ran == ["sft", "grpo mean_std skip 3 seed 5", "grpo mean_std skip 43 seed 5"]  # 3 + one lot of 40
    first = "grpo(sft(base) by base from 3)"
    assert made(folder, "iter1/rl") == first
    assert made(folder, "iter2/rl") == f"grpo({first} by base from 43)"
    names = [(phase.name, phase.label) for phase in phases(recipe(folder, *GRPO))]
    assert names == [("base", "base"), ("sft", "SFT"), ("iter1/rl", "SFT+GRPO"), ("iter2/rl", "iteration 2: GRPO")]
    assert sorted(["iter2/rl", "sft", "iter1/rl", "base"], key=order) == ["base", "sft", "iter1/rl", "iter2/rl"]


def test_every_phase_is_scored_and_records_of_iterations_that_are_no_more_are_taken_away(world):
    folder, _ = world
    (folder / "run/records").mkdir(parents=True)
    (folder / "run/records/iter7-rl.json").write_text("[]")
    loop.run(recipe(folder, *GRPO))
    differences = json.loads((folder / "run/iter2/rl/metrics.json").read_text())["differences"]
    assert {d["metric"] for d in differences} >= {"answer", "box_acc"}
    assert not (folder / "run/records/iter7-rl.json").exists()


def test_rloo_is_the_leave_one_out_baseline_of_the_same_recipe(world):
    folder, ran = world
    loop.run(recipe(folder, "pairs=null", "rl={method: rloo, recipe: grpo.yaml}", "iterations=1"))
    assert ran[-1] == "grpo leave_one_out skip 3 seed 5"
    with pytest.raises(UsageError, match=r"set names grpo\.baseline"):
        loop.run(
            recipe(
                folder, "pairs=null", "rl={method: rloo, recipe: grpo.yaml, set: {grpo.baseline: mean}}", "iterations=1"
            )
        )


def test_a_finished_phase_is_skipped_and_a_changed_method_is_named(world):
    folder, ran = world
    loop.run(recipe(folder, *GRPO))
    ran.clear()
    loop.run(recipe(folder, *GRPO))
    assert ran == []
    with pytest.raises(
        UsageError, match=r"iter1/rl: redone: recipe.grpo.baseline was \"mean_std\", is \"leave_one_out\""
    ):
        loop.run(recipe(folder, "pairs=null", "rl={method: rloo, recipe: grpo.yaml}"))
    loop.run(recipe(folder, "pairs=null", "rl={method: rloo, recipe: grpo.yaml}", "redo=true"))
    assert [said.split()[1] for said in ran] == ["leave_one_out", "leave_one_out"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("rl={method: grpo, recipe: grpo.yaml}",), "draws its own chains"),
        (("pairs=null",), "iterations need the phases pairs and rl"),
        (("pairs=null", "rl={method: ppo, recipe: grpo.yaml}"), "rl.method"),
    ],
)
def test_a_loop_that_cannot_be_is_refused(world, settings, message):
    with pytest.raises(UsageError, match=message):
        recipe(world[0], *settings)


def test_a_recipe_of_another_kind_is_no_phase_of_this_method(world):
    with pytest.raises(UsageError, match=r"rl\.yaml is a recipe of kind dpo"):
        loop.run(recipe(world[0], "pairs=null", "rl={method: grpo, recipe: rl.yaml}"))
