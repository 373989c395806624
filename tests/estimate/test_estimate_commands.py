"""What is exact in an estimate, its formulae by hand, and the commands around it."""

import json
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny_models as tiny
import torch
import yaml
from PIL import Image

from visrl.cli.train import run as train_command
from visrl.errors import UsageError
from visrl.estimate.cli import estimate_recipe
from visrl.estimate.generating import pairs_work
from visrl.estimate.launch import commands, slurm
from visrl.estimate.lengths import Lengths
from visrl.estimate.memory import Memory, Step, block_bytes, cache_bytes, crossing_bytes, training_memory
from visrl.estimate.policy_gradient import _with_drawing, group_batches
from visrl.estimate.shape import Shape, describe_model
from visrl.estimate.training import batches_of
from visrl.estimate.work import GPUS, Work, gpu_of, operations, seconds
from visrl.policies.registry import load_policy
from visrl.train.common.models import add_lora
from visrl.train.config.recipe import LoraSection

SHAPE = Shape(1000, 600, 0, 500, 400, layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, inner=16, vocab=10)


def test_adapters_are_counted_as_peft_makes_them(tmp_path):
    folder = str(tiny.save("qwen2_5_vl", tmp_path / "m"))
    estimated = describe_model(folder, lora=LoraSection(r=4)).shape
    model = add_lora(tiny.build("qwen2_5_vl")[0], LoraSection(r=4), seed=0)
    assert estimated.adapters == estimated.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert estimated.total == sum(p.numel() for p in model.parameters())


def test_a_shipped_model_by_its_bare_name():
    from safetensors import safe_open

    from visrl.world import checkpoint_path

    with safe_open(checkpoint_path("base") / "model.safetensors", "pt") as file:
        stored = sum(torch.Size(file.get_slice(k).get_shape()).numel() for k in file.keys())  # noqa: SIM118
    assert describe_model("base").shape.total == stored - 64 * 96  # the table of positions is no parameter


def test_formulae_by_hand():
    # norms 2 (4*8 + 4*8 + 4) + 2*4*8 = 200, attention 4*4*8 + 4*2 = 136, MLP 4*4*16 = 256
    assert block_bytes(SHAPE, tokens=5, size=4) == 200 + 136 + 256
    assert cache_bytes(SHAPE, rows=3, slots=7, size=2) == 2 * 2 * 3 * 7 * 1 * 4 * 2
    step, how = Step(rows=1, tokens=5, kept=2), {"size": 2, "checkpointing": False}
    estimate = training_memory(SHAPE, step, **how, accumulates=True)
    assert (estimate.weights, estimate.gradients, estimate.optimiser) == (2000, 1200, 2400)
    assert training_memory(SHAPE, step, **how, accumulates=False).gradients == 0, "gone before the activations come"
    saved = training_memory(SHAPE, step, **{**how, "checkpointing": True}, accumulates=True).activations
    assert saved - estimate.activations == 5 * (2 * 2 * 8 + block_bytes(SHAPE, 5, 2)) - 5 * 2 * block_bytes(SHAPE, 5, 2)
    adapted = Shape(1050, 50, 50, 500, 400, layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, inner=16, vocab=10)
    estimate = training_memory(adapted, step, **how, accumulates=True)
    assert (estimate.weights, estimate.optimiser) == (2 * 1000 + 4 * 50, 8 * 50), "adapters are float32"


def test_layers_that_attend_to_pictures_across_by_hand():
    """3 pictures of 5 states: 15 times the state 2*8, of a layer k and v repeated 2*2*8 and normalised k 4*4, and gradients 2*2*8."""
    across = replace(SHAPE, crossing=2, states=5)
    assert crossing_bytes(across, 3, 2, checkpointing=True) == 15 * (16 + (32 + 16) + 32)
    assert crossing_bytes(across, 3, 2, checkpointing=False) == 15 * (16 + 2 * (32 + 16) + 32)
    lora = replace(across, adapters=1)  # the inputs of k and v in float32: 2*4*8
    assert crossing_bytes(lora, 3, 2, checkpointing=True) == 15 * (16 + (64 + 32 + 16) + 32)
    assert crossing_bytes(SHAPE, 3, 2, checkpointing=True) == 0
    rows = [(0, 10, 1, 0), (0, 20, 2, 0), (0, 20, 2, 0)]
    assert [batches_of(rows, size).at_once for size in (1, 2, 3)] == [
        2,
        4,
        4,
    ]  # rows of two pictures go together: two at most


