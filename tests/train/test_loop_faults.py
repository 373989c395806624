"""What a loop must not do unseen: train on what is not what it says, redo without being told, stop for good, or leave a traceback."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from loop_made import recipe, weights

from visrl.core.records import dump_json, write_atomically
from visrl.errors import EXIT_INCOMPLETE, UsageError
from visrl.train.config.recipe import load_recipe
from visrl.train.loop import ablations
from visrl.train.loop import run as loop
from visrl.train.loop.phase_state import config_of, data_hash
from visrl.train.loop.phases import Weights, critic_of, phase_recipe, phases
from visrl.train.small_model.pretext_tasks import ExampleBuilder
from visrl.train.small_model.run import PretextTasks

SHIPPED = Path(__file__).parents[2] / "recipes"


def phase_of(found, what):
    return next(phase for phase in phases(found) if phase.what == what)


def wired(found, what, state=None):
    """The recipe of a phase, as the loop would run it."""
    state = state or replace(loop.start(found), pairs=Path("pairs.jsonl"))
    return phase_recipe(found, phase_of(found, what), state)[0].recipe


# --- numbers


def test_further_training_does_not_see_the_warm_ups_examples_again(tmp_path):
    """Every example of continued SFT hangs on (seed, step, row): with the warm-up's seed all 104 batches were the warm-up's first."""
    (job,) = [
        job
        for job in ablations.jobs(
            load_recipe(SHIPPED / "world-ablations.yaml", [f"output={tmp_path}", "seeds=1"]).recipe
        )
        if job.variant == "more-sft"
    ]
    from visrl.train.small_model.run import load
    from visrl.world import checkpoint_path

    _, processor = load(checkpoint_path("base"))
    builder = ExampleBuilder(processor, "train", 40)
    first, more = (PretextTasks(wired(job.recipe, what), builder) for what in ("warm-up", "continued_sft"))
    pairs = [
        (a.digest(), b.digest()) for step in range(12) for (_, a), (_, b) in zip(first[step], more[step], strict=False)
    ]
    assert len(pairs) > 300
    assert sum(a == b for a, b in pairs) < 0.05 * len(pairs)  # of 40 pictures, a few questions recur by chance


def test_with_an_adapter_the_two_critics_are_two(world):
    """M_SFT is then M_org's folder and an adapter: its spec is M_org's, its hash is not."""
    folder, _ = world
    adapter = folder / "adapter"
    weights(adapter, "adapter")
    base, sft = Weights(str(folder / "base")), Weights(str(folder / "base"), str(adapter))
    configs = {}
    for critic in ("base", "sft"):
        found = recipe(folder, f"critic={critic}")
        state = replace(loop.start(found), base=base, sft=sft, now=sft)
        resolved, overrides = phase_recipe(found, phase_of(found, "pairs"), state)
        configs[critic] = config_of(resolved.recipe, overrides, state, critic_of(found, state))
        assert resolved.recipe.critic.args == ({"adapter": str(adapter)} if critic == "sft" else {})
    assert configs["base"]["critic"] != configs["sft"]["critic"]


def test_what_a_critic_is_calibrated_on_is_known_by_its_bytes(world):
    folder, _ = world
    (folder / "val.jsonl").write_text("one")
    fitted = f"pairs.set={{critic.kind: margin, critic.calibration: {{data: {{path: {folder}/val.jsonl}}}}}}"
    found = recipe(folder, fitted)
    state = loop.start(found)
    resolved, overrides = phase_recipe(found, phase_of(found, "pairs"), state)
    before = config_of(resolved.recipe, overrides, state, critic_of(found, state))
    assert before["calibration"] == data_hash(folder / "val.jsonl")
    (folder / "val.jsonl").write_text("another")
    assert config_of(resolved.recipe, overrides, state, critic_of(found, state)) != before


def test_a_nested_setting_changes_one_value_and_not_a_section(world):
    folder, _ = world
    rl = wired(load_recipe(SHIPPED / "world.yaml", ["rl.set.trainer.learning_rate=1e-4"]).recipe, "rl")
    plain = wired(load_recipe(SHIPPED / "world.yaml").recipe, "rl")
    assert rl.trainer == plain.trainer | {"learning_rate": 1e-4}
    assert wired(recipe(folder, "pairs.set.data.limit=20"), "pairs").data.path == Path("q.jsonl")
    found = recipe(folder, "pairs.set={critic: {kind: likelihood, model: elsewhere/big}}")
    assert wired(found, "pairs").critic.model == "elsewhere/big"


@pytest.mark.parametrize(
    ("what", "key"),
    [("rl", "data.path"), ("rl", "model.path"), ("rl", "step.stages"), ("pairs", "policy.model"), ("sft", "seed")],
)
def test_what_the_loop_puts_somewhere_is_not_to_be_set_there(world, what, key):
    folder, ran = world
    with pytest.raises(UsageError, match=f"set names {key}"):
        loop.run(recipe(folder, f"{what}.set={{{key}: x}}"))
    assert ran == []


# --- hashes


def test_a_critic_that_the_recipe_names_is_known_by_its_bytes(world):
    folder, _ = world
    weights(folder / "big", "big")
    settings = (f"pairs.set={{critic.model: 'hf:{folder}/big'}}", "iterations=1")
    loop.run(recipe(folder, *settings))
    assert "by big" in (folder / "run/iter1/pairs/pairs.jsonl").read_text()
    weights(folder / "big", "other")
    assert loop.status(recipe(folder, *settings))[2].startswith("iter1/pairs: redone: critic was")


def test_a_shipped_name_is_one_model_whatever_lies_in_the_working_folder(tmp_path, monkeypatch):
    """Within a loop's folder there is a phase ``base``: training must not start from another model than is scored."""
    from visrl.train.common.models import shipped
    from visrl.world import checkpoint_path

    before = Weights("base").sha256()
    weights(tmp_path / "base", "another")
    monkeypatch.chdir(tmp_path)
    assert shipped("base") == str(checkpoint_path("base")) and Weights("base").spec("vllm") == "base"
    assert Weights("base").sha256() == before != Weights("./base").sha256()


