"""What a phase of a loop cost in model tokens, by hand."""

import json

import pytest

from visrl.policies.protocol import Tokens
from visrl.train.critics.critics import Judged
from visrl.train.grpo.rewards import CountedCritic
from visrl.train.loop.cost import tokens_of


def history(folder, *rows):
    folder.mkdir(parents=True)
    (folder / "history.json").write_text(json.dumps([*rows, {"step": 5, "train_loss": 0.5}]))


def test_pairs_cost_what_their_manifest_counts(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"tokens": {"all": {"computed": 70, "prompt": 90}}}))
    assert tokens_of(tmp_path) == {"drawn": 70}
    (tmp_path / "manifest.json").write_text(json.dumps({"tokens": {"all": None}}))
    assert tokens_of(tmp_path) == {}


def test_a_logged_mean_counts_for_the_steps_since_the_row_before(tmp_path):
    """Rows at steps 1, 4, 5: 10 x 1 + 20 x 3 + 30 x 1 = 100 tokens in two epochs, so 50 in the pass of the reference. Two stages: twice that."""
    rows = [
        {"step": step, "tokens/trained": mean, "epoch": epoch}
        for step, mean, epoch in ((1, 10, 0.4), (4, 20, 1.6), (5, 30, 2.0))
    ]
    history(tmp_path / "stage1", *rows)
    assert tokens_of(tmp_path) == {"trained": 100, "scored": 50}
    history(tmp_path / "stage2", *rows)
    assert tokens_of(tmp_path) == {"trained": 200, "scored": 100}


def test_chains_and_their_critic_are_drawn(tmp_path):
    """Two steps of 6 trained, 5 generated and 2 of the critic: 12 and 14."""
    row = {"step": 2, "tokens/trained": 6, "tokens/generated": 5, "tokens/critic": 2, "epoch": 1.0}
    history(tmp_path / "known", row)
    assert tokens_of(tmp_path / "known") == {"trained": 12, "drawn": 14}
    history(tmp_path / "unknown", {**row, "tokens/critic": None})
    assert tokens_of(tmp_path / "unknown") == {}


class Critic:
    name, needs_pictures = "c", False

    def __init__(self, *judged):
        self.judged = list(judged)

    def boxes(self, questions):
        return self.judged

    answers = boxes


def test_a_critic_is_counted_and_one_that_does_not_say_is_unknown():
    """10 prompt, 4 of them cached, 1 output: 7 computed. A request that failed says nothing and costs nothing."""
    counted = CountedCritic(Critic(Judged(tokens=Tokens(10, 4, 1)), Judged(error="away")))
    assert counted.boxes([]) == counted.critic.judged and counted.tokens == 7
    counted.answers([])
    assert counted.tokens == 14
    silent = CountedCritic(Critic(Judged(tokens=Tokens(10, 4, 1)), Judged()))
    silent.boxes([])
    assert silent.tokens is None


@pytest.mark.parametrize("text", ["[1]", "{"])
def test_a_damaged_history_names_the_file(tmp_path, text):
    from visrl.errors import UsageError

    (tmp_path / "history.json").write_text(text)
    with pytest.raises(UsageError, match=r"history\.json"):
        tokens_of(tmp_path)