def test_the_states_of_a_picture_are_read_from_the_config_and_are_what_the_tower_makes(tmp_path):
    folder = tiny.save("mllama", tmp_path / "m")
    shape = describe_model(str(folder)).shape
    policy = load_policy(f"hf:{folder}", {"dtype": "float32"})
    image = policy.family.encode_image(Image.new("RGB", (64, 48)))
    (found,) = policy.family.encode(policy.model, [image])
    assert shape.crossing == 1 and found["states"].shape[0] == shape.states
    assert describe_model("base").shape.states == 0


def test_what_is_spread_over_gpus():
    memory = Memory(weights=80, gradients=40, optimiser=160, activations=5)
    assert memory.sharded("ddp", 8) == memory
    assert memory.sharded("zero2", 8) == Memory(80, 5, 20, 5)
    assert memory.sharded("zero3", 8) == memory.sharded("fsdp", 8) == Memory(10, 5, 20, 5)


def test_operations_and_hours_by_hand():
    work = Work(prefill=100, decode=10, steps=5, trained=20, patches=3, context=4)
    a_token = 2 * 500 + 4 * 2 * 8 * 4
    assert operations(SHAPE, work) == a_token * (110 + 3 * 20) + 2 * 400 * 3
    assert operations(replace(SHAPE, adapters=1), work, checkpointing=True) == a_token * (110 + 3 * 20) + 2 * 400 * 3
    mine = gpu_of("a100", tflops=1e-9, bandwidth=1e-6)  # 1,000 operations and 1,000 bytes a second
    took = seconds(SHAPE, work, mine, gpus=2, size=2)
    assert took == (operations(SHAPE, work) / 1000 + 5 * 2 * 508 / 1000) / 2


def test_pairs_by_hand():
    """k = 3: one box prompt, 6 boxes, 6 answers behind the cache, 6 crops; in words also 6 answers judged, five behind a cache."""
    one = Lengths(box=100, box_said=10, answer=150, answer_said=2, shared=90, judge=200, crop=70)
    plain = pairs_work([one], 10, 5, attempts=3, extra=0, worded=False)
    assert plain.prefill == 10 * (100 + 6 * 60 + 6 * 70) and plain.decode == 10 * (6 * 10 + 6 * 2)
    worded = pairs_work([one], 10, 5, attempts=3, extra=0, worded=True)
    # a margin of a yes-or-no question reads both answers: each of the 6 crop prompts once more
    margin = pairs_work([one], 10, 5, attempts=3, extra=0, worded=False, read=2.0)
    assert margin.prefill - plain.prefill == 10 * 6 * one.crop and margin.decode == plain.decode
    assert worded.prefill - plain.prefill == 10 * (200 + 5 * 32) and worded.decode - plain.decode == 10 * 12 * 8


def test_commands_and_script_are_what_a_shell_takes():
    words = ["visrl-train", "my recipe.yaml", "--set", "a.b=[1, 2]"]
    assert commands(words, 1, "ddp") == ["visrl-train 'my recipe.yaml' --set 'a.b=[1, 2]'"]
    one, two = commands(words, 4, "ddp")
    assert one.startswith(
        "accelerate launch --config_file recipes/accelerate/ddp.yaml --num_processes 4 --no_python visrl-train"
    )
    assert two.startswith("torchrun --nproc_per_node 4 --no-python visrl-train 'my recipe.yaml'")
    assert len(commands(words, 4, "zero3")) == 1, "torchrun alone shards nothing"
    assert commands(words, 16, "ddp") == ["# several machines: use the SLURM script"]
    script = slurm(words, 16, "fsdp", 3.2, "visrl")
    assert "#SBATCH --nodes=2" in script and "--num_processes 16" in script and "#SBATCH --time=7:00:00" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0


def recipe(folder, **more):
    request = {
        "kind": "dpo", "output": str(folder / "out"), "model": {"path": "base", "dtype": "float32"},
        "data": {"format": "world_oracle", "limit": 6}, "trainer": {"per_device_train_batch_size": 2},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**request, **more}))
    return str(path)


