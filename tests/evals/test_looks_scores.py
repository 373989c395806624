"""Numbers of several looks: how often was looked, what was faulty, the score by number of looks; the curve over looks allowed."""

import json
from dataclasses import replace

import pytest

from visrl.cli.evaluate import main
from visrl.core.boxes import Box
from visrl.core.records import read_records
from visrl.core.types import CoTSample, Episode, Look, Step
from visrl.errors import UsageError
from visrl.evals.benchmarks import TASKS
from visrl.evals.judge import make_judge
from visrl.evals.scorers.scoring import score_task
from visrl.evaluation.looks_curve import looks_asked
from visrl.runs.lines import episode_from_json, episode_to_json

SPEC = TASKS["viscot_gqa"]
GOOD = Look(Step("p", "call", 10, 5), Box(0, 0, 9, 9), (0, 0, 9, 9))
BAD = Look(Step("p", "call"), fault="not_json")
WORSE = Look(Step("p", "call"), fault="outside")
CONTROL = Look(None, Box(0, 0, 9, 9), (0, 0, 9, 9))


def sample(number):
    return CoTSample(str(number), SPEC.name, "qa", "What?", answers=("cat",), cluster=f"p{number}")


def episode(number, looks, said="cat", ended="answer", **more):
    return Episode(str(number), SPEC.name, answer_step=Step("", said), looks=tuple(looks), ended=ended, **more)


def numbers(episodes):
    samples = [sample(e.sample_id) for e in episodes]
    found = score_task(SPEC, samples, {e.sample_id: e for e in episodes}, make_judge("exact"))
    return {what.metric: what for what in found.metrics}


def test_looks_faulty_calls_and_the_score_by_looks():
    found = numbers(
        [
            episode(1, []),  # right, no look
            episode(2, [GOOD], "dog"),  # wrong, 1
            episode(3, [GOOD, BAD]),  # right, 1 of 2 calls
            episode(4, [GOOD, WORSE, GOOD], ended="looks"),  # right, 2 of 3
            episode(5, [GOOD, GOOD], "call", ended="call"),  # wrong, 2, and a call over the limit
        ]
    )
    # looks: (0 + 1 + 1 + 2 + 2) / 5; calls: 0 + 1 + 2 + 3 + 3 = 9, of which not_json, outside and the last: 3
    assert (found["looks"].value, found["looks"].unit, found["looks"].n) == (1.2, "looks", 5)
    assert found["looks"].notes == ("answer 3, call 1, looks 1",) and not found["looks"].higher_is_better
    assert found["faulty_calls"].value == pytest.approx(100 * 3 / 9) and found["faulty_calls"].unit == "percent"
    assert found["faulty_calls"].notes == ("not_json 1, outside 1, over_the_limit 1",)
    by = {name: (what.value, what.n, what.n_missing) for name, what in found.items() if "/looks=" in name}
    assert by == {"answer/looks=0": (1.0, 1, 0), "answer/looks=1": (0.5, 2, 0), "answer/looks=2": (0.5, 2, 0)}
    assert found["answer"].value == 0.6 and found["answer/looks=1"].judge == found["answer"].judge == "exact"


def test_a_controls_looks_are_no_calls_and_failures_are_counted():
    found = numbers([episode(1, [CONTROL]), episode(2, [CONTROL, BAD]), Episode("3", SPEC.name, error="down")])
    assert found["looks"].value == 1.0 and found["looks"].n_unscored == 1
    assert found["looks"].unscored_reasons == {"down": 1}
    assert found["faulty_calls"].value == 100.0  # the one call that a model made
    assert "faulty_calls" not in numbers([episode(1, [CONTROL])])


def test_where_the_first_metric_is_a_total_the_one_of_all_samples_stands_for_it():
    """MME's points are of pictures in a subtask each: its share of right answers, in percent, is by looks. Two pictures of two
    subtasks, two questions each, all answered yes: the second of each is wrong."""
    spec = TASKS["mme"]
    samples = [
        CoTSample(f"{group}{n}", "mme", "qa", "Is it?", answers=(right,), cluster=group, group=group)
        for group in ("existence", "count")
        for n, right in enumerate(("yes", "no"))
    ]
    looked = {"existence0": [GOOD], "existence1": [GOOD], "count0": [GOOD], "count1": []}
    episodes = {i: Episode(i, "mme", answer_step=Step("", "yes"), looks=tuple(of), ended="answer") for i, of in looked.items()}  # fmt: skip
    found = [what for what in score_task(spec, samples, episodes, None).metrics if "/looks=" in what.metric]
    assert [(what.metric, what.unit, what.n) for what in found] == [
        ("accuracy_careful/looks=0", "percent", 1),
        ("accuracy_careful/looks=1", "percent", 3),
    ]
    assert [what.value for what in found] == [0.0, pytest.approx(100 * 2 / 3)]


