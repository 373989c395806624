"""Checkpoints, adapters and arguments as people have them, each right or refused by name: no weight is ever left at random."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from visrl.errors import UsageError
from visrl.policies.hf.loading import CheckpointArguments, load_checkpoint
from visrl.policies.registry import load_policy
from visrl.train.common.models import load_trainable
from visrl.train.config.recipe import LoraSection, ModelSection

Q0 = "language_model.model.layers.0.self_attn.q_proj.weight"  # as save_pretrained writes it, after hub's files
IN_LLAVA = "model.language_model.layers.0.self_attn.q_proj.weight"


@dataclass(frozen=True)
class Made:
    """base: a whole llava. adapter: a LoRA of it. folder: a copy to break. lora: a copy of the adapter to break."""

    base: Path
    folder: Path
    lora: Path
    whole: Path
    other: Path

    @property
    def weights(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def adapter(self) -> Path:
        return self.lora / "adapter_model.safetensors"


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    base, other = tiny.save("llava", root / "base"), tiny.save("mllama", root / "other")
    for folder, name in ((base, "lora"), (other, "other_lora")):
        model = AutoModelForImageTextToText.from_pretrained(folder)
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=r".*language_model.*(q|down)_proj", init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(root / name)
    return root


@pytest.fixture
def made(originals, tmp_path):
    for source, name in (("base", "model"), ("lora", "adapter")):
        shutil.copytree(originals / source, tmp_path / name)
    lora = originals / "lora"
    return Made(originals / "base", tmp_path / "model", tmp_path / "adapter", lora, originals / "other_lora")


def change(file: Path, how) -> None:
    """Rewrite a file of tensors: ``how`` changes the dict in place."""
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file, {"format": "pt"})


def settings(file: Path, **values) -> None:
    """Rewrite a JSON file with other values; None removes a key, a dict goes into the section of that name."""
    found = json.loads(file.read_text())
    for key, value in values.items():
        if isinstance(value, dict):
            found[key] |= value
        elif value is None:
            del found[key]
        else:
            found[key] = value
    file.write_text(json.dumps(found))


def weights(how):
    return lambda made: change(made.weights, how)


def config(**values):
    return lambda made: settings(made.folder / "config.json", **values)


def renamed(old: str, new: str):
    """Every tensor with ``old`` in its name gets ``new`` there."""

    def how(tensors):
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return how


def put(name: str, *shape: int):
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


def key_of(tensors: dict, part: str) -> str:
    return next(name for name in sorted(tensors) if part in name)


def drop(part: str):
    return lambda tensors: tensors.pop(key_of(tensors, part))


def reshape(part: str, *shape: int):
    return lambda tensors: tensors.update({key_of(tensors, part): torch.zeros(shape)})


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def to_pickle(made: Made) -> None:
    torch.save(load_file(made.weights), made.folder / "pytorch_model.bin")
    made.weights.unlink()


def sharded_but_one_is_gone(made: Made) -> None:
    model = AutoModelForImageTextToText.from_pretrained(made.base)
    made.weights.unlink()
    model.save_pretrained(made.folder, max_shard_size="100KB")
    sorted(made.folder.glob("model-*.safetensors"))[1].unlink()


def both_weights_and_adapter(made: Made) -> None:
    for file in made.whole.iterdir():
        shutil.copy(file, made.folder)


CHECKPOINTS = {
    "a tensor is missing": (weights(drop(Q0)), rf"missing in its files: {IN_LLAVA}"),
    "the output head is missing": (weights(drop("lm_head")), "missing in its files: lm_head.weight"),
    "the projector is missing": (weights(drop("projector.linear_1.bias")), "projector.linear_1.bias"),
    "a layer is missing": (
        weights(lambda t: [t.pop(n) for n in list(t) if "vision_tower" in n and ".layers.1." in n]),
        r"missing in its files: .*, … \(16 in all\)",
    ),
    "a tensor too many": (weights(put("model.extra.weight", 2)), "no place in the model: .*extra.weight"),
    "a head for rewards": (weights(put("v_head.summary.weight", 1, 32)), "no place in the model: .*v_head"),
    "a tensor of another shape": (weights(reshape(Q0, 16, 32)), r"q_proj.weight \(file \[16, 32\], model \[32, 32\]\)"),
    "a vocabulary of another size": (
        weights(reshape("embed_tokens", 7, 32)),
        r"of another shape: .*embed_tokens.weight \(file \[7, 32\]",
    ),
    "tensors under other names": (weights(renamed("language_model", "speech_model")), "missing in its files"),
    "config of one layer more": (config(text_config={"num_hidden_layers": 3}), r"missing in its files: .*layers\.2\."),
    "config of one layer less": (config(text_config={"num_hidden_layers": 1}), r"no place in the model: .*layers\.1\."),
    "config of another width": (config(text_config={"intermediate_size": 96}), "of another shape"),
    "config of a width that no head divides": (config(text_config={"num_attention_heads": 5}), "cannot load"),
    "an unknown type": (config(model_type="nonsense"), "no family adapter for model type 'nonsense'"),
    "an unknown type of a known family": (config(model_type="nonsense", visrl_family="llava"), "cannot load"),
    "a text model of a known family": (config(model_type="llama", visrl_family="llava"), "cannot load"),
    "a family that is not installed": (
        config(visrl_family="nonsense"),
        "no family adapter for visrl_family 'nonsense'",
    ),
    "config without a type": (config(model_type=None), "no config.json with a model_type"),
    "config that is not JSON": (lambda made: (made.folder / "config.json").write_text("{"), "cannot load"),
    "weights cut off": (lambda made: cut(made.weights), "cannot load .*model"),
    "weights that are text": (lambda made: made.weights.write_text("version https://git-lfs"), "cannot load"),
    "no weights": (lambda made: made.weights.unlink(), "cannot load"),
    "pickles only": (to_pickle, "cannot load"),
    "a shard is gone": (sharded_but_one_is_gone, "cannot load"),
    "an empty folder": (lambda made: [f.unlink() for f in made.folder.iterdir()], "cannot load"),
    "no processor": (lambda made: (made.folder / "processor_config.json").unlink(), "processor"),
    "weights and an adapter in one folder": (both_weights_and_adapter, "both whole weights and adapter_config.json"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.parametrize("use", ["evaluation", "training"])
def test_a_checkpoint_that_is_not_whole_is_refused_by_name(case, use, made):
    breaks, message = CHECKPOINTS[case]
    breaks(made)
    with pytest.raises(UsageError, match=message) as caught:
        if use == "evaluation":
            load_policy(f"hf:{made.folder}")
        else:
            load_trainable(ModelSection(path=str(made.folder), dtype="float32"), None, seed=0)
    assert caught.value.hint


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
    "no rank": (lora_config(r=None), "not a LoRA with a rank"),
    "weights cut off": (lambda made: cut(made.adapter), "cannot be read"),
    "no tensors": (lambda made: save_file({}, made.adapter), "holds no tensors"),
    "no weights": (lambda made: made.adapter.unlink(), r"no adapter_model\.safetensors"),
    "a config nested deep": (
        lambda made: (made.lora / "adapter_config.json").write_text("[" * 100_000),
        "adapter_config.json cannot be read: nested too deep",
    ),
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


ARGUMENTS = {
    "a GPU that is not there": ({"device": "cuda:63"}, "device=cuda:63: torch .* finds"),
    "a map to a GPU that is not there": ({"device_map": "cuda:63"}, "device=cuda:63"),
    "no device": ({"device": "gpu"}, "device=gpu"),
    "a processor that is not there": ({"processor": "./nowhere"}, r"cannot load \./nowhere"),
    "an adapter that is not there": ({"adapter": "./nowhere"}, r"no adapter_model\.safetensors in \./nowhere"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_an_argument_that_cannot_be_followed_is_refused(case, made):
    arguments, message = ARGUMENTS[case]
    with pytest.raises(UsageError, match=message):
        load_policy(f"hf:{made.base}", arguments)


def in_memory_names(file: Path) -> dict:
    """Tensors of a llava's file by the names that they have in the model: transformers 5 moved them, and left files alone."""
    moved = {"language_model.lm_head.": "lm_head.", "language_model.model.": "model.language_model."}
    out = {}
    for name, tensor in load_file(file).items():
        old = next((old for old in moved if name.startswith(old)), "")
        out[(moved[old] if old else "model.") + name.removeprefix(old)] = tensor
    return out


