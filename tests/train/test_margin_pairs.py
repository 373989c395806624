"""Pairs with a margin critic: calibrated on other questions, the same whatever the batches and interruptions, in the manifest."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from pairs_made import FakePolicy, question, questions, recipe, seen_in

from visrl.core.boxes import iou
from visrl.core.records import read_records
from visrl.errors import Incomplete, UsageError
from visrl.policies.protocol import LogLikelihood, Tokens
from visrl.train.config.recipe import DataSection
from visrl.train.critics.critics import uncalibrated
from visrl.train.loop.cost import tokens_of
from visrl.train.pairs import calibration, on_ray, run
from visrl.train.pairs.calibration import calibrated, looks_read
from visrl.train.pairs.run import describe, make_pairs, plan_of
from visrl.train.pairs.sampling import PairSampler

N = 40
VAL = [replace(question(i), id=f"v{i}") for i in range(1000, 1060)]
"""What is calibrated on: 60 questions that no pair is made of."""


def yes_or_no(sample):
    return replace(sample, answers=("yes" if int(sample.id[1:]) % 2 else "no",))


class Guesser(FakePolicy):
    """Answers yes or no, by chance."""

    def say(self, request, sample, rng):
        return rng.choice(("yes", "no")) if request.step == "answer" else super().say(request, sample, rng)


class Reader(FakePolicy):
    """The likelier "yes" the more of the true box it sees: log odds 2 IoU - 1, and up to 1 of chance by crop. Given exactly that box
    it knows the answer.
    """

    scores_texts = True
    calls = 0

    def __init__(self, name, samples, faults=0.0):
        super().__init__(name, samples, faults)
        self.read = set()

    def loglikelihood(self, requests, completions):
        self.calls += 1
        self.read |= {request.key for request in requests}
        return [self._read(request, text) for request, text in zip(requests, completions, strict=True)]

    def _read(self, request, text):
        if self.faults:
            return LogLikelihood(error="503")
        sample, crop = self.known[request.key], seen_in(request)
        dice = int(hashlib.sha256(repr((sample.id, crop)).encode()).hexdigest(), 16) % 1000 / 1000
        seen = iou(crop, sample.box)
        odds = 2 * seen - 1 + dice
        if seen == 1.0:
            odds = 1 + dice if sample.answers == ("yes",) else -1 - dice
        return LogLikelihood(-math.log1p(math.exp(odds if text == "no" else -odds)), tokens=Tokens(10))


@pytest.fixture(autouse=True)
def asked_about(monkeypatch):
    monkeypatch.setattr(calibration, "load_questions", lambda section: [yes_or_no(sample) for sample in VAL])


def make(output, target="box", faults=0.0, **more):
    """The manifest and the critic's model, of a whole run."""
    fitting = {"calibration": {"target": target, "data": {"path": "val.jsonl"}}} if target else {}
    asked = recipe(output, critic={"kind": "margin", "model": "fake", **fitting}, **more)
    samples = [yes_or_no(sample) for sample in questions(N)]
    known = samples + [yes_or_no(sample) for sample in VAL]
    policy, reader = Guesser("sft", known), Reader("org", known, faults)
    sampler = PairSampler(policy, uncalibrated(asked.critic, reader), plan_of(asked, policy))
    if target:
        section, before = asked.critic.calibration, calibration.begun(asked.output)
        sampler = calibrated(sampler, section, asked.batch_size, describe(sampler, (), asked), before)
    return make_pairs(sampler, samples, asked), reader


def derived(folder):
    return {
        name: (Path(folder) / name).read_bytes() for name in ("pairs.jsonl", "manifest.json", "records/datagen.json")
    }


APART = {"select": {"min_difference": 0.1}}


def test_the_line_of_no_turns_round_what_a_high_likelihood_of_no_says(tmp_path):
    manifest, _ = make(tmp_path, **APART)
    lines = manifest["request"]["critic"]["calibration"]["lines"]
    # "yes" is likelier the more of the true box is seen, so "no" is likelier the less is: slopes of opposite signs
    assert lines["yes"]["slope"] > 0.5 and lines["no"]["slope"] < -0.5
    # whichever answer is right, a right box then scores higher: the pairs of either kind prefer right boxes
    assert manifest["boxes"]["wp"]["percent"] > 60 > 10 > manifest["boxes"]["wn_lp"]["percent"]


def test_what_was_fitted_is_in_the_manifest_and_in_the_records(tmp_path):
    manifest, _ = make(tmp_path, "answer", **APART)
    fitted = manifest["request"]["critic"]["calibration"]
    assert fitted["target"] == "answer" and fitted["temperature"] > 0 and fitted["data"]["path"] == "val.jsonl"
    assert fitted["lines"]["any"]["looks"] == len(VAL), "of each question the true crop"
    record = read_records(tmp_path / "records")[0]
    assert record.data["calibration"] == fitted and record.model.endswith("· difference 0.1")


def test_how_many_pairs_no_threshold_gave_is_counted(tmp_path):
    with_it, _ = make(tmp_path / "with", **APART)
    without, _ = make(tmp_path / "without")
    counts = with_it["funnel"]
    assert counts["pairs"] - counts["pairs_by_difference"] == without["funnel"]["pairs"] < counts["pairs"]
    assert "pairs_by_difference" not in without["funnel"] and "min_difference" not in without["request"]["select"]
    stages = list(counts["questions"].values())
    assert stages == sorted(stages, reverse=True)
    assert sum(1 for _ in (tmp_path / "with/pairs.jsonl").open()) == counts["pairs"]


