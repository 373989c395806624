"""Pairs from questions without boxes: the same whatever the batches, the faults and the interruptions."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from pairs_made import FakeCritic, FakePolicy, questions, recipe

from visrl.core.boxes import Box
from visrl.core.records import read_records
from visrl.errors import UsageError
from visrl.train.config.recipe import DataSection, load_recipe
from visrl.train.critics.critics import ScoreCritic
from visrl.train.data.load import load_preferences
from visrl.train.data.questions import QuestionSection, load_questions
from visrl.train.data.rows import PairRow, read_rows
from visrl.train.pairs import command
from visrl.train.pairs.run import make_pairs, plan_of
from visrl.train.pairs.sampling import PairSampler, from_json, to_json

N = 60
DERIVED = ("pairs.jsonl", "manifest.json", "records/datagen.json")


def make(output, n=N, faults=0.0, policy=FakePolicy, **more):
    """Manifest, policy and critic of a whole run."""
    asked, samples = recipe(output, **more), questions(n)
    policy, critic = policy("sft", samples, faults), FakeCritic("org", samples, faults)
    sampler = PairSampler(policy, ScoreCritic(critic), plan_of(asked, policy))
    return make_pairs(sampler, samples, asked), policy, critic


def derived(folder):
    return {name: (Path(folder) / name).read_bytes() for name in DERIVED}


def test_pairs_are_rows_of_the_trainer_that_keep_the_thresholds(tmp_path):
    manifest, *_ = make(tmp_path)
    rows = list(read_rows(tmp_path / "pairs.jsonl", PairRow))
    assert len(rows) == manifest["funnel"]["pairs"] > 5
    for row in rows:
        assert row.chosen.scores["answer"] >= 0.8 and row.chosen.scores["box"] >= 0.8
        assert row.rejected.scores["answer"] <= 0.2 and row.rejected.scores["box"] <= 0.2
        assert row.chosen.answer == row.answers[0] != row.rejected.answer
        assert row.chosen.box_text is not None, (
            "a replacement drawn at random is on nobody's tongue; no chosen box of ours is one"
        )
    assert len({row.id for row in rows}) == len(rows)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_batch_size_changes_no_byte(tmp_path, size):
    make(tmp_path / "a", batch_size=16)
    make(tmp_path / "b", batch_size=size)
    assert derived(tmp_path / "a") == derived(tmp_path / "b")


def test_faults_change_no_byte(tmp_path):
    calm, undisturbed, _ = make(tmp_path / "calm")
    _, policy, _ = make(tmp_path / "stormy", faults=0.3)
    assert derived(tmp_path / "calm") == derived(tmp_path / "stormy")
    assert calm["funnel"]["failed"] == {}
    # every request succeeds with probability .7: 1 / .7 = 1.43 tries each
    assert 1.3 < policy.requests / undisturbed.requests < 1.6


def test_what_fails_for_good_is_named_and_stops_nothing(tmp_path):
    class Broken(FakePolicy):
        def say(self, request, sample, rng):
            if request.key == "q3":
                raise RuntimeError("boom")
            return super().say(request, sample, rng)

    manifest, *_ = make(tmp_path / "broken", policy=Broken)
    assert manifest["funnel"]["failed"] == {"RuntimeError: boom": 1}
    assert manifest["funnel"]["questions"]["asked"] == N and manifest["funnel"]["questions"]["answered"] == N - 1
    make(tmp_path / "broken")  # the model was mended: the same command finishes what is missing
    make(tmp_path / "whole")
    assert derived(tmp_path / "broken") == derived(tmp_path / "whole")


def test_a_server_that_is_down_stops_the_run_early(tmp_path):
    with pytest.raises(UsageError, match="first 64 questions all failed"):
        make(tmp_path, n=200, faults=1.0)


def test_another_request_in_the_same_folder_is_refused(tmp_path):
    make(tmp_path, n=10)
    with pytest.raises(UsageError, match="seed differ"):
        make(tmp_path, n=10, seed=1)


def test_a_finished_run_asks_nothing_again(tmp_path):
    make(tmp_path)
    before = derived(tmp_path)
    _, policy, critic = make(tmp_path)
    assert policy.requests == critic.requests == 0
    assert derived(tmp_path) == before


def test_exhaustive_scoring_gives_the_same_pairs_and_costs_more(tmp_path):
    lazy, *_ = make(tmp_path / "lazy")
    full, *_ = make(tmp_path / "full", exhaustive=True)
    assert (tmp_path / "lazy/pairs.jsonl").read_bytes() == (tmp_path / "full/pairs.jsonl").read_bytes()
    assert full["funnel"]["box_scores"]["not_needed"] == 0 < lazy["funnel"]["box_scores"]["not_needed"]
    assert full["tokens"]["all"]["computed"] > lazy["tokens"]["all"]["computed"]


def test_paper_mode_is_lazy_without_loss_too(tmp_path):
    select = {"mode": "paper", "pairs": 3}
    make(tmp_path / "lazy", select=select)
    make(tmp_path / "full", select=select, exhaustive=True)
    assert (tmp_path / "lazy/pairs.jsonl").read_bytes() == (tmp_path / "full/pairs.jsonl").read_bytes()


def test_all_boxes_of_a_question_are_one_request(tmp_path):
    _, policy, _ = make(tmp_path, n=1)
    line = json.loads((tmp_path / "chains.jsonl").read_text())
    answers = len(line["trials"]) + line["repeats"]
    assert policy.requests == 1 + answers and answers <= 6
    # boxes: 100 read + 6 texts of 5; answers: 100 read of which 40 were cached, + 5 each
    assert line["tokens"]["boxes"] == [100, 0, 30]
    assert line["tokens"]["answers"] == [100 * answers, 40 * answers, 5 * answers]


def test_the_funnel_only_narrows(tmp_path):
    manifest, *_ = make(tmp_path)
    stages = list(manifest["funnel"]["questions"].values())
    assert stages == sorted(stages, reverse=True) and stages[0] == N
    counts = manifest["funnel"]["box_scores"]
    assert sum(counts["missing"].values()) > 0, "the fake critic sometimes says nothing: a missing score, not 0"


def test_records_stand_beside_the_poster(tmp_path):
    from visrl.tables.paper_tables import build

    manifest, *_ = make(tmp_path, diversity="none")
    records = {record.metric: record for record in read_records(tmp_path)}
    rows = manifest["boxes"]
    kinds = ("wp_lp", "wp_ln", "wn_lp", "wn_ln")
    assert sum(records[kind].value for kind in kinds) == pytest.approx(100.0, abs=0.001)
    assert rows["wp"]["percent"] == pytest.approx(records["wp_lp"].value + records["wp_ln"].value, abs=0.001)
    table = build("datagen", list(records.values()))
    assert any("diversity none" in row.label for row in table.rows)


def test_a_line_reads_back_as_it_was_written(tmp_path):
    make(tmp_path, n=20)
    known = {sample.id: sample for sample in questions(20)}
    for text in (tmp_path / "chains.jsonl").read_text().splitlines():
        value = json.loads(text)
        del value["crc32"]  # of the line, not of the state
        again = to_json(from_json(value, known[value["id"]]))
        assert {**again, "attempts": None} == {**value, "attempts": None}


def test_ablations_change_what_they_should(tmp_path):
    full, *_ = make(tmp_path / "full", n=200)
    bare, *_ = make(tmp_path / "bare", n=200, select={"box_critic": False})
    free, *_ = make(tmp_path / "free", n=200, diversity="none")
    assert bare["funnel"]["box_scores"]["asked"] == 0 < full["funnel"]["box_scores"]["asked"]
    assert bare["funnel"]["pairs"] > full["funnel"]["pairs"]
    assert bare["boxes"]["wp"]["percent"] < full["boxes"]["wp"]["percent"]
    assert set(free["funnel"]["chains"]["by_source"]) == {"sampled"}
    assert full["funnel"]["chains"]["by_source"]["random"] > 0


def test_resample_prefers_boxes_the_policy_said(tmp_path):
    paper, *_ = make(tmp_path / "paper", n=100)
    own, *_ = make(tmp_path / "own", n=100, diversity="resample")
    drawn = [m["funnel"]["chains"]["by_source"].get("random", 0) for m in (paper, own)]
    assert drawn[1] < drawn[0] / 2 and own["funnel"]["chains"]["by_source"]["spare"] > 0


def test_compat_crops_are_cut_in_the_wrong_frame(tmp_path):
    right, *_ = make(tmp_path / "right", n=200)
    wrong, *_ = make(tmp_path / "wrong", n=200, crop="compat_visrl")
    assert wrong["boxes"]["wp"]["percent"] < right["boxes"]["wp"]["percent"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"select": {"win_box": 0.1}}, "win_box must lie above lose_box: 0.1 and 0.2"),
        ({"select": {"pairs": 2}}, "mode code makes one pair"),
        ({"protocol": "direct"}, "does not look"),
        ({"sampling": {"attempts": 0}}, "greater than or equal to 1"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(tmp_path, more, said):
    with pytest.raises(ValueError, match=said):
        recipe(tmp_path, **more)


def test_recipe_files_are_checked():
    paths = sorted((Path(__file__).parents[2] / "recipes").glob("pairs-*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        resolved = load_recipe(path)
        assert resolved.recipe.kind == "pairs" and resolved.kind is command.KIND


def test_the_trainer_reads_pairs_of_the_small_world(tmp_path):
    samples = load_questions(QuestionSection(format="world", limit=40))
    assert all(sample.box is not None for sample in samples), "for the report; the split itself hides them"
    asked = recipe(tmp_path, data={"format": "world", "limit": 40})
    policy, critic = FakePolicy("sft", samples), FakeCritic("org", samples)
    manifest = make_pairs(PairSampler(policy, ScoreCritic(critic), plan_of(asked, policy)), samples, asked)
    pairs = load_preferences(DataSection(path=tmp_path / "pairs.jsonl"))
    assert len(pairs) == manifest["funnel"]["pairs"] > 0
    for pair in pairs:
        assert pair.sample.picture.open().size == pair.sample.size
    records = read_records(tmp_path)
    assert records and all(record.small_world for record in records)


def test_questions_from_a_file(tmp_path, capsys):
    """Those without a picture are left out before anything is skipped or counted, and said, as SFT does."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    rows = [
        {"id": "gone", "picture": "gone.png", "question": "Who?", "answers": ["me"]},
        {"id": "a", "picture": "a.png", "question": "Who?", "answers": ["me"], "box": [1, 2, 3, 4]},
        {"id": "b", "picture": "b.png", "question": "Where?", "answers": ["here"], "size": [30, 40]},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = load_questions(QuestionSection(path=path, pictures=tmp_path))
    assert "left out: 1 without their picture: 1 of 3 pictures missing under" in capsys.readouterr().err
    assert first.box == Box(1, 2, 3, 4) and first.answers == ("me",) and second.size == (30, 40) and second.box is None
    assert [s.id for s in load_questions(QuestionSection(path=path, pictures=tmp_path, skip=1, limit=5))] == ["b"]
    with pytest.raises(UsageError, match="no questions") as caught:
        load_questions(QuestionSection(path=path, pictures=tmp_path / "elsewhere"))
    assert f"3 of 3 pictures missing under {tmp_path / 'elsewhere'} (first: gone.png)" in caught.value.message
    path.write_text(path.read_text() + json.dumps(rows[1]) + "\n")
    with pytest.raises(UsageError, match="'a' occurs twice"):
        load_questions(QuestionSection(path=path, pictures=tmp_path))


