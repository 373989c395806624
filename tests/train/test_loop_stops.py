"""A loop that stops early: it says why in the words of its recipe, and what its hint names leads on, in the same folder."""

import pytest
from loop_made import recipe

from visrl.core.records import dump_json, write_atomically
from visrl.errors import Incomplete, UsageError
from visrl.train.loop import run as loop

NONE = {"pairs": 0, "questions": {"asked": 50, "answered": 50, "parsed": 0}, "attempts": {"dropped": {"no box": 200}}}


@pytest.fixture
def too_hot(world, monkeypatch):
    """At a temperature above 0.5 no box can be read."""
    folder, ran = world
    real = loop.generate_pairs

    def pairs(found):
        manifest = real(found)
        if found.sampling.temperature > 0.5:
            manifest = {"funnel": NONE}
            write_atomically(found.output / "pairs.jsonl", "")
            write_atomically(found.output / "manifest.json", dump_json(manifest))
        return manifest

    monkeypatch.setattr(loop, "generate_pairs", pairs)
    return folder, ran


def test_the_hint_leads_on(too_hot):
    folder, ran = too_hot
    once, hot = "iterations=1", "pairs.set.sampling.temperature=0.9"
    for _ in range(2):  # the same command again says the same, and trains nothing again
        with pytest.raises(
            Incomplete, match="iter1/pairs: no question gave a pair: of 50, no attempt had two boxes"
        ) as caught:
            loop.run(recipe(folder, once, hot))
    assert ran.count("sft") == 1 and not any(step.startswith("rl") for step in ran)
    assert "a lower sampling.temperature" in caught.value.hint and "pairs.set.KEY, with redo=true" in caught.value.hint

    cooler = "pairs.set.sampling.temperature=0.2"
    assert loop.status(recipe(folder, once, cooler))[2].startswith("iter1/pairs: redone: ")
    with pytest.raises(UsageError, match="iter1/pairs") as caught:
        loop.run(recipe(folder, once, cooler))
    assert "redo=true" in caught.value.hint
    loop.run(recipe(folder, once, cooler, "redo=true"))
    assert ran.count("sft") == 1 and [step.split()[0] for step in ran[-2:]] == ["rl1", "rl2"]


def test_a_missing_data_folder_is_named_as_the_recipe_names_it(world):
    folder, _ = world
    with pytest.raises(UsageError, match=r"score\.data: nowhere: no such folder"):
        loop.status(recipe(folder, "score.data=nowhere"))
