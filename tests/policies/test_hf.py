"""The policy: whatever is batched, branched or kept, the text is what ``generate`` makes of that conversation alone."""

from dataclasses import replace

import pytest
import tiny_models as tiny
import torch
from tinies import FAMILIES, by_processor, picture

from visrl.core.boxes import Box
from visrl.core.prompts import PROTOCOLS
from visrl.core.types import CoTSample, Picture, Turn
from visrl.errors import PictureError, UsageError
from visrl.policies.hf import decoding
from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import Request, Sampling
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer

SIZES = [(90, 50), (40, 44), (30, 77), (120, 100), (64, 64)]
WORDS = ["what letter is on the red circle ? yes", "Answer", "blue green", "The answer is A B C D E. 0.123", "no"]
GREEDY = Sampling(max_tokens=10, stop=("]",))


def box_requests():
    return [
        Request(f"s{i}", "box", (Turn("user", (picture(*SIZES[i], i), "\n" + WORDS[i])),), SIZES[i], keep_cache=True)
        for i in range(5)
    ]


def answer_requests(outputs):
    """Second turns, as the protocols lay them out: three in the same conversation, two in a new one of one turn."""
    requests = []
    for i, (request, output) in enumerate(zip(box_requests(), outputs, strict=True)):
        crop = picture(30 + 9 * i, 50, 10 + i)
        if i % 2:
            turns = (Turn("user", (*request.turns[0].parts, "\n", crop)),)
        else:
            turns = (
                *request.turns,
                Turn("assistant", (output.texts[0],)),
                Turn("user", (crop, "\nAnswer the question")),
            )
        requests.append(Request(request.key, "answer", turns, SIZES[i]))
    return requests


def texts(outputs):
    assert [o.error for o in outputs] == [None] * len(outputs)
    return [o.texts for o in outputs]


def by_generate(policy, request):
    """transformers' own greedy generate on one conversation, cut as the policy cuts."""
    family, model = policy.family, policy.model
    batch = by_processor(family, request.turns, model.dtype)
    with torch.inference_mode():
        ids = model.generate(
            **batch, max_new_tokens=GREEDY.max_tokens, do_sample=False, eos_token_id=sorted(family.end_ids)
        )
    return policy._text.final(ids[0, batch["input_ids"].shape[1] :].tolist(), GREEDY)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_turns_equal_generate_one_by_one(name, policies):
    policy = policies(name, "paper")
    boxes = policy.generate(box_requests(), GREEDY)
    assert texts(boxes) == [(by_generate(policy, r),) for r in box_requests()]
    second = answer_requests(boxes)
    resumed = []
    original = decoding.resume
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visrl.policies.hf.policy.WORTH_RESUMING", 2)  # tiny prompts
        patch.setattr("visrl.policies.hf.policy.resume", lambda *a: resumed.append(a[6]) or original(*a))
        answers = policy.generate(second, GREEDY)
    assert texts(answers) == [(by_generate(policy, r),) for r in second]
    if policy.family.keeps_prefix:  # all five went on from the cache, and from behind the first picture at least
        assert sum(map(len, resumed)) == 5 and min(n for part in resumed for n in part) >= shortest_picture(policy)
    else:
        assert not resumed and policy.describe()["second_turn_cache"].startswith("recomputed: ")


def shortest_picture(policy):
    """Tokens of the smallest first picture."""
    return min(len(policy._chat(r, {}).pictures[0].ids) for r in box_requests())


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_caches_and_branches_change_nothing(name, policies):
    policy = policies(name, "paper")
    boxes = policy.generate(box_requests(), GREEDY)
    second = answer_requests(boxes)
    cached = texts(policy.generate(second, GREEDY))
    assert texts(policies(name, "paper").generate(second, GREEDY)) == cached  # recomputed
    assert [texts(policies(name, "paper").generate([r], GREEDY))[0] for r in second] == cached  # one by one
    mixed = [*box_requests()[:2], *second[2:]]  # one and two pictures in one batch
    assert texts(policies(name, "paper").generate(mixed, GREEDY)) == [*texts(boxes)[:2], *cached[2:]]
    fanned = policy.generate(second, Sampling(n=3, max_tokens=10, stop=("]",)))
    assert texts(fanned) == [(text,) * 3 for (text,) in cached]
    few = policies(name, "paper")
    few.rows = 2
    assert texts(few.generate(box_requests(), GREEDY)) == texts(boxes)
    assert texts(few.generate(second, GREEDY)) == cached