def test_the_rows_of_a_difference_are_the_trainer_s(tmp_path):
    from visrl.train.data.rows import PairRow, read_rows

    make(tmp_path, **APART)
    for row in read_rows(tmp_path / "pairs.jsonl", PairRow):
        assert round(row.chosen.scores["box"] - row.rejected.scores["box"], 6) >= 0.1
        assert row.chosen.scores["answer"] == 1.0 and row.rejected.scores["answer"] == 0.0
    assert DataSection(path=tmp_path / "pairs.jsonl").path is not None


@pytest.mark.parametrize("target", ["box", "answer", None])
def test_batches_and_scoring_everything_change_no_pair(tmp_path, target):
    make(tmp_path / "a", target, batch_size=16, **APART)
    make(tmp_path / "b", target, batch_size=7, **APART)
    make(tmp_path / "c", target, exhaustive=True, **APART)
    assert derived(tmp_path / "a") == derived(tmp_path / "b")
    assert (tmp_path / "a/pairs.jsonl").read_bytes() == (tmp_path / "c/pairs.jsonl").read_bytes()


def test_a_run_that_goes_on_takes_what_it_began_with(tmp_path):
    make(tmp_path / "whole", **APART)
    make(tmp_path / "half", **APART)
    lines = (tmp_path / "half/chains.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "half/chains.jsonl").write_text("".join(lines[:16]))
    _, reader = make(tmp_path / "half", **APART)
    assert derived(tmp_path / "half") == derived(tmp_path / "whole")
    assert not any(key.startswith("v") for key in reader.read), "nothing was fitted again"


def test_another_calibration_is_another_request(tmp_path, monkeypatch):
    make(tmp_path, "answer")
    with pytest.raises(UsageError, match="differ"):
        make(tmp_path, "box")
    monkeypatch.setattr(calibration, "load_questions", lambda section: [yes_or_no(sample) for sample in VAL[:50]])
    with pytest.raises(UsageError, match="differ"):
        make(tmp_path, "answer")


def test_a_critic_that_fails_while_it_is_fitted_can_be_asked_again(tmp_path):
    with pytest.raises(Incomplete, match=r"critic\.calibration: v1000: 503"):
        make(tmp_path, faults=1.0)
    make(tmp_path)


def test_what_fitting_took_is_part_of_the_phase_s_cost(tmp_path):
    manifest, _ = make(tmp_path, "answer")
    fitting = manifest["request"]["critic"]["calibration"]["tokens"]
    assert fitting > 0 and tokens_of(tmp_path) == {"drawn": manifest["tokens"]["all"]["computed"] + fitting}


def test_looks_without_a_true_box_teach_nothing(monkeypatch):
    bare = [replace(yes_or_no(sample), box=None) for sample in VAL[:10]]
    known = [yes_or_no(sample) for sample in VAL]
    asked = recipe("unused", critic={"kind": "margin", "model": "fake"})
    policy = Guesser("sft", known)
    sampler = PairSampler(policy, uncalibrated(asked.critic, Reader("org", known)), plan_of(asked, policy))
    for target in ("answer", "box"):
        assert looks_read(sampler, bare, target, 4)[0] == []
    looks, _ = looks_read(sampler, known[:10], "box", 4)
    assert {look.kind for look in looks} == {"yes", "no"} and 0 < sum(look.right for look in looks) < len(looks)


def test_open_questions_left_to_the_likelihood_are_not_fitted_on():
    known = [yes_or_no(sample) for sample in VAL]
    mixed = [*known[:10], *[replace(sample, answers=("A",)) for sample in known[10:20]]]
    fitted = {"kind": "margin", "model": "fake", "open_answers": "likelihood"}
    policy = Guesser("sft", mixed)
    asked = recipe("unused", critic=fitted)
    sampler = PairSampler(policy, uncalibrated(asked.critic, Reader("org", mixed)), plan_of(asked, policy))
    looks, _ = looks_read(sampler, mixed, "answer", 8)
    assert [look.kind for look in looks] == ["no", "yes"] * 5  # the true crops of v1000 … v1009: odd numbers say yes


def test_the_recipe_s_own_loading_fits_and_a_worker_takes_what_another_fitted(tmp_path, monkeypatch):
    known = [yes_or_no(sample) for sample in VAL]
    models = {"policy": Guesser("sft", known), "critic": Reader("org", known)}
    monkeypatch.setattr(run, "load_policy", lambda model, args: models[model])
    critic = {"kind": "margin", "model": "critic", "calibration": {"target": "box", "data": {"path": "val.jsonl"}}}
    asked = recipe(tmp_path, policy={"model": "policy"}, critic=critic)
    sampler = run.load_sampler(asked)
    request = json.loads(json.dumps(describe(sampler, (), asked)))
    calls = models["critic"].calls
    again = run.load_sampler(asked, request)
    assert models["critic"].calls == calls > 0, "taken, not fitted again"
    assert again.critic.calibration == sampler.critic.calibration and describe(again, (), asked) == request


def test_a_critic_of_a_pool_judges_by_what_the_first_worker_fitted(tmp_path, monkeypatch):
    known = [yes_or_no(sample) for sample in VAL]
    models = {"policy": Guesser("sft", known), "critic": Reader("org", known)}
    for module in (run, on_ray):
        monkeypatch.setattr(module, "load_policy", lambda model, args: models[model])
    monkeypatch.setattr(on_ray, "load_questions", lambda section: [])
    critic = {"kind": "margin", "model": "critic", "calibration": {"target": "box", "data": {"path": "val.jsonl"}}}
    asked = recipe(tmp_path, policy={"model": "policy"}, critic=critic)
    request, plan = on_ray._described(asked, None)
    calls = models["critic"].calls
    sampler = on_ray._judging(asked, plan, json.loads(json.dumps(request)))
    assert sampler.critic.calibration.to_json()["lines"] == request["critic"]["calibration"]["lines"]
    assert models["critic"].calls == calls