def test_a_recipe_is_estimated_by_its_command(tmp_path, capsys):
    estimate_recipe([recipe(tmp_path), "--gpus", "2", "--gpu", "a100", "--json"])
    estimate = json.loads(capsys.readouterr().out)
    first, second = estimate["phases"]
    assert (first["name"], second["name"], first["samples"]) == ("dpo stage 1", "dpo stage 2", 6)
    assert second["work"]["trained"] > 1.5 * first["work"]["trained"], "a second term, with a second picture"
    assert first["work"]["trained"] == 5 * first["work"]["prefill"], "five epochs, one reference"
    assert "recipes/accelerate/ddp.yaml" in estimate["commands"][0]
    train_command(["plan", recipe(tmp_path), "--gpus", "1"])  # the older name
    said = capsys.readouterr().out
    assert "assumed, not measured" in said and "start it:" in said and "#SBATCH" in said


def test_an_estimate_before_the_data_are_there(tmp_path, capsys):
    path = recipe(tmp_path, data={"path": str(tmp_path / "pairs.jsonl")})
    with pytest.raises(UsageError, match="cannot read") as caught:
        estimate_recipe([path])
    assert "--samples" in caught.value.hint
    estimate_recipe([path, "--samples", "180000", "--json"])
    first = json.loads(capsys.readouterr().out)["phases"][0]
    assert first["samples"] == 180_000 and "one typical question" in first["notes"][0]


def test_pairs_and_sft_have_estimates(tmp_path, capsys):
    pairs = {
        "kind": "pairs", "output": "o", "policy": {"model": "base", "args": {"dtype": "float32"}},
        "critic": {"kind": "likelihood", "model": "base"}, "data": {"format": "world", "limit": 5},
        "sampling": {"max_tokens": 8},
    }  # fmt: skip
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump(pairs))
    estimate_recipe([str(path), "--json"])
    (phase,) = json.loads(capsys.readouterr().out)["phases"]
    assert phase["samples"] == 5 and phase["work"]["prefill"] > 0 and phase["memory"]["cache"] > 0
    estimate_recipe([recipe(tmp_path, kind="sft", data={"path": "none.jsonl"}), "--samples", "10", "--json"])
    (phase,) = json.loads(capsys.readouterr().out)["phases"]
    assert phase["samples"] == 20, "two conversations a chain"


def test_a_calibrated_margin_answers_more_questions_and_reads_more_answers(tmp_path, capsys):
    def prefill(critic):
        pairs = {
            "kind": "pairs", "output": "o", "policy": {"model": "base", "args": {"dtype": "float32"}},
            "critic": {"model": "base", **critic}, "data": {"format": "world", "limit": 6, "tasks": ["fine"]},
            "sampling": {"max_tokens": 8},
        }  # fmt: skip
        (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(pairs))
        estimate_recipe([str(tmp_path / "pairs.yaml"), "--json"])
        (phase,) = json.loads(capsys.readouterr().out)["phases"]
        return phase["work"]["prefill"], phase["samples"], phase["notes"]

    val = {"format": "world", "split": "val", "limit": 3, "tasks": ["fine"]}
    (one, n, _), (two, _, _) = prefill({"kind": "likelihood"}), prefill({"kind": "margin"})
    fitted, still, notes = prefill({"kind": "margin", "calibration": {"data": val}})
    # three further questions beside six, drawn and read like them: nine sixths
    assert fitted == pytest.approx(1.5 * two) and two > one and n == still == 6
    assert "3 further questions that the critic is calibrated on" in notes


