"""Checkpoints that a phase goes on from: damaged ones are named, and the history is what an undisturbed phase leaves."""

import json
import os
import shutil

import pytest
from tiny_models import save
from train_made import demonstration

from visrl.errors import UsageError
from visrl.train.common.checkpoints import newest_whole, seal
from visrl.train.common.exclusive import Busy, exclusive
from visrl.train.common.models import load_trainable
from visrl.train.common.phase_folder import PhaseTrainer
from visrl.train.common.writing import writing
from visrl.train.config.recipe import DataSection, ModelSection
from visrl.train.sft.sft import SFTRecipe, run_sft

TRAINER = {
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 5, "logging_steps": 3, "save_steps": 2,
    "learning_rate": 2e-3, "save_total_limit": 3,
}  # fmt: skip
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


class Stop(Exception):
    """In place of a kill."""


def train(folder, output):
    model = ModelSection(path=str(folder / "model"), dtype="float32")
    recipe = SFTRecipe(kind="sft", model=model, data=DataSection(), output=output, trainer=TRAINER)
    run_sft(recipe, load_trainable(model, None, recipe.seed), [demonstration(i) for i in range(4)])


def history(output):
    rows = json.loads((output / "history.json").read_text())
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    save("llava", folder / "model")
    train(folder, folder / "out")
    return folder


@pytest.mark.parametrize("step", [2, 4, 5])  # steps are logged at 1, 3 and the end: every window is cut once
def test_a_phase_that_was_stopped_leaves_the_history_of_one_that_was_not(calm, tmp_path, monkeypatch, step):
    shutil.copytree(calm / "model", tmp_path / "model")
    real = PhaseTrainer._save_checkpoint

    def stopped(self, model, trial):
        real(self, model, trial)
        if self.state.global_step == step:
            raise Stop

    monkeypatch.setattr(PhaseTrainer, "_save_checkpoint", stopped)
    with pytest.raises(Stop):
        train(tmp_path, tmp_path / "out")
    monkeypatch.setattr(PhaseTrainer, "_save_checkpoint", real)
    (tmp_path / "out/.staging-final").mkdir()
    (tmp_path / "out/.staging-final/.tmp123").write_text("half a file")
    train(tmp_path, tmp_path / "out")
    assert history(tmp_path / "out") == history(calm / "out")
    names = {path.name for path in (tmp_path / "out/final").iterdir()}
    assert names == {path.name for path in (calm / "out/final").iterdir()}
    weights = [(place / "out/final/model.safetensors").read_bytes() for place in (tmp_path, calm)]
    assert weights[0] == weights[1]


@pytest.fixture
def two(tmp_path):
    """Checkpoints 2 and 4, whole."""
    for number in (2, 4):
        place = tmp_path / f"checkpoint-{number}"
        place.mkdir()
        for name in ("trainer_state.json", "scheduler.pt", "optimizer.pt", "model.safetensors"):
            (place / name).write_bytes(b"0123456789")
        seal(place)
    return tmp_path


def _cut(path):
    os.truncate(path, 4)


def _flip(path):
    path.write_bytes(b"0123456799")


def test_the_newest_checkpoint_is_gone_on_from(two, capsys):
    assert newest_whole(two).name == "checkpoint-4"
    assert newest_whole(two / "nothing") is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["trainer_state.json", "scheduler.pt", "optimizer.pt", "model.safetensors"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [(_cut, "has 4 bytes, not 10"), (_flip, "is not what was written"), (os.unlink, "is missing")],
)
def test_a_damaged_one_is_named_and_the_one_before_it_used(two, name, damage, said, capsys):
    damage(two / "checkpoint-4" / name)
    assert newest_whole(two).name == "checkpoint-2"
    error = capsys.readouterr().err
    assert f"checkpoint-4: damaged: {name} {said}" in error and "goes on from checkpoint-2" in error
    damage(two / "checkpoint-2" / name)
    with pytest.raises(UsageError, match=f"checkpoint-4: damaged: {name} {said}"):
        newest_whole(two)


def test_a_checkpoint_of_an_older_version_needs_its_optimiser(two):
    for number in (2, 4):
        (two / f"checkpoint-{number}/files.json").unlink()
    assert newest_whole(two).name == "checkpoint-4"
    (two / "checkpoint-4/optimizer.pt").unlink()
    assert newest_whole(two).name == "checkpoint-2"


def test_a_second_command_in_a_folder_is_refused(tmp_path):
    with exclusive(tmp_path, "training here"), pytest.raises(Busy, match="another process is training here"):
        exclusive(tmp_path, "training here").__enter__()


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 8"),
        Exception("No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_an_error_with_a_hint_whoever_writes(tmp_path, error):
    with pytest.raises(UsageError, match=str(tmp_path)) as caught, writing(tmp_path):
        raise error
    assert "the newest checkpoint" in caught.value.hint
    with pytest.raises(RuntimeError, match="a fault of ours"), writing(tmp_path):
        raise RuntimeError("a fault of ours")
