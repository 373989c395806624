"""Phases in one process: what the reference is, what is guarded, what is left on disk."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import build, save
from train_made import FAMILIES, preference, tiny
from transformers import TrainingArguments

from visrl.core.boxes import Box
from visrl.errors import UsageError
from visrl.policies.registry import load_policy
from visrl.train.common.models import lora_target, require_something_to_train, trainable
from visrl.train.common.phase_folder import only_warms_up
from visrl.train.common.vision_cache import FeatureStore
from visrl.train.config.recipe import DataSection, LoraSection, ModelSection
from visrl.train.data.candidates import Candidate
from visrl.train.data.questions import QuestionSection, load_questions
from visrl.train.dpo.stages import DPORecipe, run_stage

FAST = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_train_epochs": 2, "logging_steps": 1,
    "learning_rate": 2e-3, "save_steps": 100,
}  # fmt: skip


def recipe(folder: Path, **more) -> DPORecipe:
    model = ModelSection(path=str(folder / "model"), dtype="float32", box_format="paper")
    return DPORecipe(kind="dpo", model=model, data=DataSection(), output=folder / "out", trainer=FAST, **more)


PAIRS = [preference(i) for i in range(4)]


def logs(trainable, stage_folder, term):
    """The reference table a phase stored, [N, 2]."""
    return load_file(stage_folder / "reference.safetensors")[term]


def box_log_probabilities(t):
    """[N, 2] of a model, by the plain path, one pair at a time."""
    from visrl.train.common.logprobs import BranchScorer
    from visrl.train.dpo.collator import PairCollator

    collator = PairCollator(PAIRS, t.encoder, ("box",), shared=False)
    rows = []
    for i in range(len(PAIRS)):
        with torch.no_grad():
            scores = BranchScorer(t.model, t.base, t.family, collator([{"row": i}])["box"])()
        rows.append(scores.log_probs.sum(1))
    return torch.stack(rows)


@pytest.mark.parametrize("lora", [None, LoraSection()])
def test_the_reference_of_stage_two_is_the_end_of_stage_one_not_the_weights_on_disk(tmp_path, lora):
    save("llava", tmp_path / "model")
    from visrl.train.common.models import load_trainable

    asked = recipe(tmp_path, lora=lora)
    t = load_trainable(asked.model, lora, asked.seed)  # from_pretrained: TRL would reload this path as its reference
    on_disk = box_log_probabilities(t)
    first = run_stage(asked, 1, t, PAIRS)
    after_stage_one = box_log_probabilities(t)
    second = run_stage(asked, 2, t, PAIRS)
    stored = [logs(t, tmp_path / f"out/stage{stage}", "box") for stage in (1, 2)]
    assert (after_stage_one - on_disk).abs().max() > 0.1  # stage 1 moved the policy, or this test shows nothing
    assert torch.allclose(stored[0], on_disk, atol=1e-3)
    assert torch.allclose(stored[1], after_stage_one, atol=1e-3)
    for trainer in (first, second):
        start = next(row for row in trainer.state.log_history if "box/loss" in row)
        assert start["box/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert "ref_model" not in vars(second) or second.ref_model is None


def test_stage_two_loaded_from_disk_starts_where_stage_one_ended(tmp_path):
    """The same command after stage 1: its weights come from stage1/final, not from the recipe's model."""
    from visrl.train.dpo import stages

    save("llava", tmp_path / "model")
    asked = recipe(tmp_path)
    from visrl.train.common.models import load_trainable

    t = load_trainable(asked.model, None, asked.seed)
    run_stage(asked, 1, t, PAIRS)
    weights = {k: v.clone() for k, v in t.base.state_dict().items()}
    found = load_trainable(
        stages._starting_point(asked, tmp_path / "out/stage1/final"), None, asked.seed
    ).base.state_dict()
    assert all(torch.equal(found[k], weights[k]) for k in weights)


def test_a_reference_of_other_weights_is_noticed_at_the_first_step(tmp_path, monkeypatch):
    from visrl.train.dpo import trainer as dpo

    wrong = {"box": torch.tensor([[-100.0, -300.0]] * 4)}
    monkeypatch.setattr(dpo, "compute_reference", lambda *a, **k: wrong)
    with pytest.raises(UsageError, match=r"the first box loss is .*, not ln 2"):
        run_stage(recipe(tmp_path), 1, tiny("llava"), PAIRS)


def test_a_stored_reference_of_other_weights_is_not_read_again(tmp_path):
    """Weights None: a phase that goes on, whose model has moved since."""
    from visrl.train.dpo.reference_logprobs import read_reference, write_reference

    table = {"box": torch.zeros(4, 2)}
    write_reference(tmp_path, table, "these pairs", "these weights")
    for data, weights, found in (
        ("these pairs", "these weights", True), ("these pairs", None, True),
        ("these pairs", "others", False), ("others", "these weights", False), ("others", None, False),
    ):  # fmt: skip
        assert (read_reference(tmp_path, data, weights) is not None) == found


