"""The training loop: schedule, lessons and loss by hand; the same seed shows the same data."""

import math
from pathlib import Path

import pytest
import torch

import visrl.train.small_model.run as run_module
from visrl.errors import Interrupted, UsageError
from visrl.train.config.recipe import load_recipe
from visrl.train.small_model.pretext_tasks import PRETEXT, ExampleBuilder
from visrl.train.small_model.run import (
    PretextTasks,
    SmallModelRecipe,
    example_losses,
    factor,
    lesson_of,
    optimisers,
    shares_at,
    train,
)
from visrl.world.model import build_model, build_processor, build_tokenizer
from visrl.world.rng import Dice

RECIPES = Path(__file__).parents[2] / "recipes"


def recipe(**changes):
    values = {
        "kind": "small_model",
        "output": "x",
        "split": "pretrain",
        "steps": 100,
        "batch": 4,
        "warmup": 10,
        "workers": 0,
    }
    values |= {"lessons": {"bind": (1.0, 0.0), "look": (0.0, 1.0)}, "watch_every": 0, "log_every": 1, "seed": 3}
    return SmallModelRecipe(**{**values, **changes})


def test_learning_rate_rises_holds_and_falls():
    """Warm-up 1/10 at the first step, 1 until 30 of 100, then (1 + cos) / 2 between 1 and 0.05; half way down at 65."""
    r = recipe(hold=0.3)
    assert factor(0, r) == pytest.approx(0.1)
    assert factor(9, r) == factor(29, r) == 1.0
    assert factor(65, r) == pytest.approx(0.05 + 0.95 * 0.5)
    assert factor(99, r) == pytest.approx(0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 69 / 70)))


def test_shares_move_in_a_straight_line_and_lessons_are_drawn_by_them():
    assert shares_at(recipe(), 25) == {"bind": 0.75, "look": 0.25}
    assert [lesson_of({"bind": 3.0, "look": 1.0}, mark) for mark in (0.0, 0.74, 0.75, 0.999)] == ["bind"] * 2 + [
        "look"
    ] * 2


def test_every_example_weighs_the_same_however_many_targets_it_has():
    """Uniform logits over 4 tokens: every target costs ln 4, so a row with one target and a row with two both cost ln 4."""
    labels = torch.tensor([[-100, 1, -100], [-100, 2, 3]])
    words = torch.zeros(2, 3, dtype=torch.bool)
    assert example_losses(torch.zeros(2, 3, 4), labels, words).tolist() == pytest.approx([math.log(4)] * 2)


def test_words_and_patches_weigh_half_each_where_an_example_has_both():
    """Three targets: two on patches, which cost ln 4 each, and one word that is certain: (ln 4 + 0) / 2."""
    logits = torch.zeros(1, 4, 4)
    logits[0, 2, 3] = 50.0
    on_picture = torch.tensor([[True, True, False, False]])
    loss = example_losses(logits, torch.tensor([[-100, 1, 2, 3]]), on_picture)
    assert float(loss) == pytest.approx(math.log(4) / 2)


def test_the_target_one_place_on_is_scored():
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = 50.0  # after token 0 comes token 2, for certain
    assert float(example_losses(logits, torch.tensor([[-100, 2, -100]]), torch.zeros(1, 3) > 0)) == pytest.approx(
        0.0, abs=1e-6
    )


def test_an_example_without_targets_is_zero_and_moves_nothing():
    """Two rows over 4 words: log 4 and, without a target, 0. The other row's gradient is that of a batch without it, halved:
    softmax less one-hot, (1/4, 1/4 - 1, 1/4, 1/4) / 2."""
    logits = torch.zeros(2, 2, 4, requires_grad=True)
    each = example_losses(logits, torch.tensor([[-100, 1], [-100, -100]]), torch.zeros(2, 2) > 0)
    assert each.tolist() == pytest.approx([math.log(4), 0.0])
    each.mean().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].tolist() == pytest.approx([0.125, -0.375, 0.125, 0.125])
    assert not logits.grad[1].any()


