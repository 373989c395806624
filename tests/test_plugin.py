"""The contract with lmms-eval, held in processes of their own: importing it changes warnings, loggers and Pillow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from visrl.evals.benchmarks import GROUPS
from visrl.lmms.plugin import HOOK_OFF, add_our_folder, task_folder
from visrl.tasks import SOURCES

_BARE = f"""
import json, os, sys
import lmms_eval.models
facts = {{"torch": "torch" in sys.modules, "models": "visrl" in lmms_eval.models.list_available_models()}}
os.environ.pop("{HOOK_OFF}", None)
import importlib.metadata, inspect
from lmms_eval.tasks import TaskManager
facts["version"] = importlib.metadata.version("lmms-eval")
facts["hooked"] = hasattr(TaskManager, "_visrl_hook")
facts["parameters"] = list(inspect.signature(TaskManager.initialize_tasks).parameters)
from visrl.lmms.plugin import task_folder
manager = TaskManager(include_path=str(task_folder()), include_defaults=False)
facts["tasks"], facts["groups"] = manager.all_subtasks, manager.all_groups
facts["resolved"] = lmms_eval.models.MODEL_REGISTRY_V2.resolve("visrl", force_simple=True).model_type
print(json.dumps(facts))
"""


def _run(command, **environment):
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def bare():
    """lmms-eval with the hook switched off, and what it knows of us then."""
    done = _run([sys.executable, "-c", _BARE], **{HOOK_OFF: "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_model_is_registered_without_importing_torch(bare):
    assert bare["models"] and not bare["torch"]
    assert bare["resolved"] == "chat"


def test_the_method_we_wrap_is_as_we_know_it(bare):
    assert bare["version"].startswith("0.7."), (
        "a new lmms-eval: check that TaskManager.initialize_tasks still takes our folder (visrl/lmms/plugin.py)"
    )
    assert bare["parameters"] == ["self", "include_path", "include_defaults"]


def test_the_hook_can_be_switched_off_and_include_path_does_its_work(bare):
    assert not bare["hooked"]
    assert bare["tasks"] == sorted(f"visrl_{name}" for name in SOURCES)
    assert bare["groups"] == sorted(f"visrl_{name}" for name in GROUPS if set(GROUPS[name]) <= set(SOURCES))


def test_plain_lmms_eval_runs_our_task_with_our_model_offline(shared: Path, tmp_path: Path):
    """`pip install`, then lmms-eval's own command. 9 of the first 50 documents have a prediction; all 9 are right."""
    predictions = shared / "predictions" / "rec" / "baseline__refcoco_val.json.gz"
    arguments = (
        f"--model visrl --model_args policy=replay:{predictions} --tasks visrl_refcoco_val --limit 50 --log_samples"
    )
    command = [Path(sys.executable).with_name("lmms-eval"), *arguments.split(), "--output_path", tmp_path]
    done = _run(command, VISRL_DATA=str(shared))
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("|visrl_refcoco_val")]
    table = {cells[4].strip(): float(cells[6]) for cells in rows}
    assert table["acc@0.5"] == 100.0 and table["unscored"] == 82.0, done.stdout + done.stderr  # 41 / 50
    (samples,) = tmp_path.rglob("*_samples_visrl_refcoco_val.jsonl")
    logged = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(logged) == 50
    assert sum("no prediction" in str(line["filtered_resps"]) for line in logged) == 41, "the log holds our episodes"


def test_the_folder_is_added_to_the_defaults_only_and_once():
    seen = []

    class Manager:
        def initialize_tasks(self, include_path=None, include_defaults=True):
            seen.append((include_path, include_defaults))

    add_our_folder(Manager)
    add_our_folder(Manager)
    ours = str(task_folder())
    Manager().initialize_tasks()
    Manager().initialize_tasks("mine")
    Manager().initialize_tasks(["mine", ours])
    Manager().initialize_tasks("mine", include_defaults=False)
    assert seen == [([ours], True), (["mine", ours], True), (["mine", ours], True), (["mine"], False)]