def test_a_loss_that_is_not_finite_names_the_sample(tmp_path, monkeypatch):
    from visrl.train.dpo import trainer as dpo

    real = dpo.compute_reference

    def one_broken(*args, **kwargs):
        table = real(*args, **kwargs)
        table["box"][2, 0] = float("nan")
        return table

    monkeypatch.setattr(dpo, "compute_reference", one_broken)
    with pytest.raises(UsageError, match="box loss is nan: samples s2\n") as caught:
        run_stage(recipe(tmp_path), 1, tiny("llava"), PAIRS)
    assert "s1" not in caught.value.message


def test_a_pair_without_answers_cannot_train_stage_two(tmp_path):
    bare = dataclasses.replace(PAIRS[0], chosen=Candidate(Box(1.0, 1.0, 9.0, 9.0)))
    with pytest.raises(UsageError, match="pair s0 has no answers"):
        run_stage(recipe(tmp_path), 2, tiny("llava"), [bare])


def test_a_losing_chain_may_have_answered_nothing(tmp_path, capsys):
    """Its completion is the end token alone; the loss is finite, and the run says how many there are."""
    silent = dataclasses.replace(PAIRS[0], rejected=dataclasses.replace(PAIRS[0].rejected, answer=""))
    trainer = run_stage(recipe(tmp_path), 2, tiny("llava"), [silent, *PAIRS[1:]])
    assert f"1 of {len(PAIRS)} losing chains answered nothing" in capsys.readouterr().err
    assert all(math.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)


def test_a_folder_made_by_another_recipe_is_not_mixed_with_this_one(tmp_path):
    from visrl.train.common.phase_folder import claim

    claim(tmp_path, {"seed": 3}, "rows")  # nothing came of it: a recipe put right takes the folder
    claim(tmp_path, {"seed": 1, "trainer": {"learning_rate": 1e-5}}, "rows")
    (tmp_path / "checkpoint-1").mkdir()
    claim(tmp_path, {"seed": 1, "trainer": {"learning_rate": 1e-5}}, "rows")
    with pytest.raises(UsageError, match="was made with seed = 1, not 2"):
        claim(tmp_path, {"seed": 2, "trainer": {"learning_rate": 1e-5}}, "rows")
    with pytest.raises(UsageError, match="made with different rows than the data now has"):
        claim(tmp_path, {"seed": 1, "trainer": {"learning_rate": 1e-5}}, "other rows")


def test_weights_that_were_replaced_in_their_place_are_other_weights(tmp_path):
    """A run that goes on from its checkpoint would be half of one base and half of another."""
    from visrl.train.common.models import starting_weights
    from visrl.train.common.phase_folder import claim

    section = ModelSection(path=str(tmp_path / "base"))
    (tmp_path / "base").mkdir()
    before = starting_weights(section)
    assert before is None  # nothing there
    (tmp_path / "base/model.safetensors").write_bytes(b"one")
    one = starting_weights(section)
    folder = tmp_path / "out"
    folder.mkdir()
    claim(folder, {"model": {"path": "base"}}, "rows", one)
    (folder / "checkpoint-1").mkdir()
    claim(folder, {"model": {"path": "base"}}, "rows", one)
    claim(folder, {"model": {"path": "base"}}, "rows", None)  # a base that was deleted since
    (tmp_path / "base/model.safetensors").write_bytes(b"other")
    other = starting_weights(section)
    assert other != one
    with pytest.raises(UsageError, match="out was made from other weights than base now has"):
        claim(folder, {"model": {"path": "base"}}, "rows", other)


def test_a_finished_phase_whose_claim_a_killed_loop_took_away_gets_it_again(tmp_path):
    """Taken away before a loop goes on (it names places), and not asked for again where the phase had ended: its file was gone."""
    from visrl.train.common.phase_folder import check_or_renew, claim

    asked = {"seed": 1}
    check_or_renew(tmp_path, asked, "rows")  # nothing ended here: nothing is written
    assert not list(tmp_path.iterdir())
    claim(tmp_path, asked, "rows")
    said = (tmp_path / "settings.json").read_bytes()
    (tmp_path / "final").mkdir()
    (tmp_path / "final/phase.json").write_text("{}")
    (tmp_path / "settings.json").unlink()
    check_or_renew(tmp_path, asked, "rows")
    assert (tmp_path / "settings.json").read_bytes() == said
    with pytest.raises(UsageError, match="was made with seed = 1, not 2"):
        check_or_renew(tmp_path, {"seed": 2}, "rows")


def test_training_that_goes_on_over_a_finished_stage_writes_its_settings_again(tmp_path):
    from visrl.train.dpo import stages

    save("llava", tmp_path / "model")
    asked = recipe(tmp_path)
    stages._stages(asked, PAIRS)
    files = [tmp_path / f"out/stage{stage}/settings.json" for stage in asked.step.stages]
    said = [file.read_bytes() for file in files]
    for file in files:
        file.unlink()
    stages._stages(asked, PAIRS)
    assert [file.read_bytes() for file in files] == said


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_trains_the_language_model_and_nothing_else(name):
    model, processor = build(name)
    target = re.compile(lora_target(model))
    assert not any(target.fullmatch(n) for n, _ in model.named_modules() if "vision" in n or "visual" in n)
    t = trainable(model, processor, ModelSection(path="", dtype="float32"), LoraSection(), seed=0)
    trained = [n for n, p in t.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in n and "vision" not in n and "visual" not in n and "projector" not in n for n in trained)
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in trained} >= {"q_proj", "v_proj"}


