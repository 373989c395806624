"""What users of other tools type: accepted under the name it has there, or pointed to the name it has here."""

import importlib.util
import logging

import pytest
import torch
from tinies import FAMILIES

from visrl.errors import UsageError
from visrl.policies.hf.loading import CheckpointArguments, load_checkpoint
from visrl.policies.registry import load_policy

WARNED = "has a chat template that lays prompts out otherwise"


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"torch_dtype": "bf16"}, "dtype", "bfloat16"),
        ({"dtype": "half"}, "dtype", "float16"),
        ({"attn_implementation": "eager"}, "attn", "eager"),
        ({"peft": "x"}, "adapter", "x"),
        ({"lora": "x"}, "adapter", "x"),
        ({"load_in_4bit": "True"}, "bits", 4),
        ({"load_in_8bit": "true"}, "bits", 8),
    ],
)
def test_names_of_other_tools_are_taken(given, name, value):
    args = CheckpointArguments.read(given)
    assert {"dtype": args.dtype, "attn": args.attn, "adapter": args.adapter, "bits": args.bits}[name] == value


def test_without_bitsandbytes_it_says_what_to_install(checkpoints, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="load_in_4bit needs bitsandbytes, which is not installed") as caught:
        load_checkpoint(str(checkpoints("llava")), CheckpointArguments(load_in_4bit=True))
    assert "pip install 'visrl[quantized]'" in caught.value.hint


def test_pretrained_is_where_the_model_is(checkpoints):
    folder = str(checkpoints("llava"))
    named, bare = load_policy("hf", {"pretrained": folder, "dtype": "float32"}), load_policy(f"hf:{folder}")
    assert named.name == bare.name == folder
    weights = [policy.model.state_dict() for policy in (named, bare)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(UsageError, match="pretrained=") as caught:
        load_policy(f"hf:{folder}", {"pretrained": "other"})
    assert "once" in caught.value.hint


def test_openai_is_an_endpoint_with_a_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    policy = load_policy("openai:gpt-x", {"box_format": "json_1000"})
    about = policy.describe()
    assert (policy.name, about["url"], about["model"]) == ("openai:gpt-x", "https://api.openai.com/v1", "gpt-x")
    with pytest.raises(UsageError, match="box_format"):
        load_policy("openai:gpt-x", {})
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UsageError, match="OPENAI_API_KEY is not set"):
        load_policy("openai:gpt-x", {"box_format": "json_1000"})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_template_like_the_layout_is_not_worth_a_word(name, checkpoints, caplog):
    with caplog.at_level(logging.INFO, "visrl"):
        load_checkpoint(str(checkpoints(name)))
    assert WARNED not in caplog.text and "cannot write" not in caplog.text


def test_a_template_that_is_ignored_is_said_once(checkpoints, tmp_path, caplog):
    import shutil

    folder = shutil.copytree(checkpoints("qwen2_5_vl"), tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text("{% for m in messages %}<user>{% endfor %}")
    with caplog.at_level(logging.WARNING, "visrl"):
        load_checkpoint(str(folder))
    assert caplog.text.count(WARNED) == 1 and str(folder) in caplog.text


@pytest.mark.parametrize("name", ["tiny", "sft", "base"])
def test_shipped_models_are_loaded_without_a_word(name, caplog):
    with caplog.at_level(logging.WARNING, "visrl"):
        load_policy(name)
    assert not caplog.text
