"""One protocol and one crop through a loop: SFT, pairs, RL and scoring share them, or the loop stops."""

import json

import pytest
from loop_made import recipe
from tiny_models import save

from visrl.errors import UsageError
from visrl.policies.before import box_format_names
from visrl.train.loop import before
from visrl.train.loop import run as loop
from visrl.train.loop.before import own_looks
from visrl.train.loop.looks import check_looks
from visrl.train.loop.scoring import ScoreSection

VISCOT = "data.format=viscot"


def looks(folder, *settings):
    return {str(look) for look in own_looks(recipe(folder, *settings))}


def test_without_a_word_every_phase_looks_alike(world):
    """Whoever's file the chains come from: the importer fixes no protocol."""
    folder, _ = world
    for data in ("visrl", "viscot", "cot"):
        assert looks(folder, f"sft.set.data.format={data}") == {
            "sft: crop tight" if data == "visrl" else "sft: protocol visrl_train, crop tight",
            "iter1/pairs: protocol visrl_train, crop tight",
            "iter1/rl1: crop tight",
            "iter1/rl2: crop tight",
            "score: protocol visrl_train, crop tight",
        }


def test_an_engine_answers_wherever_a_model_is_asked(world, monkeypatch):
    folder, _ = world
    asked, pairs, score = [], loop.generate_pairs, loop.score_phase
    monkeypatch.setattr(
        loop, "generate_pairs", lambda found: asked.append((found.policy.model, found.critic.model)) or pairs(found)
    )
    monkeypatch.setattr(loop, "score_phase", lambda *given: asked.append(given[-1]) or score(*given))
    loop.run(recipe(folder, "policy=vllm", "iterations=1"))
    newest, base = f"vllm:{folder}/run/sft/final", f"vllm:{folder}/base"
    assert asked == ["vllm", "vllm", (newest, base), "vllm", "vllm"], "base and SFT, pairs, RL1 and RL2"
    with pytest.raises(
        UsageError, match="made with another recipe"
    ):  # draws of another sampler, scores of another engine
        loop.run(recipe(folder, "iterations=1"))
    with pytest.raises(UsageError, match="no such model as the shipped base"):
        recipe(folder, "policy=vllm", "base=base")


def test_the_loops_protocol_and_crop_go_everywhere(world, monkeypatch):
    folder, _ = world
    scored = []
    score = loop.score_phase

    def seen(place, label, weights, section: ScoreSection, answering):
        scored.append((section.protocol, section.crop))
        return score(place, label, weights, section, answering)

    monkeypatch.setattr(loop, "score_phase", seen)
    settings = ("protocol=viscot_train", "crop=viscot_square112", "sft.set.data.format=viscot")
    loop.run(recipe(folder, *settings))
    assert set(scored) == {("viscot_train", "viscot_square112")}
    told = {p.parent.name: json.loads((p).read_text())["recipe"] for p in folder.glob("run/**/phase_config.json") if "score" not in p.parts and "base" not in p.parts}  # fmt: skip
    assert told["sft"]["data"]["protocol"] == "viscot_train" and told["sft"]["chain"]["crop"] == "viscot_square112"
    assert (told["pairs"]["protocol"], told["pairs"]["crop"]) == ("viscot_train", "viscot_square112")
    assert told["rl1"]["step"]["crop"] == told["rl2"]["step"]["crop"] == "viscot_square112"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sft.set.model.box_format=qwen2_5", "sft writes boxes as qwen2_5, iter1/pairs as padded_square_3dp"),
        ("pairs.set.policy.args.box_format=pixel_int", "iter1/pairs as pixel_int"),
        ("rl.set.model.box_format=pixel_int", "iter1/rl1 as pixel_int"),
        ("score.args.box_format=pixel_int", "score as pixel_int"),
    ],
)
def test_boxes_are_written_in_one_way(world, capsys, setting, said):
    """``native`` and ``paper`` are one format to LLaVA, and the loop goes on; another one that reads the same boxes stops it."""
    folder, _ = world

    def formats(name):
        return "padded_square_3dp" if name in ("native", "paper") else name

    same = recipe(folder, "sft.set.model.box_format=paper", "score.args.box_format=native")
    assert check_looks(same, own_looks(same, (), formats)) == ""
    other = recipe(folder, setting)
    with pytest.raises(UsageError) as stopped:
        check_looks(other, own_looks(other, (), formats))
    assert said in stopped.value.message
    meant = recipe(folder, setting, "mixed=true")
    assert "boxes padded_square_3dp" in check_looks(meant, own_looks(meant, (), formats))


def test_names_of_box_formats_mean_what_the_family_says(tmp_path):
    """LLaVA writes the paper's boxes; Qwen2.5-VL writes pixels of the picture it sees."""
    llava, qwen = (box_format_names(str(save(f, tmp_path / f)), {}) for f in ("llava", "qwen2_5_vl"))
    assert llava("native") == llava("paper") == llava("padded_square_3dp") == qwen("paper") != qwen("native")
    with pytest.raises(UsageError, match="unknown box format"):
        llava("papper")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("sft.set.data.protocol=viscot_train", "sft teaches protocol viscot_train, iter1/pairs asks by visrl_train"),
        ("pairs.set.protocol=viscot_eval", "sft teaches protocol visrl_train, iter1/pairs asks by viscot_eval"),
        ("score.protocol=viscot_eval", "sft teaches protocol visrl_train, score asks by viscot_eval"),
        ("score.crop=viscot_square112", "sft shows crop tight, score shows viscot_square112"),
        ("rl.set.step.crop=compat_visrl", "sft shows crop tight, iter1/rl1 shows compat_visrl"),
    ],
)
def test_a_loop_that_teaches_another_way_than_it_uses_stops_unless_it_is_meant(world, capsys, setting, said):
    folder, ran = world
    with pytest.raises(UsageError) as stopped:
        loop.run(recipe(folder, "sft.set.data.format=viscot", setting))
    assert said in stopped.value.message and "mixed: true" in stopped.value.hint and ran == []
    loop.run(recipe(folder, "sft.set.data.format=viscot", setting, "mixed=true"))
    assert "phases look in more than one way" in capsys.readouterr().err


def test_the_protocol_of_every_row_counts(world, monkeypatch):
    """Rows of our own format name theirs, so that only reading them tells what SFT teaches."""
    folder, _ = world
    (folder / "p.png").touch()
    row = {"id": "a", "picture": "p.png", "question": "what?", "chain": {"box": [0, 0, 9, 9], "answer": "A"}}
    rows = [row, {**row, "id": "b", "protocol": "viscot_train"}, {**row, "id": "c", "protocol": "direct"}]
    (folder / "chains.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    (folder / "q.jsonl").write_text(json.dumps({"id": "q", "picture": "p.png", "question": "?", "answers": ["A"]}))
    for name in ("check_policy", "check_scoring", "check_pictures"):
        monkeypatch.setattr(before, name, lambda *_: None)
    monkeypatch.setattr(before, "box_format_names", lambda *_: str)
    here = (
        f"sft.set.data.pictures={folder}",
        f"pairs.set.data.path={folder}/q.jsonl",
        f"pairs.set.data.pictures={folder}",
    )
    asked = recipe(folder, *here, "pairs.set.data.skip=0")
    with pytest.raises(
        UsageError, match="sft teaches protocol viscot_train and visrl_train, iter1/pairs asks by visrl_train"
    ):
        before.check(asked)
    (folder / "chains.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (rows[0], rows[2])))
    before.check(asked)  # `direct` asks for no box