def test_an_evaluation_is_estimated_by_its_command(capsys):
    from visrl.cli.evaluate import main

    assert main(["estimate", "--model", "base", "--tasks", "world_rec", "--gpus", "4", "--limit", "50", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["phases"][0]["samples"] == 50 and "--num_processes 4" in estimate["commands"][0]
    assert main(["plan", "--model", "endpoint:http://x/v1#m", "--tasks", "world_rec"]) == 2, "the older name"
    assert "has no config to estimate from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"), [(["--gpu", "h10"], "--gpu: unknown"), (["--sharding", "zero9"], "--sharding: unknown")]
)
def test_wrong_use(words, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        estimate_recipe([recipe(tmp_path), *words])
    assert "h100" in GPUS


def test_a_loop_has_its_phases_and_the_scoring_of_their_ends(tmp_path, capsys):
    """1,500 questions, of which 55 % give a pair: 825; both stages two epochs over them; pairs and scoring on one GPU of four."""
    from pathlib import Path

    recipe = Path(__file__).parents[2] / "recipes/world.yaml"
    request = [
        "--json",
        "--gpus",
        "4",
        "--set",
        f"output={tmp_path}",
        "--set",
        "iterations=2",
        "--set",
        "score.limit=10",
    ]
    estimate_recipe([str(recipe), *request])
    estimate = json.loads(capsys.readouterr().out)
    names = ["base: scoring", "sft: scoring"]
    for k in (1, 2):
        names += [f"iter{k}/pairs", *(n for s in (1, 2) for n in (f"iter{k}/rl{s}", f"iter{k}/rl{s}: scoring"))]
    found = {p["name"]: p for p in estimate["phases"]}
    assert list(found) == names
    assert [found[name]["samples"] for name in names[1:4]] == [50, 1500, 825]
    assert (
        "training sft (kind small_model) is left out: it takes minutes on one CPU core"
        in found["sft: scoring"]["notes"]
    )
    (command,) = estimate["commands"]
    assert command.startswith(f"visrl-train {recipe}")
    assert "launch=accelerate launch --config_file recipes/accelerate/ddp.yaml --num_processes 4 --no_python" in command
    assert "accelerate launch --num_machines" not in estimate["slurm"] and "VISRL_PROCESSES" not in estimate["slurm"]
    capsys.readouterr()
    estimate_recipe([str(recipe), *request[:1], *request[3:]])
    alone = {p["name"]: p for p in json.loads(capsys.readouterr().out)["phases"]}
    assert alone["iter1/rl1"]["seconds"] == pytest.approx(4 * found["iter1/rl1"]["seconds"])
    assert alone["iter1/pairs"]["seconds"] == found["iter1/pairs"]["seconds"]
    with pytest.raises(UsageError, match="runs on one machine"):
        estimate_recipe([str(recipe), "--gpus", "16"])


def test_groups_of_chains_by_hand():
    """A box prompt of 100 and 5 tokens, an answer prompt of 160 and 3, 4 chains of 2 groups a step, one epoch of 10 questions."""
    found = [Lengths(box=100, box_said=5, answer=160, answer_said=3, shared=90, pictures=80, patches=64, crop=70)]
    asked = SimpleNamespace(
        grpo=SimpleNamespace(prefix_sharing=True, box={"box_critic": 1.0}, answer={"answer": 1.0}),
        model=SimpleNamespace(shares_rows=True), critic=SimpleNamespace(kind="likelihood"),
        trainer={"num_generations": 4, "per_device_train_batch_size": 8, "beta": 0.1, "num_iterations": 2},
    )  # fmt: skip
    box, answer = group_batches(asked, found)
    assert box.per_row == 100 + 4 * (5 - 1)  # one row: the prompt once
    assert answer.per_row == 4 * (160 + 3 - 1)  # no two crops alike
    asked.grpo.prefix_sharing = False
    assert group_batches(asked, found)[0].per_row == 4 * (100 + 5 - 1)
    work = _with_drawing(asked, found, Work(trained=1000.0), 10.0)
    # 100 read once, what is not in the box turn's cache of four answers' prompts, and the critic's prompt of four crops;
    # two passes without a gradient: the old policy's, for the chains serve two steps, and the reference's
    assert work.prefill == 10 * (100 + 4 * (160 - 90) + 4 * 70) + 2 * 1000
    assert work.decode == 10 * 4 * (5 + 3)
    assert work.steps == 10 * (5 + 4 * 3) / 32


def test_a_recipe_of_groups_is_estimated_by_its_command(tmp_path, capsys):
    asked = {
        "kind": "grpo", "critic": {"kind": "likelihood", "model": "base"}, "data": {"format": "world", "limit": 6},
        "trainer": {"per_device_train_batch_size": 8, "max_completion_length": 8},
    }  # fmt: skip
    estimate_recipe([recipe(tmp_path, **asked), "--json"])
    (phase,) = json.loads(capsys.readouterr().out)["phases"]
    assert (phase["name"], phase["samples"]) == ("grpo", 6)
    assert phase["work"]["trained"] > 0 and phase["work"]["decode"] > 0
