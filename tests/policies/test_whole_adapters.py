"""LoRA folders as people have them, each applied as it was trained or refused by name."""

import json
import logging
import shutil

import pytest
import torch
from broken import IN_LLAVA, Made, cast, change, cut, drop, fill, in_memory_names, put, renamed, settings
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from visrl.errors import UsageError
from visrl.policies.hf.hashes import weights_hash
from visrl.policies.registry import load_policy
from visrl.train.common.models import load_trainable, starting_weights
from visrl.train.config.recipe import LoraSection, ModelSection


def lora(how):
    return lambda made: change(made.adapter, how)


def lora_config(**values):
    return lambda made: settings(made.lora / "adapter_config.json", **values)


def of_another_model(made: Made) -> None:
    shutil.rmtree(made.lora)
    shutil.copytree(made.other, made.lora)


ADAPTERS = {
    "of another model": (of_another_model, "does not fit|no place"),
    "a tensor is missing": (lora(drop("lora_B")), r"no tensor in its file for .*lora_B"),
    "a tensor too many": (lora(put("base_model.model.model.extra.lora_A.weight", 4, 32)), "no place .*extra.lora_A"),
    "names of another library": (lora(renamed("lora_A", "lora_down")), "no place in this model for .*lora_down"),
    "older names": (lora(renamed("model.language_model.layers", "model.layers")), r"no place .*model\.layers\.0"),
    "another rank than its config": (lora_config(r=8), "does not fit .*size mismatch"),
    "layers that the model has not": (lora(renamed("layers.1.", "layers.7.")), r"no place .*layers\.7"),
    "modules that the model has not": (lora_config(target_modules=["nonsense"]), "does not fit .*nonsense"),
    "no modules named": (lora_config(target_modules=None), "does not fit"),
    "not a LoRA": (lora_config(peft_type="PROMPT_TUNING"), "PROMPT_TUNING, not a LoRA"),
    "a type nobody knows": (lora_config(peft_type="NONSENSE"), "NONSENSE, not a LoRA"),
    "half of its layers": (lora(lambda t: [t.pop(n) for n in list(t) if "layers.1." in n]), r"no tensor .*layers\.1\."),
    "not numbers": (lora(fill("lora_A", float("nan"))), "NaN or infinity in .*lora_A"),
    "whole numbers": (lora(cast("lora_A", torch.int8)), r"no floats in .*lora_A.weight \(torch\.int8\)"),
    "a scale of nothing": (lora_config(lora_alpha=0), "lora_alpha is 0"),
    "a scale that is no number": (lora_config(lora_alpha="16"), "lora_alpha is '16'"),
    "a scale of NaN for a module": (
        lora_config(alpha_pattern={"q_proj": float("nan")}),
        "one of alpha_pattern is no scale",
    ),
    "biases that it says were trained": (lora_config(bias="all"), r"no tensor in its file for .*linear_1\.bias"),
    "magnitudes that it says were trained": (lora_config(use_dora=True), "no tensor in its file for .*magnitude"),
    "a layer that it says was trained": (lora_config(modules_to_save=["lm_head"]), "does not fit .*lm_head"),
    "no rank": (lora_config(r=None), "not a LoRA with a rank"),
    "weights cut off": (lambda made: cut(made.adapter), "cannot be read"),
    "no tensors": (lambda made: save_file({}, made.adapter), "holds no tensors"),
    "no weights": (lambda made: made.adapter.unlink(), r"no adapter_model\.safetensors"),
    "no config": (lambda made: (made.lora / "adapter_config.json").unlink(), "adapter_config.json cannot be read"),
}


@pytest.mark.parametrize("case", ADAPTERS)
@pytest.mark.parametrize("use", ["evaluation", "training"])
def test_an_adapter_that_does_not_fit_is_refused_by_name(case, use, made):
    breaks, message = ADAPTERS[case]
    breaks(made)
    with pytest.raises(UsageError, match=message) as caught:
        if use == "evaluation":
            load_policy(f"hf:{made.base}", {"adapter": str(made.lora)})
        else:
            section = ModelSection(path=str(made.base), adapter=str(made.lora), dtype="float32")
            load_trainable(section, None, seed=0)
    assert caught.value.hint


def test_a_lora_folder_is_its_base_with_the_adapter(made):
    """q' = q + (alpha / r) B A, PEFT's alpha being 8 where none is given: here 8 / 4 = 2."""
    policy = load_policy(f"hf:{made.lora}")
    files, lora = in_memory_names(made.base / "model.safetensors"), load_file(made.adapter)
    a, b = (lora[f"base_model.model.{IN_LLAVA.removesuffix('.weight')}.{part}.weight"] for part in ("lora_A", "lora_B"))
    assert torch.allclose(policy.model.state_dict()[IN_LLAVA], files[IN_LLAVA] + 2 * b @ a, atol=1e-6)
    about = policy.describe()
    assert policy.name == str(made.lora) and about["path"] == str(made.base)
    assert about["adapter"]["tensors"] == len(lora) == 8  # 2 layers, q_proj and down_proj, A and B
    named = load_policy(f"hf:{made.base}", {"adapter": str(made.lora)})
    assert named.describe() == about


