"""``visrl-train`` from files: VisCoT chains -> SFT with LoRA -> stages 1 and 2 from its adapter; and again, doing nothing."""

import json

import pytest
from PIL import Image
from tiny_models import save

from visrl.cli.train import run
from visrl.errors import UsageError
from visrl.train.data.rows import Chain, PairRow, write_rows

ONE_EPOCH = "trainer: {num_train_epochs: 1, gradient_accumulation_steps: 1, learning_rate: 1e-3}"


def viscot_item(i):
    turns = ["<image>\nWhat letter? ", "[0.1, 0.1, 0.5, 0.5]", "<image>", "A"]
    return {
        "dataset": "d", "question_id": i, "image": ["p.png", "p.png###[2, 3, 20, 25]"],
        "conversations": [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(turns)],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    save("llava", tmp_path / "model")
    Image.effect_noise((40, 30), 90).convert("RGB").save(tmp_path / "p.png")
    (tmp_path / "v.json").write_text(json.dumps([viscot_item(i) for i in range(3)]))
    chains = [Chain(box=(2, 3, 20, 25), answer="A"), Chain(box=(5, 1, 28, 9), answer="B C")]
    rows = [
        PairRow(id=str(i), picture="p.png", question=f"what {i}?", chosen=chains[0], rejected=chains[1])
        for i in range(3)
    ]
    write_rows(tmp_path / "pairs.jsonl", rows)
    model = f"model: {{path: {tmp_path}/model, dtype: float32}}"
    (tmp_path / "sft.yaml").write_text(
        f"kind: sft\noutput: {tmp_path}/sft\n{model}\nlora: {{r: 4}}\n{ONE_EPOCH}\n"
        f"data: {{path: {tmp_path}/v.json, pictures: {tmp_path}, format: viscot}}\n"
    )
    model = f"model: {{path: {tmp_path}/model, adapter: {tmp_path}/sft/final, dtype: float32}}"
    (tmp_path / "rl.yaml").write_text(
        f"kind: dpo\noutput: {tmp_path}/rl\n{model}\n{ONE_EPOCH}\ndata: {{path: {tmp_path}/pairs.jsonl, pictures: {tmp_path}}}\n"
    )
    return tmp_path


def stamps(folder):
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_sft_then_both_stages_then_nothing_left_to_do(folder, capsys):
    run([str(folder / "sft.yaml")])
    run([str(folder / "rl.yaml")])
    for phase in ("sft", "rl/stage1", "rl/stage2"):
        assert (folder / phase / "final/adapter_model.safetensors").is_file()
        assert (folder / phase / "curves.png").is_file()
    said = capsys.readouterr().err
    assert "sft: 3/3" in said  # 3 chains of two conversations each, 2 at a time
    assert "stage 2: 1/1" in said
    before = stamps(folder)
    run([str(folder / "sft.yaml")])
    run([str(folder / "rl.yaml")])
    assert stamps(folder) == before
    with pytest.raises(UsageError, match=r"was made with step\.beta_box = 0\.1, not 0\.5"):
        run([str(folder / "rl.yaml"), "--set", "step.beta_box=0.5"])


def test_a_model_that_is_not_there_is_named(folder):
    with pytest.raises(UsageError, match="cannot load /nowhere"):
        run([str(folder / "sft.yaml"), "--set", "model.path=/nowhere"])
