"""Step-level DPO with a term per look: loss and gradients equal a computation by hand, in rows of their own and in joint rows.

By hand: every reply in a row of its own without padding, through the family's plain batch and the model's plain forward.
"""

import math
from dataclasses import replace

import pytest
import torch
from test_train_exact import config, gradients, log_probability, perturb, step
from train_made import picture, tiny

from visrl.core.boxes import Box
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.train.common.prefix_sharing import Layout, block_mask, branch_positions
from visrl.train.data.candidates import Candidate, CandidateLook, Preference
from visrl.train.dpo.collator import PairCollator, has_term
from visrl.train.dpo.losses import Term, stage_terms, weighted_sum
from visrl.train.dpo.stages import DPORecipe, _usable
from visrl.train.dpo.trainer import StepDPOTrainer

KNOBS = {"beta_box": 0.1, "beta_answer": 0.3, "lambda_box": 0.6, "lambda_answer": 0.4}
SIZES = [(40, 30), (30, 44), (36, 36)]


def looks(*boxes):
    return tuple(CandidateLook(None if box is None else Box(*map(float, box))) for box in boxes)


def pair(i, chosen, rejected, protocol="zoom:2"):
    size = SIZES[i % 3]
    sample = CoTSample(f"s{i}", "t", "qa", "what letter is on the red circle ?", picture(i, size), size)
    return Preference(
        sample, protocol, Candidate(answer="A", looks=looks(*chosen)), Candidate(answer="B C", looks=looks(*rejected))
    )


FIRST, SECOND = (2, 3, 24, 25), (6, 8, 16, 15)
WRONG, ELSEWHERE = (5, 1, 28, 9), (12, 18, 22, 24)
PAIRS = [pair(0, (FIRST, SECOND), (WRONG, ELSEWHERE)), pair(1, (FIRST, SECOND), (ELSEWHERE, WRONG))]
UNEVEN = [*PAIRS, pair(2, (FIRST,), (WRONG,)), pair(3, (FIRST, SECOND), (None, WRONG))]


def by_hand(trainable, collator, term):
    """Place -> [log pi of chosen, of rejected], of the pairs that have the term."""
    found = {}
    for i, one in enumerate(collator.pairs):
        if has_term(one, term):
            encoded = collator._encode(one, term)
            both = (encoded.chosen, encoded.rejected)
            found[i] = torch.stack([log_probability(trainable, encoded.prompts[0], ids) for ids in both])
    return found


def expected(trainable, collator, terms, reference):
    """L = (1 / N) sum over pairs and the terms they have of lambda_k * -log sigma(beta_k (ratio of chosen - ratio of rejected))."""
    total = 0.0
    for term in terms:
        for i, both in by_hand(trainable, collator, term.name).items():
            ratio = both - reference[term.name][i]
            total = total - term.weight * torch.log(torch.sigmoid(term.beta * (ratio[0] - ratio[1])))
    return total / len(collator.pairs)


SHORT = """\
name: short
call: {opening: "<c>", closing: "</c>", tool: ""}
coordinates: last
texts: {question: "{question}", crop: "{picture}", last: " yes"}
limits: {looks: 2}
"""


@pytest.fixture
def brief(tmp_path):
    """The pairs under a protocol of few words: a tiny model's tokens are bytes."""
    (tmp_path / "short.yaml").write_text(SHORT)
    return [replace(one, protocol=str(tmp_path / "short.yaml")) for one in UNEVEN]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "paligemma2", "llava_next", "qwen3_vl", "internvl", "mllama"])