def test_the_papers_protocols_have_none_of_it():
    plain = Episode("1", SPEC.name, answer_step=Step("", "cat"), looked_at=(0, 0, 9, 9))
    assert set(numbers([plain])) == {"answer"}


def test_episodes_come_back_from_their_lines():
    whole = episode(1, [GOOD, BAD, CONTROL], ended="looks", size=(400, 200), looked_at=(0, 0, 9, 9))
    line = json.loads(json.dumps(episode_to_json(whole)))
    assert episode_from_json(line) == whole
    assert line["looks"][1] == {"step": {"prompt": "p", "output": "call"}, "fault": "not_json"}
    one = Episode("1", "t", Step("p", "o"), Box(1, 2, 3, 4), (1, 2, 3, 4), Step("q", "a"))
    assert episode_to_json(one) == {  # as ever: nothing of this in it
        "task": "t", "sample_id": "1", "box": [1, 2, 3, 4], "looked_at": [1, 2, 3, 4],
        "box_step": {"prompt": "p", "output": "o"}, "answer_step": {"prompt": "q", "output": "a"},
    }  # fmt: skip
    with pytest.raises(ValueError, match="ended"):
        episode_from_json({**line, "ended": "never"})
    with pytest.raises(ValueError, match="looked_at"):
        episode_from_json({**line, "looks": [{"looked_at": [1, 2]}]})
    assert replace(whole, looks=()).looks == ()


def test_limits_are_a_number_or_a_range():
    assert looks_asked("2") == (2,) and looks_asked("0..3") == (0, 1, 2, 3)
    for wrong in ("", "x", "3..1", "-1", "0..99", "1..", "1...2"):
        with pytest.raises(UsageError, match="--max-looks"):
            looks_asked(wrong)


def test_the_curve_in_one_command(tmp_path, capsys, monkeypatch):
    """A model that always calls: with no look allowed its call is the answer; with any it never answers. All wrong, every time."""
    monkeypatch.chdir(tmp_path)
    turn = '<tool_call>{"name":"image_zoom_in_tool","arguments":{"bbox_2d":[0.1,0.1,0.5,0.5]}}</tool_call>'
    command = ["--model", f"constant:{turn}", "--tasks", "world_viscot_doc", "--protocol", "zoom", "--limit", "4", "-q"]
    assert main([*command, "--max-looks", "0..2", "-o", "curve", "--model-args", "box_format=wh_norm_3dp"]) == 0
    said = capsys.readouterr()
    assert (
        "world_viscot_doc answer" in said.out
        and "Score by looks allowed" in said.out
        and "figure: curve/looks.svg" in said.err
    )
    assert (tmp_path / "curve" / "looks.svg").read_text().startswith("<?xml")
    rows = json.loads((tmp_path / "curve" / "looks.json").read_text())
    # without pictures nothing is cut out: size is known from the documents, so every look but the last is carried out
    looked = {row["max_looks"]: row["value"] for row in rows if row["metric"] == "looks"}
    assert looked == {0: 0.0, 1: 1.0, 2: 2.0}
    faulty = {row["max_looks"]: row["value"] for row in rows if row["metric"] == "faulty_calls"}
    assert faulty == {
        0: 100.0,
        1: 50.0,
        2: pytest.approx(100 / 3),
    }  # the call in the place of the answer, of 1, 2 and 3
    record = read_records(tmp_path / "curve" / "looks-2")[0]
    assert record.protocol == "zoom/v1" and record.crop == "tight"
    assert {k: record.sampling[k] for k in ("max_looks", "max_new_tokens", "max_pictures")} == {
        "max_looks": 2, "max_new_tokens": 16384, "max_pictures": 12,
    }  # fmt: skip


def test_a_record_names_the_file_of_its_protocol(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text('name: mine\ntexts: {question: "{question}", crop: "{picture}"}\n')
    command = [
        "--model",
        "constant:<answer>no</answer>",
        "--tasks",
        "world_viscot_doc",
        "--limit",
        "2",
        "-q",
        "-o",
        "run",
    ]
    assert main([*command, "--protocol", "mine.yaml"]) == 0
    record = read_records(tmp_path / "run")[0]
    assert record.protocol == f"mine/v1@{record.sampling['protocol_sha256'][:12]}"
    (tmp_path / "mine.yaml").write_text('name: mine\ntexts: {question: "{question}!", crop: "{picture}"}\n')
    assert main([*command, "--protocol", "mine.yaml"]) == 2  # another file: another run
    assert "protocol" in capsys.readouterr().err


def test_more_looks_than_the_protocol_has_is_wrong_use(capsys):
    command = ["--model", "constant:x", "--tasks", "world_viscot_doc", "--limit", "1", "-q"]
    assert main([*command, "--protocol", "visrl_train", "--max-looks", "2"]) == 2
    assert "looks once" in capsys.readouterr().err
