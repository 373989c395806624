"""The page of a training folder: curves, funnel, pairs; whatever of it is there."""

import json
import re

import pytest
from PIL import Image

from visrl.cli.evaluate import main
from visrl.report.figures import HEIGHT, WIDTH
from visrl.report.serve import PageServer
from visrl.report.training import is_one_phase, is_training
from visrl.report.training_figures import chart, curves, forest, score_histogram


@pytest.fixture
def folder(tmp_path):
    stage, pairs = tmp_path / "run" / "stage1", tmp_path / "run" / "pairs"
    stage.mkdir(parents=True)
    pairs.mkdir()
    history = [{"step": 1, "loss": 0.7, "rewards/margins": 0.0}, {"step": 2, "loss": None}, {"step": 4, "loss": 0.35}]
    (stage / "history.json").write_text(json.dumps(history))
    (stage / "settings.json").write_text(json.dumps({"trainer": {"beta": 0.1}}))
    Image.new("RGB", (40, 20), "red").save(pairs / "p.png")
    pair = {
        "id": "1", "picture": "p.png", "size": [40, 20], "question": "<script>window.hacked=1</script>",
        "win": {"box": [1, 2, 11, 12], "answer": "\u202eyes", "scores": {"box": 1.0}}, "lose": {"box": [20, 2, 30, 12], "answer": "no"},
    }  # fmt: skip
    (pairs / "pairs.jsonl").write_text((json.dumps(pair) + "\n") * 70)
    funnel = {"questions": {"answered": 20, "asked": 20, "paired": 5}, "pairs": 5}
    boxes = {"wp_ln": {"n": 5, "percent": 60.0, "se": 24.5}}
    (pairs / "manifest.json").write_text(json.dumps({"funnel": funnel, "boxes": boxes}))
    (pairs / "run.json").write_text("{}")
    return tmp_path / "run"