def test_a_term_per_look_equals_a_computation_by_hand_in_every_layout(name, brief, tmp_path):
    pairs = brief[:2] if name == "mllama" else brief
    trainable, terms = tiny(name, torch.float64), stage_terms(2, **KNOBS, weights=(1.0, 0.5))
    names = tuple(term.name for term in terms)
    assert [(t.name, t.weight) for t in terms] == [("look1", 0.6), ("look2", 0.3), ("answer", 0.4)]
    collator = PairCollator(pairs, trainable.encoder, names, store=trainable.feature_store(1.0))
    trainer = StepDPOTrainer(trainable, collator, terms, config(tmp_path), tmp_path, title="test")
    trainer._began = True  # policy and reference differ here on purpose
    rows = list(range(len(pairs)))
    layouts = ["plain", "a row per term"] + (["joint"] if trainable.family.keeps_prefix else [])
    tables = []
    for layout in layouts:
        set_layout(collator, layout)
        tables.append(trainer._compute_reference())
    with torch.no_grad():
        reference = {term: by_hand(trainable, collator, term) for term in names}
    for table in tables:
        for term in names:
            for i in rows:
                wanted = reference[term].get(i, torch.zeros(2, dtype=torch.float64))
                assert torch.allclose(table[term][i].double(), wanted, atol=1e-4)  # the table is float32
    collator.references = {
        term: torch.stack([reference[term].get(i, torch.zeros(2, dtype=torch.float64)) for i in rows]) for term in names
    }
    perturb(trainable.model)
    loss = expected(trainable, collator, terms, reference)
    loss.backward()
    wanted = gradients(trainable.model)
    largest = max(g.abs().max() for g in wanted.values())
    assert abs(loss.item() - math.log(2) * 1.3) > 1e-4  # the policy did move
    for layout in layouts:
        set_layout(collator, layout)
        batch = collator([{"row": row} for row in rows])
        assert ("joint" in batch) == (layout == "joint"), layout
        value, metrics, found = step(trainer, rows)
        assert value == pytest.approx(loss.item(), abs=1e-6), layout
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert (found[key] - wanted[key]).abs().max() <= 1e-6 * largest, (layout, key)
        assert {f"{term}/loss" for term in names} <= set(metrics)


def set_layout(collator, layout):
    collator.shared = layout != "plain"
    collator.joint = layout == "joint"


def test_the_loss_of_a_pair_of_two_looks_by_arithmetic():
    """Ratios (chosen, rejected) log pi/pi_ref: look 1 (+2, -1), look 2 (0, +4), answer (+1, 0).

    P_1 = log sigma(.1 * (2 - -1)) = log sigma(.3);  P_2 = log sigma(.1 * (0 - 4)) = log sigma(-.4);  P_R = log sigma(.2 * 1)
    L = .5 * -P_1 + .25 * -P_2 + .5 * -P_R;  -log sigma(x) = log(1 + e^-x)
      = .5 * .554355 + .25 * .913015 + .5 * .598139 = .804501
    """
    from visrl.train.dpo.losses import log_preference

    terms = stage_terms(2, beta_box=0.1, beta_answer=0.2, lambda_box=0.5, lambda_answer=0.5, weights=(1.0, 0.5))
    ratios = {"look1": (2.0, -1.0), "look2": (0.0, 4.0), "answer": (1.0, 0.0)}
    zero = torch.zeros(1)
    losses = {
        t.name: -log_preference(*(torch.tensor([r]) for r in ratios[t.name]), zero, zero, t.beta).mean() for t in terms
    }
    assert weighted_sum(terms, losses).item() == pytest.approx(0.804501, abs=1e-5)
    # a batch none of whose pairs has a second look: .277178 + .299069
    assert weighted_sum(terms, {k: losses[k] for k in ("look1", "answer")}).item() == pytest.approx(0.576247, abs=1e-5)


def test_terms_on_the_last_look_alone_and_one_look_as_ever():
    assert stage_terms(1, **KNOBS, weights=(0.0, 1.0)) == (Term("look2", 1.0, 0.1),)
    assert stage_terms(2, **KNOBS, weights=(0.0, 1.0)) == (Term("look2", 0.6, 0.1), Term("answer", 0.4, 0.3))
    assert stage_terms(2, **KNOBS) == (Term("box", 0.6, 0.1), Term("answer", 0.4, 0.3))


def recipe(**step):
    return DPORecipe.model_validate(
        {"kind": "dpo", "output": "x", "model": {"path": "m"}, "data": {"path": "p"}, "step": step}
    )


def test_the_weights_of_a_recipe_go_on_for_further_looks_and_pairs_without_a_term_are_left_out(capsys):
    kept, terms = _usable(recipe(look_weights=[0, 1]), UNEVEN, 1)
    assert [t.name for t in terms] == ["look2"] and [p.sample.id for p in kept] == ["s0", "s1", "s3"]
    assert "left out: 1 pairs" in capsys.readouterr().err
    three = pair(0, (FIRST, SECOND, SECOND), (WRONG, ELSEWHERE, WRONG), "zoom")
    assert [t.weight for t in _usable(recipe(look_weights=[0.5, 1]), [three], 1)[1]] == [0.5, 1.0, 1.0]
    assert [t.weight for t in _usable(recipe(), [three], 2)[1]] == [0.5, 0.5, 0.5, 0.5]  # as the one box
    with pytest.raises(UsageError, match="no pair has a look of weight above 0"):
        _usable(recipe(look_weights=[0]), [three], 1)
    with pytest.raises(UsageError, match="own_crop"):
        _usable(recipe(context="own_crop"), [three], 2)


