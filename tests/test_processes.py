"""One, two and four processes: the same records, no sample twice, none lost, whoever dies."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs_made as made
from processes_made import files, start, together

from visrl.errors import UsageError
from visrl.evaluation.evaluate import Options, evaluate
from visrl.policies.registry import load_policy
from visrl.runs.distributed import check_launch, init
from visrl.runs.store import Run, _locked

N = 26


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made.drawn(tmp_path_factory.mktemp("data"), N)


def policy(data, pause=0.0, fails=()):
    truth = made.truth(data)

    def answer(sample_id):
        time.sleep(pause)
        if sample_id in fails:
            raise RuntimeError("out of order")
        return truth[sample_id][1] if int(sample_id) % 3 else "grey"

    return made.scripted("known", lambda i: truth[i][0], answer)


def run(data, output, pause=0.0, fails=()):
    options = Options(data=data, output=output, quiet=True, batch_size=3)
    return evaluate(policy(data, pause, fails), ["viscot_vsr"], options)


def ids(folder):
    return [json.loads(line)["sample_id"] for line in (folder / "episodes.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_leave_what_one_does(data, tmp_path, world):
    """Nine batches of three on four processes: shares differ in size. One sample fails on whoever has it, and is counted."""

    def work():
        outcome = run(data, tmp_path / "many", fails=("1004",))
        assert outcome.n_failed == 1 and outcome.n_samples == N

    outcome = run(data, tmp_path / "one", fails=("1004",))
    assert together(world, work) == [0] * world
    assert files(tmp_path / "many") == files(tmp_path / "one") and outcome.n_failed == 1
    assert len(ids(tmp_path / "many")) == len(set(ids(tmp_path / "many"))) == N
    assert not list(tmp_path.glob("many/*rank*"))
    assert (
        together(world, lambda: run(data, tmp_path / "many")) == [0] * world
    )  # the failed one again, and nothing else
    assert len(ids(tmp_path / "many")) == N + 1


def test_what_a_killed_process_had_finished_is_kept_and_any_number_goes_on(data, tmp_path):
    run(data, tmp_path / "one")
    one, two = start(2, lambda: run(data, tmp_path / "many", pause=0.05))
    part = tmp_path / "many/episodes.rank1.jsonl"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(two.pid, signal.SIGKILL)
    one.join(timeout=60)
    assert one.exitcode not in (0, None)  # it finished its share and learnt that the other is gone
    assert not ids(tmp_path / "many") and not (tmp_path / "many/records").exists()
    run(data, tmp_path / "many")  # one process takes in what both left
    assert files(tmp_path / "many") == files(tmp_path / "one")
    assert len(ids(tmp_path / "many")) == N


def test_a_part_is_taken_in_once_nobody_writes_it_and_without_its_torn_line(tmp_path):
    request = {"model": "m", "tasks": {"t": "1"}}
    part = tmp_path / "episodes.rank1.jsonl"
    with Run(tmp_path, request):
        pass  # its run.json: a part without one is refused (tests/fuzz)
    with _locked(part) as orphan:  # of a run whose first process was killed
        orphan.write(b'{"task": "t", "sample_id": "1"}\n{"task": "t", "sam')
        orphan.flush()
        with pytest.raises(UsageError, match="another process is writing"), Run(tmp_path, request):
            pass
    with Run(tmp_path, request) as again:
        assert again.finished() == {"t": {"1"}}
    assert not part.exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}, "accelerate was asked for several"),
        ({"VISRL_PROCESSES": "2"}, "VISRL_PROCESSES=2, but the launcher started 1"),
    ],
)
def test_fewer_processes_than_asked_are_an_error(monkeypatch, environment, message):
    check_launch()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        check_launch()


def test_mpi_is_left_to_training_and_refused_elsewhere(monkeypatch):
    for name, value in (("MASTER_ADDR", "a"), ("ACCELERATE_MIXED_PRECISION", "no"), ("OMPI_COMM_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    check_launch()
    init.cache_clear()
    with pytest.raises(UsageError, match="mpirun"):
        init()


def torchrun(folder, data, *more):
    """``visrl-eval constant:red`` on two processes, as a user types it; returns what it printed."""
    command = ["visrl-eval", "--model", "constant:red", "--data", str(data), "--batch-size", "3", *more]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": path}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python", *command]
    done = subprocess.run(launch, cwd=folder, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def constant(data, output, **more):
    options = Options(data=data, output=output, quiet=True, batch_size=3, **more)
    return evaluate(load_policy("constant:red"), ["viscot_vsr"], options).results


def test_torchrun_runs_the_command(data, tmp_path):
    """One process speaks, and says how many there are."""
    results = constant(data, tmp_path / "one")
    done = torchrun(tmp_path, data, "--tasks", "viscot_vsr", "--json", "-o", "two")
    assert json.loads(done.stdout) == [result.model_dump(mode="json") for result in results]
    assert "2 processes (gloo)" in done.stderr
    assert "process 1 of 2" in done.stderr and "process 2 of 2" not in done.stderr
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_lmms_eval_on_two_processes_prints_the_numbers_of_one(data, tmp_path):
    """25 documents: lmms-eval pads one share with a document asked twice."""
    value = {result.metric: result.value for result in constant(data, tmp_path / "one", limit=25)}
    printed = torchrun(tmp_path, data, "--tasks", "lmms:visrl_viscot_vsr", "--limit", "25").stdout
    assert 0 < value["answer"] < 1
    found = re.search(r"lmms:visrl_viscot_vsr answer +([\d.]+) ", printed)
    assert found and float(found[1]) == pytest.approx(value["answer"], abs=1e-4), printed
