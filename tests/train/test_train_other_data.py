"""Training data as people have them: conversations of LLaVA and ShareGPT, a held-out split with its loss, trackers."""

import importlib.util
import json
from dataclasses import replace

import pytest
from PIL import Image
from tiny_models import save
from train_made import demonstration

from visrl.cli.train import run
from visrl.errors import UsageError
from visrl.train.config.recipe import DataSection, load_recipe
from visrl.train.data.load import load_demonstrations
from visrl.train.data.questions import QuestionSection, load_questions
from visrl.train.sft.sft import split

LLAVA = {
    "id": "000000033471",
    "image": "coco/a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
        {"from": "gpt", "value": "White and red."},
        {"from": "human", "value": "Where is it?"},
        {"from": "gpt", "value": "In a street."},
    ],
}
SHAREGPT = {
    "messages": [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "<image>Who are they?"},
        {"role": "assistant", "content": "Two players."},
    ],
    "images": ["b.png"],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "coco").mkdir()
    for name in ("coco/a.png", "b.png"):
        Image.effect_noise((40, 30), 90).convert("RGB").save(tmp_path / name)
    text_only = {"conversations": LLAVA["conversations"]}
    two = {**SHAREGPT, "images": ["b.png", "coco/a.png"]}
    (tmp_path / "c.json").write_text(json.dumps([LLAVA, SHAREGPT, text_only, two]))
    return tmp_path


def test_every_exchange_of_a_conversation_is_a_row_that_asks_for_no_box(folder, capsys):
    section = DataSection(path=folder / "c.json", pictures=folder, format="llava", protocol="viscot_train")
    rows = load_demonstrations(section)
    assert [(r.sample.id, r.sample.question, r.chain.answer, r.protocol, r.chain.box) for r in rows] == [
        ("000000033471-1-0", "What are the colors of the bus?", "White and red.", "direct", None),
        ("000000033471-1-1", "Where is it?", "In a street.", "direct", None),
        ("2-2-0", "Who are they?", "Two players.", "direct", None),
    ]
    assert [r.sample.picture.open().size for r in rows] == [(40, 30)] * 3
    assert "left out: 1 no picture; 1 several pictures" in capsys.readouterr().err
    asked = load_questions(QuestionSection(path=folder / "c.json", pictures=folder, format="llava", skip=1))
    assert [(s.question, s.answers) for s in asked] == [
        ("Where is it?", ("In a street.",)),
        ("Who are they?", ("Two players.",)),
    ]
    assert "c.json: left out: 1 no picture; 1 several pictures\n" in capsys.readouterr().err


PAIRS = """kind: pairs
output: out
policy: {model: sft}
critic: {kind: likelihood, model: base}
"""
GRPO = """kind: grpo
output: out
model: {path: sft}
grpo: {box: {format: 1.0}, answer: {answer: 1.0}}
"""
CHAIN = [{"from": who, "value": "x"} for who in ("human", "gpt", "human", "gpt")]


@pytest.mark.parametrize("start", [PAIRS, GRPO], ids=["pairs", "grpo"])
def test_what_is_left_out_of_questions_is_said_by_every_format_also_in_a_dry_run(folder, start, monkeypatch, capsys):
    """One row of each reason; a box of 35 to 60 in 40 pixels has a fifth of its width in the picture."""
    monkeypatch.chdir(folder)
    Image.new("RGB", (40, 30)).save("d.png")

    def viscot(box, answer="x"):
        return {"image": ["d.png", f"d.png###{box}"], "conversations": [*CHAIN[:3], {"from": "gpt", "value": answer}]}

    def cot(box, answer="x"):
        size = {"width": 40, "height": 30}
        return {"dataset": "d", "image": "d.png", **size, "bboxs": [box], "question": "q", "answer": answer}

    inside, empty = [1, 2, 30, 20], [5, 5, 5, 9]
    beside = [35, 2, 60, 20]
    items = [
        viscot(inside),
        viscot(inside),
        viscot(beside),
        viscot(empty),
        viscot(inside, " "),
        {**viscot(empty), "image": "d.png"},
    ]
    (folder / "viscot.json").write_text(json.dumps(items))
    (folder / "cot.json").write_text(json.dumps([cot(inside), cot(empty), cot(inside, " ")]))
    rows = [{"images": images, "question": "q", "answer": answer} for images, answer in
            ((["d.png"], "x"), (["d.png", "b.png"], "x"), (["d.png"], " "))]  # fmt: skip
    (folder / "datasets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {
        "viscot.json": "1 box outside the picture; 1 empty answer; 1 empty box; 1 no second picture with ###[x1, y1, x2, y2]",
        "cot.json": "1 empty answer; 1 empty box",
        "datasets.jsonl": "1 empty answer; 1 several pictures",
        "c.json": "1 no picture; 1 several pictures",
    }
    for name, reasons in said.items():
        form = "llava" if name == "c.json" else name.partition(".")[0]
        (folder / "r.yaml").write_text(start + f"data: {{path: {name}, pictures: ., format: {form}}}\n")
        assert run(["r.yaml", "--dry-run", "--quiet"]) == 0
        assert f"{name}: left out: {reasons}\n" in capsys.readouterr().err


