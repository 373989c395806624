"""Pairs of the small world on a local Ray cluster of which one worker is killed every 20 s, beside one undisturbed process.

    OMP_NUM_THREADS=1 python tests/perf/ray_kills.py [QUESTIONS [WORKERS [SECONDS]]]

Prints how long each took, how many workers were killed, and whether pairs, manifest and records are the same bytes.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

RECIPE = Path(__file__).parents[2] / "recipes/pairs-world.yaml"
COMPARED = ("pairs.jsonl", "manifest.json", "records/datagen.json")


def command(output: Path, questions: int, *more: str) -> list[str]:
    sets = [f"output={output}", f"data.limit={questions}", "batch_size=8", *more]
    return ["visrl-train", "pairs", str(RECIPE), *(word for each in sets for word in ("--set", each))]


def workers(of: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(of).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline() and process.cmdline()[0].startswith("ray::MapWorker"):
                found.append(process)
    return found


def kill_now_and_then(run: subprocess.Popen, every: float, killed: list[float]) -> None:
    """From the first finished question on, one worker after another."""
    began = time.monotonic()
    while run.poll() is None:
        time.sleep(every)
        alive = workers(run.pid) if run.poll() is None else []
        if alive:
            os.kill(alive[len(killed) % len(alive)].pid, signal.SIGKILL)
            killed.append(time.monotonic() - began)


def main() -> None:
    questions, count, every = (int(word) for word in (*sys.argv[1:], *("200", "2", "20")[len(sys.argv) - 1 :]))
    killed: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder) / "one", Path(folder) / "many"
        began = time.monotonic()
        subprocess.run(command(one, questions), check=True, stderr=subprocess.DEVNULL)
        alone = time.monotonic() - began
        began = time.monotonic()
        with (Path(folder) / "log").open("w") as log:
            run = subprocess.Popen(command(many, questions, f"ray={count}"), stdout=log, stderr=log)
            threading.Thread(target=kill_now_and_then, args=(run, every, killed), daemon=True).start()
            assert run.wait() == 0, (Path(folder) / "log").read_text()[-3000:]
        took = time.monotonic() - began
        same = {name: (one / name).read_bytes() == (many / name).read_bytes() for name in COMPARED}
        lines = sum(1 for _ in (many / "chains.jsonl").open())
        pairs = sum(1 for _ in (many / "pairs.jsonl").open())
    print(
        f"{questions} questions, {pairs} pairs, {lines} lines; one process {alone:.0f} s, {count} workers per model {took:.0f} s"
    )
    print(f"killed at {', '.join(f'{at:.0f} s' for at in killed)}; the same bytes: {same}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