def test_shards_are_known_by_their_bytes(tmp_path):
    for name in ("a.tar", "b.tar"):
        (tmp_path / name).write_text(name)
    before = data_hash(tmp_path)
    (tmp_path / "b.tar").write_text("changed")
    assert before != data_hash(tmp_path) and data_hash(tmp_path / "*.tar") == data_hash(tmp_path)
    assert data_hash(tmp_path / "none.jsonl") is None


def test_a_folder_without_weights_is_no_model_and_a_hub_id_is_known_by_its_commit(world, monkeypatch):
    """A hub's weights come when they are first needed: the hash must be the same before and after."""
    folder, _ = world
    (folder / "base/model.safetensors").unlink()
    with pytest.raises(UsageError, match="no weights at"):
        loop.run(recipe(folder))
    snapshot = folder / "models--org--big/snapshots/0123abcd"
    weights(snapshot, "big")
    monkeypatch.setattr("visrl.policies.hf.loading.cached_file", lambda *_, **__: str(snapshot / "config.json"))
    after = Weights("org/big").sha256()
    (snapshot / "model.safetensors").unlink()
    assert Weights("org/big").sha256() == after == "org/big@0123abcd"


def test_a_launch_that_leaves_nothing_is_no_finished_phase(world):
    folder, _ = world
    with pytest.raises(UsageError, match="sft: training left no weights"):
        loop.run(recipe(folder, "launch='true'"))
    assert not (folder / "run/sft/outputs.json").exists()
    with pytest.raises(UsageError, match=r"launch: no-such-command: No such file"):
        loop.run(recipe(folder, "launch=no-such-command --x"))


# --- nothing is redone, or shown, unseen