def test_page(folder, capsys):
    assert is_training(folder)
    assert main(["view", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert "script-src &#39;none&#39;" in text and "<script" not in text
    assert "70 pairs, the first 60 shown" in text
    assert text.count("data:image/webp") == 60
    stages = re.findall(r'<th scope="row">(\w+)</th><td class="num">(\d+)</td>', text)
    assert stages == [
        ("asked", "20"),
        ("answered", "20"),
        ("paired", "5"),
    ]  # widest first, ties in the order they are passed
    assert "WP-LN" in text and "60.0 ± 24.5 % · chosen box right, rejected box wrong" in text
    assert "54 more pairs" in text  # six of the sixty are there to see
    assert "⟨U+202E⟩yes" in text and "trainer.beta" in text
    # win box 1, 2, 11, 12 as x, y, width, height
    assert 'class="box k-true" x="1.0" y="2.0" width="10.0" height="10.0"' in text


def test_a_loops_page_begins_with_how_its_phases_ended(folder):
    """In the order of the loop, phases set aside left out; of a run without scorings nothing is said."""
    assert main(["view", str(folder)]) == 0
    assert "Results of the phases" not in (folder / "report.html").read_text()
    for name in ("iter1/rl1", "sft", "iter1/rl2", "base", "old/sft-1"):
        (folder / name).mkdir(parents=True)
        (folder / name / "metrics.json").write_text(json.dumps({"line": f"answers of <b>{name}"}))
    assert main(["view", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert re.findall(r"answers of &lt;b&gt;([\w/]+)", text) == ["base", "sft", "iter1/rl1", "iter1/rl2"]


def test_the_page_of_a_training_is_served_too(folder, monkeypatch):
    """It holds its pictures itself, so the server has none; nothing is written into the folder."""
    shown = []
    monkeypatch.setattr(
        PageServer, "serve_forever", lambda server: shown.append((server.page.read_text(), server.picture(0)))
    )
    assert main(["view", str(folder), "--serve"]) == 0
    ((text, picture),) = shown
    assert "70 pairs, the first 60 shown" in text and picture is None
    assert not (folder / "report.html").exists()


def test_curves_scale_from_zero_to_the_largest():
    loss, margin = curves([{"step": 1, "loss": 0.7, "rewards/margins": 0.1}, {"step": 4, "loss": 0.35}, {"epoch": 1}])
    assert (loss.title, margin.title) == ("loss", "reward margin")
    # step 1 of 4 at a quarter of the width, .7 at the top; .35 half way down
    assert loss.lines[0].points == f"{WIDTH / 4:.1f},0.0 {WIDTH:.1f},{HEIGHT / 2:.1f}"
    assert loss.lines[0].last == "0.35"


def test_accuracies_have_the_whole_scale():
    """What a loss is called after is none: box/entropy of a DPO log has no curve here."""
    (found,) = curves([{"step": 1, "point": 0.25, "box/entropy": 3.0}, {"step": 2, "point": 0.5}])
    assert (found.low, found.high) == ("0", "1")
    assert [line.points for line in found.lines] == [
        f"{WIDTH / 2:.1f},{HEIGHT * 0.75:.1f} {WIDTH:.1f},{HEIGHT / 2:.1f}"
    ]


def test_what_policy_gradients_log_is_drawn_the_rewards_first():
    logged = {
        "kl": 0.1, "learning_rate": 1e-4, "box/without_spread": 0.25, "rewards/iou": 0.5, "box/reward": 0.5, "box/advantage": 0.75,
        "completions/unparsed": 0.0, "loss": 0.1, "rewards/chosen": 3.0, "train_loss": 9.0, "tokens/trained": 99.0,
    }  # fmt: skip
    found = curves([{"step": 1, **logged}, {"step": 2, **logged}])
    assert [curve.title for curve in found] == [
        "loss", "reward", "mean absolute advantage", "groups with equal rewards", "KL to the reference",
        "unparsed boxes", "learning rate",
    ]  # fmt: skip
    assert [line.name for line in found[1].lines] == ["rewards/iou", "box/reward"]
    assert [(curve.title, curve.high) for curve in found if curve.high == "1"] == [
        ("groups with equal rewards", "1"), ("unparsed boxes", "1"),
    ]  # fmt: skip


def test_what_was_logged_once_is_said_not_drawn():
    once, line_ = curves([{"step": 3, "accuracy": 0.5, "loss": 2.0}, {"step": 5, "loss": 1.0}])[::-1]
    assert (once.title, once.drawn, once.lines[0].last) == ("accuracy", False, "0.5")
    assert (line_.title, line_.drawn) == ("loss", True)


def test_phases_are_in_the_order_of_time(folder, capsys):
    """Of an iteration the pairs, then what is trained on them; set-aside phases are none."""
    for name in (
        "iter2/rl1/stage1",
        "iter1/rl2/stage2",
        "iter1/rl1/stage1",
        "iter2/pairs",
        "iter1/pairs",
        "sft",
        "old/sft-1",
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / "history.json").write_text('[{"step": 1, "loss": 1.0}]')
    assert main(["view", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    names = re.findall(r"<h2 id=.h-\d+.><bdi>([\w/]+)", text)
    of_loop = ["sft", "iter1/pairs", "iter1/rl1/stage1", "iter1/rl2/stage2", "iter2/pairs", "iter2/rl1/stage1"]
    assert [name for name in names if name in of_loop] == of_loop and "old/sft-1" not in names


def _kept(step: int, name: str, **chain: object) -> dict:
    first = {
        "box": [1, 2, 11, 12], "box_text": "[.1, .1]", "unparsed": None, "answer": "yes",
        "rewards": {"iou": 0.5, "judge": None}, "advantages": {"box": 1.25, "answer": 0.0}, **chain,
    }  # fmt: skip
    second = {**first, "box": [20, 2, 30, 12], "answer": "no", "advantages": {"box": -1.25, "answer": 0.0}}
    third = {**first, "box": None, "unparsed": "no box", "box_text": "<b>nowhere", "advantages": {"box": 0.0}}
    group = {"id": name, "question": f"where is {name}?", "picture": "p.png", "answers": ["yes"]}
    return {"step": step, "groups": [{**group, "chains": [first, second, third]}]}


@pytest.fixture
def groups(tmp_path):
    """Policy-gradient training that kept a group at each of 30 steps."""
    (tmp_path / "rl/rollouts").mkdir(parents=True)
    (tmp_path / "rl/history.json").write_text('[{"step": 1, "reward": 0.5}, {"step": 30, "reward": 0.75}]')
    Image.new("RGB", (40, 20), "red").save(tmp_path / "rl/p.png")
    for step in range(1, 31):
        (tmp_path / f"rl/rollouts/step{step:06d}.json").write_text(json.dumps(_kept(step, f"thing {step}")))
    return tmp_path / "rl"


def test_groups_of_chains_are_drawn_by_their_advantage(groups):
    assert main(["view", str(groups)]) == 0
    text = (groups / "report.html").read_text()
    # twelve of thirty steps, the first and the last among them: 0, 29/11, 58/11 ... rounded, and one more
    steps = [int(step) for step in re.findall(r"step (\d+)</span>", text)]
    assert steps == [1, 4, 6, 9, 12, 14, 17, 19, 22, 25, 27, 30]
    assert "6 more groups" in text
    # a positive advantage, a negative one; x, y, width and height of 1, 2, 11, 12 and 20, 2, 30, 12; no box at all
    assert text.count('class="box k-true" x="1.0" y="2.0" width="10.0" height="10.0"') == 12
    assert text.count('class="box k-a" x="20.0" y="2.0" width="10.0" height="10.0"') == 12
    assert "&lt;b&gt;nowhere (no box)" in text and "<b>nowhere" not in text
    assert "iou 0.50 · judge –" in text and "box +1.25 · answer +0.00" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "damaged"), ('{"step": 1}', "groups"), (json.dumps(_kept(1, "x", box=[1, 2, 3])), r"chains\.0\.box")],
)
def test_a_damaged_file_of_chains_is_named(groups, content, said, capsys):
    (groups / "rollouts/step000001.json").write_text(content)
    assert main(["view", str(groups)]) == 2
    error = capsys.readouterr().err
    assert "step000001.json" in error and re.search(said, error)


def test_an_iterations_only_phase_comes_after_its_pairs_and_before_the_next_iteration(tmp_path):
    names = ("iter2/rl", "iter10/pairs", "iter1/rl", "iter2/pairs", "sft")
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "history.json").write_text('[{"step": 1, "loss": 1.0}]')
    assert main(["view", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    found = re.findall(r"<h2 id=.h-\d+.><bdi>([\w/]+)", text)
    assert found == ["sft", "iter1/rl", "iter2/pairs", "iter2/rl", "iter10/pairs"]


def test_a_chart_has_a_row_per_name():
    found = chart("t", {"base": {"a": (20.0, None)}, "SFT": {"a": (60.0, 5.0), "b": (90.0, 20.0)}}, differences=False)
    assert [name for name, _ in found.names] == ["base", "SFT"] and found.series == ("a", "b")
    # 60 ± 5 of 100; 90 + 20 is cut at the end of the scale
    assert [(w.x, w.low, w.high) for w in found.whiskers] == [
        (0.2 * WIDTH, 0.2 * WIDTH, 0.2 * WIDTH),
        (0.6 * WIDTH, 0.55 * WIDTH, 0.65 * WIDTH),
        (0.9 * WIDTH, 0.7 * WIDTH, WIDTH),
    ]
    assert found.whiskers[1].label == "SFT: a 60.0 ± 5.0"
    assert chart("t", {}, differences=False) is None


def test_ablations_are_a_forest_around_zero(tmp_path, capsys):
    lines = [
        {"variant": "full", "metric": "answers", "value": 70.0, "se": 1.0, "seeds": 2},
        {
            "variant": "<b>no-rl",
            "metric": "answers",
            "value": 60.0,
            "se": 1.0,
            "difference": -10.0,
            "difference_se": 2.0,
        },
        {"variant": "more", "metric": "answers", "value": 73.0, "se": 1.0, "difference": 3.0, "difference_se": 1.0},
    ]
    found = forest(lines)
    # from -12 and +4, rounded outwards to fives: -15 to 5, zero three quarters across
    assert [label for _, label in found.ticks] == ["-15", "-5", "+5"] and found.zero == 0.75 * WIDTH
    assert [w.x for w in found.whiskers] == [0.25 * WIDTH, 0.9 * WIDTH]
    (tmp_path / "summary.json").write_text(json.dumps(lines))
    assert main(["view", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;no-rl: answers right -10.0 ± 2.0" in text and "<b>no-rl" not in text


def test_critics_scores_are_counted_in_tenths():
    found = score_histogram("scores of boxes", [0.0, 0.05, 1.0, 0.95])
    assert found.lines[0].last == "4 scores, 0.50 on average" and found.high == "2"
    # two in the first tenth, two in the last: both at the top, from 0 to a tenth of the width
    assert found.lines[0].points.startswith(f"0.0,0.0 {WIDTH / 10:.1f},0.0 ")


def test_a_quantity_logged_once_is_drawn():
    (found,) = curves([{"step": 7, "box": 0.5}])
    assert found.lines[0].points == f"{WIDTH - 6:.1f},{HEIGHT / 2:.1f} {WIDTH:.1f},{HEIGHT / 2:.1f}"  # of 0 to 1


def test_nothing_to_show_is_wrong_use(tmp_path, capsys):
    assert not is_training(tmp_path)
    assert main(["view", str(tmp_path)]) == 2
    assert "hint:" in capsys.readouterr().err


def test_a_damaged_file_is_named(folder, capsys):
    (folder / "stage1" / "history.json").write_text("[{")
    assert main(["view", str(folder)]) == 2
    assert "history.json: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("own", ["stage1", "."])
def test_a_phase_is_a_page_of_training_although_its_scoring_is_a_run_inside(folder, own):
    """RL1 has its curves in stage1/, a GRPO phase its own; a folder of such runs without a phase's files is an index."""
    score = folder / "score"
    score.mkdir()
    (score / "episodes.jsonl").write_text("")
    (score / "run.json").write_text("{}")
    if own == ".":
        (folder / "history.json").write_text((folder / "stage1" / "history.json").read_text())
    else:
        assert not is_one_phase(folder)
        (folder / "phase_config.json").write_text("{}")
    assert main(["view", str(folder)]) == 0
    assert not (folder / "index.html").exists() and "70 pairs" in (folder / "report.html").read_text()
