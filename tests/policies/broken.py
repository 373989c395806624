"""Ways to break a checkpoint or an adapter on disk: what the tests of whole checkpoints and of whole adapters share."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

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
    def index(self) -> Path:
        return self.folder / "model.safetensors.index.json"

    @property
    def adapter(self) -> Path:
        return self.lora / "adapter_model.safetensors"


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    base, other = tiny.save("llava", root / "base"), tiny.save("mllama", root / "mllama")
    tiny.save("paligemma2", root / "paligemma2")
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


def fill(part: str, value: float):
    return lambda tensors: tensors[key_of(tensors, part)].fill_(value)


def cast(part: str, kind: torch.dtype):
    return lambda tensors: tensors.update({key_of(tensors, part): (100 * tensors[key_of(tensors, part)]).to(kind)})


def in_memory_names(file: Path) -> dict:
    """Tensors of a llava's file by the names that they have in the model: transformers 5 moved them, and left files alone."""
    moved = {"language_model.lm_head.": "lm_head.", "language_model.model.": "model.language_model."}
    out = {}
    for name, tensor in load_file(file).items():
        old = next((old for old in moved if name.startswith(old)), "")
        out[(moved[old] if old else "model.") + name.removeprefix(old)] = tensor
    return out