def test_what_was_loaded_is_what_the_files_hold(made):
    found = load_checkpoint(str(made.base))
    files, model = in_memory_names(made.base / "model.safetensors"), found.model.state_dict()
    assert found.about["tensors"] == len(files) and set(files) == set(model)
    assert all(torch.equal(files[name], model[name]) for name in files)
    assert found.about["torch"] == torch.__version__


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


def test_an_adapter_of_another_base_is_said(made, caplog):
    with caplog.at_level(logging.WARNING, "visrl"):
        load_policy(f"hf:{made.base}", {"adapter": str(made.lora)})
        assert "was trained on" not in caplog.text
        load_policy(f"hf:{made.folder}", {"adapter": str(made.lora)})
    assert f"was trained on {made.base}, and is applied to {made.folder}" in caplog.text


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


def test_a_fine_tune_without_a_processor_takes_that_of_its_base(made):
    for file in made.folder.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    policy = load_policy(f"hf:{made.folder}", {"processor": str(made.base)})
    assert policy.describe()["processor"] == str(made.base)


def test_what_a_family_declares_as_known_is_left_out(made, monkeypatch):
    from visrl.policies.families.llava import Llava

    change(made.weights, put("model.extra.weight", 2))
    monkeypatch.setattr(Llava, "ignored_weights", (r"^model\.extra\.",))
    assert load_checkpoint(str(made.folder), CheckpointArguments()).about["tensors"] == len(load_file(made.weights)) - 1
