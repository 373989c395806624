"""The loop under a protocol of several looks, with a tiny model: SFT on chains of two looks, pairs, both stages, every end scored.

Only who answers in the pairs is scripted: a random model makes no call that could be read.
"""

import json
from pathlib import Path

import pytest
from PIL import Image
from several_made import DeepCritic, DeepPolicy, questions
from tiny_models import save

from visrl.core.records import read_records
from visrl.errors import UsageError
from visrl.train.config.recipe import load_recipe
from visrl.train.critics.critics import ScoreCritic
from visrl.train.data.rows import PairRow, chain_row, read_rows, write_rows
from visrl.train.loop import run as loop
from visrl.train.pairs.run import make_pairs, plan_of
from visrl.train.pairs.sampling import PairSampler

PROTOCOL = """\
name: brief
call: {opening: "<c>", closing: "</c>", tool: ""}
texts: {question: "{question}", crop: "{picture}", last: " yes"}
limits: {looks: 2}
"""
TRAINER = "trainer: {num_train_epochs: 1, gradient_accumulation_steps: 1, learning_rate: 1e-3}\n"
MODEL = "model: {path: elsewhere, dtype: float32, box_format: json_pixel}\nlora: {r: 4}\n"


class BriefPolicy(DeepPolicy):
    """Calls as the protocol of the loop has them."""

    def say(self, request, sample, rng):
        if request.turns[-1].text().endswith(" yes"):
            return "<answer>" + (sample.answers[0] if rng.random() < 0.6 else "no") + "</answer>"
        text = super().say(request, sample, rng)
        found = text.partition('"arguments": ')[2].removesuffix("}</tool_call>")
        return f"<c>{found}</c>" if found else text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    save("llava", tmp_path / "model")
    for i in range(20):
        Image.effect_noise((400, 300), 90).convert("RGB").save(tmp_path / f"p{i}.png")
    (tmp_path / "brief.yaml").write_text(PROTOCOL)
    samples = questions(40)
    write_rows(tmp_path / "c.jsonl", [chain_row(sample, str(tmp_path / "brief.yaml")) for sample in samples[:3]])
    (tmp_path / "sft.yaml").write_text(
        f"kind: sft\noutput: x\n{MODEL}{TRAINER}data: {{path: {tmp_path}/c.jsonl, pictures: {tmp_path}}}\n"
    )
    (tmp_path / "pairs.yaml").write_text(
        "kind: pairs\noutput: x\npolicy: {model: m, args: {box_format: json_pixel}}\ncritic: {kind: likelihood, model: m}\n"
        f"data: {{path: q.jsonl, pictures: {tmp_path}, limit: 3}}\n"
    )
    (tmp_path / "rl.yaml").write_text(
        f"kind: dpo\noutput: x\n{MODEL}{TRAINER}data: {{path: x, limit: 4}}\nstep: {{look_weights: [1, 0.5]}}\n"
    )
    (tmp_path / "loop.yaml").write_text(
        f"kind: loop\noutput: {tmp_path}/run\nname: made\nbase: {tmp_path}/model\nprotocol: {tmp_path}/brief.yaml\n"
        "sft: {recipe: sft.yaml}\npairs: {recipe: pairs.yaml}\nrl: {recipe: rl.yaml, set: {data.limit: 4}}\n"
        "score: {tasks: world_viscot_doc, limit: 2, max_tokens: 3, args: {dtype: float32, box_format: json_pixel}}\n"
    )

    def pairs(recipe):
        policy, critic = BriefPolicy("sft", samples), ScoreCritic(DeepCritic("org", samples))
        return make_pairs(PairSampler(policy, critic, plan_of(recipe, policy)), samples, recipe)

    monkeypatch.setattr(loop, "generate_pairs", pairs)
    for module in ("run", "scoring"):  # collecting torch's garbage takes a second each time
        monkeypatch.setattr(f"visrl.train.loop.{module}.free", lambda: None)
    return tmp_path


def test_the_whole_method_looks_twice(folder, capsys):
    recipe = load_recipe(folder / "loop.yaml").recipe
    loop.run(recipe)
    run = folder / "run"
    rows = list(read_rows(run / "iter1/pairs/pairs.jsonl", PairRow))
    assert {row.protocol for row in rows} == {f"{folder}/brief.yaml"} and max(len(r.chosen.looks) for r in rows) == 2
    for stage, wanted in (("rl1/stage1", {"look1", "look2"}), ("rl2/stage2", {"look1", "look2", "answer"})):
        history = json.loads((run / "iter1" / stage / "history.json").read_text())
        logged = {key.partition("/")[0] for entry in history for key in entry if key.endswith("/loss")}
        assert logged <= wanted and "look1" in logged, stage
        assert (run / "iter1" / stage / "final/adapter_model.safetensors").is_file()
    results = [r for r in read_records(run) if r.task == "world_viscot_doc"]
    assert {r.model_info["phase"]["phase"] for r in results} == {"base", "sft", "iter1/rl1", "iter1/rl2"}
    assert {r.protocol.partition("@")[0] for r in results} == {"brief/v1"}
    assert "more than one way" not in capsys.readouterr().err

    before = {p: p.read_bytes() for p in run.rglob("*.safetensors")}
    loop.run(recipe)  # nothing is done again
    assert {p: p.read_bytes() for p in before} == before


def test_another_text_in_the_protocol_s_file_makes_phases_stale(folder):
    from visrl.train.config import protocols

    recipe = load_recipe(folder / "loop.yaml", ["iterations=0", "pairs=null", "rl=null"]).recipe
    loop.run(recipe)
    path = Path(folder / "brief.yaml")
    path.write_text(PROTOCOL.replace(" yes", " now"))
    protocols._from_a_file.cache_clear()  # another command
    with pytest.raises(UsageError, match="made with another recipe"):
        loop.run(recipe)