@pytest.mark.parametrize("window", [24, 40])
def test_texts_behind_a_window_shorter_than_the_conversation_equal_generate(window, policies, monkeypatch):
    """PaliGemma 2, of whose two layers one attends to a window: pictures of 16 tokens and questions, so more than 24 tokens."""
    policy = policies("paligemma2", "paper")
    monkeypatch.setattr(policy.model.config.get_text_config(), "sliding_window", window)
    boxes = policy.generate(box_requests(), GREEDY)
    wanted = [(by_generate(policy, r),) for r in box_requests()]
    assert texts(boxes) == wanted
    second = answer_requests(boxes)
    assert texts(policy.generate(second, GREEDY)) == [(by_generate(policy, r),) for r in second]
    fanned = policy.generate(box_requests(), Sampling(n=3, max_tokens=GREEDY.max_tokens, stop=GREEDY.stop))
    assert texts(fanned) == [text * 3 for text in wanted]
    drawn = Sampling(n=3, max_tokens=10, temperature=1.0)
    apart = [texts(policy.generate([r], drawn))[0] for r in box_requests()]
    assert texts(policy.generate(box_requests(), drawn)) == apart and len(set(apart[0])) > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_do_not_depend_on_padding_or_on_the_cache(name, policies):
    """Stronger than equal text: the numbers behind the last prompt token, to 1e-9 in float64."""
    policy = policies(name)
    requests = answer_requests(policy.generate(box_requests(), GREEDY))
    chats = [policy._chat(r, {}) for r in requests]
    with torch.inference_mode():
        policy._look(chats, [0] * 5)
        batch = decoding.prefill(policy.model, policy.family, chats, policy._features).logits
        for row, chat in enumerate(chats):
            alone = policy.model(
                **{
                    k: v.double() if v.is_floating_point() else v
                    for k, v in policy.family.collate([chat]).items()
                    if k != "labels"
                }
            )
            assert torch.allclose(batch[row], alone.logits[0, -1], atol=1e-9, rtol=0)
        if policy.family.keeps_prefix:
            first = policies(name)
            first.generate(box_requests(), GREEDY)
            ((prefix, keys),) = first._kept
            jobs = [
                (keys.index(r.key), decoding.shared_length(c, prefix.signatures[keys.index(r.key)]))
                for r, c in zip(requests, chats, strict=True)
            ]
            again = decoding.resume(
                policy.model, policy.family, chats, policy._features, prefix, [r for r, _ in jobs], [n for _, n in jobs]
            )
            assert torch.allclose(again.logits, batch, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_picture_matters(name, policies):
    """Two pictures, one question: different logits. A cache found by name instead of content would fail here."""
    policy = policies(name)
    turns = [(Turn("user", (Picture("same name", lambda i=i: picture(64, 64, i).open()), "\nAnswer")),) for i in (1, 2)]
    chats = [policy._chat(Request("same key", "box", t), {}) for t in turns]
    assert chats[0].ids == chats[1].ids and chats[0].signature != chats[1].signature
    with torch.inference_mode():
        policy._look(chats, [0, 0])
        logits = decoding.prefill(policy.model, policy.family, chats, policy._features).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_a_cache_under_the_same_key_but_of_another_picture_is_not_used(policies):
    policy = policies("llava")
    first = Request("k", "box", (Turn("user", (picture(64, 64, 1), "\nAnswer")),), keep_cache=True)
    second = Request("k", "answer", (Turn("user", (picture(64, 64, 2), "\nAnswer")),), keep_cache=True)
    policy.generate([first], GREEDY)
    assert texts(policy.generate([second], GREEDY)) == texts(policies("llava").generate([second], GREEDY))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_every_protocol_with_rec_and_qa_in_one_batch(name, protocol, policies):
    def samples():
        for i, size in enumerate(SIZES):
            kind = "rec" if i == 3 else "qa"
            yield CoTSample(
                f"d{i}", "t", kind, "what letter is on the red circle ?", picture(*size, i), size, Box(5, 5, 20, 20)
            )

    look = RolloutConfig(PROTOCOLS[protocol], sampling=Sampling(max_tokens=6))
    together = list(look_then_answer(policies(name), samples(), look, batch_size=5))
    apart = list(look_then_answer(policies(name), samples(), look, batch_size=1))
    assert together == apart
    assert all(e.error is None for e in together)
    assert [e.answer_step is None for e in together] == [False, False, False, True, False]
    assert [e.box_step is None for e in together] == [protocol == "direct"] * 3 + [False] + [protocol == "direct"]


def test_vision_features_are_computed_once_for_both_turns(policies, monkeypatch):
    policy = policies("llava")
    encoded = []
    original = type(policy.family).encode
    monkeypatch.setattr(type(policy.family), "encode", lambda s, m, p: encoded.extend(p) or original(s, m, p))
    boxes = policy.generate(box_requests(), GREEDY)
    assert len(encoded) == 5
    policy.generate(answer_requests(boxes), GREEDY)
    assert len(encoded) == 10  # the five crops; none of the five pictures again
    encoded.clear()


def test_a_family_that_reads_the_second_prompt_anew_does_not_look_anew(policies, monkeypatch):
    policy = policies("mllama")
    encoded = []
    original = type(policy.family).encode
    monkeypatch.setattr(type(policy.family), "encode", lambda s, m, p: encoded.extend(p) or original(s, m, p))
    policy.generate(answer_requests(policy.generate(box_requests(), GREEDY)), GREEDY)
    assert len(encoded) == 10


def test_many_questions_about_one_picture_look_once(policies, monkeypatch):
    policy = policies("llava")
    encoded = []
    original = type(policy.family).encode
    monkeypatch.setattr(type(policy.family), "encode", lambda s, m, p: encoded.extend(p) or original(s, m, p))
    shown = picture(80, 60, 3)
    policy.generate(
        [Request(f"q{i}", "box", (Turn("user", (shown, "\n" + w)),), keep_cache=True) for i, w in enumerate(WORDS)],
        GREEDY,
    )
    assert len(encoded) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_many_questions_about_one_picture_read_it_once_and_answer_as_if_alone(name, policies, monkeypatch):
    monkeypatch.setattr("visrl.policies.hf.policy.WORTH_RESUMING", 1)
    shown = [picture(80, 60, 3), picture(40, 50, 4)]
    first = [
        Request(f"q{i}", "box", (Turn("user", (shown[i == 2], "\n" + w)),), keep_cache=True)
        for i, w in enumerate(WORDS)
    ]

    def both_turns(policy, requests):
        boxes = policy.generate(requests, GREEDY)
        again = [
            Request(
                r.key, "answer", (*r.turns, Turn("assistant", b.texts), Turn("user", (picture(33, 44, i), "\nAnswer")))
            )
            for i, (r, b) in enumerate(zip(requests, boxes, strict=True))
        ]
        return texts(boxes), again, texts(policy.generate(again, GREEDY))

    read = []
    monkeypatch.setattr("visrl.policies.hf.policy.prefill", lambda *a: read.append(len(a[2])) or decoding.prefill(*a))
    boxes, again, answers = both_turns(policies(name, "paper"), first)
    assert read == ([2] if policies(name).family.keeps_prefix else [5, 5])  # two pictures for ten prompts
    assert [texts(policies(name, "paper").generate([r], GREEDY))[0] for r in first] == boxes
    assert [texts(policies(name, "paper").generate([r], GREEDY))[0] for r in again] == answers


HOT = Sampling(n=4, temperature=2.0, top_p=0.7, top_k=50, max_tokens=8, seed=5)  # the paper's (docs/method.md d)


@pytest.mark.parametrize("name", ["llava", "mllama", "qwen2_5_vl", "paligemma2"])
def test_samples_depend_on_seed_key_and_index_alone(name, policies):
    together = texts(policies(name).generate(box_requests(), HOT))
    apart = [texts(policies(name).generate([r], HOT))[0] for r in reversed(box_requests())][::-1]
    assert together == apart
    assert len(set(together[0])) > 1  # four samples are not one
    assert texts(policies(name).generate(box_requests(), Sampling(**{**fields(HOT), "seed": 6}))) != together
    two = texts(policies(name).generate(box_requests(), Sampling(**{**fields(HOT), "n": 2})))
    assert two == [row[:2] for row in together]  # the first two of four


def fields(sampling):
    return {name: getattr(sampling, name) for name in Sampling.__slots__}


def test_generation_ends_behind_the_stop_and_counts_what_it_made(policies):
    policy = policies("llava")
    turns = (Turn("user", (picture(64, 64, 1), "\nAnswer")),)
    free = policy.generate([Request("a", "answer", turns)], Sampling(max_tokens=12))[0]
    stop = free.texts[0][3:5]
    cut = policy.generate([Request("a", "answer", turns)], Sampling(max_tokens=12, stop=(stop,)))[0]
    assert cut.texts[0] == free.texts[0][: free.texts[0].index(stop) + len(stop)]
    assert cut.output_tokens < free.output_tokens == 12


def test_a_picture_that_does_not_open_fails_its_request_alone(policies):
    def broken():
        raise PictureError("truncated file")

    requests = box_requests()
    requests[1] = Request("s1", "box", (Turn("user", (Picture("bad", broken), "\nwhere")),))
    requests[2] = Request("s2", "box", (Turn("user", (picture(9, 9), "\nsay <image>")),))
    outputs = policies("llava").generate(requests, GREEDY)
    assert outputs[1].error == "PictureError: truncated file"
    assert "picture mark" in outputs[2].error
    assert [o.error is None for o in outputs] == [True, False, False, True, True]


def test_out_of_memory_halves_the_rows_and_goes_on(policies, monkeypatch):
    policy = policies("llava")
    expected = texts(policies("llava").generate(box_requests(), GREEDY))
    tried = []

    def tight(model, family, chats, seen):
        tried.append(len(chats))
        if len(chats) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decoding.prefill(model, family, chats, seen)

    monkeypatch.setattr("visrl.policies.hf.policy.prefill", tight)
    policy.rows = 8
    assert texts(policy.generate(box_requests(), GREEDY)) == expected
    assert tried == [5, 2, 2, 1] and policy.rows == 2  # 5 at once: no; half of 5 fits
    tried.clear()
    policy.generate([replace(r, key=f"new {r.key}") for r in box_requests()], GREEDY)
    assert tried == [2, 2, 1]  # remembered


def test_out_of_memory_while_resuming_reads_the_prompts_anew(policies, monkeypatch):
    """The earlier cache is given up, and with it what the jobs shared: the first pictures must be looked at again."""
    policy = policies("llava")
    second = answer_requests(policy.generate(box_requests(), GREEDY))
    expected = texts(policy.generate(second, GREEDY))
    policy.generate(box_requests(), GREEDY)

    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("visrl.policies.hf.policy.resume", never)
    assert texts(policy.generate(second, GREEDY)) == expected


def test_out_of_memory_with_one_conversation_is_an_error(policies, monkeypatch):
    def never(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("visrl.policies.hf.policy.prefill", never)
    with pytest.raises(torch.OutOfMemoryError):
        policies("llava").generate(box_requests()[:1], GREEDY)


def test_what_a_record_says(checkpoints, policies):
    about = policies("qwen2_5_vl").describe()
    assert about["family"] == "qwen2_5_vl" and about["dtype"] == "float64" and about["box_format"] == "json_resized"
    assert about["image_processor"].startswith("Qwen2VLImageProcessor") and about["trust_remote_code"] is False
    assert len(about["weights_sha256"]) == 64
    assert policies("qwen2_5_vl", "paper").describe()["box_format"] == "padded_square_3dp"


def test_the_weights_hash_is_of_the_weights(tmp_path):
    from visrl.policies.hf.hashes import weights_hash

    one, same, other = (tiny.save("llava", tmp_path / n, seed) for n, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert weights_hash(one) == weights_hash(same) != weights_hash(other)


def test_pickled_weights_are_refused(tmp_path):
    folder = tiny.save("llava", tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="cannot load") as caught:
        HFPolicy.load(str(folder))
    assert "pickles" in caught.value.hint


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dtype": "int8"}, "dtype=int8: Input should be .auto., .float32."),
        ({"attn": "flash_attention_2"}, "attn=flash_attention_2: flash attention takes no mask"),
        ({"attn_implementation": "flash_attention_3"}, "attn=flash_attention_3: flash attention takes no mask"),
        ({"attn": "fast"}, "attn=fast: Input should be"),
        ({"load_in_4bit": "true", "load_in_8bit": "true"}, "args: load_in_4bit and load_in_8bit: give one of them"),
    ],
)
def test_arguments_that_make_no_sense(args, message, checkpoints):
    with pytest.raises(UsageError, match=message):
        HFPolicy.load(str(checkpoints("llava")), **args)


def test_no_such_checkpoint(tmp_path):
    with pytest.raises(UsageError, match="cannot load"):
        HFPolicy.load(str(tmp_path))


def test_an_adapter_is_merged_and_recorded(tmp_path, checkpoints):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    folder = str(checkpoints("llava"))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tuned = get_peft_model(model, LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "lora")
    plain, merged = HFPolicy.load(folder), HFPolicy.load(folder, adapter=str(tmp_path / "lora"))
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(plain.model.state_dict()[name], merged.model.state_dict()[name])
    assert len(merged.describe()["adapter"]["weights_sha256"]) == 64 and plain.describe()["adapter"] is None
    with pytest.raises(UsageError, match=r"no adapter_model\.safetensors"):
        HFPolicy.load(folder, adapter=str(tmp_path))
