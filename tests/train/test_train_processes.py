"""Killed and resumed, and on two processes: the same weights as one undisturbed process."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import time

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save
from worker import child, train

from visrl.train.config.recipe import LoraSection

FORK = multiprocessing.get_context("fork")


def start(folder, environment, **trainer):
    process = FORK.Process(target=child, args=(folder, environment, trainer), daemon=True)
    process.start()
    return process


def weights(folder):
    return load_file(folder / "out/stage2/final/model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(weights, logged losses) of one process on batches of 4, 8 pairs, 6 epochs: 12 steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    save("llava", folder / "model")
    trainer = train(folder)
    return weights(folder), [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_killed_in_mid_training_and_resumed_the_weights_are_those_of_an_undisturbed_run(tmp_path, undisturbed):
    save("llava", tmp_path / "model")
    process = start(tmp_path, {})
    deadline = time.monotonic() + 120
    while not (tmp_path / "out/stage2/checkpoint-3").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "out/stage2/final").exists()
    kept = sorted(path.name for path in (tmp_path / "out/stage2").glob("checkpoint-*"))
    assert kept  # what is there is complete
    assert all((tmp_path / "out/stage2" / name / "trainer_state.json").is_file() for name in kept)
    trainer = train(tmp_path)
    assert trainer.state.global_step == 12
    assert any(row["step"] > 3 for row in trainer.state.log_history)
    found, wanted = weights(tmp_path), undisturbed[0]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_two_gloo_processes_give_the_losses_and_weights_of_one(tmp_path, undisturbed):
    """The same global batch: 2 processes of 2 pairs are 1 process of 4."""
    save("llava", tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    processes = [start(tmp_path, rank, per_device_train_batch_size=2) for rank in ranks]
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    history = json.loads((tmp_path / "out/stage2/history.json").read_text())
    losses = [row["loss"] for row in history if "loss" in row]
    assert losses == pytest.approx(undisturbed[1], abs=2e-5)
    found, wanted = weights(tmp_path), undisturbed[0]
    assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < 2e-4


def test_an_adapter_goes_on_from_its_checkpoint_too(tmp_path):
    """LoRA: a run whose later checkpoints and result are taken away ends with the same adapter again."""
    save("llava", tmp_path / "model")
    train(tmp_path, lora=LoraSection())
    stage = tmp_path / "out/stage2"
    whole = load_file(stage / "final/adapter_model.safetensors")
    for gone in (stage / "final", stage / "checkpoint-12"):
        shutil.rmtree(gone)
    assert [path.name for path in stage.glob("checkpoint-*")] == ["checkpoint-9"]
    train(tmp_path, lora=LoraSection())
    again = load_file(stage / "final/adapter_model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert any(whole[name].abs().max() > 0 for name in whole if "lora_B" in name)
