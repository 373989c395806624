"""What is killed: small commands of every kind that writes a folder, each in a folder of its own, and what of it is compared."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "train")]

TRAINER = (
    "trainer: {learning_rate: 3e-4, max_steps: 6, per_device_train_batch_size: 2, gradient_accumulation_steps: 1, save_steps: 2,"
    " logging_steps: 4, save_total_limit: 2, warmup_steps: 2}\n"
)
"""Checkpoints after steps 2, 4 and 6, lines of the history after 1, 4 and the last: windows and checkpoints do not coincide."""
RECIPES = {
    "sft": "kind: sft\noutput: out\nseed: 5\nmodel: {path: sft, dtype: float32}\ndata: {path: chains.jsonl}\n" + TRAINER,
    "sft-lora": "kind: sft\noutput: out\nseed: 5\nmodel: {path: sft, dtype: float32}\ndata: {path: chains.jsonl}\n"
    "lora: {r: 2, dropout: 0.1}\n" + TRAINER,
    "dpo": "kind: dpo\noutput: out\nseed: 5\nmodel: {path: sft, dtype: float32}\ndata: {path: pairs.jsonl}\n" + TRAINER,
    "small_model": "kind: small_model\noutput: out\nseed: 5\nstart: base\nsplit: train\nsteps: 4\nbatch: 4\nwatch_every: 0\nlog_every: 1\n"
    "workers: 0\nlessons: {box: [0.6, 0.6], look: [0.4, 0.4]}\n",
    "pairs": "kind: pairs\noutput: out\nseed: 0\npolicy: {model: sft, args: {dtype: float64}}\n"
    "critic: {kind: likelihood, model: base, args: {dtype: float64}}\ndata: {format: world, limit: 8}\nsampling: {max_tokens: 8}\n"
    "batch_size: 2\n",
    "grpo": "kind: grpo\noutput: out\nseed: 5\nmodel: {path: sft, dtype: float32}\ndata: {format: world, limit: 12}\n"
    "grpo: {box: {iou: 1.0, format: 0.1}, answer: {answer: 1.0, length: 0.1}, keep: 1}\n"
    "trainer: {learning_rate: 3e-4, max_steps: 6, num_generations: 4, per_device_train_batch_size: 8, gradient_accumulation_steps: 1,"
    " max_completion_length: 8, beta: 0.05, save_steps: 2, logging_steps: 4, save_total_limit: 2, warmup_steps: 2}\n",
    "loop": "kind: loop\noutput: out\nseed: 0\nbase: base\nsft: {model: sft}\n"
    "pairs: {recipe: pairs.yaml, set: {data.limit: 24, batch_size: 8, policy.args.dtype: float32, critic.args.dtype: float32}}\n"
    "rl: {recipe: dpo.yaml, set: {trainer.max_steps: 3}}\n"
    "score: {tasks: world_viscot_doc, args: {dtype: float32}, max_tokens: 8, limit: 4}\n",
}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A command. make: its inputs, once, in a folder that every attempt copies; run: the command in that folder, to its end."""

    name: str
    make: Callable[[Path], None]
    run: Callable[[], int]


def _nothing(folder: Path) -> None:
    """No inputs but the command's own."""


def _evaluated(*words: str) -> int:
    from visrl.cli import evaluate

    return evaluate.main(list(words))


def _trained(recipe: str) -> int:
    from visrl.cli import train

    try:
        train.main([recipe])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _shown(recipe: str) -> int:
    """Trained, and its page written: what a user sees of a resumed phase is compared, too."""
    return _trained(recipe) or _evaluated("view", "out", "-o", "out/page.html")


def _drawn(folder: Path) -> None:
    from runs_made import drawn

    drawn(folder / "data", n=40)


EVALUATION = (
    *(
        "run",
        "--model",
        "constant:[0.1, 0.1, 0.6, 0.6]",
        "--tasks",
        "viscot_vsr",
        "--data",
        "data",
        "--batch-size",
        "2",
    ),
    *("-o", "out", "-q"),
)
MODEL = (
    "run",
    "--model",
    "tiny",
    "--tasks",
    "world_viscot_doc",
    "--limit",
    "8",
    "--batch-size",
    "2",
    "-o",
    "out",
    "-q",
)


