"""The vLLM policy against a module with vLLM's signatures, which answers with tokens of the real tokenizer: what is asked of an engine.

What a real engine answers is tests/engines/'s business (`tox -e vllm`).
"""

import dataclasses
import json
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL.Image import Image
from safetensors.torch import save_file
from tinies import picture

sys.path.append(str(Path(__file__).parents[1] / "train"))

from visrl.core.types import Picture, Turn
from visrl.errors import Incomplete, PictureError, UsageError
from visrl.policies.before import check_policy
from visrl.policies.protocol import Request, Sampling
from visrl.policies.registry import fitting, load_policy
from visrl.policies.servers.vllm_arguments import rank_of
from visrl.rollout.retry import ask


class SamplingParams:
    def __init__(
        self, *, n=1, temperature=1.0, top_p=1.0, top_k=0, seed=None, stop=None, max_tokens=16, skip_special_tokens=True,
        stop_token_ids=None, logit_bias=None, prompt_logprobs=None, detokenize=True,
    ):  # fmt: skip
        vars(self).update({k: v for k, v in locals().items() if k != "self"})


@dataclasses.dataclass
class EngineArgs:
    model: str = ""
    enforce_eager: bool = False
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    quantization: str | None = None
    mm_processor_kwargs: dict | None = None
    limit_mm_per_prompt: dict | None = None

    @staticmethod
    def add_cli_args(parser):
        import argparse

        parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction, default=False)
        for name in ("max-num-seqs", "max-model-len", "tensor-parallel-size"):
            parser.add_argument(f"--{name}", type=int)
        parser.add_argument("--quantization", choices=["awq", "fp8"])
        for name in ("mm-processor-kwargs", "limit-mm-per-prompt"):
            parser.add_argument(f"--{name}", type=json.loads)
        return parser


class EngineDeadError(Exception):
    pass


class LoRARequest:
    def __init__(self, lora_name, lora_int_id, lora_path):
        vars(self).update({k: v for k, v in locals().items() if k != "self"})


class LLM:
    """Answers every prompt with ``reply`` and the end of a turn; keeps what it was asked. A stop text ends it, as vLLM's do."""

    reply = "[0.1, 0.2, 0.3, 0.4] more"
    made = None

    def __init__(self, model, **started):
        from transformers import AutoTokenizer

        self.started = started
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.calls = []
        self.llm_engine = types.SimpleNamespace(engine_core=types.SimpleNamespace(ended=0, shutdown=self._end))
        type(self).made = self

    def _end(self):
        self.llm_engine.engine_core.ended += 1

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        how = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        assert len(prompts) == len(how) and (lora_request is None or self.started["enable_lora"])
        self.calls.append((prompts, how, lora_request))
        return [self._result(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, how, strict=True)]

    def _result(self, asked, how):
        if how.prompt_logprobs is not None:  # every token of a prompt has half the probability
            logs = [None, *({i: types.SimpleNamespace(logprob=-0.5)} for i in asked[1:])]
            return types.SimpleNamespace(prompt_token_ids=asked, prompt_logprobs=logs, outputs=[])
        ids = self.tokenizer(self.reply, add_special_tokens=False)["input_ids"] + [self.tokenizer.eos_token_id]
        said = next(
            (n for n in range(len(ids), 0, -1) if asked[-n:] == ids[:n]), 0
        )  # it goes on where it was interrupted
        ids, end = ids[said:], None
        for n in range(1, len(ids) + 1):
            end = next((s for s in how.stop or () if s in self.tokenizer.decode(ids[:n])), None)
            if end:
                ids = ids[:n]
                break
        one = types.SimpleNamespace(text="not read", token_ids=tuple(ids), finish_reason="stop", stop_reason=end)
        return types.SimpleNamespace(prompt_token_ids=asked, num_cached_tokens=3, outputs=[one] * how.n)


