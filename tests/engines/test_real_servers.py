"""`endpoint:` against real servers on the loopback: vLLM's OpenAI server, with LoRA, two of them, one killed; and `transformers serve`."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import wide_models
from test_vllm_engine import QUESTIONS, requests, samples

from visrl.core.prompts import PROTOCOLS
from visrl.errors import UsageError
from visrl.policies.before import check_policy
from visrl.policies.protocol import Sampling
from visrl.policies.registry import load_policy
from visrl.rollout.config import RolloutConfig
from visrl.rollout.rollout import look_then_answer

FAMILY = "qwen2_5_vl"
VLLM = [
    "-m",
    "vllm.entrypoints.openai.api_server",
    "--host",
    "127.0.0.1",
    "--dtype",
    "float32",
    "--max-model-len",
    "2048",
    "--enforce-eager",
    "--max-num-seqs",
    "8",
    "--served-model-name",
    "m",
    "--generation-config",
    "vllm",
    "--enable-lora",
    "--max-lora-rank",
    "8",
]


@contextlib.contextmanager
def serving(command):
    """The URL of a server that runs until the end; ``process`` is what to kill."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    }
    command = [*map(str, command), "--port", str(port)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            assert process.poll() is None, "the server ended"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        end(process)


def end(process):
    """The server and the engine it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return wide_models.save(FAMILY, tmp_path_factory.mktemp("served"), letters=True)


@pytest.fixture(scope="module")
def local(folder):
    return load_policy(f"hf:{folder}", {"dtype": "float32", "box_format": "paper"})


@pytest.fixture(scope="module")
def vllm_url(folder):
    with serving([sys.executable, *VLLM, "--model", folder, "--limit-mm-per-prompt", '{"image": 2}']) as (url, _):
        yield url


def served(url, name, **args):
    return load_policy(f"endpoint:{url}#{name}", {"box_format": "paper", **args})


def episodes(policy, name="viscot_train"):
    config = RolloutConfig(PROTOCOLS[name], sampling=Sampling(max_tokens=24))
    return list(look_then_answer(policy, samples(), config, batch_size=QUESTIONS))


def equal(one, other):
    """How many of two policies' texts are the same, and of how many."""
    steps = [
        (getattr(a, step), getattr(b, step))
        for a, b in zip(one, other, strict=True)
        for step in ("box_step", "answer_step")
    ]
    return sum(a.output == b.output for a, b in steps), len(steps)


def test_vllms_server_says_what_the_engine_says(vllm_url, local, table):
    for name in ("viscot_train", "visrl_train"):
        there = episodes(served(vllm_url, "m"), name)
        assert all(e.error is None for e in there)
        same, n = equal(episodes(local, name), there)
        table.append(f"vLLM's server, {name}: {same} of {n} texts equal")
        assert (same, n) == (20, 20)


def test_draws_and_names_of_vllms_server(vllm_url):
    hot = Sampling(n=3, temperature=1.5, top_p=0.9, top_k=50, max_tokens=12, seed=3)
    policy = served(vllm_url, "m")
    drawn = [o.texts for o in policy.generate(requests(4), hot)]
    assert drawn == [o.texts for o in policy.generate(requests(4), hot)] and all(len(texts) == 3 for texts in drawn)
    started = time.monotonic()
    with pytest.raises(UsageError, match="has no model mm") as caught:
        check_policy(f"endpoint:{vllm_url}#mm", {"box_format": "paper"})
    assert "it has m" in caught.value.hint.lower() and time.monotonic() - started < 10


def test_lora_by_name_on_vllms_server(vllm_url, folder, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    where = r".*language_model.*\.(q_proj|v_proj|up_proj)"
    config = LoraConfig(r=4, lora_alpha=64, target_modules=where, init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "it1")
    with_it = load_policy(f"hf:{folder}", {"dtype": "float32", "box_format": "paper", "adapter": str(tmp_path / "it1")})
    there = episodes(served(vllm_url, "it1", adapter=str(tmp_path / "it1")))
    assert equal(episodes(with_it), there) == (20, 20)
    assert equal(episodes(served(vllm_url, "m")), there)[0] < 20, "the base beside it says something else"


def test_one_of_two_servers_killed(vllm_url, folder, local):
    command = [sys.executable, *VLLM, "--model", folder, "--limit-mm-per-prompt", '{"image": 2}']
    with serving(command) as (url, process):
        policy = served(f"{url},{vllm_url}", "m", in_flight="2")
        threading.Timer(1.0, end, (process,)).start()
        there = []
        for _ in range(4):
            there = episodes(policy)
            assert [e.error for e in there] == [None] * QUESTIONS
        assert policy.replicas.all[0].out and equal(episodes(local), there) == (20, 20)


def test_transformers_serve_says_what_the_model_says(folder, local, table):
    pytest.importorskip("fastapi")
    program = Path(sys.executable).parent / "transformers"
    with serving([program, "serve", folder, "--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]) as (
        url,
        _,
    ):
        same, n = equal(episodes(local), episodes(served(url, str(folder))))
        table.append(f"transformers serve: {same} of {n} texts equal")
        assert (same, n) == (20, 20)
