"""What a harness costs beside the model: a model that answers at once, on all 10,834 rows of RefCOCO val.

    python tests/perf/harness_overhead.py ../shared/data

Compared: lmms-eval's own REC task (refcoco_bbox_rec_val, through simple_evaluate, samples not logged), our task through
lmms-eval, and visrl-eval's own path (episodes and records written to disk). Same rows, same pictures, same constant answer, each
picture decoded once per request, each way in a process of its own, after its imports. Pictures are blank and a tenth of
the side, with boxes to match: at full size lmms-eval's task holds every decoded picture, some 14 GB. Its data set is put
into the Arrow cache before the clock starts. Mean IoU must agree to a millionth, or nothing is printed.
"""

import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

TENTH = 10
ANSWER = "[0.25, 0.25, 0.75, 0.75]"
REPEATS = 3
WAYS = ("lmms-eval's REC task", "our task in lmms-eval", "visrl-eval", "visrl-eval, 2,000 rows")


def write_data(source: Path, folder: Path) -> None:
    """The same rows as our data folder (``data/``) and in the layout of lmms-eval's data set (``lmms-lab-encoder/``)."""
    import datasets
    from PIL import Image

    with gzip.open(source / "rec" / "REC_refcoco_unc_val.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    images = folder / "data" / "images"
    images.mkdir(parents=True)
    (folder / "data" / "rec").mkdir()
    for row in rows:
        size = max(1, row["width"] // TENTH), max(1, row["height"] // TENTH)
        x, y = size[0] / row["width"], size[1] / row["height"]
        row["bbox"] = [v * (x if i % 2 == 0 else y) for i, v in enumerate(row["bbox"])]
        row["width"], row["height"] = size
        if not (images / row["img_path"]).exists():
            Image.new("RGB", size).save(images / row["img_path"])
    (folder / "data" / "rec" / "REC_refcoco_unc_val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    objects = []
    for number, (_, group) in enumerate(groupby(rows, key=lambda row: (row["img_path"], row["bbox"]))):
        sentences = list(group)
        x1, y1, x2, y2 = sentences[0]["bbox"]
        encoded = {"bytes": (images / sentences[0]["img_path"]).read_bytes(), "path": None}
        answers = [row["expression"] for row in sentences]
        objects.append(
            {"question_id": str(number), "image": encoded, "answer": answers, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        )
    target = folder / "lmms-lab-encoder" / "RefCOCO"
    target.mkdir(parents=True)
    table = datasets.Dataset.from_list(objects).cast_column("image", datasets.Image())
    table.to_parquet(target / "rows.parquet")
    (target / "README.md").write_text(
        "---\nconfigs: [{config_name: default, data_files: [{split: val, path: rows.parquet}]}]\n---\n"
    )


def lmms_own() -> None:
    import datasets
    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate

    from visrl.lmms.loading import _task_manager

    class Instant(lmms):
        def generate_until(self, requests):
            for request in requests:
                _, _, visual, number, task, split = request.args
                visual(self.task_dict[task][split][number])
            return [ANSWER] * len(requests)

        def loglikelihood(self, requests):
            raise NotImplementedError

        generate_until_multi_round = loglikelihood

    datasets.load_dataset("lmms-lab-encoder/RefCOCO")
    manager = _task_manager(["refcoco_bbox_rec_val"])
    began = clocks()
    found = simple_evaluate(Instant(), tasks=["refcoco_bbox_rec_val"], task_manager=manager, log_samples=False)
    report(began, found["results"]["refcoco_bbox_rec_val"]["refcoco_IoU,none"])


def policy():
    from visrl.core.box_formats import FORMATS
    from visrl.policies.protocol import FunctionPolicy

    def answer(request):
        request.turns[0].pictures[0].open()
        return ANSWER

    return FunctionPolicy("instant", answer, FORMATS["wh_norm_3dp"], needs_pictures=True)


def ours_in_lmms() -> None:
    from visrl.evaluation.evaluate import Options, config_of
    from visrl.lmms.model import run_upstream

    began = clocks()
    found = run_upstream(["visrl_refcoco_val"], policy(), config_of(policy(), Options()), batch_size=64)
    report(began, found["results"]["visrl_refcoco_val"]["miou,none"] / 100)


def ours(limit=None) -> None:
    from visrl.evaluation.evaluate import Options, evaluate

    options = Options(data=Path("data"), output=Path(f"run{time.time_ns()}"), batch_size=64, quiet=True, limit=limit)
    began = clocks()
    outcome = evaluate(policy(), ["refcoco_val"], options)
    assert not outcome.n_failed, outcome.problems
    (miou,) = [result.value for result in outcome.results if result.metric == "miou"]
    report(began, miou / 100)


def report(began: tuple[float, float], miou: float) -> None:
    status = Path("/proc/self/status").read_text()  # ru_maxrss would inherit the parent's
    facts = {"wall": time.perf_counter() - began[0], "cpu": time.process_time() - began[1], "miou": miou}
    print(json.dumps(facts | {"megabytes": int(status.split("VmHWM:")[1].split()[0]) / 1024}), file=sys.__stderr__)


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


RUN = dict(zip(WAYS, (lmms_own, ours_in_lmms, ours, lambda: ours(2000)), strict=True))


def measure(way: str, folder: Path) -> dict[str, float]:
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VISRL_DATA": "data"}
    settings["HF_DATASETS_CACHE"] = str(folder / "cache")
    command = [sys.executable, str(Path(__file__).resolve()), "--run", way]
    done = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith('{"wall"')]
    if done.returncode or not lines:
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1])


def main() -> None:
    if sys.argv[1] == "--run":
        RUN[sys.argv[2]]()
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(Path(sys.argv[1]).resolve(), folder)
        rounds = [{way: measure(way, folder) for way in WAYS} for _ in range(REPEATS)]
    values = [rounds[0][way]["miou"] for way in WAYS[:3]]
    assert max(values) - min(values) < 1e-6, values
    load = os.getloadavg()[1]
    print(
        f"{os.cpu_count()} cores (load {load:.1f}), 10,834 rows, median of {REPEATS}; mean IoU {values[0]:.6f} by all three"
    )
    print("| way | wall, s | CPU, s | wall ratio | CPU ratio | peak memory, MB |\n|---|---|---|---|---|---|")
    base = {clock: statistics.median(found[WAYS[0]][clock] for found in rounds) for clock in ("wall", "cpu")}
    for way in WAYS:
        wall, cpu = (statistics.median(found[way][clock] for found in rounds) for clock in ("wall", "cpu"))
        ratios = f"{wall / base['wall']:.2f} | {cpu / base['cpu']:.2f}" if way in WAYS[:3] else "|"
        megabytes = max(found[way]["megabytes"] for found in rounds)
        print(f"| {way} | {wall:.1f} | {cpu:.1f} | {ratios} | {megabytes:.0f} |")


if __name__ == "__main__":
    main()
