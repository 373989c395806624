"""The vLLM policy against a module with vLLM's documented signatures. It answers with tokens of the real tokenizer; it never saw a GPU."""

import json
import sys
import types

import pytest
import torch
from PIL.Image import Image
from safetensors.torch import save_file
from tinies import picture

from visrl.core.types import Picture, Turn
from visrl.errors import PictureError, UsageError
from visrl.policies.protocol import Request, Sampling
from visrl.policies.registry import load_policy


class SamplingParams:
    def __init__(
        self, *, n=1, temperature=1.0, top_p=1.0, top_k=0, seed=None, stop=None, max_tokens=16, skip_special_tokens=True
    ):
        vars(self).update({k: v for k, v in locals().items() if k != "self"})


class LoRARequest:
    def __init__(self, lora_name, lora_int_id, lora_path):
        vars(self).update({k: v for k, v in locals().items() if k != "self"})


class LLM:
    """Answers every conversation with ``reply`` and the end of a turn; keeps what it was asked."""

    reply = "[0.1, 0.2, 0.3, 0.4] more"
    made = None

    def __init__(
        self, model, *, dtype="auto", revision=None, trust_remote_code=False, tensor_parallel_size=1,
        gpu_memory_utilization=0.9, max_model_len=None, enable_prefix_caching=None, limit_mm_per_prompt=None,
        generation_config="auto", enable_lora=False, max_lora_rank=16, mm_processor_kwargs=None,
    ):  # fmt: skip
        from transformers import AutoTokenizer

        self.started = {k: v for k, v in locals().items() if k not in ("self", "AutoTokenizer")}
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.calls = []
        type(self).made = self

    def chat(self, messages, sampling_params=None, use_tqdm=True, lora_request=None):
        assert len(messages) == len(sampling_params)
        assert lora_request is None or self.started["enable_lora"]
        self.calls.append((messages, sampling_params, lora_request))
        ids = self.tokenizer(self.reply, add_special_tokens=False)["input_ids"] + [self.tokenizer.eos_token_id]
        return [
            types.SimpleNamespace(
                prompt_token_ids=list(range(7)), num_cached_tokens=3,
                outputs=[types.SimpleNamespace(text="not read", token_ids=tuple(ids), finish_reason="stop") for _ in range(how.n)],
            )
            for how in sampling_params
        ]  # fmt: skip


@pytest.fixture
def vllm(monkeypatch):
    module, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    module.LLM, module.SamplingParams, module.__version__ = LLM, SamplingParams, "0.0-fake"
    request.LoRARequest = LoRARequest
    for one in (module, lora, request):
        monkeypatch.setitem(sys.modules, one.__name__, one)
    return module


def adapter(folder, rank=8):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    save_file({folder.name: torch.zeros(1)}, folder / "adapter_model.safetensors")
    return str(folder)


def asking(key, *parts):
    return Request(key, "box", (Turn("user", parts),))


def test_without_vllm_it_says_what_to_install(monkeypatch, checkpoints):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match="vllm is not installed") as caught:
        load_policy(f"vllm:{checkpoints('llava')}")
    assert "visrl[vllm]" in caught.value.hint


def test_one_call_of_the_engine_for_all_conversations(vllm, checkpoints):
    policy = load_policy(f"vllm:{checkpoints('llava')}", {"box_format": "paper", "max_model_len": "2048"})
    engine = LLM.made
    assert engine.started["enable_prefix_caching"] and engine.started["limit_mm_per_prompt"] == {"image": 2}
    assert engine.started["max_model_len"] == 2048 and engine.started["generation_config"] == "vllm"
    outputs = policy.generate(
        [asking("a", picture(90, 50), "where"), asking("b", "what")], Sampling(max_tokens=9, stop=("]",))
    )
    ((messages, how, lora),) = engine.calls
    assert lora is None and [m[0]["role"] for m in messages] == ["user", "user"]
    image, text = messages[0][0]["content"]
    assert text == {"type": "text", "text": "where"} and isinstance(image["image_pil"], Image)
    assert image["image_pil"].size == (90, 90), "LLaVA's pictures are padded to a square, as in process"
    assert [o.texts for o in outputs] == [("[0.1, 0.2, 0.3, 0.4]",)] * 2, "the stop text is kept, what follows is not"
    ids = len(engine.tokenizer(LLM.reply, add_special_tokens=False)["input_ids"]) + 1
    assert (outputs[0].prompt_tokens, outputs[0].cached_tokens, outputs[0].output_tokens) == (7, 3, ids)
    assert (how[0].temperature, how[0].max_tokens, how[0].stop, how[0].seed) == (0.0, 9, ["]"], None)


def test_tokens_that_write_boxes_are_kept_and_those_of_the_chat_are_not(vllm, checkpoints, monkeypatch):
    monkeypatch.setattr(LLM, "reply", "<loc0010><loc0020><loc0300><loc0400>")
    policy = load_policy(f"vllm:{checkpoints('paligemma2')}")
    (output,) = policy.generate([asking("a", picture(40, 40), "where")], Sampling())
    assert output.texts == ("<loc0010><loc0020><loc0300><loc0400>",), "without <eos>"


def test_draws_are_seeded_by_the_request_and_not_by_the_batch(vllm, checkpoints):
    policy = load_policy(f"vllm:{checkpoints('llava')}")
    hot = Sampling(n=3, temperature=2.0, top_p=0.7, top_k=50, seed=5)
    outputs = policy.generate([asking("a", "x"), asking("b", "x")], hot)
    policy.generate([asking("b", "x")], hot)
    (first, second), (again,) = (call[1] for call in LLM.made.calls)
    assert first.seed != second.seed and second.seed == again.seed
    assert (first.n, first.temperature, first.top_p, first.top_k) == (3, 2.0, 0.7, 50)
    assert [len(o.texts) for o in outputs] == [3, 3]


def test_a_picture_that_does_not_open_fails_its_sample_alone(vllm, checkpoints):
    def broken():
        raise PictureError("torn")

    policy = load_policy(f"vllm:{checkpoints('llava')}")
    bad, good = policy.generate([asking("a", Picture("p", broken), "x"), asking("b", "x")], Sampling())
    assert bad.error == "PictureError: torn" and good.error is None
    assert len(LLM.made.calls[0][0]) == 1


def test_adapters_are_exchanged_between_iterations_without_a_new_engine(vllm, checkpoints, tmp_path):
    first, second = adapter(tmp_path / "it1"), adapter(tmp_path / "it2")
    policy = load_policy(f"vllm:{checkpoints('llava')}", {"adapter": first})
    engine = LLM.made
    assert engine.started["enable_lora"] and engine.started["max_lora_rank"] == 8
    before = dict(policy.describe())
    policy.generate([asking("a", "x")], Sampling())
    policy.use_adapter(second)
    policy.generate([asking("a", "x")], Sampling())
    used = [(call[2].lora_path, call[2].lora_int_id) for call in engine.calls]
    assert used == [(first, 1), (second, 2)] and LLM.made is engine
    after = policy.describe()
    assert after["adapter"]["path"] == second
    assert after["adapter"]["weights_sha256"] != before["adapter"]["weights_sha256"]
    assert (after["kind"], after["family"], after["vllm"]) == ("vllm", "llava", "0.0-fake")
    with pytest.raises(UsageError, match="has rank 64, vLLM was started for rank 8"):
        policy.use_adapter(adapter(tmp_path / "large", 64))
    with pytest.raises(UsageError, match="no adapter_config"):
        policy.use_adapter(str(tmp_path))
