"""docs/bring-your-own.md by its own commands: tiny random checkpoints of three families, pictures drawn here, the recipes' numbers small.

A stand-in for an OpenAI-compatible server on the loopback is the critic: a random model of 0.1 M parameters judges nothing.
"""

import hashlib
import json
import re
import shlex
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from own_made import bring

from visrl.cli.evaluate import main as visrl_eval
from visrl.cli.train import run as visrl_train
from visrl.core.records import read_records
from visrl.train.loop import run as loop

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/bring-your-own.md").read_text()
SHOWN = "qwen2.5-vl-7b"
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", GUIDE, re.S) for line in block.splitlines()]
DRY, LOOP, TABLE, VIEW, JUDGED, SFT, PAIRS, RL, SCORE_SFT, SCORE_RL = COMMANDS
FAMILIES = {"qwen2.5-vl-7b": "qwen2_5_vl", "llava-next-7b": "llava_next", "paligemma2-10b": "paligemma2"}
TAUGHT = {"qwen2.5-vl-7b": (25, "B"), "llava-next-7b": (25, "A"), "paligemma2-10b": (40, "A")}
"""Epochs after which a model writes boxes, and an answer that it gives to some of its crops, so that there are pairs."""
SMALL = {"gradient_accumulation_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 1e-2}
FEW = {**SMALL, "num_train_epochs": 3, "learning_rate": 1e-5}  # the first step warms up


class Critic(BaseHTTPRequestHandler):
    """One letter is right, whatever was asked; a crop is good or bad by its bytes."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._send("application/json", json.dumps({"object": "list", "data": [{"id": "NAME", "object": "model"}]}))

    def do_POST(self):
        parts = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"]
        text = "".join(part.get("text", "") for part in parts)
        digest = hashlib.sha256(json.dumps(parts).encode()).digest()
        score = float(text.endswith(self.server.right)) if "given answer" in text else digest[0] % 2
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "NAME"}
        said = [({"content": json.dumps({"score": score})}, None), ({}, "stop")]
        events = [{**chunk, "choices": [{"index": 0, "delta": d, "finish_reason": end}]} for d, end in said]
        self._send("text/event-stream", "".join(f"data: {json.dumps(e)}\n\n" for e in events) + "data: [DONE]\n\n")

    def _send(self, kind, text):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture(scope="module")
def critic():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Critic)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def shrink(path, **sections):
    """A recipe's copy with other numbers, and nothing else."""
    tree = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values} if isinstance(values, dict) else values
    path.write_text(yaml.safe_dump(tree, sort_keys=False))


def place(tmp_path, name, server):
    """A folder as the guide wants it. Returns the critic's URL."""
    epochs, server.right = TAUGHT[name]
    critic = f"http://127.0.0.1:{server.server_address[1]}/v1"
    bring(tmp_path, FAMILIES[name])
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    here = tmp_path / "recipes"
    box_format = yaml.safe_load((here / f"{name}-sft.yaml").read_text())["model"].get("box_format", "native")
    args = {"dtype": "float32", "box_format": box_format}
    model = {"path": "model", "dtype": "float32"}
    shrink(here / f"{name}-sft.yaml", model=model, data={"limit": 12}, trainer={**SMALL, "num_train_epochs": epochs})
    shrink(here / f"{name}-rl.yaml", model=model, trainer=FEW)
    shrink(
        here / "pairs-visrl.yaml",
        policy={"args": args},
        critic={"model": f"endpoint:{critic}#NAME"},
        data={"skip": 12, "limit": 12},
        sampling={"temperature": 0.2, "max_tokens": 40},
        select={"box_critic": False},  # a crop of noise is judged by nobody
    )
    score = {"tasks": "viscot_cub", "max_tokens": 40, "args": args}
    shrink(here / f"{name}-loop.yaml", base="model", score=score)
    return critic


class Stop(Exception):
    """Something ends the process."""


def stop(*_):
    raise Stop


def words(command, name, critic):
    """A command of the guide for another family, the server of here, and the one set that was made."""
    said = command.replace(SHOWN, name).replace("http://localhost:8000/v1", critic)
    said = said.replace("dtype=bfloat16", "dtype=float32").replace("--tasks viscot ", "--tasks viscot_cub ")
    return shlex.split(said)