def test_a_continued_adapter_is_trainable_and_leaves_no_second_adapter(tmp_path):
    from visrl.train.common.models import load_trainable

    save("llava", tmp_path / "model")
    asked = recipe(tmp_path, lora=LoraSection(), seed=0)
    run_stage(asked, 1, load_trainable(asked.model, asked.lora, asked.seed), PAIRS)
    final = tmp_path / "out/stage1/final"
    again = load_trainable(asked.model.model_copy(update={"adapter": str(final)}), None, asked.seed)
    before = {n: p.clone() for n, p in again.model.named_parameters() if p.requires_grad}
    assert before
    run_stage(asked.model_copy(update={"output": tmp_path / "two"}), 1, again, PAIRS)
    assert any(not torch.equal(p, before[n]) for n, p in again.model.named_parameters() if n in before)
    files = {
        str(path.relative_to(tmp_path / "two/stage1/final")) for path in (tmp_path / "two/stage1/final").rglob("*")
    }
    assert "adapter_model.safetensors" in files
    assert not any(name.startswith("ref") for name in files)


def test_a_model_that_trains_nothing_is_refused():
    model, _ = build("llava")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UsageError, match="no parameter of this model is trainable"):
        require_something_to_train(model)


def test_training_gives_the_model_its_own_forward_back(tmp_path):
    """A copy of a model whose forward TRL has patched would compute with the original's weights."""
    import copy

    t = tiny("llava")
    run_stage(recipe(tmp_path), 1, t, PAIRS)
    twin = copy.deepcopy(t.base)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    ids = torch.tensor([[5, 6, 7]])
    assert twin(input_ids=ids).logits.abs().max() == 0
    assert t.base(input_ids=ids).logits.abs().max() > 0


def test_a_finished_phase_leaves_weights_history_and_curves(tmp_path):
    run_stage(recipe(tmp_path), 1, tiny("llava"), PAIRS)
    folder = tmp_path / "out/stage1"
    assert {"final", "history.json", "curves.png", "reference.safetensors"} <= {p.name for p in folder.iterdir()}
    assert (folder / "final/phase.json").is_file()
    assert not list((folder / "final").rglob("*.bin"))  # no pickle in what is handed on
    assert not (folder / ".staging").exists() or not any((folder / ".staging").iterdir())


def test_features_have_the_same_bits_in_any_company():
    """A resumed phase reads its reference from disk and meets the pictures in other batches than the reference pass did: with
    features that depend on the batch its weights ended 1e-7 away (found by tests/studies/loop_kills.py).
    """
    policy = load_policy("base", {"dtype": "float32"})
    samples = load_questions(QuestionSection(format="world", split="val", limit=16))
    seen = [policy.family.encode_image(sample.picture.open()) for sample in samples]
    together = FeatureStore(1 << 30).features(policy.family, policy.model, seen)
    for picture in seen:
        (alone,) = FeatureStore(0).features(policy.family, policy.model, [picture]).values()
        assert all(torch.equal(value, together[picture.digest][name]) for name, value in alone.items())


def test_features_do_not_depend_on_the_mode_of_the_model():
    """The reference pass meets pictures in evaluation mode, a phase that goes on with a stored reference in training mode: dropout in
    the tower (here 0.5 on what it hands over) must not reach the features, and the modes must come back as they were.
    """
    policy = load_policy("base", {"dtype": "float32"})
    model, family = policy.model, policy.family
    (sample,) = load_questions(QuestionSection(format="world", split="val", limit=1))
    seen = [family.encode_image(sample.picture.open())]
    dropout = torch.nn.Dropout(0.5)
    model.model.multi_modal_projector.register_module("noise", dropout)
    model.model.multi_modal_projector.register_forward_hook(lambda module, inputs, output: dropout(output))
    (calm,) = FeatureStore(0).features(family, model.eval(), seen).values()
    model.train()
    model.lm_head.eval()  # a module with a mode of its own
    (training,) = FeatureStore(0).features(family, model, seen).values()
    assert all(torch.equal(value, training[name]) for name, value in calm.items())
    assert model.training and dropout.training and not model.lm_head.training


@pytest.mark.parametrize(
    ("steps", "warmup", "nothing"), [(1, 0, False), (1, 1, True), (1, 0.1, True), (2, 2, False), (20, 0.1, False)]
)
def test_a_phase_that_is_warm_up_alone(steps, warmup, nothing, tmp_path):
    """A warm-up of w steps has rates 0, 1/w, …: of one step it is 0; a tenth of one step is rounded up to it. Of two steps the second is 1/2."""
    args = TrainingArguments(output_dir=str(tmp_path), warmup_steps=warmup, report_to=[])
    assert only_warms_up(args, steps) == nothing
