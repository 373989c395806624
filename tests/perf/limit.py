"""How near two turns in process come to what the model's own passes alone would take, on the LLaVA of generation.py.

python tests/perf/limit.py [--samples 8] [--new-tokens 25] [--repeat 5] [--threads 1]

The limit is the CPU time of what no way of running this model with transformers' code and torch's kernels can leave out:

pictures   the processor and the vision tower on each distinct picture, once;
prompts    the model's forward over each distinct token of both turns, once: the longest beginning that the questions of a picture share, what
           is left of each first prompt, and what the second prompt adds to the first with its reply. One row at a time or all at once,
           whichever took less;
steps      a forward pass per further new token, all samples in one batch.

Its caches are allocated beforehand, its one mask (a second prompt behind a cache) is built beforehand, nothing is padded, nobody looks at logits.
Not in it: rendering, tokenizing, opening and hashing pictures, masks, copies of caches, choosing tokens, texts. "Products alone" counts within these
passes only F.linear and scaled_dot_product_attention: no norm, no rotation, no activation, no Python. All is measured in turn with both ways
of answering, ``repeat`` rounds; times and ratios are medians over the rounds, each ratio of one round's own times: the machine's pace changes.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import generation
import torch
import torch.nn.functional as F
import transformers as hf
from engine import per_sample
from generation import answer_request, box_request, fresh, fresh_caches, samples
from transformers.cache_utils import Cache

from visrl.core.types import CoTSample
from visrl.policies.hf.caches import PreallocatedLayer
from visrl.policies.hf.decoding import shared_length
from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import Output, Sampling

Key = tuple[str, int, int]  # part, number of its pass, rows at a time


@dataclass(frozen=True)
class Pass:
    """Forward passes: ``times`` over ``tokens`` tokens of ``rows`` rows, behind ``behind`` slots of a cache."""

    rows: int
    tokens: int
    behind: int
    times: int = 1


class Products:
    """CPU seconds within the two functions that hold a transformer's arithmetic, while entered."""

    def __enter__(self) -> "Products":
        self.spent, self.plain = 0.0, (F.linear, F.scaled_dot_product_attention)
        F.linear, F.scaled_dot_product_attention = map(self._timed, self.plain)
        return self

    def __exit__(self, *_: object) -> None:
        F.linear, F.scaled_dot_product_attention = self.plain

    def _timed(self, plain: Callable) -> Callable:
        def run(*args: object, **kwargs: object) -> object:
            began = time.process_time()
            result = plain(*args, **kwargs)
            self.spent += time.process_time() - began
            return result

        return run


def both_turns(policy: HFPolicy, asked: list[CoTSample], new: int) -> tuple[list[Output], list[Output]]:
    boxes = policy.generate([box_request(s) for s in asked], Sampling(max_tokens=new))
    second = [answer_request(s, b.texts[0]) for s, b in zip(asked, boxes, strict=True)]
    return boxes, policy.generate(second, Sampling(max_tokens=new))


def common(signatures: list[tuple]) -> int:
    """How many first tokens all of them have in common."""
    return sum(1 for _ in itertools.takewhile(lambda same: len(set(same)) == 1, zip(*signatures, strict=False)))


def needed(policy: HFPolicy, asked: list[CoTSample], new: int) -> tuple[list, list[Pass], list[Pass]]:
    """The distinct pictures, and the passes over prompts and over new tokens. Rows of unequal length count as their mean."""
    boxes, _ = both_turns(fresh_caches(policy), asked, new)
    looked: dict = {}
    first = [policy._chat(box_request(s), looked) for s in asked]
    second = [policy._chat(answer_request(s, b.texts[0]), looked) for s, b in zip(asked, boxes, strict=True)]
    said = [chat.continued(box.token_ids[0][:-1]) for chat, box in zip(first, boxes, strict=True)]
    kept = mean([shared_length(chat, known.signature) for chat, known in zip(second, said, strict=True)])
    one, two = mean([len(c.ids) for c in first]), mean([len(c.ids) for c in second])
    of: dict[str, list[tuple]] = {}
    for chat in first:
        of.setdefault(chat.pictures[0].digest, []).append(chat.signature)
    n, start = len(asked), mean([common(signatures) for signatures in of.values()])
    prompts = [Pass(n, one, 0)] if len(of) == n else [Pass(len(of), start, 0), Pass(n, one - start, start)]
    prompts.append(Pass(n, two - kept, kept))
    return list(looked.values()), prompts, [Pass(n, 1, one, new - 1), Pass(n, 1, two, new - 1)]


def mean(counts: list[int]) -> int:
    return round(statistics.mean(counts))


