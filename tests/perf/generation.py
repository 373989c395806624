"""Generation against the usual ways of doing the same, on a LLaVA of real token geometry: 576 picture tokens, width 256.

python tests/perf/generation.py [--new-tokens 25] [--samples 16] [--repeat 3]

Random weights; every side is held to the same number of new tokens (nothing may end early). Ratios are of median CPU seconds (one thread, so that others on the machine count little),
all sides measured in one process on the same pictures and questions. The greedy texts are compared too: what is fast must be equal.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import types
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import tiny_models as tiny
import torch
import transformers as hf
from PIL import Image

import visrl.policies.hf.policy
from visrl.core.chat_format import VICUNA, template
from visrl.core.prompts import PROTOCOLS, answer_turns, box_turns
from visrl.core.types import CoTSample, Picture, Turn
from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import Request, Sampling

K = 8


def checkpoint(folder: Path) -> None:
    """CLIP 336/14 of 2 layers (a real tower is 4 % of a real 7B's cost), Llama of 6 layers, width 256."""
    torch.manual_seed(0)
    tok = tiny.tokenizer(["<image>"], "<pad>", "<s>", "</s>")
    eyes = hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    processor = hf.LlavaProcessor(
        eyes, tok, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template(VICUNA),
    )  # fmt: skip
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=336, patch_size=14
        ),
        text_config=hf.LlamaConfig(
            hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8,
            vocab_size=len(tok), pad_token_id=tok.pad_token_id, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
        ),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
    )  # fmt: skip
    model = hf.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # logits far apart, as in tests/tiny_models.py
            if parameter.dim() > 1:
                parameter.mul_(2)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def samples(n: int, per_picture: int = 1) -> list[CoTSample]:
    """``n`` questions, ``per_picture`` about each picture (POPE asks 6, RefCOCO's sentences are 7)."""

    def shown(i: int) -> Picture:
        image = Image.linear_gradient("L").resize((336, 336)).rotate(7 * i).convert("RGB")
        return Picture(f"p{i}", lambda: image)

    question = "what letter is on the red circle beside the blue square ?"
    return [CoTSample(f"s{i}", "t", "qa", f"{question} {i}", shown(i // per_picture), (336, 336)) for i in range(n)]


def box_request(sample: CoTSample) -> Request:
    return Request(
        sample.id, "box", box_turns(PROTOCOLS["visrl_train"], sample, sample.picture), sample.size, keep_cache=True
    )


def answer_request(sample: CoTSample, box_text: str) -> Request:
    crop = Picture(f"{sample.picture.ref}#crop", lambda: sample.picture.open().crop((50, 60, 250, 260)))
    turns = answer_turns(PROTOCOLS["visrl_train"], sample, sample.picture, crop, box_text)
    return Request(sample.id, "answer", turns, sample.size)


def by_generate(policy: HFPolicy, turns: tuple[Turn, ...], new: int, **more: object) -> list[str]:
    """What one writes without this package: processor, generate, decode, one conversation at a time."""
    rendered = policy.family.render(turns)
    images = [policy.family.prepare(p.open()) for p in rendered.pictures]
    batch = policy.family.processor(text=[rendered.text], images=images, return_tensors="pt")
    with torch.inference_mode():
        out = policy.model.generate(**batch, max_new_tokens=new, min_new_tokens=new, pad_token_id=0, **more)
    return [policy._text.text(ids) for ids in out[:, batch["input_ids"].shape[1] :].tolist()]


def seconds(call: object, repeat: int) -> tuple[float, object]:
    times, result = [], None
    for _ in range(repeat + 1):  # the first is a warm-up
        began = time.process_time()
        result = call()
        times.append(time.process_time() - began)
    return statistics.median(times[1:]), result


def line(name: str, theirs: float, ours: float, target: float) -> None:
    ratio = theirs / ours
    print(
        f"{name:58} {theirs:8.2f} s {ours:8.2f} s {ratio:6.2f}x  (target {target}x: {'met' if ratio >= target else 'missed'})"
    )


def k_samples(folder: str, n: int, new: int, repeat: int) -> None:
    """k samples of one box prompt: generate(num_return_sequences=k) against branches of one prefill, a prompt at a time and in a batch."""
    policy = fresh(folder)
    requests = [box_request(s) for s in samples(n)]
    hot = Sampling(n=K, temperature=2.0, top_p=0.7, top_k=50, max_tokens=new)
    kwargs = {"do_sample": True, "temperature": 2.0, "top_p": 0.7, "top_k": 50, "num_return_sequences": K}
    theirs, _ = seconds(lambda: [by_generate(policy, r.turns, new, **kwargs) for r in requests], repeat)
    single, _ = seconds(lambda: [fresh_caches(policy).generate([r], hot) for r in requests], repeat)
    batched, _ = seconds(lambda: fresh_caches(policy).generate(requests, hot), repeat)
    line(f"k={K} samples, {n} prompts one by one", theirs, single, 5)
    line(f"k={K} samples, {n} prompts in batches of {policy.rows}", theirs, batched, 5)


def two_turns(folder: str, n: int, new: int, repeat: int, per_picture: int) -> None:
    """Box turn and answer turn: generate twice per sample against both turns in batches with the cache carried over."""
    policy = fresh(folder)
    asked = samples(n, per_picture)
    greedy = Sampling(max_tokens=new)

    def theirs() -> list[str]:
        boxes = [by_generate(policy, box_request(s).turns, new, do_sample=False)[0] for s in asked]
        return [
            by_generate(policy, answer_request(s, b).turns, new, do_sample=False)[0]
            for s, b in zip(asked, boxes, strict=True)
        ]

    def ours() -> list[str]:
        fresh_caches(policy)
        boxes = policy.generate([box_request(s) for s in asked], greedy)
        second = [answer_request(s, b.texts[0]) for s, b in zip(asked, boxes, strict=True)]
        return [o.texts[0] for o in policy.generate(second, greedy)]

    slow, expected = seconds(theirs, repeat)
    fast, got = seconds(ours, repeat)
    line(f"two turns, {n} samples, {per_picture} per picture", slow, fast, 4)
    print(f"  equal greedy answers: {sum(a == b for a, b in zip(expected, got, strict=True))} of {n}")


def against_llava_hf(folder: str, n: int, new: int, repeat: int, per_picture: int) -> None:
    """One turn over the same documents: lmms-eval's llava_hf (which takes one at a time) against the policy."""
    sys.modules.setdefault("decord", types.SimpleNamespace(VideoReader=None, cpu=None))  # imported there for video only
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.simple.llava_hf import LlavaHf

    asked = samples(n, per_picture)
    theirs = LlavaHf(pretrained=folder, device="cpu", dtype="float32", device_map="cpu")
    theirs.task_dict = {"t": {"test": list(range(n))}}
    policy = fresh(folder)
    visual = [lambda doc: [asked[doc].picture.open()]]

    def one_turn() -> list[str]:
        arguments = [(s.question, {"max_new_tokens": new}, visual[0], i, "t", "test") for i, s in enumerate(asked)]
        made = [
            Instance(
                request_type="generate_until", arguments=a, idx=0, metadata={"task": "t", "doc_id": i, "repeats": 1}
            )
            for i, a in enumerate(arguments)
        ]
        return theirs.generate_until(made)

    def ours() -> list[str]:
        direct = [Request(s.id, "answer", (Turn("user", (s.picture, f"\n{s.question}")),), s.size) for s in asked]
        return [o.texts[0] for o in fresh_caches(policy).generate(direct, Sampling(max_tokens=new))]

    slow, expected = seconds(one_turn, repeat)
    fast, got = seconds(ours, repeat)
    line(f"lmms-eval's llava_hf, {n} documents, {per_picture} per picture", slow, fast, 1.5)
    print(f"  new tokens per text: {len(expected[0])} and {len(got[0])} characters")


def profile(folder: str, n: int, new: int) -> None:
    """Where two turns spend their time, and what would be left if everything but reading prompts were free."""
    policy, asked, spent = fresh(folder), samples(n), {"read prompts": 0.0, "generate": 0.0, "look": 0.0}

    def timed(name: str, call: object) -> object:
        def run(*args: object) -> object:
            began = time.process_time()
            result = call(*args)
            spent[name] += time.process_time() - began
            return result

        return run

    policy._read, policy._look = timed("read prompts", policy._read), timed("look", policy._look)
    visrl.policies.hf.policy.decode = timed("generate", visrl.policies.hf.policy.decode)
    for _ in range(2):
        spent.update(dict.fromkeys(spent, 0.0))
        began = time.process_time()
        boxes = fresh_caches(policy).generate([box_request(s) for s in asked], Sampling(max_tokens=new))
        second = [answer_request(s, b.texts[0]) for s, b in zip(asked, boxes, strict=True)]
        policy.generate(second, Sampling(max_tokens=new))
        total = time.process_time() - began
    began = time.process_time()
    for sample in asked:
        by_generate(policy, box_request(sample).turns, 1, do_sample=False)
        by_generate(policy, answer_request(sample, "x").turns, 1, do_sample=False)
    alone = time.process_time() - began
    parts = ", ".join(f"{name} {value / n * 1e3:.0f}" for name, value in spent.items())
    print(
        f"two turns, CPU ms per sample: {total / n * 1e3:.0f} = {parts}, rest; generate's prompts alone: {alone / n * 1e3:.0f}"
    )


def fresh(folder: str) -> HFPolicy:
    policy = HFPolicy.load(folder, dtype="float32")
    policy.family.__dict__["end_ids"] = frozenset()  # nothing ends early
    return policy


def fresh_caches(policy: HFPolicy) -> HFPolicy:
    policy._seen, policy._features, policy._kept = {}, {}, []
    return policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--new-tokens", type=int, default=25)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    print(
        f"{os.cpu_count()} cores, {asked.threads} thread(s), torch {torch.__version__}, transformers {hf.__version__}"
    )
    print(f"{asked.new_tokens} new tokens per text, {'theirs':>48} {'ours':>10}")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(Path(folder))
        k_samples(folder, asked.samples // 4, asked.new_tokens, asked.repeat)
        for per_picture in (1, 4):
            two_turns(folder, asked.samples, asked.new_tokens, asked.repeat, per_picture)
        for per_picture in (1, 4):
            against_llava_hf(folder, asked.samples, asked.new_tokens, asked.repeat, per_picture)
        profile(folder, asked.samples, asked.new_tokens)


if __name__ == "__main__":
    main()
