"""The loop with phases that are quick fakes: order, wiring, hashes, what is redone and why; stopped anywhere, the same end.

A fake training phase writes weights that say what they were made from, so that a wrong order or a wrong start shows.
"""

import json
import os
import signal
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from loop_made import recipe, weights

from visrl.core.records import dump_json, write_atomically
from visrl.errors import UsageError
from visrl.evals.sample_scores import Row
from visrl.train.config.recipe import load_recipe
from visrl.train.loop import run as loop
from visrl.train.loop.ablations import jobs
from visrl.train.loop.phase_state import changes, examine
from visrl.train.loop.phases import Weights, phase_recipe, phases
from visrl.train.loop.scoring import headline, line

SHIPPED = Path(__file__).parents[2] / "recipes"


def test_each_phase_begins_where_the_one_before_ended_and_the_critic_stays_the_base(world):
    folder, ran = world
    loop.run(recipe(folder))
    rl = [f"rl{stage} beta 0.3 seed 5" for stage in (1, 2)]
    assert ran == ["sft", "pairs skip 7", *rl, "pairs skip 57", *rl]  # 7 + one lot of 50
    first = (folder / "run/iter1/rl2/stage2/final/model.safetensors").read_text()
    pairs = "pairs of sft(base) by base from 7"
    assert first == f"rl2(rl1(sft(base); {pairs}); {pairs})"
    assert (folder / "run/iter2/pairs/pairs.jsonl").read_text() == f"pairs of {first} by base from 57"


def test_each_phase_is_held_against_the_one_before_it(world):
    folder, _ = world
    loop.run(recipe(folder))
    names = [phase.name for phase in phases(recipe(folder)) if phase.what != "pairs"]
    found = [json.loads((folder / "run" / name / "metrics.json").read_text())["differences"] for name in names]
    values = [{d["metric"]: (d["before"], d["after"]) for d in differences} for differences in found]
    assert values[0] == {} and len(values) == 6  # the base has none before it
    for earlier, later in pairwise(values[1:]):
        assert {m: before for m, (before, _) in later.items()} == {m: after for m, (_, after) in earlier.items()}
    assert len({tuple(v.values()) for v in values}) > 3  # the fakes' scores do differ, or this shows nothing


def test_finished_phases_are_skipped_and_a_copy_elsewhere_is_the_same_run(world):
    folder, ran = world
    loop.run(recipe(folder))
    ran.clear()
    (folder / "run").rename(folder / "moved")
    moved = recipe(folder, f"output={folder}/moved")
    assert loop.status(moved) == [f"{phase.name}: done" for phase in phases(moved)]
    loop.run(moved)
    assert ran == []


def test_a_changed_recipe_says_what_would_be_redone_and_why_and_redoes_it_only_when_told(world):
    folder, ran = world
    loop.run(recipe(folder))
    ran.clear()
    settings = ("rl.set={step.beta_box: 0.5}",)
    lines = loop.status(recipe(folder, *settings))
    assert lines[:3] == ["base: done", "sft: done", "iter1/pairs: done"]
    assert lines[3] == "iter1/rl1: redone: recipe.step.beta_box was 0.3, is 0.5"
    assert lines[4] == "iter1/rl2: redone, unless iter1/rl1 comes out as it was"
    with pytest.raises(UsageError, match=r"(?s)made with another recipe:.*beta_box was 0.3, is 0.5") as refused:
        loop.run(recipe(folder, *settings))
    assert "redo=true" in refused.value.hint
    assert ran == []
    loop.run(recipe(folder, *settings, "redo=true"))
    # the fake's weights do not hang on beta, so iteration 2's pairs, made from the same bytes, stay
    assert ran == ["rl1 beta 0.5 seed 5", "rl2 beta 0.5 seed 5"] * 2
    assert sorted(p.name.rpartition("-")[0] for p in (folder / "run/old").iterdir()) == [
        "iter1-rl1", "iter1-rl2", "iter2-rl1", "iter2-rl2"
    ]  # fmt: skip


