"""The loop with phases that are quick fakes: order, wiring, hashes, what is redone and why; stopped anywhere, the same end.

A fake training phase writes weights that say what they were made from, so that a wrong order or a wrong start shows.
"""

import hashlib
import json
from pathlib import Path

import pytest

from visrl.errors import UsageError
from visrl.evals.sample_scores import Row
from visrl.records import dump_json, write_atomically
from visrl.train import loop, loop_score, wiring
from visrl.train.loop_plan import changes, examine
from visrl.train.loop_score import headline, line
from visrl.train.recipe import load_recipe
from visrl.train.wiring import Weights, phases

SFT = "kind: sft\noutput: x\nmodel: {path: elsewhere, dtype: float32}\ndata: {path: %s}\n"
PAIRS = (
    "kind: pairs\noutput: x\npolicy: {model: elsewhere}\ncritic: {kind: likelihood, model: elsewhere}\n"
    "data: {path: q.jsonl, limit: 50, skip: 7}\n"
)
RL = "kind: dpo\noutput: x\nmodel: {path: elsewhere, dtype: float32}\ndata: {path: elsewhere}\n"
LOOP = (
    "kind: loop\noutput: %s/run\nseed: 5\nbase: %s/base\nsft: {recipe: sft.yaml}\npairs: {recipe: pairs.yaml}\n"
    "rl: {recipe: rl.yaml, set: {step.beta_box: 0.3}}\niterations: 2\n"
)