@pytest.fixture
def vllm(monkeypatch):
    names = ("vllm", "vllm.lora", "vllm.lora.request", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.exceptions")
    module, lora, request, *engine = map(types.ModuleType, names)
    engine[-1].EngineDeadError = EngineDeadError
    module.LLM, module.SamplingParams, module.EngineArgs, module.__version__ = (
        LLM,
        SamplingParams,
        EngineArgs,
        "0.0-fake",
    )
    request.LoRARequest = LoRARequest
    for one in (module, lora, request, *engine):
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
    ((prompts, how, lora),) = engine.calls
    assert lora is None and "multi_modal_data" not in prompts[1]
    (image,) = prompts[0]["multi_modal_data"]["image"]
    assert isinstance(image, Image) and image.size == (90, 90), "LLaVA's pictures are padded to a square, as in process"
    said = engine.tokenizer.decode(prompts[0]["prompt_token_ids"])
    assert said.startswith("A chat between") and said.endswith("USER: <image>where ASSISTANT:"), (
        "the family's own layout, one mark"
    )
    assert [o.texts for o in outputs] == [("[0.1, 0.2, 0.3, 0.4]",)] * 2, "the stop text is kept, what follows is not"
    ids = len(engine.tokenizer("[0.1, 0.2, 0.3, 0.4]", add_special_tokens=False)["input_ids"])
    about = (outputs[0].prompt_tokens, outputs[0].cached_tokens, outputs[0].output_tokens)
    assert about == (len(prompts[0]["prompt_token_ids"]), 3, ids)
    assert (how[0].temperature, how[0].max_tokens, how[0].stop, how[0].seed) == (0.0, 9, ["]"], None)
    assert engine.tokenizer.eos_token_id in how[0].stop_token_ids


def test_a_stop_that_does_not_count_is_gone_beyond(vllm, checkpoints, monkeypatch):
    """The bracket within the thought ends no box: the text goes on in a second call from where it was."""
    monkeypatch.setattr(LLM, "reply", "a [b] c [0.1] d")
    policy = load_policy(f"vllm:{checkpoints('llava')}")
    greedy = Sampling(max_tokens=30, stop=("]",), accept_stop=lambda text: text.endswith("1]"))
    (output,) = policy.generate([asking("a", "x")], greedy)
    first, second = LLM.made.calls
    assert output.texts == ("a [b] c [0.1]",) and output.prompt_tokens == len(first[0][0]["prompt_token_ids"])
    begun = len(second[0][0]["prompt_token_ids"]) - output.prompt_tokens
    assert second[1][0].max_tokens == 30 - begun and 0 < begun < output.output_tokens
    policy.generate([asking("a", "x")], Sampling(n=2, temperature=1.0, stop=("]",), accept_stop=greedy.accept_stop))
    assert LLM.made.calls[-1][1][0].stop is None, "drawn texts are not interrupted: their seed would begin anew"


def test_texts_are_scored_by_the_last_tokens_of_a_prompt(vllm, checkpoints):
    policy = load_policy(f"vllm:{checkpoints('llava')}")
    (found,) = policy.loglikelihood([asking("a", "x")], ["red"])
    tokens = len(LLM.made.tokenizer("red", add_special_tokens=False)["input_ids"]) + len(policy.family.end_of_reply())
    assert policy.scores_texts and found.value == pytest.approx(-0.5 * tokens)


def test_all_arguments_of_the_engine_are_taken_and_no_others(vllm, checkpoints):
    given = {
        "max_num_seqs": "8", "enforce_eager": "true", "tensor_parallel_size": "2", "quantization": "fp8",
        "limit_mm_per_prompt": '{"image": 3}', "mm_processor_kwargs": '{"crop": 1}',
    }  # fmt: skip
    policy = load_policy(f"vllm:{checkpoints('llava')}", given)
    started = LLM.made.started
    assert (started["max_num_seqs"], started["enforce_eager"], started["tensor_parallel_size"]) == (8, True, 2)
    assert started["limit_mm_per_prompt"] == {"image": 3} and started["mm_processor_kwargs"] == {"crop": 1}
    assert policy.describe()["engine"] == {"mm_processor_kwargs": {"crop": 1}, "quantization": "fp8"}, (
        "what decides outputs"
    )
    for args, said, hint in (
        ({"max_num_seq": "8"}, "vllm has no argument 'max_num_seq'", "did you mean max_num_seqs"),
        ({"box_formt": "paper"}, "no argument 'box_formt'", "did you mean box_format"),
        ({"quantization": "q4"}, "invalid choice: 'q4'", ""),
        ({"max_num_seqs": "many"}, "invalid int value: 'many'", ""),
        ({"enable_prefix_caching": "false"}, "enable_prefix_caching is set by visrl", ""),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            check_policy(f"vllm:{checkpoints('llava')}", args)
        assert hint in caught.value.hint
    assert fitting("vllm:x", {"attn": "sdpa", "rows": "4", "quantization": "fp8"})[0] == {"quantization": "fp8"}


def test_pixel_limits_go_to_the_processor_in_its_own_words(vllm, checkpoints):
    load_policy(f"vllm:{checkpoints('qwen2_5_vl')}", {"max_pixels": str(56 * 56)})
    assert LLM.made.started["mm_processor_kwargs"] == {"size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}}
    load_policy(f"vllm:{checkpoints('internvl')}", {"max_tiles": "2"})
    assert LLM.made.started["mm_processor_kwargs"] == {"max_patches": 2}
    with pytest.raises(UsageError, match="mm_processor_kwargs together with max_tiles"):
        load_policy(f"vllm:{checkpoints('internvl')}", {"max_tiles": "2", "mm_processor_kwargs": '{"crop": 1}'})
    with pytest.raises(UsageError, match="sets min_patches, which changes the coordinates of boxes"):
        load_policy(f"vllm:{checkpoints('internvl')}", {"mm_processor_kwargs": '{"min_patches": 1}'})


def test_the_size_at_which_qwen_sees_a_picture_is_said(vllm, checkpoints):
    """90 x 50 at factor 28 and at most 84 x 84 pixels: 84 x 56, as the processor's own grid says."""
    policy = load_policy(f"vllm:{checkpoints('qwen2_5_vl')}")
    (output,) = policy.generate([asking("a", picture(90, 50), "where")], Sampling())
    assert output.seen_sizes == ((84, 56),)
    assert policy.family.seen_size(policy.family.encode_image(picture(90, 50).open())) == (84, 56)


def test_tokens_that_write_boxes_are_kept_and_those_of_the_chat_are_not(vllm, checkpoints, monkeypatch):
    monkeypatch.setattr(LLM, "reply", "<box>[[1, 2, 3, 4]]</box>")
    policy = load_policy(f"vllm:{checkpoints('internvl')}")
    (output,) = policy.generate([asking("a", picture(40, 40), "where")], Sampling())
    assert output.texts == ("<box>[[1, 2, 3, 4]]</box>",), "without <|im_end|>"


def test_a_family_that_vllm_computes_otherwise_is_refused(vllm, checkpoints):
    with pytest.raises(UsageError, match="attends in both directions"):
        load_policy(f"vllm:{checkpoints('paligemma2')}")


def test_a_critic_that_differs_in_its_adapter_only_shares_the_engine(vllm, checkpoints, tmp_path):
    """The newest model is M_org and an adapter: one engine holds both, each asked with its own LoRA."""
    from pairs_made import recipe

    from visrl.train.pairs.run import load_sampler

    path = checkpoints("llava")
    asked = {
        "policy": {"model": f"vllm:{path}", "args": {"adapter": adapter(tmp_path / "it1")}, "name": "iteration 1"},
        "critic": {"kind": "likelihood", "model": f"vllm:{path}"},
    }
    sampler = load_sampler(recipe(tmp_path / "out", **asked))
    policy, critic = sampler.models
    assert policy.engine is critic.engine and policy.engine.llm_engine.engine_core.ended == 0
    policy.generate([asking("a", "x")], Sampling())
    critic.loglikelihood([asking("a", "x")], ["red"])
    policy.generate([asking("a", "x")], Sampling())
    loras = [call[2] and call[2].lora_path for call in policy.engine.calls]
    assert loras == [str(tmp_path / "it1"), None, str(tmp_path / "it1")]
    assert (policy.describe()["path"], critic.describe()["path"]) == ("iteration 1", str(path))
    sampler.close()
    assert policy.engine.llm_engine.engine_core.ended == 2
    apart = recipe(
        tmp_path / "o",
        policy={"model": f"vllm:{path}"},
        critic={**asked["critic"], "args": {"adapter": adapter(tmp_path / "b")}},
    )
    first, second = load_sampler(apart).models
    assert first.engine is not second.engine, "the first was started for no adapter"


def test_draws_are_seeded_by_the_request_and_not_by_the_batch(vllm, checkpoints):
    policy = load_policy(f"vllm:{checkpoints('llava')}")
    hot = Sampling(n=3, temperature=2.0, top_p=0.7, top_k=50, seed=5)
    outputs = policy.generate([asking("a", "x"), asking("b", "x")], hot)
    policy.generate([asking("b", "x")], hot)
    (first, second), (again,) = (call[1] for call in LLM.made.calls)
    assert first.seed != second.seed and second.seed == again.seed
    assert (first.n, first.temperature, first.top_p, first.top_k) == (3, 2.0, 0.7, 50)
    assert [len(o.texts) for o in outputs] == [3, 3]
    assert first.logit_bias == {policy.family.image_token_id: -100.0}, "a drawn placeholder would stand for no picture"


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
    with pytest.raises(UsageError, match="adapts more than the language model"):
        policy.use_adapter(adapter(tmp_path / "vision_tower"))


def test_an_engine_that_has_died_ends_the_run(vllm, checkpoints, monkeypatch):
    policy = load_policy(f"vllm:{checkpoints('llava')}")

    def died(*_, **__):
        raise EngineDeadError("out of memory")

    monkeypatch.setattr(LLM, "generate", died)
    with pytest.raises(Incomplete, match="engine has died: out of memory"):
        for _ in range(2):
            ask(policy, [asking("a", "x")], Sampling())


def test_an_engine_can_be_started_for_adapters_to_come(vllm, checkpoints, tmp_path):
    """Rank 12 is none that vLLM can be started for: it is started for 16."""
    policy = load_policy(f"vllm:{checkpoints('llava')}", {"max_lora_rank": "12"})
    assert LLM.made.started["max_lora_rank"] == 16 and policy.describe()["adapter"] is None
    policy.use_adapter(adapter(tmp_path / "it1", 12))
    policy.rename("it1")
    assert policy.describe()["adapter"]["path"] == policy.describe()["path"] == "it1"


@pytest.mark.parametrize("written", ["[" * 100_000, '{"r": 1e400}', '{"r": [8]}', "[]", '{"r": "x"}', "{}"])
def test_an_adapter_without_a_rank_is_refused(tmp_path, written):
    """JSON's reader raises RecursionError on the first, int() OverflowError on the second."""
    (tmp_path / "adapter_config.json").write_text(written)
    with pytest.raises(UsageError, match=r"no adapter_config\.json with a rank"):
        rank_of(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    assert rank_of(str(tmp_path)) == 8
