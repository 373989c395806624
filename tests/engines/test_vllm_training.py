"""Pairs and a whole small loop that ask an engine: policy and likelihood critic on vLLM, LoRA exchanged, every phase scored by it."""

import json

import pytest
import wide_models
from conftest import SMALL

from visrl.core.records import read_records
from visrl.train.config.recipe import load_recipe
from visrl.train.loop import run as loop
from visrl.train.pairs.command import generate_pairs

ARGS = "{dtype: float32, max_model_len: 2048, enforce_eager: true, max_num_seqs: 8, box_format: paper}"
PAIRS = (
    "kind: pairs\noutput: {out}\nseed: 5\npolicy: {{model: 'vllm:{model}', args: {args}}}\n"
    "critic: {{kind: likelihood, judge: contains, model: 'vllm:{model}', args: {args}}}\n"
    "protocol: viscot_train\ncrop: tight\n"
    "data: {{path: '{q}', pictures: '{pictures}', limit: 12}}\nsampling: {{temperature: 1.0, attempts: 6, top_p: 1.0, max_tokens: 3}}\n"
    "select: {{win_box: 0.0019, lose_box: 0.0018}}\n"  # between what a likely and an unlikely crop make of an answer and its end
)
TRAINER = "trainer: {num_train_epochs: 1, gradient_accumulation_steps: 1, learning_rate: 1e-4, warmup_steps: 0}\n"  # of one step


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A talking model, and twelve questions about drawn pictures whose answer is red or blue."""
    from tinies import draw

    from visrl.train.data.rows import Chain, ChainRow, QuestionRow, write_rows

    root = tmp_path_factory.mktemp("loop")
    for i in range(4):
        draw(84, 56, i).save(root / f"{i}.png")
    rows = [(f"q{i}", f"{i % 4}.png", f"what letter is it ? {i}", ("red", "blue")[i % 2]) for i in range(12)]
    write_rows(root / "q.jsonl", [QuestionRow(id=a, picture=b, question=c, answers=(d,)) for a, b, c, d in rows])
    chains = [
        ChainRow(id=a, picture=b, question=c, chain=Chain(box=(8, 6, 40, 30), answer=d), protocol="viscot_train")
        for a, b, c, d in rows
    ]
    write_rows(root / "c.jsonl", chains)
    wide_models.save_talker("qwen2_5_vl", root / "model")
    return root


def pairs_recipe(folder, name):
    text = PAIRS.format(out=folder / name, model=folder / "model", args=ARGS, q=folder / "q.jsonl", pictures=folder)
    (folder / f"{name}.yaml").write_text(text)
    return load_recipe(folder / f"{name}.yaml").recipe


def test_the_same_pairs_for_the_same_seed(folder, table):
    made = []
    for name in ("first", "second"):
        manifest = generate_pairs(pairs_recipe(folder, name))
        made.append((folder / name / "pairs.jsonl").read_bytes())
    assert made[0] == made[1] and manifest["funnel"]["pairs"] > 0 and not manifest["funnel"]["failed"]
    lines = [json.loads(line) for line in (folder / "first" / "chains.jsonl").read_text().splitlines()]
    scores = {t["box_score"]["value"] for line in lines for t in line["trials"] if "box_score" in t}
    assert len(scores) > 3, "log-probabilities of the standard answer, crop by crop"
    table.append(f"pairs: {manifest['funnel']['pairs']} of 12 questions, equal over two runs")


def test_a_whole_loop_answered_by_the_engine(folder, table):
    model = "model: {path: elsewhere, dtype: float32}\n"
    data = f"data: {{path: {folder}/c.jsonl, pictures: {folder}}}\n"
    (folder / "sft.yaml").write_text(
        f"kind: sft\noutput: x\n{model}lora: {{r: 4}}\n{TRAINER}{data}chain: {{crop: tight}}\n"
    )
    (folder / "rl.yaml").write_text(f"kind: dpo\noutput: x\n{model}{TRAINER}data: {{path: x}}\n")
    pairs_recipe(folder, "pairs")
    (folder / "loop.yaml").write_text(
        f"kind: loop\noutput: {folder}/run\nbase: {folder}/model\npolicy: vllm\nsft: {{recipe: sft.yaml}}\n"
        "protocol: viscot_train\ncrop: tight\npairs: {recipe: pairs.yaml}\nrl: {recipe: rl.yaml}\n"
        f"score: {{tasks: world_viscot_doc, limit: 6, max_tokens: 6, args: {ARGS}}}\n"
    )
    loop.run(load_recipe(folder / "loop.yaml").recipe)
    records = read_records(folder / "run")
    phases = {r.model_info["phase"]["phase"]: r.model_info for r in records if r.task.startswith("world")}
    assert list(phases) == ["base", "iter1/rl1", "iter1/rl2", "sft"] or set(phases) == {
        "base",
        "sft",
        "iter1/rl1",
        "iter1/rl2",
    }
    assert {about["kind"] for about in phases.values()} == {"vllm"}, "every phase's end was scored by the engine"
    hashes = [about["adapter"] and about["adapter"]["weights_sha256"] for about in phases.values()]
    assert len(set(hashes)) == 4, "none before SFT, then another one each time"
    manifest = json.loads((folder / "run" / "iter1/pairs/manifest.json").read_text())
    assert (
        manifest["request"]["policy"]["model_info"]["kind"]
        == manifest["request"]["critic"]["model_info"]["kind"]
        == "vllm"
    )
    assert (
        manifest["request"]["policy"]["model_info"]["adapter"]
        and not manifest["request"]["critic"]["model_info"]["adapter"]
    )
    table.append(
        f"loop: {len(phases)} phases scored by vLLM, {manifest['funnel']['pairs']} pairs by one engine with two adapters"
    )


def test_an_engine_for_hf_arguments(folder):
    """A recipe's arguments for weights mean nothing to an engine, and fall away."""
    from visrl.policies.registry import fitting

    fits, gone = fitting(f"vllm:{folder}/model", {**SMALL, "attn": "sdpa", "rows": "8"})
    assert fits == SMALL and sorted(gone) == ["attn", "rows"]