@pytest.mark.parametrize("settings", [("stages=[1,2]",), ("stages=[2]", "more={recipe: sft.yaml}")])
def test_a_phase_put_in_between_redoes_the_later_ones_only_when_told(world, settings):
    folder, ran = world
    loop.run(recipe(folder, "stages=[2]"))
    ran.clear()
    with pytest.raises(UsageError, match="redone, unless"):
        loop.run(recipe(folder, *settings))
    assert ran == [] and not (folder / "run/old").exists()
    loop.run(recipe(folder, *settings, "redo=true"))
    assert "rl2 beta 0.3 seed 5" in ran and (folder / "run/old").is_dir()


def test_records_of_phases_that_the_recipe_no_longer_has_go(world, monkeypatch):
    folder, _ = world
    real = loop.conclude

    def conclude(found, phase, before):
        write_atomically(found.output / "records" / f"{phase.name.replace('/', '-')}.json", "[]")
        return real(found, phase, before)

    monkeypatch.setattr(loop, "conclude", conclude)
    loop.run(recipe(folder))
    assert (folder / "run/records/iter2-rl2.json").is_file()
    (folder / "run/records/mine.json").write_text("[]")  # not a phase's: not ours to take away
    loop.run(recipe(folder, "iterations=1"))
    names = [file.stem for file in sorted((folder / "run/records").iterdir())]
    assert names == ["base", "iter1-rl1", "iter1-rl2", "mine", "sft"]


def test_a_finished_scoring_is_not_done_again(world, monkeypatch):
    folder, _ = world
    loop.run(recipe(folder))
    monkeypatch.setattr(loop, "score_phase", lambda *_: pytest.fail("scored again"))
    loop.run(recipe(folder))


def test_what_is_copied_is_what_its_loop_says_it_left_and_what_is_being_scored_is_left_there(world):
    folder, ran = world
    loop.run(recipe(folder))
    (folder / "run/sft/final/model.safetensors").write_text("CORRUPT")
    (folder / "run/iter1/pairs/.pairs.jsonl.tmp").write_text("")
    (folder / "run/base/score/outputs.json").unlink()  # somebody is at it
    ran.clear()
    loop.run(recipe(folder, f"output={folder}/b", f"reuse=[{folder}/run]"))
    assert ran == ["sft"]  # everything after it was copied: it came out as it was
    assert (folder / "b/sft/final/model.safetensors").read_text() == "sft(base)"
    assert not (folder / "b/iter1/pairs/.pairs.jsonl.tmp").exists()
    assert (folder / "b/base/score/outputs.json").is_file()


# --- it goes on


def some_fail(monkeypatch, failed):
    real = loop.generate_pairs

    def generate(found):
        real(found)
        counts = {"pairs": 12, "questions": {"asked": 100}, "failed": {"PictureError": failed}}
        write_atomically(found.output / "manifest.json", dump_json({"funnel": counts}))
        return {"funnel": counts}

    monkeypatch.setattr(loop, "generate_pairs", generate)


def test_a_question_that_fails_for_good_does_not_stop_the_loop(world, monkeypatch, capsys):
    folder, ran = world
    some_fail(monkeypatch, failed=1)
    loop.run(recipe(folder, "iterations=1"))
    assert ran[-1].startswith("rl2")
    assert "iter1/pairs: 12 pairs of 100 questions · 1 failed and were left out" in capsys.readouterr().out


def test_many_that_fail_do(world, monkeypatch):
    folder, _ = world
    some_fail(monkeypatch, failed=2)
    with pytest.raises(UsageError, match="iter1/pairs: 2 of 100 questions failed: 2 PictureError") as caught:
        loop.run(recipe(folder, "iterations=1"))
    assert "max_failed" in caught.value.hint
    loop.run(recipe(folder, "iterations=1", "max_failed=0.02"))


