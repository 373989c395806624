"""GRPO killed and resumed, on two processes, and accumulated: the same weights as one undisturbed process."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import time

import pytest
import torch
from grpo_worker import K, child, train
from safetensors.torch import load_file
from tiny_models import save

from visrl.errors import UsageError
from visrl.train.config.recipe import LoraSection

FORK = multiprocessing.get_context("fork")


def start(folder, environment, **trainer):
    process = FORK.Process(target=child, args=(folder, environment, trainer), daemon=True)
    process.start()
    return process


def weights(folder):
    return load_file(folder / "out/final/model.safetensors")


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(weights, history) of one process on batches of 2 groups, 8 questions, 3 epochs: 12 steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    save("llava", folder / "model")
    trainer = train(folder)
    return weights(folder), trainer.state.log_history


def test_every_step_says_how_rewards_stand_and_how_far_the_policy_has_moved(undisturbed):
    _, history = undisturbed
    rows = [row for row in history if "loss" in row]
    assert len(rows) == 12
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6) and rows[-1]["kl"] > 1e-3
    assert rows[0]["clip_ratio/region_mean"] == 0.0  # on policy
    wanted = {
        "box/reward",
        "box/advantage",
        "box/without_spread",
        "answer/reward",
        "entropy",
        "completions/mean_length",
        "tokens/generated",
    }
    assert wanted <= rows[0].keys()


@pytest.mark.parametrize("trainer", [{}, {"num_iterations": 2, "save_steps": 3}])
def test_killed_in_mid_training_and_resumed_the_weights_are_those_of_an_undisturbed_run(tmp_path, undisturbed, trainer):
    """With two passes over what was drawn, a checkpoint of step 3 would hold half of them: it is taken at 4."""
    wanted, at = undisturbed[0], 3
    if trainer:
        save("llava", tmp_path / "whole/model")
        train(tmp_path / "whole", **trainer)
        wanted, at = weights(tmp_path / "whole"), 4
    save("llava", tmp_path / "model")
    process = start(tmp_path, {}, **trainer)
    deadline = time.monotonic() + 200
    while not (tmp_path / f"out/checkpoint-{at}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / "out/final").exists()
    again = train(tmp_path, **trainer)
    assert again.state.global_step == (24 if trainer else 12)
    assert same(weights(tmp_path), wanted)
    kept = json.loads((tmp_path / f"out/rollouts/step{at:06d}.json").read_text())
    assert [len(group["chains"]) for group in kept["groups"]] == [K, K]


def test_two_gloo_processes_give_the_losses_and_weights_of_one(tmp_path, undisturbed):
    """The same global batch: 2 processes of one group are 1 process of two."""
    save("llava", tmp_path / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in (0, 1)]
    processes = [start(tmp_path, rank, per_device_train_batch_size=K) for rank in ranks]
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0, 0]
    history = json.loads((tmp_path / "out/history.json").read_text())
    theirs = [row for row in undisturbed[1] if "loss" in row]
    mine = [row for row in history if "loss" in row]
    for name in ("loss", "box/reward", "answer/advantage", "kl", "entropy", "tokens/generated", "box/without_spread"):
        assert [row[name] for row in mine] == pytest.approx([row[name] for row in theirs], abs=2e-5), name
    found, wanted = weights(tmp_path), undisturbed[0]
    assert max((found[name] - wanted[name]).abs().max().item() for name in wanted) < 2e-4


@pytest.mark.parametrize("loss", ["grpo", "dapo"])
def test_an_accumulated_step_is_a_step_of_the_whole_batch(tmp_path, loss):
    """2 micro-batches of one group are one batch of two: the loss is a mean over chains, or (dapo) over all tokens drawn."""
    found, first = [], []
    for name, more in (("one", {}), ("two", {"per_device_train_batch_size": K, "gradient_accumulation_steps": 2})):
        save("llava", tmp_path / name / "model")
        train(tmp_path / name, num_train_epochs=1, loss_type=loss, **more)
        found.append(weights(tmp_path / name))
        first.append(json.loads((tmp_path / name / "out/history.json").read_text())[0])
    one, two = ([row[f"tokens/{what}"] for what in ("generated", "critic", "trained")] for row in first)
    assert two == one and one[0] > 0 and one[2] > 0  # of a step, not of a micro-batch
    assert max((found[0][key] - found[1][key]).abs().max().item() for key in found[0]) < 1e-4


def test_a_phase_whose_only_step_is_warm_up_says_that_it_learns_nothing(tmp_path, capsys):
    save("llava", tmp_path / "model")
    train(tmp_path, max_steps=1, warmup_steps=1)
    assert "warning: the phase has one step, which is warm-up with learning rate 0" in capsys.readouterr().err
    assert same(weights(tmp_path), load_file(tmp_path / "model/model.safetensors"))


def test_an_adapter_goes_on_from_its_checkpoint_too(tmp_path):
    save("llava", tmp_path / "model")
    train(tmp_path, lora=LoraSection())
    whole = load_file(tmp_path / "out/final/adapter_model.safetensors")
    for gone in ("final", "checkpoint-12"):
        shutil.rmtree(tmp_path / "out" / gone)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-9"]
    train(tmp_path, lora=LoraSection())
    assert same(load_file(tmp_path / "out/final/adapter_model.safetensors"), whole)
    assert any(whole[name].abs().max() > 0 for name in whole if "lora_B" in name)


def test_batches_that_would_cut_a_group_and_too_few_questions_are_refused(tmp_path):
    save("llava", tmp_path / "model")
    with pytest.raises(UsageError, match="6 is not a multiple of num_generations 4"):
        train(tmp_path, per_device_train_batch_size=6, generation_batch_size=12)
    with pytest.raises(UsageError, match="8 questions are fewer than the 9 that are sampled at once"):
        train(tmp_path, per_device_train_batch_size=9 * K)