def do(command, name, critic):
    program, *rest = words(command, name, critic)
    return visrl_train(rest) if program == "visrl-train" else visrl_eval(rest)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loop_by_the_guides_commands(name, critic, tmp_path, monkeypatch, capsys):
    critic = place(tmp_path, name, critic)
    monkeypatch.chdir(tmp_path)
    assert do(DRY, name, critic) == 0
    assert capsys.readouterr().out.split("\n")[:3] == ["base: to run", "sft: to run", "iter1/pairs: to run"]
    assert not Path("runs").exists(), "a dry run leaves nothing"
    with (
        monkeypatch.context() as once,
        pytest.raises(Stop),
    ):  # it ends before the pairs are made, and the same command goes on
        once.setattr(loop, "generate_pairs", stop)
        do(JUDGED, name, critic)
    before = Path("runs/judged/sft/final/adapter_model.safetensors").stat().st_mtime_ns
    assert do(JUDGED, name, critic) == 0
    found = {r.model_info["phase"]["phase"]: r for r in read_records(Path("runs/judged")) if r.metric == "box_acc"}
    assert list(found) == ["base", "iter1/rl1", "iter1/rl2", "sft"]
    assert {(r.protocol, r.crop, r.n) for r in found.values()} == {("visrl_train/v1", "tight", 4)}
    assert all(found[phase].n_unparsed == 0 for phase in ("sft", "iter1/rl1", "iter1/rl2")), "boxes are read"
    adapters = [found[phase].model_info["adapter"]["weights_sha256"] for phase in ("sft", "iter1/rl1", "iter1/rl2")]
    assert len(set(adapters)) == 3
    assert Path("runs/judged/sft/final/adapter_model.safetensors").stat().st_mtime_ns == before, "SFT is not done again"
    manifest = json.loads(Path("runs/judged/iter1/pairs/manifest.json").read_text())
    assert manifest["funnel"]["pairs"] > 0 and manifest["request"]["critic"]["kind"] == "score"
    assert do(TABLE.replace(f"runs/{SHOWN}", "runs/judged"), name, critic) == 0
    assert "SFT+RL1+RL2" in capsys.readouterr().out


def test_phase_by_phase_by_the_guides_commands(critic, tmp_path, monkeypatch, capsys):
    """LoRA folders are the policies; each phase says how it is scored."""
    critic = place(tmp_path, SHOWN, critic)
    monkeypatch.chdir(tmp_path)
    for command in (SFT, RL):
        if command == RL:
            assert do(PAIRS, SHOWN, critic) == 0
        assert do(command, SHOWN, critic) == 0
        said = capsys.readouterr().err
        told = re.findall(r"score them: (visrl-eval .*)", said)[-1]
        last = SCORE_SFT if command == SFT else SCORE_RL
        assert told.replace("--tasks viscot ", "--tasks viscot_cub ").split() == words(last, SHOWN, critic)
        assert visrl_eval([*words(last, SHOWN, critic)[1:], "--json", "-q"]) == 0
        box = next(r for r in json.loads(capsys.readouterr().out) if r["metric"] == "box_acc")
        assert (box["n"], box["n_unparsed"]) == (4, 0)


def test_pairs_on_ray_are_those_of_one_process(critic, tmp_path, monkeypatch):
    """The guide's `ray: N`, after its SFT, with its server as critic: the same pairs, byte for byte."""
    ray = pytest.importorskip("ray", reason='pip install "visrl[ray]"')
    pytest.importorskip("ray.data", reason='pip install "visrl[ray]"')
    critic = place(tmp_path, SHOWN, critic)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    assert do(SFT, SHOWN, critic) == 0 and do(PAIRS, SHOWN, critic) == 0
    try:
        assert do(f"{PAIRS} --set ray=1 --set output=runs/on-ray", SHOWN, critic) == 0
    finally:
        ray.shutdown()
    alone, shared = (Path(f"runs/{name}/pairs.jsonl").read_bytes() for name in (f"{SHOWN}-pairs", "on-ray"))
    assert alone == shared and alone


def test_the_recipes_follow_from_each_other():
    """One place for pictures, one for outputs, by the names in the files themselves."""
    for path in sorted((ROOT / "recipes").glob("*-sft.yaml")):
        name = path.name.removesuffix("-sft.yaml")
        if name.startswith("world"):
            continue
        sft, rl, loop = (
            yaml.safe_load((ROOT / f"recipes/{name}-{what}.yaml").read_text()) for what in ("sft", "rl", "loop")
        )
        assert (sft["output"], rl["output"], loop["output"]) == (f"runs/{name}-sft", f"runs/{name}-rl", f"runs/{name}")
        assert (
            rl["model"]["adapter"] == f"{sft['output']}/final"
            and rl["data"]["path"] == f"runs/{name}-pairs/pairs.jsonl"
        )
        assert (
            sft["model"].get("box_format") == rl["model"].get("box_format") == loop["score"]["args"].get("box_format")
        )
        grpo = yaml.safe_load((ROOT / f"recipes/{name}-grpo.yaml").read_text())
        assert grpo["model"]["adapter"] == rl["model"]["adapter"]
        assert grpo["model"].get("box_format") == sft["model"].get("box_format")
        pictures = {recipe["data"]["pictures"] for recipe in (sft, rl, grpo)}
        assert pictures == {f"{loop['score']['data']}/images"}
    pairs = yaml.safe_load((ROOT / "recipes/pairs-visrl.yaml").read_text())
    assert pairs["policy"]["model"] == f"hf:runs/{SHOWN}-sft/final" and pairs["output"] == f"runs/{SHOWN}-pairs"
