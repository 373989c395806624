"""What a sample costs as runs grow, and what a second process brings: a model that answers at once, on made REC rows.

    OMP_NUM_THREADS=1 python tests/perf/scaling.py [--plot docs/img/scaling.png]

Then the same for the small world's ``tiny``, which computes on whatever cores are free.

visrl-eval as a user calls it, each run in processes of its own: CPU and wall seconds, and the highest resident memory of any of
its processes. The cost per sample is that beyond the smallest run: what starting takes cancels. No pictures: nothing here decodes.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
BY_TWO = (10_000, 100_000)
COMMAND = ["visrl-eval", "--model", "constant:[0.25, 0.25, 0.75, 0.75]", "--tasks", "refcoco_val", "--quiet"]
TINY = ["visrl-eval", "--model", "tiny", "--tasks", "world_rec", "--batch-size", "16", "--quiet"]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]


def write_rows(folder: Path, n: int) -> None:
    """``n`` expressions, seven to a picture as in RefCOCO."""
    dice = random.Random(n)
    (folder / "rec").mkdir(parents=True)
    with (folder / "rec/REC_refcoco_unc_val.jsonl").open("w") as file:
        for i in range(n):
            x, y = dice.uniform(0, 500), dice.uniform(0, 300)
            row = {
                "img_path": f"COCO_train2014_{i // 7:012}.jpg",
                "expression": f"the {dice.choice(['left', 'right', 'near', 'far'])} thing behind number {i}",
                "bbox": [x, y, x + 100, y + 80],
                "height": 428,
                "width": 640,
                "image_id": i // 7,
                "sent_id": i,
            }
            file.write(json.dumps(row) + "\n")


def measure(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds of a command with its children, and the largest one's memory in MB."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, " ".join(command)
    return {"wall": time.monotonic() - began, "cpu": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss / 1024}


def run(folder: Path, n: int, world: int) -> dict[str, float]:
    data = folder / f"data{n}"
    if not data.exists():
        write_rows(data, n)
    output = folder / f"run{n}-{world}"
    done = measure([*(LAUNCH if world == 2 else []), *COMMAND, "--data", str(data), "--output", str(output)])
    lines = sum(1 for _ in (output / "episodes.jsonl").open())
    assert lines == n, (lines, n)
    return done


def tiny(folder: Path, world: int, sizes: tuple[int, int] = (64, 320)) -> tuple[float, float]:
    """Samples per wall second and per CPU second of the shipped model, beyond the smaller of two runs."""
    took = []
    for n in sizes:
        command = [*TINY, "--limit", str(n), "--output", str(folder / f"tiny{n}-{world}")]
        took.append(measure([*(LAUNCH if world == 2 else []), *command]))
    more = sizes[1] - sizes[0]
    return more / (took[1]["wall"] - took[0]["wall"]), more / (took[1]["cpu"] - took[0]["cpu"])


def plot(path: Path, rows: list[dict[str, float]], rates: list[float]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(8.4, 2.6), layout="constrained")
    for world, mark in ((1, "o-"), (2, "s--")):
        first, *mine = [row for row in rows if row["world"] == world]
        per = [1e6 * (row["cpu"] - first["cpu"]) / (row["n"] - first["n"]) for row in mine]
        left.plot([row["n"] for row in mine], per, mark, label=_processes(world))
        middle.plot([row["n"] for row in [first, *mine]], [row["mb"] for row in [first, *mine]], mark)
    left.set(xscale="log", xlabel="samples", title="CPU, µs a sample", ylim=(0, None))
    middle.set(xscale="log", xlabel="samples", title="memory of a process, MB", ylim=(0, None))
    right.bar([_processes(world) for world in (1, 2)], rates, color=["C0", "C1"], width=0.5)
    right.set(title="tiny, samples per CPU s")
    left.legend(loc="lower right")
    figure.savefig(path, dpi=100)


def _processes(world: int) -> str:
    return f"{world} process{'es' if world > 1 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for world, sizes in ((1, SIZES), (2, BY_TWO)):
            for n in (n for n in sizes if n <= args.largest):
                rows.append({"world": world, "n": n, **run(Path(folder), n, world)})
                row, first = rows[-1], next(r for r in rows if r["world"] == world)
                more = row["n"] - first["n"]
                per = f"{1e6 * (row['cpu'] - first['cpu']) / more:6.0f} µs CPU a sample" if more else ""
                rate = f"{more / (row['wall'] - first['wall']):7,.0f} samples/s" if more else ""
                grown = f"{1e3 * (row['mb'] - first['mb']) / more:5.2f} kB a sample" if more else ""
                print(
                    f"{world} process(es) {n:7,} samples: {row['wall']:6.1f} s wall {row['cpu']:6.1f} s CPU "
                    f"{row['mb']:5.0f} MB   {per} {rate} {grown}",
                    flush=True,
                )
        rates = [tiny(Path(folder), world) for world in (1, 2)]
    for world, (wall, cpu) in zip((1, 2), rates, strict=True):
        print(f"tiny, {world} process(es): {wall:.1f} samples per wall second, {cpu:.1f} per CPU second")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if args.plot:
        plot(args.plot, rows, [cpu for _, cpu in rates])


if __name__ == "__main__":
    main()
