"""The loop with real models, tiny ones: SFT with LoRA, both stages from the adapter, scored by visrl-eval's own code; and again.

Only the pairs are faked: a random model writes no box that could be read.
"""

import json

import pytest
from PIL import Image
from tiny_models import save

from visrl.core.records import dump_json, read_records, write_atomically
from visrl.train.config.recipe import load_recipe
from visrl.train.data.rows import Chain, ChainRow, PairRow, write_rows
from visrl.train.loop import run as loop

ONE_EPOCH = "trainer: {num_train_epochs: 1, gradient_accumulation_steps: 1, learning_rate: 1e-3}\n"
MODEL = "model: {path: elsewhere, dtype: float32}\n"
CHAINS = [Chain(box=(2, 3, 20, 25), answer="A"), Chain(box=(5, 1, 28, 9), answer="B C")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    save("llava", tmp_path / "model")
    Image.effect_noise((40, 30), 90).convert("RGB").save(tmp_path / "p.png")
    write_rows(
        tmp_path / "c.jsonl",
        [ChainRow(id=str(i), picture="p.png", question=f"what {i}?", chain=CHAINS[0]) for i in range(3)],
    )
    (tmp_path / "sft.yaml").write_text(
        f"kind: sft\noutput: x\n{MODEL}lora: {{r: 4}}\n{ONE_EPOCH}data: {{path: {tmp_path}/c.jsonl, pictures: {tmp_path}}}\n"
    )
    (tmp_path / "pairs.yaml").write_text(
        "kind: pairs\noutput: x\npolicy: {model: m}\ncritic: {kind: likelihood, model: m}\n"
        f"data: {{path: q.jsonl, pictures: {tmp_path}, limit: 3}}\n"
    )
    (tmp_path / "rl.yaml").write_text(
        f"kind: dpo\noutput: x\n{MODEL}{ONE_EPOCH.replace('epochs: 1', 'epochs: 2')}data: {{path: x}}\n"  # the first step warms up
    )
    (tmp_path / "loop.yaml").write_text(
        f"kind: loop\noutput: {tmp_path}/run\nname: made\nbase: {tmp_path}/model\nsft: {{recipe: sft.yaml}}\n"
        "pairs: {recipe: pairs.yaml}\nrl: {recipe: rl.yaml}\n"
        "score: {tasks: 'world_viscot_doc,world_rec', limit: 2, max_tokens: 3, args: {dtype: float32}}\n"
    )
    asked = []

    def pairs(recipe):
        asked.append((recipe.policy.model, recipe.policy.args, recipe.critic.model))
        rows = [
            PairRow(id=str(i), picture="p.png", question=f"what {i}?", win=CHAINS[0], lose=CHAINS[1]) for i in range(3)
        ]
        write_rows(recipe.output / "pairs.jsonl", rows)
        write_atomically(
            recipe.output / "manifest.json", dump_json({"funnel": {"pairs": 3, "questions": {"asked": 3}}})
        )

    monkeypatch.setattr("visrl.train.pairs.run.run", pairs)
    for module in ("loop", "loop_score"):  # collecting torch's garbage takes a second each time
        monkeypatch.setattr(f"visrl.train.{module}.free", lambda: None)
    return tmp_path, asked


def test_the_whole_method_on_one_adapter(folder, capsys):
    folder, asked = folder
    recipe = load_recipe(folder / "loop.yaml").recipe
    loop.run(recipe)
    model = f"hf:{folder}/model"
    assert asked == [(model, {"adapter": f"{folder}/run/sft/final"}, model)]
    for final in ("sft/final", "iter1/rl1/stage1/final", "iter1/rl2/stage2/final"):
        assert (folder / "run" / final / "adapter_model.safetensors").is_file()
    said = capsys.readouterr().out
    assert "iter1/pairs: 3 pairs of 3 questions" in said
    assert "iter1/rl2: answers 0.0 → 0.0 (+0.0 ± 0.0)" in said  # two random answers, wrong before and after
    results = read_records(folder / "run")
    phases = {r.model_info["phase"]["phase"]: r for r in results}
    assert set(phases) == {"base", "sft", "iter1/rl1", "iter1/rl2"}
    assert str(folder) not in json.dumps([r.model for r in results] + [r.model_info["path"] for r in results])
    assert len({r.model_info["adapter"]["weights_sha256"] for name, r in phases.items() if name != "base"}) == 3

    before = {
        p: p.read_bytes()
        for p in (folder / "run").rglob("*")
        if p.suffix in (".safetensors", ".json") and p.name != "run.json"
    }
    loop.run(recipe)
    assert {p: p.read_bytes() for p in before} == before and len(asked) == 1

    # elsewhere it is the same run: no record and no request says where the adapter lay; scored again, it is the same too
    assert str(folder) not in json.dumps([r.model_dump(mode="json")["model_info"] for r in results])
    (folder / "run").rename(folder / "moved")
    for scored in (folder / "moved").glob("**/score/phase.json"):
        scored.unlink()
    loop.run(load_recipe(folder / "loop.yaml", [f"output={folder}/moved"]).recipe)
    assert len(asked) == 1 and read_records(folder / "moved") == results
