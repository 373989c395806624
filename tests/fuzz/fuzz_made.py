"""A small valid folder of everything that commands read: two runs, a baseline, a suite, recipes, a training run, a loop."""

import contextlib
import functools
import io
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a damaged name of a model is not asked for anywhere
sys.path.insert(0, str(Path(__file__).parents[1]))
import fuzz_benchmarks
import fuzz_foreign
import fuzz_looks
import typer.main
from runs_made import drawn

from visrl.cli import evaluate, train

typer.main.get_command = functools.cache(
    typer.main.get_command
)  # building the command line anew took half of a campaign's time

TASK = "viscot_vsr"
RECIPES = {
    "dpo": "kind: dpo\noutput: out\nseed: 3\nmodel: {path: m, dtype: float32}\ndata: {path: p.jsonl, limit: 5}\nlora: {r: 4}\n"
    "step: {stages: [1], beta_box: 0.1}\ntrainer: {learning_rate: 5e-7, max_steps: 3}\n",
    "grpo": "kind: grpo\noutput: out\nmodel: {path: m, dtype: float32}\ndata: {format: world, limit: 4}\n"
    "grpo: {box: {iou: 1.0, format: 0.1}, answer: {answer: 1.0}, keep: 1}\ntrainer: {num_generations: 4, max_completion_length: 8, beta: 0.05}\n",
    "sft": "kind: sft\noutput: out\nmodel: {path: m}\ndata: {path: p.jsonl, format: visrl}\nchain: {crop: tight}\ntrainer: {learning_rate: 1e-4}\n",
    "small_model": "kind: small_model\noutput: out\nsplit: train\nsteps: 5\nlr: 0.001\nhold: 0.5\nlessons: {look: [1, 0.5], read: [0, 0.5]}\n",
    "pairs": "kind: pairs\noutput: out\npolicy: {model: tiny}\ncritic: {kind: oracle}\ndata: {format: world, limit: 4}\n"
    "sampling: {attempts: 2, temperature: 1.5}\nselect: {mode: code, win_box: 0.8}\n",
    "loop": "kind: loop\noutput: {loop}\nbase: tiny\nsft: {model: tiny}\niterations: 0\nscore: {tasks: world_viscot, limit: 4}\n",
    "ablations": "kind: ablations\noutput: out\nrecipe: loop.yaml\nseeds: 2\nset: {score.limit: 3}\nvariants: {full: {}, none: {iterations: 0}}\n",
}
SUITE = """about: one run
paired:
  - {{baseline: accepted, model: 'constant:[0.1, 0.1, 0.6, 0.6]', tasks: {task}, limit: 8, seed: 0, batch_size: 4,
     cells: [{{task: {task}, metric: answer, floor: 5.0}}]}}
"""


def call(command, *words):
    """Exit code, and what was said, of ``visrl-eval`` or ``visrl-train`` in this process."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = evaluate.main(list(words)) if command == "visrl-eval" else train.main(list(words))
        except SystemExit as end:
            code = end.code
    return code, said.getvalue()


def run_words(folder, output, box="[0.1, 0.1, 0.6, 0.6]"):
    return (
        "run",
        "--model",
        f"constant:{box}",
        "--tasks",
        TASK,
        "--data",
        str(folder / "data"),
        "--limit",
        "8",
        "-o",
        str(output),
        "-q",
    )


def make(folder):
    """Everything, below ``folder``; every command on it ends with 0."""
    drawn(folder / "data")
    for name, box in (("run", "[0.1, 0.1, 0.6, 0.6]"), ("other", "[0.2, 0.2, 0.9, 0.9]")):
        assert call("visrl-eval", *run_words(folder, folder / name, box))[0] == 0
    accepted = call(
        "visrl-eval",
        "accept",
        str(folder / "run"),
        "--name",
        "accepted",
        "--baseline",
        str(folder / "base" / "baselines.yaml"),
    )
    assert accepted[0] == 0, accepted
    (folder / "suite.yaml").write_text(SUITE.format(task=TASK))
    (folder / "recipes").mkdir()
    for name, text in RECIPES.items():
        (folder / "recipes" / f"{name}.yaml").write_text(text.replace("{loop}", str(folder / "loop")))
    fuzz_foreign.make(folder)
    fuzz_looks.make(folder)
    fuzz_benchmarks.make(folder / "data")
    _training(folder / "training")
    _loop(folder)
    return folder


def _training(folder):
    folder.mkdir()
    side = {"box": [1, 2, 30, 40], "answer": "red", "scores": {"box": 0.9}}
    row = {
        "id": "q1",
        "picture": "x.png",
        "question": "What?",
        "size": [64, 64],
        "win": side,
        "lose": {**side, "answer": "no"},
    }
    (folder / "pairs.jsonl").write_text("".join(json.dumps({**row, "id": name}) + "\n" for name in ("q1", "q2")))
    files = {
        "settings.json": {"model": {"path": "m"}, "data": {"pictures": "."}, "lr": 1e-5},
        "history.json": [
            {"step": 1, "loss": 0.69, "rewards/margins": 0.0},
            {"step": 2, "loss": 0.5, "rewards/margins": 0.1},
        ],
        "training.json": {"recipe": {"steps": 2}, "log": [{"step": 1, "loss": 1.0}]},
        "manifest.json": {
            "request": {"seed": 1},
            "funnel": {"questions": {"asked": 4, "scored": 3}, "pairs": 2},
            "boxes": {"wp_lp": {"percent": 50.0, "se": 3.0}},
        },
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "score").mkdir()
    (folder / "score" / "metrics.json").write_text(json.dumps({"line": "answers 61.2", "differences": []}))


def _loop(folder):
    """The files of two phases that are done, as the loop itself would have written them."""
    from visrl.train.loop.phase_state import begin, end, ready_config
    from visrl.train.loop.phases import Weights

    for name in ("base", "sft"):
        begin(folder / "loop" / name, ready_config(Weights("tiny")))
        end(folder / "loop" / name, {"seconds": 1.0})