def test_grpo_on_chains_of_the_engine(folder, table, monkeypatch):
    """Two steps: the engine gets the newest adapter before each, and trains on what it sampled."""
    from visrl.train.grpo import phase
    from visrl.train.grpo.trainer import GroupTrainer

    (folder / "grpo.yaml").write_text(
        f"kind: grpo\noutput: {folder}/grpo\nmodel: {{path: '{folder}/model', dtype: float32, box_format: paper}}\nlora: {{r: 4}}\n"
        f"data: {{path: '{folder}/q.jsonl', pictures: '{folder}', limit: 4}}\n"
        "grpo: {protocol: viscot_train, box: {length: 1.0}, answer: {length: 1.0}, engine: {args: "
        + ARGS.replace("box_format: paper", "gpu_memory_utilization: 0.5")
        + "}}\ntrainer: {num_generations: 4, per_device_train_batch_size: 8, gradient_accumulation_steps: 1,\n"
        "  num_train_epochs: 1, logging_steps: 1, learning_rate: 1e-3, max_completion_length: 6}\n"
    )
    drawn, handed = [], []
    original = GroupTrainer._rollouts

    def watched(self, questions):
        groups = original(self, questions)
        drawn.append((self.engine.policy.name, [len(c.replies["answer"].ids) for g in groups for c in g.chains]))
        handed.append(self.engine.policy.describe()["adapter"]["weights_sha256"])
        return groups

    monkeypatch.setattr(GroupTrainer, "_rollouts", watched)
    phase.run(load_recipe(folder / "grpo.yaml").recipe)
    assert [name for name, _ in drawn] == [f"vllm:{folder}/model"] * 2 and len(set(handed)) == 2
    assert all(1 <= n <= 6 for _, lengths in drawn for n in lengths)
    history = [r for r in json.loads((folder / "grpo/history.json").read_text()) if "loss" in r]
    assert len(history) == 2 and all("answer/reward" in row and row["tokens/generated"] > 0 for row in history)
    assert (folder / "grpo/final/adapter_model.safetensors").is_file()
    table.append(f"grpo: 2 steps on {sum(len(lengths) for _, lengths in drawn)} chains of the engine")