def test_a_queue_goes_on_after_a_job_that_failed_and_says_so(world, monkeypatch, capsys):
    folder, _ = world
    (folder / "ablations.yaml").write_text(
        f"kind: ablations\noutput: {folder}/abl\nseed: 3\nrecipe: loop.yaml\nseeds: 2\nset: {{iterations: 1}}\n"
        "variants: {full: {}, bad: {pairs.set: {diversity: none}}, own-crop: {rl.set: {step.context: own_crop}}}\n"
    )
    real = loop.generate_pairs

    def generate(found):
        manifest = real(found)
        if found.diversity == "none":
            (found.output / "pairs.jsonl").write_text("")
        return manifest

    monkeypatch.setattr(loop, "generate_pairs", generate)
    assert ablations.run(load_recipe(folder / "ablations.yaml").recipe) == EXIT_INCOMPLETE
    said = capsys.readouterr().err
    assert "error: iter1/pairs: no question gave a pair" in said
    assert ", with another output (in a loop: pairs.set.KEY, with redo=true; docs/pairs.md, the funnel)" in said
    assert "2 of 6 jobs failed: bad, seed 3; bad, seed 4" in said
    assert "own-crop" in (folder / "abl/summary.md").read_text()
    assert (folder / "abl/own-crop/seed4/iter1/rl2/metrics.json").is_file()


def test_a_stage_that_was_interrupted_goes_on_in_another_place(world, monkeypatch):
    """Places decide nothing: the phase's own settings name where data and weights lay, phase_config.json has their bytes."""
    folder, _ = world
    from visrl.train.common.phase_folder import claim
    from visrl.train.dpo import stages

    real = stages.KIND.run

    class Stop(Exception):
        pass

    def run(found):
        claim(found.output / "stage1", stages.settings(found, 1), "rows")
        if not (folder / "moved").exists():
            raise Stop
        real(found)

    monkeypatch.setattr(stages, "KIND", replace(stages.KIND, run=run))
    with pytest.raises(Stop):
        loop.run(recipe(folder, "iterations=1"))
    (folder / "run").rename(folder / "moved")
    moved = recipe(folder, f"output={folder}/moved", "iterations=1")
    assert loop.status(moved)[3] == "iter1/rl1: goes on where it stopped"
    loop.run(moved)
    assert (folder / "moved/iter1/rl2/stage2/final").is_dir()


def test_a_loop_of_an_earlier_version_opens_is_finished_and_goes_on(world):
    """Then: asked.json and phase.json, ``sampling.spares``, the section ``more``."""
    folder, ran = world
    loop.run(recipe(folder, "continued_sft={recipe: sft.yaml}", "iterations=1"))
    for file in sorted((folder / "run").rglob("phase_config.json")):
        text = file.read_text().replace('"extra_samples"', '"spares"')
        assert ('"spares"' in text) == (file.parent.name == "pairs")
        file.with_name("asked.json").write_text(text)
        file.unlink()
    for file in sorted((folder / "run").rglob("outputs.json")):
        file.rename(file.with_name("phase.json"))
    ran.clear()
    old = recipe(folder, "more={recipe: sft.yaml}", "pairs.set.sampling.spares=6", "iterations=1")
    names = ("base", "sft", "more", "iter1/pairs", "iter1/rl1", "iter1/rl2")
    assert loop.status(old) == [f"{name}: done" for name in names]
    loop.run(
        recipe(folder, f"output={folder}/copy", f"reuse=[{folder}/run]", "more={recipe: sft.yaml}", "iterations=1")
    )
    assert ran == []
    loop.run(recipe(folder, "more={recipe: sft.yaml}", "iterations=2"))
    assert ran[0] == "pairs skip 57" and (folder / "run/iter2/rl2/outputs.json").is_file()
    (folder / "run/iter1/rl2/phase.json").unlink()
    assert loop.status(old)[-1] == "iter1/rl2: goes on where it stopped"
    (folder / "loop.yaml").write_text(
        (folder / "loop.yaml").read_text() + "more: {recipe: sft.yaml}\ncontinued_sft: {recipe: sft.yaml}\n"
    )
    with pytest.raises(UsageError, match="more and continued_sft are the same key"):
        recipe(folder)