def test_the_last_look_of_each_pair_alone_whatever_their_number(capsys):
    """Of 1, 2 and 3 looks the 1st, 2nd and 3rd; a pair with nothing rejected there has its answer alone, and no part in stage 1."""
    two = pair(1, (FIRST, SECOND), (WRONG, None))
    three = pair(2, (FIRST, SECOND, SECOND), (WRONG, ELSEWHERE, WRONG), "zoom")
    one = pair(0, (FIRST,), (WRONG,))
    kept, terms = _usable(recipe(look_weights="last"), [one, three, two], 1)
    assert [(t.name, t.weight) for t in terms] == [("look1", 1.0), ("look2", 1.0), ("look3", 1.0)]
    assert [[t.name for t in terms if has_term(p, t.name)] for p in kept] == [["look1"], ["look3"]]
    assert "left out: 1 pairs" in capsys.readouterr().err
    kept, terms = _usable(recipe(look_weights="last"), [one, three, two], 2)
    assert [[t.name for t in terms if has_term(p, t.name)] for p in kept] == [
        ["look1", "answer"],
        ["look3", "answer"],
        ["answer"],
    ]
    assert [look.box.xyxy for look in three.rejected.looks] == [
        WRONG,
        ELSEWHERE,
        WRONG,
    ]  # the pair on file is what it was


def test_branches_hang_at_their_turns():
    """A chain of 5 tokens behind one of padding, C = 3: branches of 2 columns, at columns 2 and 4 of 0 .. 5."""
    layout, anchors = Layout(6, 3, 2), torch.tensor([[2, 4]])
    mask = block_mask(torch.tensor([[0, 1, 1, 1, 1, 1]]), layout, anchors=anchors)[0, 0].int().tolist()
    assert mask[5] == [0, 1, 1, 1, 1, 1, 0, 0, 0, 0]  # the chain sees itself alone
    assert mask[6:] == [
        [0, 1, 1, 0, 0, 0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 1, 1, 0, 0],
        [0, 1, 1, 1, 1, 0, 0, 0, 1, 0],
        [0, 1, 1, 1, 1, 0, 0, 0, 1, 1],
    ]
    assert branch_positions(torch.tensor([[0, 0, 1, 2, 3, 4]]), layout, anchors).tolist() == [
        [0, 0, 1, 2, 3, 4, 2, 3, 4, 5]
    ]


def test_a_batch_of_one_process_lacks_a_term_that_none_of_its_pairs_has():
    collator = PairCollator(UNEVEN, tiny("llava").encoder, ("look1", "look2", "answer"))
    assert "look2" not in collator([{"row": 2}]) and "look1" not in collator([{"row": 3}])
    both = collator([{"row": 2}, {"row": 3}])
    assert both["look1"]["having"].tolist() == [0] and both["look2"]["having"].tolist() == [1]
    assert both["look1"]["completions"].shape[:2] == (1, 2) and "having" not in both["answer"]
    collator.stand_in = True  # sharded models go forward in step: another pair stands in, and counts for nothing
    alone = collator([{"row": 2}])
    assert alone["look2"]["having"].tolist() == [] and alone["look2"]["completions"].shape[0] == 1


def test_a_stand_in_changes_neither_loss_nor_gradient(brief, tmp_path):
    trainable, terms = tiny("llava", torch.float64), stage_terms(2, **KNOBS, weights=(1.0, 1.0))
    collator = PairCollator(brief, trainable.encoder, tuple(t.name for t in terms))
    trainer = StepDPOTrainer(trainable, collator, terms, config(tmp_path), tmp_path, title="test")
    trainer._began = True
    collator.references = {t.name: torch.full((4, 2), -90.0, dtype=torch.float64) for t in terms}
    found = []
    for collator.stand_in in (False, True):
        collator.joint = False
        found.append(step(trainer, [2]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-9) and "look2/loss" not in found[1][1]
    for key, gradient in found[0][2].items():
        assert torch.allclose(gradient, found[1][2][key], atol=1e-12)


def test_an_unknown_word_for_look_weights_names_the_one_there_is():
    with pytest.raises(ValueError, match="'first': a number for each look, in order, or `last`"):
        recipe(look_weights="first")


def test_mllama_refuses_rows_of_different_numbers_of_pictures(brief):
    collator = PairCollator(brief, tiny("mllama").encoder, ("answer",))
    with pytest.raises(UsageError, match="different numbers of looks in one batch"):
        collator([{"row": 0}, {"row": 2}])