def test_weights_or_pairs_or_data_that_changed_are_noticed(world):
    folder, _ = world
    loop.run(recipe(folder))
    (folder / "run/iter1/pairs/pairs.jsonl").write_text("other pairs")
    assert "iter1/pairs: redone: pairs_sha256 is not what outputs.json says: the file was changed" in loop.status(
        recipe(folder)
    )
    (folder / "chains.jsonl").write_text("other chains")
    assert loop.status(recipe(folder))[1].startswith("sft: redone: data was")
    weights(folder / "base", "another base")
    assert loop.status(recipe(folder))[0].startswith("base: redone: weights was")


class Stop(Exception):
    pass


def test_stopped_anywhere_and_resumed_it_ends_the_same(world, monkeypatch):
    """Every begin, end, scoring and conclusion of the run is a place to stop, before and after: 2 x (8 + 6 + 8 + 6 + 6 + 6) = 80; every fifth is tried."""
    folder, _ = world
    loop.run(recipe(folder))
    names = ("begin", "end", "score_phase", "conclude")
    real = {name: getattr(loop, name) for name in names}
    asked = 0

    def places(output, stop_at):
        calls = iter(range(10_000))
        for name in names:

            def wrapped(*args, real=real[name]):
                if next(calls) == stop_at:
                    raise Stop
                found = real(*args)
                if next(calls) == stop_at:
                    raise Stop
                return found

            monkeypatch.setattr(loop, name, wrapped)
        try:
            loop.run(recipe(folder, f"output={output}", "name=run"))
        except Stop:
            return True
        return False

    for stop_at in range(0, 200, 5):
        output = folder / f"stopped{stop_at}"
        if not places(output, stop_at):
            break
        asked += 1
        assert not places(output, -1)
        for made in (
            "iter2/rl2/stage2/final/model.safetensors",
            "iter2/rl2/metrics.json",
            "iter1/rl1/phase_config.json",
        ):
            assert (output / made).read_bytes() == (folder / "run" / made).read_bytes()
    assert asked == 16  # 0, 5, …, 75


def test_two_processes_do_not_run_one_loop(world):
    folder, _ = world
    with loop.exclusive(folder / "run"), pytest.raises(UsageError, match="another process is running this loop"):
        loop.run(recipe(folder))


