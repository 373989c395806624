"""Rows have the layouts of the benchmarks they stand for, and answers that are true of the picture."""

from collections import Counter

import pytest

from visrl.evals.benchmarks import GROUPS, TASKS
from visrl.tasks import fingerprint, load
from visrl.world.questions import DOMAINS, documents
from visrl.world.samples import sample_of
from visrl.world.splits import redraw


@pytest.mark.parametrize(
    "name", [*GROUPS["world"], "world_mmbench", *GROUPS["world_heldout"], *GROUPS["world_textured"]]
)
def test_every_task_has_the_samples_it_promises(name):
    samples, spec = list(load(name, None, with_pictures=True)), TASKS[name]
    assert len(samples) == spec.n == len({s.id for s in samples})
    assert spec.small_world and spec.paper is None
    for sample in samples:
        assert sample.task == name
        assert sample.kind == ("rec" if spec.benchmark == "rec" else "qa")
        assert sample.box is not None and not sample.box.is_empty
        assert sample.box.clipped(sample.size) == sample.box, "inside the picture"
    assert samples[0].picture.open().size == samples[0].size
    assert fingerprint(name, None)["origin"] == "drawn"


def test_pope_is_balanced_and_true():
    for variant in ("random", "popular", "adversarial"):
        rows = list(documents(f"pope_{variant}", limit=300))
        assert abs(Counter(row["answer"] for row in rows)["yes"] - 150) <= 3
        for row in rows:
            words = row["question"].removesuffix(" in the image?").split()[-2:]
            there = [t for t in redraw(row["picture"]).things if [t.colour, t.shape] == words]
            assert bool(there) == (row["answer"] == "yes"), row


def test_adversarial_names_are_half_there():
    """Of what is asked for and absent, colour and shape are both in the picture, on different things, wherever the picture affords it."""
    rows = [row for row in documents("pope_adversarial", limit=300) if row["answer"] == "no"]
    near = 0
    for row in rows:
        colour, shape = row["question"].removesuffix(" in the image?").split()[-2:]
        things = redraw(row["picture"]).things
        near += any(t.colour == colour for t in things) and any(t.shape == shape for t in things)
    assert near / len(rows) > 0.85


def test_mme_comes_in_pairs_of_yes_and_no():
    pictures = {}
    for row in documents("mme", limit=300):
        pictures.setdefault((row["group"], row["picture"]), []).append(row["answer"])
    assert set(map(tuple, pictures.values())) == {("yes", "no")}
    assert {group for group, _ in pictures} == {"existence", "count", "position", "color", "OCR"}


def test_mmbench_turns_its_options():
    """Four rotations of four options: the true one stands once under each letter."""
    groups = {}
    for row in documents("mmbench", limit=240):
        groups.setdefault(row["group"], []).append(row)
    assert len(groups) == 60
    for rows in groups.values():
        assert sorted(row["answer"] for row in rows) == list("ABCD")
        assert len({row["options"]["ABCD".index(row["answer"])] for row in rows}) == 1


def test_answers_are_what_is_written_in_the_box():
    for domain in DOMAINS:
        for row in documents(domain, limit=60):
            (thing,) = [t for t in redraw(row["picture"]).things if list(t.box) == row["box"]]
            if domain == "fine":
                sign = row["question"].rstrip("?").split()[-1]
                assert (sign == thing.sign) == (row["answer"] == "yes")
            else:
                assert row["answer"] == thing.sign


def test_instructions_are_asked_for_answers_only():
    yes_no, letter = (sample_of(next(documents(kind))) for kind in ("mme", "mmbench"))
    assert yes_no.instruction == " Please answer yes or no." and "yes or no" not in yes_no.question
    assert letter.instruction.startswith("\nAnswer with the option's letter") and letter.meta["options"].keys() == set(
        "ABCD"
    )