def test_no_question_left_says_what_was_left_out(folder):
    (folder / "two.json").write_text(json.dumps([{**SHAREGPT, "images": ["b.png", "coco/a.png"]}] * 2))
    with pytest.raises(UsageError, match=r"no questions in .*two\.json: left out: 2 several pictures"):
        load_questions(QuestionSection(path=folder / "two.json", pictures=folder, format="llava"))


@pytest.mark.parametrize(
    "turns",
    [
        LLAVA["conversations"][:3],
        LLAVA["conversations"][1:3],
        [{"from": "human", "value": 3}, {"from": "gpt", "value": "x"}],
        [{"role": "user", "content": "x"}],
    ],
    ids=["odd", "the model first", "no text", "other keys"],
)
def test_what_is_no_conversation_is_an_error_with_its_item(folder, turns):
    (folder / "x.json").write_text(json.dumps([LLAVA, {**LLAVA, "conversations": turns}]))
    with pytest.raises(UsageError, match=r"x\.json: item 2 is not of layout llava"):
        load_demonstrations(DataSection(path=folder / "x.json", pictures=folder, format="llava"))


def test_no_picture_is_in_both_parts_of_a_split():
    """Six pictures, the first asked about twice: a third of six is 2, a hundredth at least 1."""
    asked = [demonstration(i) for i in (0, 1, 2, 3, 4, 5, 0)]
    chains = [replace(chain, sample=replace(chain.sample, cluster=chain.sample.id)) for chain in asked]
    for given, n in ((2, 2), (1 / 3, 2), (0.01, 1), (None, 0)):
        kept, held_out = split(chains, given)
        assert len(held_out) == n and len(kept) == 7 - n
        assert not {c.sample.id for c in kept} & {c.sample.id for c in held_out}
    with pytest.raises(UsageError, match="held_out: 6 of 6 pictures"):
        split(chains, 6)


def test_the_loss_of_held_out_rows_is_measured_while_training(folder):
    save("llava", folder / "model")
    (folder / "sft.yaml").write_text(
        f"kind: sft\noutput: {folder}/out\nmodel: {{path: {folder}/model, dtype: float32}}\nlora: {{r: 4}}\n"
        f"data: {{path: {folder}/c.json, pictures: {folder}, format: llava}}\nchain: {{held_out: 1}}\n"
        "trainer: {num_train_epochs: 2, gradient_accumulation_steps: 1, learning_rate: 1e-2}\n"
    )
    run([str(folder / "sft.yaml")])
    history = json.loads((folder / "out/history.json").read_text())
    measured = [row["eval_loss"] for row in history if "eval_loss" in row]
    assert len(measured) == 2 and measured[0] != measured[1]  # after each epoch, and it moves
    assert {row["step"] for row in history if "eval_loss" in row} == {
        1,
        2,
    }  # two rows of the other picture: a step an epoch


SFT = "kind: sft\noutput: out\nmodel: {path: m}\ndata: {path: p.jsonl}\n"


def test_what_cannot_be_measured_or_reported_is_said_by_the_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(SFT + "trainer: {eval_strategy: steps}\n")
    with pytest.raises(UsageError, match=r"trainer\.eval_strategy needs rows to measure: set chain\.held_out"):
        load_recipe(path)
    load_recipe(path, ["chain.held_out=0.1"])
    path.write_text(SFT.replace("kind: sft", "kind: dpo"))
    with pytest.raises(UsageError, match="eval_strategy: pairs are not held out here"):
        load_recipe(path, ["trainer.eval_strategy=steps"])
    path.write_text(SFT)
    for name in ("tensorboard", "trackio", "wandb"):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(UsageError, match=f"report_to: {name} is not installed: pip install {name}"):
                load_recipe(path, [f"trainer.report_to=[{name}]"])
        else:
            load_recipe(path, [f"trainer.report_to={name}"])