def test_the_command_ends_with_3_where_questions_failed(tmp_path, monkeypatch):
    funnel = {"pairs": 1, "questions": {"asked": 2}, "failed": {"picture: gone": 1}}
    monkeypatch.setattr(command, "generate_pairs", lambda _: {"funnel": funnel})
    assert command.run(recipe(tmp_path)) == 3


class Slow(FakePolicy):
    def generate(self, requests, sampling):
        time.sleep(0.003)
        return super().generate(requests, sampling)


def child(folder, n):
    """A run in a process of its own. A fork starts at once; a new interpreter would spend its life importing."""
    pid = os.fork()
    if pid == 0:
        try:
            make(folder, n, policy=Slow, batch_size=2)
        finally:
            os._exit(0)
    return pid


def test_twenty_kills_change_no_byte(tmp_path):
    folder, dice, n = tmp_path / "killed", random.Random(6), 120
    chains = folder / "chains.jsonl"

    def lines():
        return chains.read_bytes().count(b"\n") if chains.exists() else 0

    for kill in range(20):
        pid, before, give_up = child(folder, n), lines(), time.monotonic() + 20
        while kill % 2 and lines() == before and time.monotonic() < give_up:  # every second one gets a batch further,
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.03))  # the others die wherever they are: opening, reading back, writing
        os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "it had finished before it was killed"
    assert 0 < lines() < n
    make(folder, n, batch_size=2)
    make(tmp_path / "calm", n, batch_size=2)
    assert derived(folder) == derived(tmp_path / "calm")