def test_a_worker_that_outlives_a_killed_loop_does_not_hold_its_lock(tmp_path):
    """Of a killed warm-up the process that draws lives on for some seconds: the same command must go on at once."""
    ours, theirs = os.pipe()
    with loop.exclusive(tmp_path):
        worker = os.fork()
        if worker == 0:
            os.write(theirs, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(ours, 1)  # it runs
    try:
        with loop.exclusive(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_a_phase_of_equal_hashes_is_copied_from_another_loop(world):
    folder, ran = world
    loop.run(recipe(folder))
    ran.clear()
    loop.run(recipe(folder, f"output={folder}/b", f"reuse=[{folder}/run]", "rl.set={step.beta_box: 0.4}"))
    # SFT and the first pairs were copied; so were the second ones, because the fake's weights do not hang on beta
    assert ran == ["rl1 beta 0.4 seed 5", "rl2 beta 0.4 seed 5"] * 2
    assert (folder / "b/iter1/pairs/outputs.json").is_file()


def test_phase_recipes_are_checked_before_anything_runs(world):
    folder, ran = world
    with pytest.raises(UsageError, match=r"unknown key 'step.beta_bx'"):
        loop.run(recipe(folder, "rl.set={step.beta_bx: 1}"))
    with pytest.raises(UsageError, match=r"pairs: .*rl.yaml is a recipe of kind dpo"):
        loop.run(recipe(folder, "pairs.recipe=rl.yaml"))
    with pytest.raises(UsageError, match=r"several iterations need data\.limit"):
        loop.run(recipe(folder, "pairs.set={data.limit: null}"))
    assert ran == []


def test_names_are_those_of_the_posters_table(world):
    labels = [phase.label for phase in phases(recipe(world[0])) if phase.what != "pairs"]
    assert labels == ["base", "SFT", "SFT+RL1", "SFT+RL1+RL2", "iteration 2: RL1", "iteration 2: RL2"]


def test_an_adapter_goes_on_over_the_same_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert Weights("org/model").after(tmp_path) == Weights("org/model", str(tmp_path))
    assert Weights("org/model", "before").after(tmp_path / "none") == Weights(str(tmp_path / "none"))


def rows(answers, boxes, task="world_viscot_doc"):
    return {
        task: {
            str(i): Row(str(i // 2), "", {"answer": a, "box_acc": b})
            for i, (a, b) in enumerate(zip(answers, boxes, strict=True))
        }
    }


def test_the_line_is_paired_and_clustered_by_picture():
    """Answers 1/4 -> 3/4: changes (+1, +1, 0, 0) on pictures a, a, b, b; mean .5, cluster sums of deviations +1, -1 over n = 4:
    se^2 = 2/(2-1) * ((1/4)^2 + (1/4)^2) = .25, se 50.0 points. Boxes do not change: se 0.
    """
    before, after = rows([0, 0, 1, 0], [1, 1, 0, 0]), rows([1, 1, 1, 0], [1, 1, 0, 0])
    assert line(after, before, []) == "answers 25.0 → 75.0 (+50.0 ± 50.0) · boxes 50.0 → 50.0 (+0.0 ± 0.0)"
    assert line(after, None, []) == "answers 75.0 · boxes 50.0"


def test_the_headline_of_a_whole_group_is_the_mean_of_its_tasks():
    """Five domains, one with four samples all right, four with two all wrong: the mean of means is 20, the pooled one 33.3."""
    domains = ("chart", "general", "relation", "fine")
    before = rows([0] * 4, [0] * 4) | {
        t: r for d in domains for t, r in rows([0, 0], [0, 0], f"world_viscot_{d}").items()
    }
    after = rows([1] * 4, [0] * 4) | {
        t: r for d in domains for t, r in rows([0, 0], [0, 0], f"world_viscot_{d}").items()
    }
    assert headline(before, after, ("answer",)).after == pytest.approx(20.0)
    del before["world_viscot_fine"], after["world_viscot_fine"]  # no whole group: 4 right of 10
    assert headline(before, after, ("answer",)).after == pytest.approx(40.0)


def test_changes_names_the_first_few_and_counts_the_rest():
    was, now = {"a": {"b": 1, "c": 2}, "d": 3, "e": 4, "f": 5}, {"a": {"b": 1, "c": 0}, "d": 0, "e": 0, "f": 0}
    assert changes(was, now) == ["a.c was 2, is 0", "d was 3, is 0", "e was 4, is 0", "and 1 more"]


def test_changes_shows_long_values_from_where_they_differ():
    first = "f" * 64
    assert changes({"weights": f"{first}1{first}"}, {"weights": f"{first}2"}) == [
        'weights was …1ffffffffffffff…, is …2"'
    ]


def test_a_phase_that_began_and_did_not_end_is_resumed(tmp_path):
    assert examine(tmp_path, {"a": 1}, None).status == "new"
    write_atomically(tmp_path / "phase_config.json", dump_json({"a": 1}))
    assert examine(tmp_path, {"a": 1}, None).status == "resume"
    assert examine(tmp_path, {"a": 2}, None).status == "stale"
    write_atomically(tmp_path / "outputs.json", dump_json({"weights_sha256": "x"}))
    assert examine(tmp_path, {"a": 1}, {"weights_sha256": "x"}).status == "done"
    assert examine(tmp_path, {"a": 1}, {"weights_sha256": "y"}).status == "stale"


@pytest.mark.parametrize(
    "path", [*sorted(SHIPPED.glob("*-loop.yaml")), SHIPPED / "world-iterations.yaml"], ids=lambda p: p.stem
)
def test_every_shipped_loop_wires_recipes_that_are_there(path, tmp_path):
    found = load_recipe(path, [f"output={tmp_path}/none"]).recipe
    state = loop.start(found)
    for phase in phases(found):
        if phase.what != "ready":
            resolved, overrides = phase_recipe(found, phase, replace(state, pairs=tmp_path / "pairs.jsonl"))
            assert resolved.recipe.output == tmp_path / "none" / phase.name
            assert overrides.get("critic.model", state.base.spec("hf")) == state.base.spec(
                "hf"
            )  # M_org criticises in every iteration


def test_the_shipped_ablations_change_one_thing_each(tmp_path):
    found = load_recipe(SHIPPED / "world-ablations.yaml", [f"output={tmp_path}", "seeds=1"]).recipe
    by_name = {job.variant: job.recipe for job in jobs(found)}
    full = by_name.pop("full")
    for name, variant in by_name.items():
        before, after = full.model_dump(exclude={"output", "name", "reuse"}), variant.model_dump()
        changed = {key for key in before if before[key] != after[key]}
        allowed = {
            "short-sft": {"iterations", "sft"},
            "more-sft": {"iterations", "continued_sft"},
            "more-sft-compute": {"iterations", "continued_sft"},
            "answer-only": {"stages", "rl"},
            "compat-crop": {"pairs", "rl"},
        }
        assert changed == allowed.get(name, changed) and len(changed) == len(allowed.get(name, [0])), name
        assert full.pairs.set.items() <= variant.pairs.set.items()  # what world.yaml sets stays


def test_labels_against_reinforcement_are_pairs_of_runs_from_one_warm_up(tmp_path):
    """Per number of labels: the same warm-up, continued on the same pictures for 300 steps, or pairs and two stages; before the next seed."""
    found = load_recipe(SHIPPED / "world-labels.yaml", [f"output={tmp_path}", "seeds=2"]).recipe
    queue = list(jobs(found))
    assert [job.seed for job in queue] == [0] * 14 + [1] * 14
    assert [job.recipe.reuse[-1].parent.name for job in queue[1:3]] == [
        "full",
        "rl10",
    ]  # any variant before, of its seed
    by_name = {job.variant: job.recipe for job in queue[:14]}
    assert set(by_name) == {"full", "more40"} | {
        f"{arm}{n}" for arm in ("rl", "more") for n in (10, 20, 80, 160, 320, 1280)
    }
    for name, more in by_name.items():
        if not name.startswith("more"):
            continue
        labels = int(name.removeprefix("more"))
        rl = by_name["full" if labels == 40 else f"rl{labels}"]
        assert list(by_name).index("full" if labels == 40 else f"rl{labels}") < list(by_name).index(name)
        assert [phase.name for phase in phases(rl)] == ["base", "sft", "iter1/pairs", "iter1/rl1", "iter1/rl2"]
        _, sft, further = phases(more)
        own, other, again = (
            phase_recipe(loop_, phase, loop.start(loop_))[0].recipe
            for loop_, phase in ((rl, sft), (more, sft), (more, further))
        )
        assert own.model_dump(exclude={"output"}) == other.model_dump(exclude={"output"})
        assert (own.pictures, own.steps, again.pictures, again.steps) == (labels, 140, labels, 300)


def test_the_margin_study_changes_its_critic_alone_in_every_iteration(tmp_path):
    found = load_recipe(SHIPPED / "world-margin.yaml", [f"output={tmp_path}", "seeds=1"]).recipe
    full, margin = (job.recipe for job in jobs(found))
    names = [phase for phase in phases(full) if phase.what == "pairs"]
    assert len(names) == 4 and margin.iterations == full.iterations == 4
    for phase in names:
        before, after = (phase_recipe(loop_, phase, loop.start(loop_))[0].recipe for loop_ in (full, margin))
        assert (before.critic.kind, after.critic.kind) == ("likelihood", "margin")
        assert after.critic.calibration.data.split == "val" and after.critic.calibration.target == "box"
        assert (before.select.min_difference, after.select.min_difference) == (None, 0.2)
        assert before.data == after.data and before.policy == after.policy and before.critic.args == after.critic.args
