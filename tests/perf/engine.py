"""Two turns per sample on vLLM against `generate` per sample: the same LLaVA of real token geometry, the same machine, float32.

python tests/perf/engine.py [--pictures 8] [--questions 4] [--new-tokens 25] [--repeat 3] [--threads 0]

Random weights (generation.py: 576 picture tokens, 6 layers of width 256); wall time, and CPU time with the engine's processes, which others
on the machine disturb less; the engine's start is not counted (it is printed). Ratios are of medians; load average and cores are printed beside them. `tox -e vllm` makes an environment that can run it.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "engines")]
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import generation
import psutil
import torch
import wide_models

from visrl.policies.hf.policy import HFPolicy
from visrl.policies.protocol import Policy, Sampling
from visrl.policies.registry import load_policy

TARGET = 4.0


def per_sample(policy: HFPolicy, asked: list, new: int) -> list[str]:
    """What one writes without an engine: twice `generate`, sample after sample."""
    said = []
    for sample in asked:
        box = generation.by_generate(policy, generation.box_request(sample).turns, new, do_sample=False)[0]
        turns = generation.answer_request(sample, box).turns
        said.append(generation.by_generate(policy, turns, new, do_sample=False)[0])
    return said


def batched(policy: Policy, asked: list, new: int) -> list[str]:
    """Both turns of all samples, as evaluation asks for them."""
    boxes = policy.generate([generation.box_request(s) for s in asked], Sampling(max_tokens=new))
    requests = [generation.answer_request(s, b.texts[0]) for s, b in zip(asked, boxes, strict=True)]
    return [output.texts[0] for output in policy.generate(requests, Sampling(max_tokens=new))]


def spent() -> float:
    """CPU seconds of this process and its children, the engine's among them."""
    own = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (own, *own.children(recursive=True)))


def seconds(call, repeat: int) -> tuple[float, float, list[str]]:
    """Median wall and CPU time of ``repeat`` calls behind one that warms up; a prefix cache is as warm as it is between tasks: not at all."""
    wall, cpu, said = [], [], []
    for _ in range(repeat + 1):
        began, before = time.perf_counter(), spent()
        said = call()
        wall.append(time.perf_counter() - began)
        cpu.append(spent() - before)
    return statistics.median(wall[1:]), statistics.median(cpu[1:]), said


def fresh(policy: Policy) -> Policy:
    """With nothing kept of the repeat before: no key, no value, no picture."""
    policy.engine.reset_prefix_cache()
    policy.engine.reset_mm_cache()
    return policy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=25)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of each side; 0: all cores")
    given = parser.parse_args()
    threads = given.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, range(threads))))
    folder = Path(tempfile.mkdtemp())
    generation.checkpoint(folder)
    wide_models.named_as_published(folder / "model.safetensors")
    asked = generation.samples(given.pictures * given.questions, given.questions)
    local = load_policy(f"hf:{folder}", {"dtype": "float32", "box_format": "paper"})
    theirs, theirs_cpu, expected = seconds(lambda: per_sample(local, asked, given.new_tokens), given.repeat)
    in_process, in_process_cpu, _ = seconds(
        lambda: batched(generation.fresh_caches(local), asked, given.new_tokens), given.repeat
    )
    began = time.perf_counter()
    engine = load_policy(
        f"vllm:{folder}", {"dtype": "float32", "box_format": "paper", "max_model_len": "2048", "enforce_eager": "true"}
    )
    start = time.perf_counter() - began
    ours, ours_cpu, said = seconds(lambda: batched(fresh(engine), asked, given.new_tokens), given.repeat)
    same = sum(a == b for a, b in zip(expected, said, strict=True))
    engine.close()
    load = os.getloadavg()[0]
    print(
        f"{len(asked)} samples ({given.pictures} pictures × {given.questions}), {threads} threads of {os.cpu_count()} cores, load {load:.1f}"
    )
    print("                     wall, s   ratio    CPU, s   ratio")
    for name, wall, cpu in (
        ("generate per sample", theirs, theirs_cpu),
        ("in process", in_process, in_process_cpu),
        ("vLLM", ours, ours_cpu),
    ):
        print(f"{name:20} {wall:8.2f} {theirs / wall:6.2f}x {cpu:9.2f} {theirs_cpu / cpu:6.2f}x", flush=True)
    print(f"target {TARGET:g}x: {'met' if theirs / ours >= TARGET else 'missed'}")
    print(f"the engine started in {start:.0f} s; {same} of {len(asked)} answers are the same text")


if __name__ == "__main__":
    main()
