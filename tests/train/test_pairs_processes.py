"""Pairs on one, two and four processes, with a server that fails at first too: the same bytes."""

import pairs_made as made
import pytest
from processes_made import files, together

from visrl.policies.protocol import Output
from visrl.rollout.retry import RETRIES
from visrl.train.critics.critics import ScoreCritic
from visrl.train.pairs.run import make_pairs, plan_of
from visrl.train.pairs.sampling import PairSampler

N = 30


LATE = ("q3", "q9", "q17")


class Late(made.FakePolicy):
    """Fails on some questions until they have been asked often enough, by whatever process: in two passes of three."""

    log = None

    def _one(self, request, sampling):
        if self.log and request.key in LATE:
            with (self.log / request.key).open("a") as file:
                file.write("x")
            if (self.log / request.key).stat().st_size <= 2 * (1 + RETRIES):
                return Output(error="503 try later")
        return super()._one(request, sampling)


def make(output, log=None):
    samples = made.questions(N)
    policy, critic = Late("policy", samples), made.FakeCritic("critic", samples)
    policy.log = log
    asked = made.recipe(output, batch_size=4)
    return make_pairs(PairSampler(policy, ScoreCritic(critic), plan_of(asked, policy)), samples, asked)


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_make_the_pairs_of_one(tmp_path, world):
    manifest = make(tmp_path / "one")
    assert manifest["funnel"]["pairs"] > 5
    assert together(world, lambda: make(tmp_path / "many")) == [0] * world
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert together(world, lambda: make(tmp_path / "many")) == [0] * world  # nothing is left to do
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_failed_questions_are_tried_again_and_change_no_pair(tmp_path):
    """The second pass goes over three questions, the third too: all of them one batch, of one process."""
    make(tmp_path / "one")
    assert together(2, lambda: make(tmp_path / "many", tmp_path)) == [0, 0]
    lines = (tmp_path / "many/chains.jsonl").read_text().splitlines()
    assert len(lines) == N + 2 * len(LATE) and sum('"error"' in line for line in lines) == 2 * len(LATE)
    for name in ("pairs.jsonl", "manifest.json", "records/datagen.json"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
