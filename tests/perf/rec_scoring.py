"""All 57,457 REC rows from replayed text: the whole command, and scoring alone.

    python tests/perf/rec_scoring.py ../shared/data

A prediction file with the true box of every row (rounded to whole pixels) is written, then `visrl-eval` replays it on all
eight splits; scoring alone is measured in process on the same episodes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from visrl.evals.benchmarks import TASKS, resolve
from visrl.evals.judge import make_judge
from visrl.evals.scorers.scoring import score_task
from visrl.runs.lines import read_episodes
from visrl.tasks import load


def write_predictions(data: Path, path: Path) -> int:
    rows = 0
    with path.open("w") as file:
        for spec in resolve(["rec"]):
            for sample in load(spec.name, data, with_pictures=False):
                text = json.dumps({"bbox_2d": [round(v) for v in sample.box.xyxy]})
                file.write(json.dumps({"id": sample.id, "task": spec.name, "text": text}) + "\n")
                rows += 1
    return rows


def main() -> None:
    data = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        predictions, run = Path(folder) / "p.jsonl", Path(folder) / "run"
        rows = write_predictions(data, predictions)
        command = ["visrl-eval", "--model", f"replay:{predictions}", "--model-args", "box_format=json_pixel"]
        command += ["--tasks", "rec", "--data", str(data), "--output", str(run), "--json", "--quiet"]
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        whole = time.perf_counter() - began
        by_task = {name: {} for name in TASKS}
        for episode in read_episodes(run / "episodes.jsonl"):
            by_task[episode.task][episode.sample_id] = episode
        scoring, judge = 0.0, make_judge("exact")
        for spec in resolve(["rec"]):
            samples = list(load(spec.name, data, with_pictures=False))
            began = time.perf_counter()
            score_task(spec, samples, by_task[spec.name], judge)
            scoring += time.perf_counter() - began
    print(f"{os.cpu_count()} cores: {rows} rows, whole command {whole:.1f} s, of which scoring {scoring:.2f} s")


if __name__ == "__main__":
    main()