def _finished_run(folder: Path) -> None:
    _drawn(folder)
    import os

    here = os.getcwd()
    os.chdir(folder)
    try:
        assert _evaluated(*EVALUATION) == 0
    finally:
        os.chdir(here)
    shutil.rmtree(folder / "out" / "records")
    (folder / "out" / "scores.jsonl").unlink()


def _recipes(folder: Path) -> None:
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text)
    from visrl.train.data.questions import QuestionSection, load_questions

    chains, pairs = [], []
    for sample in load_questions(QuestionSection(format="world", split="train", limit=12)):
        row = {"id": sample.id, "picture": sample.picture.ref, "question": sample.question}
        chosen = {"box": sample.box.xyxy, "answer": sample.answers[0]}
        chains.append({**row, "chain": chosen})
        pairs.append({**row, "win": chosen, "lose": {"box": [1, 1, 30, 30], "answer": "no"}})
    for name, rows in (("chains", chains), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _fake_pairs() -> int:
    import pairs_made as made

    from visrl.errors import UsageError
    from visrl.runs.distributed import say
    from visrl.train.critics.critics import make_critic
    from visrl.train.pairs.run import make_pairs, plan_of
    from visrl.train.pairs.sampling import PairSampler

    samples = made.questions(60)
    recipe = made.recipe("out", batch_size=4)
    policy, critic = made.FakePolicy("fake", samples), made.FakeCritic("critic", samples)
    try:
        make_pairs(PairSampler(policy, make_critic("score", critic, "exact"), plan_of(recipe, policy)), samples, recipe)
    except UsageError as error:
        return say(error)
    return 0


SCENES = {
    scene.name: scene
    for scene in (
        Scene("evaluation", _drawn, lambda: _evaluated(*EVALUATION)),
        Scene("evaluation of a model", _nothing, lambda: _evaluated(*MODEL)),
        Scene("scoring", _finished_run, lambda: _evaluated("score", "out")),
        Scene("pairs", _nothing, _fake_pairs),
        Scene("pairs of a model", _recipes, lambda: _trained("pairs.yaml")),
        Scene("sft", _recipes, lambda: _shown("sft.yaml")),
        Scene("sft with lora", _recipes, lambda: _shown("sft-lora.yaml")),
        Scene("dpo", _recipes, lambda: _trained("dpo.yaml")),
        Scene("grpo", _recipes, lambda: _shown("grpo.yaml")),
        Scene("small model", _recipes, lambda: _trained("small_model.yaml")),
        Scene("loop", _recipes, lambda: _trained("loop.yaml")),
    )
}

# --- what is compared: every file, but for what time and place may change in it
TIMES = (
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "seconds",
    "cpu_seconds",
    "step_time",
    "total_flos",
)
LEFT_OUT = ("optimizer.pt", "rng_state.pth", "training_args.bin", ".lock")


def files(folder: Path) -> dict[str, str]:
    """name -> digest of everything below ``folder`` that a user may read."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in LEFT_OUT and not path.name.endswith(".tmp"):
            found[str(path.relative_to(folder))] = hashlib.sha256(content(path)).hexdigest()
    return found


def left_over(folder: Path) -> list[str]:
    """Files that a killed write left beside the real one."""
    return [str(path) for path in folder.rglob("*.tmp")]


def content(path: Path) -> bytes:
    """A file's bytes without times; of safetensors names, numbers and metadata in order, since their writer orders metadata at random."""
    if path.suffix == ".safetensors":
        return _weights(path)
    if path.name == "run.json":
        meta = json.loads(path.read_text())
        return json.dumps([meta["request"], meta["request_hash"]], sort_keys=True).encode()
    if path.name == "files.json":  # checksums of the checkpoint's files; those of files with times in them differ
        listed = json.loads(path.read_text())
        return json.dumps([pair for pair in listed.items() if not _holds_times(pair[0])]).encode()
    if _holds_times(path.name):
        return json.dumps(_timeless(json.loads(path.read_text())), sort_keys=True).encode()
    return path.read_bytes()


def _holds_times(name: str) -> bool:
    return name.startswith("window-") or name in (
        "history.json",
        "outputs.json",
        "phase.json",
        "trainer_state.json",
        "training.json",
    )


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _weights(path: Path) -> bytes:
    from safetensors import safe_open

    with safe_open(path, "np") as weights:
        names = sorted(weights.keys())
        parts = [f"{name}".encode() + weights.get_tensor(name).tobytes() for name in names]
        return b"".join([repr(sorted((weights.metadata() or {}).items())).encode(), *parts])
