"""`vllm:` on a real engine against `hf:` in this process: the same prompts, greedy texts, scores and stops."""

import pytest
from tinies import picture
from wide_models import BOTH

from visrl.core.prompts import PROTOCOLS
from visrl.core.types import CoTSample, Turn
from visrl.policies.protocol import Request, Sampling
from visrl.policies.registry import load_policy
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer

SIZES = [(90, 50), (40, 44), (30, 77), (120, 100), (64, 64)]
QUESTIONS, PROTOCOLS_ASKED = 10, ("viscot_train", "visrl_train", "direct")


def samples(n=QUESTIONS):
    for i in range(n):
        size = SIZES[i % 5]
        yield CoTSample(f"d{i}", "t", "qa", f"what letter is it ? {'blue ' * (i % 3)}{i}", picture(*size, i), size)


def requests(n=6):
    return [Request(s.id, "answer", (Turn("user", (s.picture, f"\n{s.question}")),), s.size) for s in samples(n)]


class Recorded:
    """A policy's engine, which keeps the prompts it really read."""

    def __init__(self, policy):
        self.engine, self.read = policy.engine, []

    def generate(self, prompts, **more):
        results = self.engine.generate(prompts, **more)
        self.read += [tuple(result.prompt_token_ids) for result in results]
        return results


def chats(policy, asked):
    """The tokens `hf:` reads, pictures expanded."""
    family = policy.family
    found = []
    for request in asked:
        rendered = family.render(request.turns)
        found.append(family.chat(rendered, [family.encode_image(p.open()) for p in rendered.pictures]).ids)
    return found


@pytest.fixture(scope="module", params=BOTH)
def family(request):
    """All tests of one family run on one engine."""
    return request.param


def test_the_same_prompts_and_the_same_greedy_texts(family, saved, engine, table):
    """Every turn of ten questions under three protocols: 10 answers without and 2 × 2 × 10 turns with a look."""
    served, local = engine(saved(family)), load_policy(f"hf:{saved(family)}", {"dtype": "float32"})
    prompts = texts = n = 0
    for name in PROTOCOLS_ASKED:
        config = RolloutConfig(PROTOCOLS[name], sampling=Sampling(max_tokens=24))
        asked = {}
        for policy in (local, served):
            asked[policy] = list(look_then_answer(policy, samples(), config, batch_size=QUESTIONS))
        for here, there in zip(asked[local], asked[served], strict=True):
            assert here.error is None and there.error is None
            for step in ("box_step", "answer_step"):
                one, other = getattr(here, step), getattr(there, step)
                if one is not None:
                    n, texts = n + 1, texts + (one.output == other.output)
                    prompts += one.prompt_tokens == other.prompt_tokens
    recorded = served.engine = Recorded(served)
    served.generate(requests(), Sampling(max_tokens=1))
    served.engine = recorded.engine
    table.append(f"| {family} | {prompts} of {n} | {texts} of {n} |")
    assert recorded.read == chats(local, requests()), "token for token"
    assert (prompts, texts, n) == (50, 50, 50)


def test_texts_are_as_probable_as_in_process(family, saved, engine):
    served, local = engine(saved(family)), load_policy(f"hf:{saved(family)}", {"dtype": "float32"})
    words = ["A", "blue square", "yes", "", "the red circle", "[0.1, 0.2]"]
    here, there = (policy.loglikelihood(requests(), words) for policy in (local, served))
    for one, other in zip(here, there, strict=True):
        assert other.value == pytest.approx(one.value, rel=1e-4, abs=1e-3) and one.tokens.prompt == other.tokens.prompt


def test_draws_and_stops(saved, engine):
    """One family suffices: what is drawn and where texts end is not a family's business."""
    served, local = engine(saved("qwen2_5_vl")), load_policy(f"hf:{saved('qwen2_5_vl')}", {"dtype": "float32"})
    hot = Sampling(n=4, temperature=1.5, top_p=0.9, top_k=50, max_tokens=12, seed=3)
    drawn = [o.texts for o in served.generate(requests(), hot)]
    assert all(len(texts) == 4 for texts in drawn) and any(len(set(texts)) > 1 for texts in drawn)
    again = [o.texts for o in served.generate(requests()[::-1], hot)][::-1]
    assert again == drawn, "a draw hangs on the request, not on the batch"
    other = Sampling(n=4, temperature=1.5, top_p=0.9, top_k=50, max_tokens=12, seed=4)
    assert [o.texts for o in served.generate(requests(), other)] != drawn
    greedy = Sampling(max_tokens=24)
    plain = [o.texts[0] for o in local.generate(requests(), greedy)]
    stop = max({c for text in plain for c in text if c.isalnum()}, key=lambda c: sum(c in text[:-1] for text in plain))
    for sampling in (
        Sampling(max_tokens=24, stop=(stop,)),
        Sampling(max_tokens=24, stop=(stop,), accept_stop=lambda text: text.count(stop) == 2),
    ):
        here, there = (policy.generate(requests(), sampling) for policy in (local, served))
        assert [o.texts for o in here] == [o.texts for o in there]
        assert any(len(o.texts[0]) < len(text) for o, text in zip(there, plain, strict=True)), "one was stopped"


def test_pixel_limits_are_kept(saved, engine):
    """A quarter of the pixels: fewer tokens, the same in both."""
    for family, limit in (("qwen2_5_vl", {"max_pixels": str(56 * 56)}), ("internvl", {"max_tiles": "1"})):
        local = load_policy(f"hf:{saved(family)}", {"dtype": "float32", **limit})
        whole = load_policy(f"hf:{saved(family)}", {"dtype": "float32"})
        served = engine(saved(family), **limit)
        here, there, free = (p.generate(requests(), Sampling(max_tokens=12)) for p in (local, served, whole))
        assert [o.prompt_tokens for o in here] == [o.prompt_tokens for o in there]
        assert sum(o.prompt_tokens for o in there) < sum(o.prompt_tokens for o in free)
        assert [o.texts for o in here] == [o.texts for o in there]
        assert [o.seen_sizes for o in here] == [o.seen_sizes for o in there]
        assert served.describe()["pixel_limits"] == {key: int(value) for key, value in limit.items()}


def test_adapters_are_exchanged(saved, engine, tmp_path):
    """The LoRA of each of two iterations, and none between: what the engine says with it is what `hf:` says with it merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    folder = saved("qwen2_5_vl")
    adapters = []
    for i in range(2):
        torch.manual_seed(i)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        config = LoraConfig(
            r=4, lora_alpha=64, target_modules=r".*language_model.*\.(q_proj|v_proj|up_proj)", init_lora_weights=False
        )
        get_peft_model(model, config).save_pretrained(tmp_path / f"it{i}")
        adapters.append(str(tmp_path / f"it{i}"))
    served, greedy = engine(folder, max_lora_rank="8"), Sampling(max_tokens=16)
    bare = [o.texts for o in served.generate(requests(), greedy)]
    said = []
    for path in (*adapters, adapters[0]):
        served.use_adapter(path)
        said.append([o.texts for o in served.generate(requests(), greedy)])
    local = [load_policy(f"hf:{folder}", {"dtype": "float32", "adapter": path}) for path in adapters]
    expected = [[o.texts for o in policy.generate(requests(), greedy)] for policy in local]
    assert said == [expected[0], expected[1], expected[0]] and expected[0] != expected[1] and bare not in expected
    beside = served.with_adapter("")
    assert [o.texts for o in beside.generate(requests(), greedy)] == bare, "the base beside it, in one engine"
    served._adapter = None