def cache_of(model: torch.nn.Module, rows: int, slots: int) -> Cache:
    """Random keys and values in ``slots`` slots, and room for more."""
    text = model.config.get_text_config()
    width = text.hidden_size // text.num_attention_heads
    cache = Cache(layer_class_to_replicate=PreallocatedLayer)
    for layer in range(text.num_hidden_layers if slots else 0):
        cache.update(*torch.randn(2, rows, text.num_key_value_heads, slots, width), layer)
    return cache


def forward(model: torch.nn.Module, one: Pass, at_once: int) -> float:
    """CPU seconds of the passes, so many rows at a time."""
    spent = 0.0
    mask = None
    if one.tokens > 1 and one.behind:
        seen = torch.ones(one.tokens, one.behind + one.tokens, dtype=torch.bool).tril(one.behind)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[None, None]
    for _ in range(0, one.rows, at_once):
        cache = cache_of(model, at_once, one.behind)
        ids = torch.randint(10, 50, (at_once, one.tokens))
        began = time.process_time()
        for _ in range(one.times):
            model(input_ids=ids, cache=cache, attention_mask=mask, use_cache=True, logits_to_keep=1)
        spent += time.process_time() - began
    return spent


def look(policy: HFPolicy, pictures: list) -> float:
    began = time.process_time()
    for _ in pictures:
        policy.family.encode_image(generation.samples(1)[0].picture.open())
    for at in range(0, len(pictures), policy.rows):
        policy.family.encode(policy.model, pictures[at : at + policy.rows])
    return time.process_time() - began


@torch.inference_mode()
def parts(policy: HFPolicy, pictures: list, prompts: list[Pass], steps: list[Pass]) -> dict[Key, tuple[float, float]]:
    """CPU seconds of each part of the limit done in each way, and of the products in it."""
    found: dict[Key, tuple[float, float]] = {}

    def measure(key: Key, call: Callable[[], float]) -> None:
        with Products() as inside:
            found[key] = call(), inside.spent

    measure(("pictures", 0, 0), lambda: look(policy, pictures))
    for number, one in enumerate(prompts):
        for way in {1, one.rows}:
            measure(("prompts", number, way), lambda one=one, way=way: forward(policy.model, one, way))
    for number, one in enumerate(steps):
        measure(("steps", number, one.rows), lambda one=one: forward(policy.model, one, one.rows))
    return found


def summed(found: dict[Key, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """By part: the seconds of one round summed over its passes, each in the way that took less; of all in it, and of the products."""
    out: dict[str, tuple[float, float]] = {}
    for part, number in sorted({key[:2] for key in found}):
        tried = [times for key, times in found.items() if key[:2] == (part, number)]
        whole, products = out.get(part, (0.0, 0.0))
        out[part] = whole + min(t for t, _ in tried), products + min(t for _, t in tried)
    return out


def cpu(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def compare(folder: str, n: int, new: int, repeat: int, per_picture: int) -> None:
    policy, asked = fresh(folder), samples(n, per_picture)
    pictures, prompts, steps = needed(policy, asked, new)
    rounds, ours, theirs = [], [], []
    for _ in range(repeat + 1):  # the first is a warm-up
        rounds.append(parts(policy, pictures, prompts, steps))
        ours.append(cpu(lambda: both_turns(fresh_caches(policy), asked, new)))
        theirs.append(cpu(lambda: per_sample(policy, asked, new)))
    del rounds[0], ours[0], theirs[0]
    found = [summed(one) for one in rounds]
    limits, products = ([sum(times[i] for times in one.values()) for one in found] for i in (0, 1))

    def ms(seconds: Iterable[float]) -> str:
        return f"{statistics.median(seconds) / n * 1e3:.0f}"

    def ratio(above: list[float], below: list[float], digits: int = 2) -> str:
        each = [a / b for a, b in zip(above, below, strict=True)]
        return f"{statistics.median(each):.{digits}f} ({min(each):.{digits}f} to {max(each):.{digits}f})"

    of_parts = ", ".join(
        f"{name} {ms(one[name][0] for one in found)} (products {ms(one[name][1] for one in found)})"
        for name in found[0]
    )
    print(
        f"{n} samples, {per_picture} per picture; passes (rows, tokens, behind): {[(p.rows, p.tokens, p.behind) for p in prompts]}"
    )
    print(f"  CPU ms per sample: limit {ms(limits)} = {of_parts}, products alone {ms(products)}")
    print(f"  generate {ms(theirs)}, in process {ms(ours)}")
    print(f"  against generate: reached {ratio(theirs, ours)}, limit {ratio(theirs, limits)}")
    print(
        f"  limit / in process {ratio(limits, ours, 3)}; products alone / in process {ratio(products, ours, 3)}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=25)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(
        f"{os.cpu_count()} cores, {given.threads} thread(s), torch {torch.__version__}, transformers {hf.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        generation.checkpoint(Path(folder))
        for per_picture in (1, 4):
            compare(folder, given.samples, given.new_tokens, given.repeat, per_picture)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