def test_training_goes_on_from_a_lora_folder(made):
    found = load_trainable(ModelSection(path=str(made.lora), dtype="float32"), LoraSection(), seed=0)
    trained = {n.replace(".default", ""): p for n, p in found.model.named_parameters() if p.requires_grad}
    assert {n: torch.equal(p, load_file(made.adapter)[n]) for n, p in trained.items()} == dict.fromkeys(trained, True)
    assert len(trained) == 8


@pytest.mark.parametrize(("base", "message"), [(None, "names no base_model"), ("./gone", "no such folder")])
def test_a_lora_folder_without_its_base_is_refused(base, message, made):
    settings(made.lora / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(UsageError, match=message):
        load_policy(f"hf:{made.lora}")


def test_an_adapter_of_an_adapter_is_refused(made):
    settings(made.lora / "adapter_config.json", base_model_name_or_path=str(made.whole))
    with pytest.raises(UsageError, match="which is an adapter itself") as caught:
        load_policy(f"hf:{made.lora}")
    assert f"visrl-train merge {made.whole} --output DIR" in caught.value.hint


KINDS = {  # a LoRA's flags -> how many tensors of the base it changes: q and down of two layers, and what is trained besides
    "rsLoRA": ({"use_rslora": True}, 4),
    "DoRA": ({"use_dora": True, "init_lora_weights": True}, 4),
    "with the head whole": ({"modules_to_save": ["lm_head"]}, 5),
    "with the biases of its modules": ({"bias": "lora_only", "target_modules": r".*vision_tower.*(q|v)_proj"}, 8),
    "with its own biases": ({"lora_bias": True, "target_modules": r".*vision_tower.*(q|v)_proj"}, 8),
    "of embeddings": ({"target_modules": ["embed_tokens"]}, 1),
    "of a convolution": ({"target_modules": ["patch_embedding"]}, 1),
    "of other ranks": ({"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"q_proj": 3}}, 4),
    "from the base's main directions": ({"init_lora_weights": "pissa"}, 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_lora_is_loaded_as_it_was_trained(kind, made):
    flags, changed = KINDS[kind]
    base = AutoModelForImageTextToText.from_pretrained(made.base)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    plain = {"r": 4, "target_modules": r".*language_model.*(q|down)_proj", "init_lora_weights": False}
    trained = get_peft_model(base, LoraConfig(**plain | flags))
    torch.manual_seed(0)
    for weight in trained.parameters():
        if weight.requires_grad:
            weight.data += 0.1 * torch.randn(weight.shape)
    trained.save_pretrained(made.lora)
    if "bias" in flags and not any(name.endswith(".bias") for name in load_file(made.adapter)):  # PEFT 0.19 writes none
        with pytest.raises(UsageError, match=r"no tensor in its file for .*v_proj\.bias"):
            load_policy(f"hf:{made.base}", {"adapter": str(made.lora)})
        return
    wanted = trained.merge_and_unload().state_dict()
    found = load_policy(f"hf:{made.base}", {"adapter": str(made.lora)}).model.state_dict()
    assert (
        all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted) and found.keys() == wanted.keys()
    )
    assert sum(not torch.equal(before[name], found[name]) for name in before) == changed


def test_an_adapter_of_another_base_is_said(made, caplog):
    with caplog.at_level(logging.WARNING, "visrl"):
        load_policy(f"hf:{made.base}", {"adapter": str(made.lora)})
        assert "was trained on" not in caplog.text
        load_policy(f"hf:{made.folder}", {"adapter": str(made.lora)})
    assert f"was trained on {made.base}, and is applied to {made.folder}" in caplog.text


def test_an_adapter_of_a_base_that_was_replaced_in_its_place_is_said(made, caplog):
    """Training writes the base's hash beside the adapter: the name alone says nothing once the folder holds other weights."""
    said = {"weights_sha256": weights_hash(made.base)}
    (made.lora / "phase.json").write_text(json.dumps(said))
    load_policy(f"hf:{made.base}", {"adapter": str(made.lora)})
    assert "was trained on" not in caplog.text
    change(made.base / "model.safetensors", lambda t: [tensor.mul_(1.5) for tensor in t.values()])
    load_policy(f"hf:{made.base}", {"adapter": str(made.lora)})
    assert f"was trained on other weights than {made.base} now holds" in caplog.text


def test_a_phase_begins_from_the_base_of_a_lora_folder_and_its_adapter(made, monkeypatch):
    """Base first, whichever way the two are named; known to the first process alone."""
    base, lora = weights_hash(made.base), weights_hash(made.lora)
    for section in (ModelSection(path=str(made.lora)), ModelSection(path=str(made.base), adapter=str(made.lora))):
        assert starting_weights(section) == f"{base}+{lora}"
    assert starting_weights(ModelSection(path=str(made.base))) == base
    assert starting_weights(ModelSection(path=str(made.base / "gone"))) is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert starting_weights(ModelSection(path=str(made.base))) is None


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ("base_model.model.model.language_model.", "base_model.model.language_model.model."),  # transformers before 5
        ("base_model.model.", ""),  # written without PEFT's wrapping
    ],
)
def test_older_names_are_mapped(now, before, made):
    change(made.adapter, renamed(now, before))
    now = load_policy(f"hf:{made.base}", {"adapter": str(made.whole)}).model.state_dict()
    before = load_policy(f"hf:{made.base}", {"adapter": str(made.lora)}).model.state_dict()
    assert all(torch.equal(now[name], before[name]) for name in now)
