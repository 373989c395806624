"""Checkpoints and arguments as people have them, each right or refused by name: no weight is ever left at random."""

import json
import logging
import shutil

import pytest
import tiny_models as tiny
import torch
from broken import (
    IN_LLAVA,
    Q0,
    Made,
    cast,
    change,
    config,
    cut,
    drop,
    fill,
    in_memory_names,
    put,
    renamed,
    reshape,
    settings,
    weights,
)  # fmt: skip
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from visrl.core.types import Turn
from visrl.errors import UsageError
from visrl.policies.hf.loading import CheckpointArguments, load_checkpoint
from visrl.policies.protocol import Request, Sampling
from visrl.policies.registry import load_policy
from visrl.train.common.models import load_trainable
from visrl.train.config.recipe import ModelSection


def to_pickle(made: Made) -> None:
    torch.save(load_file(made.weights), made.folder / "pytorch_model.bin")
    made.weights.unlink()


def sharded_but_one_is_gone(made: Made) -> None:
    (made.folder / sorted(set(sharded(made).values()))[1]).unlink()


def both_weights_and_adapter(made: Made) -> None:
    for file in made.whole.iterdir():
        shutil.copy(file, made.folder)


def sharded(made: Made) -> dict[str, str]:
    """The folder in shards; tensor -> shard, of its index."""
    model = AutoModelForImageTextToText.from_pretrained(made.base)
    made.weights.unlink()
    model.save_pretrained(made.folder, max_shard_size="100KB")
    return json.loads(made.index.read_text())["weight_map"]


def index(change_map):
    def how(made):
        shards = sharded(made)
        change_map(made, shards)
        made.index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))

    return how


def a_shard_elsewhere(made: Made, shards: dict[str, str]) -> None:
    moved = shards[min(shards)]
    (made.folder / moved).rename(made.folder.parent / moved)
    shards.update({name: f"../{moved}" for name, shard in shards.items() if shard == moved})


def shards_of_pickles(made: Made, shards: dict[str, str]) -> None:
    for shard in set(shards.values()):
        torch.save(load_file(made.folder / shard), made.folder / shard.replace(".safetensors", ".bin"))
        (made.folder / shard).unlink()
    shards.update({name: shard.replace(".safetensors", ".bin") for name, shard in shards.items()})


def processor(of: str, *names: str):
    """Files of another family's processor, from a folder beside the base."""
    return lambda made: [shutil.copy(made.base.parent / of / name, made.folder) for name in names]


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
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
    "an index that is not JSON": (
        lambda made: (sharded(made), made.index.write_text("{")),
        "index.json cannot be read",
    ),
    "an index of nothing": (index(lambda made, shards: shards.clear()), "no weight_map"),
    "an index of a tensor that no shard has": (
        index(lambda made, shards: shards.update(ghost=shards[min(shards)])),
        "lists tensors that its shards do not hold: ghost",
    ),
    "an index of a shard elsewhere": (index(a_shard_elsewhere), r"no safetensors of this folder: \.\./model-00001"),
    "an index of pickles": (index(shards_of_pickles), r"no safetensors of this folder: model-00001-of-.*\.bin"),
    "weights that are not numbers": (weights(fill("lm_head", float("nan"))), r"not finite in float32: lm_head\.weight"),
    "weights that are infinite": (weights(fill("lm_head", float("inf"))), r"not finite in float32: lm_head\.weight"),
    "weights of whole numbers": (weights(cast("lm_head", torch.int8)), r"whole numbers: .*lm_head\.weight \(I8\)"),
    "weights of yes and no": (weights(cast("lm_head", torch.bool)), r"whole numbers: .*lm_head\.weight \(BOOL\)"),
    "a larger tokenizer": (
        processor("paligemma2", *TOKENIZER),
        r"beyond the model's 404 embeddings: .* \(1152 in all\)",
    ),
    "a processor of another family": (processor("mllama", "processor_config.json"), "marks pictures with token"),
    "patches of another size": (
        lambda made: settings(made.folder / "processor_config.json", patch_size=4),
        "patches of 4 pixels, the model into 8",
    ),
    "another mark of a picture": (config(image_token_index=7), "marks pictures with token 3, config.json says 7"),
    "an empty folder": (lambda made: [f.unlink() for f in made.folder.iterdir()], "cannot load"),
    "no processor": (lambda made: (made.folder / "processor_config.json").unlink(), "processor"),
    "weights and an adapter in one folder": (both_weights_and_adapter, "both full weights and adapter_config.json"),
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


