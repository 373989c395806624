"""On a Ray cluster of this machine: what one process leaves, whichever workers are killed. One cluster serves all tests here."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import runs_made as made
from processes_made import files

from visrl.cli.evaluate import main
from visrl.errors import UsageError
from visrl.evaluation import on_ray
from visrl.runs import ray_pool
from visrl.train.config.recipe import load_recipe

ray = pytest.importorskip("ray", reason='pip install "visrl[ray]"')
pytest.importorskip("ray.data", reason='pip install "visrl[ray]"')
psutil = pytest.importorskip("psutil")
RECIPE = Path(__file__).parents[1] / "recipes/pairs-world.yaml"


@pytest.fixture(scope="module")
def cluster():
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "RAY_USAGE_STATS_ENABLED")}
    os.environ.update(OMP_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0")
    with ray_pool.elsewhere():
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def workers():
    """This cluster's actors, as processes below this one."""
    below = psutil.Process().children(recursive=True)
    return [p for p in below if p.is_running() and any(word.startswith("ray::MapWorker") for word in p.cmdline()[:1])]


class Killer(threading.Thread):
    """Kills one worker each time ``path`` has grown by some lines, ``times`` times."""

    def __init__(self, path, every, times):
        super().__init__(daemon=True)
        self.path, self.every, self.times, self.killed, self.over = path, every, times, 0, False

    def lines(self):
        return self.path.read_bytes().count(b"\n") if self.path.exists() else 0

    def run(self):
        while self.killed < self.times and not self.over:
            time.sleep(0.02)
            if self.lines() >= self.every * (self.killed + 1):
                alive = workers()
                if alive:
                    os.kill(alive[self.killed % len(alive)].pid, signal.SIGKILL)
                    self.killed += 1


def test_evaluation_is_that_of_one_process(cluster, tmp_path, monkeypatch, capfd):
    """Relative paths too: workers go to where the command was given."""
    made.drawn(tmp_path / "data", 30)
    monkeypatch.chdir(tmp_path)
    command = ["--model", "constant:red", "--tasks", "viscot_vsr", "--data", "data", "--batch-size", "4", "--quiet"]
    assert main([*command, "-o", "one"]) == 0
    assert main([*command, "-o", "many", "--ray", "2"]) == 0, capfd.readouterr().err
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert main(["--model", "replay:one", *command[2:], "-o", "again", "--ray", "2"]) == 0
    assert (tmp_path / "again/scores.jsonl").read_bytes() == (tmp_path / "one/scores.jsonl").read_bytes()


def test_what_a_worker_cannot_load_is_said_as_in_one_process(cluster):
    with pytest.raises(UsageError, match="cannot load gone/model") as raised:
        on_ray.policy_and_engine("hf:gone/model", {}, 1)
    assert raised.value.hint


def test_pairs_are_those_of_one_process_whoever_is_killed(cluster, tmp_path):
    """M_SFT and M_org of the small world in pools of their own; one worker of each is killed while it works."""

    def run(output, **more):
        overrides = [f"output={output}", "data.limit=24", "batch_size=2", *(f"{k}={v}" for k, v in more.items())]
        resolved = load_recipe(RECIPE, overrides)
        resolved.kind.run(resolved.recipe)

    run(tmp_path / "one")
    killer = Killer(tmp_path / "many/chains.jsonl", every=4, times=2)
    killer.start()
    run(tmp_path / "many", ray=1)
    killer.over = True
    killer.join()
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert (tmp_path / "one/pairs.jsonl").stat().st_size
    if killer.killed < 2:  # the thread that kills needs a moment of a busy machine
        pytest.skip(f"the run was over after {killer.killed} of 2 kills")