def test_two_pictures_have_batches_of_their_own():
    lessons = PretextTasks(recipe(), ExampleBuilder(build_processor(build_tokenizer()), "pretrain"))
    kinds = [{name for name, _ in lessons[step]} for step in range(0, 100, 9)]
    assert all(len(kind) == 1 for kind in kinds)
    assert {"bind"} in kinds and {"look"} in kinds


def test_same_seed_same_data_and_same_weights():
    torch.set_num_threads(1)
    processor = build_processor(build_tokenizer())
    runs = []
    for seed in (3, 3, 4):
        model = build_model(processor.tokenizer, seed=0)
        log, digest = train(recipe(steps=2, seed=seed, lessons={"bind": (1.0, 1.0)}), model, processor)
        runs.append((log[-1]["loss/bind"], digest, model.lm_head.weight.detach().clone()))
    assert runs[0][:2] == runs[1][:2] and torch.equal(runs[0][2], runs[1][2])
    assert runs[0][1] != runs[2][1]


def test_a_stop_says_that_training_begins_again(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "train", stop)
    with pytest.raises(Interrupted, match="what was finished before is kept; x has no checkpoints and begins again"):
        run_module.run(recipe())


def test_a_damaged_log_of_the_checkpoint_to_start_from_stops_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "train", lambda *_: pytest.fail("trained first"))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training.json").write_text('{"log": [{"loss/caption": NaN}]}')
    with pytest.raises(UsageError, match=r"training\.json: damaged: NaN"):
        run_module.run(recipe(start=str(tmp_path)))


def test_a_printed_line_says_of_how_many_steps_and_keeps_its_order():
    row = {"step": 2, "seconds": 1, "loss/look": 0.5, "loss/bind": 0.25}
    assert (
        run_module._line(recipe(), row) == '{"step": 2, "of": 100, "seconds": 1, "loss/bind": 0.25, "loss/look": 0.5}'
    )


def test_lessons_are_shown_over_the_scenery_asked_for_and_ask_the_same():
    processor = build_processor(build_tokenizer())
    for lesson in ("bind", "caption", "edges", "tell", "describe", "read", "look", "whole", "box"):
        plain, textured = (
            ExampleBuilder(processor, "train", 40, scenery).example(lesson, Dice("s", lesson))
            for scenery in ("plain", "textured")
        )
        assert (plain.ids, plain.labels) == (textured.ids, textured.labels)
        for one, other in zip(plain.views, textured.views, strict=True):
            assert (one != other).any(), lesson
    with pytest.raises(ValueError, match="walls, which are drawn plain, not textured"):
        recipe(lessons={"several": (1.0, 1.0)}, scenery="textured")


def test_hidden_matrices_are_muons_and_all_weights_are_somebodys():
    model = build_model(build_tokenizer(), seed=0)
    muon, adam = (
        {id(p) for group in tool.param_groups for p in group["params"]} for tool in optimisers(model, 1e-3, 0.1)
    )
    assert muon.isdisjoint(adam) and muon | adam == {id(p) for p in model.parameters()}
    assert id(model.get_input_embeddings().weight) in adam
    assert id(model.model.language_model.layers[0].mlp.up_proj.weight) in muon


def test_recipes_are_what_they_say():
    """The base, in both its phases, answers no question with a box; the warm-up sees at most a sixth of what rl has, and boxes alone."""
    from visrl.world.splits import SPLITS

    words, base, sft, tiny, textured = (
        load_recipe(RECIPES / f"world-{n}.yaml", []).recipe for n in ("words", "base", "sft", "tiny", "textured-base")
    )
    assert words.start is None and base.start == str(words.output)
    assert sft.start == tiny.start == textured.start == "base"  # the one that ships: a fresh clone can train them
    assert textured.scenery == "textured" and set(textured.lessons) == set(base.lessons)
    for recipe in (words, base, textured):
        assert recipe.split == "pretrain" and set(recipe.lessons) <= set(PRETEXT)
    assert sft.pictures * 6 <= SPLITS["rl"].pictures and set(sft.lessons) == {"box", "look", "whole"}
    assert sft.split == tiny.split == "train" and tiny.pictures is None