def test_what_was_loaded_is_what_the_files_hold(made):
    found = load_checkpoint(str(made.base))
    files, model = in_memory_names(made.base / "model.safetensors"), found.model.state_dict()
    assert found.about["tensors"] == len(files) and set(files) == set(model)
    assert all(torch.equal(files[name], model[name]) for name in files)
    assert found.about["torch"] == torch.__version__


def test_what_is_legal_is_loaded_as_the_files_hold_it(made):
    """Shards behind links, as the hub's cache lays them out, of which the index leaves one tensor out; no header of a framework."""
    shards = sharded(made)
    made.index.write_text(json.dumps({"metadata": {}, "weight_map": {n: s for n, s in shards.items() if n != Q0}}))
    for place, file in enumerate(sorted(made.folder.glob("*.safetensors"))):
        blob = made.folder.parent / f"blob{place}"
        save_file(load_file(file), blob)
        file.unlink()
        file.symlink_to(f"../{blob.name}")
    files, found = (
        in_memory_names(made.base / "model.safetensors"),
        load_checkpoint(str(made.folder)).model.state_dict(),
    )
    assert all(torch.equal(files[name], found[name]) for name in files)


def test_shards_beside_a_whole_file_are_said(made, caplog):
    whole = made.weights.read_bytes()
    sharded(made)
    made.weights.write_bytes(whole)
    change(made.weights, fill("lm_head", 0.5))
    with caplog.at_level(logging.WARNING, "visrl"):
        found = load_checkpoint(str(made.folder)).model.state_dict()
    assert found["lm_head.weight"].unique().tolist() == [0.5]
    assert (
        "holds model.safetensors and the shards of model.safetensors.index.json: only the first is read" in caplog.text
    )


@pytest.mark.parametrize("saved", ["without a head", "with a head of its own"])
def test_tied_heads(saved, originals, tmp_path):
    """Legal without a head; where the file has both, both are taken as they are."""
    folder = tiny.save("qwen2_vl", tmp_path / "model")
    settings(folder / "config.json", tie_word_embeddings=True)
    if saved == "without a head":
        change(folder / "model.safetensors", drop("lm_head"))
    model, files = load_checkpoint(str(folder)).model, load_file(folder / "model.safetensors")
    words = files["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight, words)
    assert torch.equal(model.lm_head.weight, files.get("lm_head.weight", words))


@pytest.mark.parametrize(
    "line", ["{% for i in range(99999999) %}x{% endfor %}", "{{ 1 / 0 }}", "{{ a.b }}", "{% for %}"]
)
def test_a_template_that_cannot_run_stops_nobody(line, made):
    (made.folder / "chat_template.jinja").write_text(line)
    assert load_checkpoint(str(made.folder)).family.name == "llava"


def test_answers_of_logits_that_are_no_numbers_are_failures(made):
    """Finite weights whose products are not: 1e30 twice is beyond float32's 3.4e38, and infinity minus infinity is NaN."""
    change(made.weights, lambda t: [t[n].mul_(1e30) for n in t if "language_model" in n and "proj" in n])
    policy = load_policy(f"hf:{made.folder}")
    said = policy.generate([Request("1", "box", (Turn("user", ("what is it?",)),))], Sampling(max_tokens=2))[0]
    assert said.error == "NotFinite: the model's logits are NaN in float32" and not said.texts


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