def weights(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(text)
    (folder / "config.json").write_text("{}")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Recipes on disk; the modules' ``run`` and the scoring replaced. ``ran``: what ran, in order."""
    weights(tmp_path / "base", "base")
    (tmp_path / "chains.jsonl").write_text("chains")
    (tmp_path / "sft.yaml").write_text(SFT % (tmp_path / "chains.jsonl"))
    (tmp_path / "pairs.yaml").write_text(PAIRS)
    (tmp_path / "rl.yaml").write_text(RL)
    (tmp_path / "loop.yaml").write_text(LOOP % (tmp_path, tmp_path))
    ran = []

    def said(path):
        return (Path(path) / "model.safetensors").read_text()

    def sft(recipe):
        ran.append("sft")
        weights(recipe.output / "final", f"sft({said(recipe.model.path)})")

    def pairs(recipe):
        ran.append(f"pairs skip {recipe.data.skip}")
        policy, critic = (said(m.removeprefix("hf:")) for m in (recipe.policy.model, recipe.critic.model))
        write_atomically(recipe.output / "pairs.jsonl", f"pairs of {policy} by {critic} from {recipe.data.skip}")
        counts = {"pairs": 12, "questions": {"asked": 50}}
        write_atomically(recipe.output / "manifest.json", dump_json({"funnel": counts}))

    def rl(recipe):
        (stage,) = recipe.step.stages
        ran.append(f"rl{stage} beta {recipe.step.beta_box} seed {recipe.seed}")
        made = f"rl{stage}({said(recipe.model.path)}; {recipe.data.file.read_text()})"
        weights(recipe.output / f"stage{stage}" / "final", made)

    for kind, fake in (("sft", sft), ("pairs", pairs), ("stages", rl)):
        monkeypatch.setattr(f"visrl.train.{kind}.run", fake)
    monkeypatch.setattr(loop, "score_phase", score)
    monkeypatch.setattr(loop, "free", lambda: None)  # collecting torch's garbage takes a second each time
    return tmp_path, ran


def score(folder, label, found, section):
    """Right answers as a function of the weights' bytes: 4 questions on 2 pictures."""
    digest = hashlib.sha256(found.sha256().encode()).digest()
    rows = [
        {"task": "world_viscot_doc", "sample_id": str(i), "cluster": str(i // 2), "group": "",
         "scores": {"answer": digest[i] % 2, "box_acc": digest[i + 4] % 2}}
        for i in range(4)
    ]  # fmt: skip
    write_atomically(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def recipe(folder, *settings):
    return load_recipe(folder / "loop.yaml", settings).recipe


def test_each_phase_begins_where_the_one_before_ended_and_the_critic_stays_the_base(world):
    folder, ran = world
    loop.run(recipe(folder))
    rl = [f"rl{stage} beta 0.3 seed 5" for stage in (1, 2)]
    assert ran == ["sft", "pairs skip 7", *rl, "pairs skip 57", *rl]  # 7 + one lot of 50
    first = (folder / "run/iter1/rl2/stage2/final/model.safetensors").read_text()
    pairs = "pairs of sft(base) by base from 7"
    assert first == f"rl2(rl1(sft(base); {pairs}); {pairs})"
    assert (folder / "run/iter2/pairs/pairs.jsonl").read_text() == f"pairs of {first} by base from 57"


def test_finished_phases_are_skipped_and_a_copy_elsewhere_is_the_same_run(world):
    folder, ran = world
    loop.run(recipe(folder))
    ran.clear()
    (folder / "run").rename(folder / "moved")
    moved = recipe(folder, f"output={folder}/moved")
    assert loop.plan(moved) == [f"{phase.name}: done" for phase in phases(moved)]
    loop.run(moved)
    assert ran == []


def test_a_changed_recipe_says_what_would_be_redone_and_why_and_redoes_it_only_when_told(world):
    folder, ran = world
    loop.run(recipe(folder))
    ran.clear()
    settings = ("rl.set={step.beta_box: 0.5}",)
    lines = loop.plan(recipe(folder, *settings))
    assert lines[:3] == ["base: done", "sft: done", "iter1/pairs: done"]
    assert lines[3] == "iter1/rl1: redone: recipe.step.beta_box was 0.3, is 0.5"
    assert lines[4] == "iter1/rl2: redone, unless iter1/rl1 comes out as it was"
    with pytest.raises(UsageError, match=r"(?s)made by another recipe:.*beta_box was 0.3, is 0.5") as refused:
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
    assert "iter1/pairs: redone: pairs_sha256 is not what phase.json says: the file was changed" in loop.plan(
        recipe(folder)
    )
    (folder / "chains.jsonl").write_text("other chains")
    assert loop.plan(recipe(folder))[1].startswith("sft: redone: data was")
    weights(folder / "base", "another base")
    assert loop.plan(recipe(folder))[0].startswith("base: redone: weights was")


class Stop(Exception):
    pass


def test_stopped_anywhere_and_resumed_it_ends_the_same(world, monkeypatch):
    """Every begin, end, scoring and conclusion of the run is a place to stop, before and after: 2 x (8 + 6 + 8 + 6 + 6) = 68; every fifth is tried."""
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
        for made in ("iter2/rl2/stage2/final/model.safetensors", "iter2/rl2/metrics.json", "iter1/rl1/asked.json"):
            assert (output / made).read_bytes() == (folder / "run" / made).read_bytes()
    assert asked == 14  # 0, 5, …, 65


def test_two_processes_do_not_run_one_loop(world):
    folder, _ = world
    with loop._alone(folder / "run"), pytest.raises(UsageError, match="another process is running this loop"):
        loop.run(recipe(folder))


def test_a_phase_of_equal_hashes_is_copied_from_another_loop(world):
    folder, ran = world
    loop.run(recipe(folder))
    ran.clear()
    loop.run(recipe(folder, f"output={folder}/b", f"reuse=[{folder}/run]", "rl.set={step.beta_box: 0.4}"))
    # SFT and the first pairs were copied; so were the second ones, because the fake's weights do not hang on beta
    assert ran == ["rl1 beta 0.4 seed 5", "rl2 beta 0.4 seed 5"] * 2
    assert (folder / "b/iter1/pairs/phase.json").is_file()


def test_phase_recipes_are_checked_before_anything_runs(world):
    folder, ran = world
    with pytest.raises(UsageError, match="unknown key 'step.beta_bx'"):
        loop.run(recipe(folder, "rl.set={step.beta_bx: 1}"))
    with pytest.raises(UsageError, match=r"pairs: .*rl.yaml is of kind dpo"):
        loop.run(recipe(folder, "pairs.recipe=rl.yaml"))
    with pytest.raises(UsageError, match="fresh questions"):
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
    assert line(after, before, []) == "answers 25.0 → 75.0 (+50.0 ± 50.0) · box 50.0 → 50.0 (+0.0 ± 0.0)"
    assert line(after, None, []) == "answers 75.0 · box 50.0"


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


def test_a_phase_that_began_and_did_not_end_is_resumed(tmp_path):
    assert examine(tmp_path, {"a": 1}, None).stand == "new"
    write_atomically(tmp_path / "asked.json", dump_json({"a": 1}))
    assert examine(tmp_path, {"a": 1}, None).stand == "resume"
    assert examine(tmp_path, {"a": 2}, None).stand == "stale"
    write_atomically(tmp_path / "phase.json", dump_json({"weights_sha256": "x"}))
    assert examine(tmp_path, {"a": 1}, {"weights_sha256": "x"}).stand == "done"
    assert examine(tmp_path, {"a": 1}, {"weights_sha256": "y"}).stand == "stale"