def test_killed_while_it_began_a_phase_or_a_scoring(world):
    folder, _ = world
    for name in ("sft", "base/score"):
        (folder / "run" / name).mkdir(parents=True)
        (folder / "run" / name / ".phase_config.json.1.tmp").write_text("")
    loop.run(recipe(folder))
    assert (folder / "run/iter2/rl2/metrics.json").is_file()
    (folder / "b/sft").mkdir(parents=True)
    loop.run(recipe(folder, f"output={folder}/b", f"reuse=[{folder}/run]"))
    assert (folder / "b/sft/outputs.json").is_file()


def test_a_broken_file_and_impossible_stages_are_named(world):
    folder, _ = world
    loop.run(recipe(folder))
    (folder / "run/sft/outputs.json").write_text('{"weights')
    with pytest.raises(UsageError, match=r"sft/outputs.json: damaged: "):
        loop.run(recipe(folder))
    for stages in ("[1,1]", "[2,1]", "[]"):
        with pytest.raises(UsageError, match=r"stages are \[1\], \[2\] or \[1, 2\]"):
            recipe(folder, f"stages={stages}")


def test_every_shipped_loop_looks_for_pictures_in_one_place():
    for path in sorted(SHIPPED.glob("*-loop.yaml")):
        found = load_recipe(path).recipe
        asking = {phase.what for phase in phases(found)} & {"warm-up", "pairs", "policy_gradient"}
        if "warm-up" in asking and not hasattr(wired(found, "warm-up"), "data"):
            asking -= {"warm-up"}  # a small model draws its own
        assert asking and len({str(wired(found, what).data.pictures) for what in asking}) == 1, path


WORKER = """
import os, sys, time
from torch.utils.data import DataLoader, Dataset
from visrl.train.common.trainer_args import end_with_parent
class Endless(Dataset):
    def __len__(self): return 10**6
    def __getitem__(self, i): return [os.getpid(), b"x" * 10**6]
loader = DataLoader(Endless(), batch_size=None, num_workers=1, prefetch_factor=8, worker_init_fn=end_with_parent)
print(next(iter(loader))[0], flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_the_worker_of_a_killed_process_does_not_outlive_it():
    """Its pipe is full (8 batches of 1 MB) and nobody reads. torch's own watch looks every 5 s, and a worker was seen to wait for good."""
    process = subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 3
    while _runs(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _runs(worker)


STOPPED = WORKER.replace(
    "time.sleep(60)",
    """
from visrl.cli.ending import command_line
with command_line():
    it = iter(loader)
    next(it)
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(1)  # its worker's end is heard of here
        print("clean", flush=True)
""",
)


@pytest.mark.skipif(sys.platform != "linux", reason="process groups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_is_one_stop_and_no_error(number):
    """Ctrl-C reaches workers too; torch raised their end as a RuntimeError in place of the KeyboardInterrupt."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline(), process.stdout.readline()
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert (out, "Error" in err) == ("clean\n", False), err


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_a_key_that_is_new_since_and_left_out_does_not_keep_a_phase_from_being_copied(tmp_path):
    """As for a loop's own folder: a value that was not there yet is none."""
    from visrl.train.loop.phase_state import begin, end, reuse

    begin(tmp_path / "a", {"recipe": {"kind": "sft", "steps": 3}, "weights": "w"})
    end(tmp_path / "a", {})
    for asked, copied in (("textured", False), (None, True)):
        config = {"recipe": {"kind": "sft", "steps": 3, "scenery": asked}, "weights": "w"}
        assert reuse(tmp_path / "b", tmp_path / "a", config, lambda folder: {}) is copied
        assert (tmp_path / "b").is_dir() is copied
