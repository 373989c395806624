"""A Ray cluster of three nodes on this machine, of which one is lost in the middle of a command, beside one undisturbed process.

    OMP_NUM_THREADS=1 python tests/campaigns/ray_nodes.py --questions 120 --documents 200

Ray's own test utility starts the nodes (``ray.cluster_utils.Cluster``: every node with processes and a store of its own). A node that
holds a worker is taken away without notice once a third of the lines are there. The files must be those of one process. A row per command.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0", RAY_DEDUP_LOGS="0", RAY_worker_niceness="0"
)  # 15 else: no turn on a busy machine
RECIPE = Path(__file__).parents[2] / "recipes/pairs-world.yaml"
MAIN = "import sys; from visrl.cli.{name} import main; sys.exit(main(sys.argv[1:]))"


def program(name, *words):
    return [sys.executable, "-c", MAIN.format(name=name), *words]


def evaluation(output, documents, *more):
    words = ("--model", "tiny", "--tasks", "world_viscot_doc", "--limit", str(documents), "--batch-size", "8")
    return program("evaluate", "run", *words, "-o", str(output), "-q", *more)


def pairs(output, questions, *more):
    sets = [f"output={output}", f"data.limit={questions}", "batch_size=8", *more]
    return program("train", str(RECIPE), *(word for each in sets for word in ("--set", each)))


COMPARED = {
    "evaluation": ("scores.jsonl", "records/world_viscot_doc.json"),
    "pairs": ("pairs.jsonl", "manifest.json", "records/datagen.json"),
}


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def lose(cluster, nodes, path, at, lost, done):
    """Take the first of ``nodes`` away, and its processes with it, once ``path`` has ``at`` lines."""
    while lines(path) < at and not done.is_set():
        time.sleep(0.05)
    if not done.is_set():
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        lost.append(lines(path))


def one(name, alone, spread, folder, total):
    """Runs both; a row."""
    from ray.cluster_utils import Cluster

    began = time.monotonic()
    subprocess.run(alone, check=True, capture_output=True)
    calm = time.monotonic() - began
    small = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(**small) for _ in range(2)]
    cluster.wait_for_nodes()
    path = folder / "many" / ("episodes.jsonl" if name == "evaluation" else "chains.jsonl")
    lost, done = [], threading.Event()
    thread = threading.Thread(target=lose, args=(cluster, nodes, path, total // 3, lost, done))
    thread.start()
    began = time.monotonic()
    try:
        ended = subprocess.run(
            spread, capture_output=True, text=True, timeout=500, env={**os.environ, "RAY_ADDRESS": cluster.address}
        )
    finally:
        done.set()
        thread.join()
        cluster.shutdown()
    same = ended.returncode == 0 and all(
        (folder / "one" / file).read_bytes() == (folder / "many" / file).read_bytes() for file in COMPARED[name]
    )
    print(
        f"{name:<12} exit {ended.returncode}, a node lost at line {lost} of {total}, {lines(path)} lines; one process {calm:.0f} s, "
        f"three nodes {time.monotonic() - began:.0f} s; the same bytes: {same}; tracebacks: {ended.stderr.count('Traceback')}",
        flush=True,
    )
    if not same:
        print(ended.stderr[-3000:])
    return same and bool(lost)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2, help="actors per model")
    parser.add_argument("commands", nargs="*", default=["evaluation", "pairs"])
    args = parser.parse_args()
    fine = True
    for name in args.commands:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if name == "evaluation":
                alone, spread = (
                    evaluation(folder / "one", args.documents),
                    evaluation(folder / "many", args.documents, "--ray", str(args.workers)),
                )
            else:
                alone, spread = (
                    pairs(folder / "one", args.questions),
                    pairs(folder / "many", args.questions, f"ray={args.workers}"),
                )
            fine = one(name, alone, spread, folder, args.documents if name == "evaluation" else args.questions) and fine
    return not fine


if __name__ == "__main__":
    sys.exit(main())
