"""CPU seconds of two installed versions of visrl on the same replays, in turn: is the harness slower than before?

    pip install --no-deps --target OLD <a checkout of the older version>; pip install --no-deps --target NEW .
    python tests/perf/versions.py ../shared/data OLD NEW [--reps 9]

Two commands: 2,000 recorded outputs of RefCOCO val (start-up counts most), and all 57,457 REC rows as written by this script
(rows count most). User and system time of the child processes; the order of the two alternates.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rec_scoring import write_predictions


def cpu_seconds(site: Path, arguments: list[str], output: Path) -> float:
    """Of one whole command. PYTHONPATH is the installed version, and nothing of this checkout."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-P", str(site / "bin" / "visrl-eval"), *arguments, "--quiet", "--output", str(output)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, cwd=output.parent, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--reps", type=int, default=9)
    args = parser.parse_args()
    data, sites = args.data.resolve(), {"old": args.old.resolve(), "new": args.new.resolve()}
    with tempfile.TemporaryDirectory() as folder:
        every = Path(folder) / "every.jsonl"
        rows = write_predictions(data, every)
        recorded = data / "predictions" / "rec" / "baseline__refcoco_val.json.gz"
        commands = {
            "2,000 outputs": ["--model", f"replay:{recorded}", "--tasks", "refcoco_val", "--data", str(data)],
            f"{rows:,} outputs": [
                "--model",
                f"replay:{every}",
                "--model-args",
                "box_format=json_pixel",
                "--tasks",
                "rec",
                "--data",
                str(data),
            ],
        }
        print(
            "| | old, CPU s (least, median) | new | ratio of least | median of paired ratios |\n|---|--:|--:|--:|--:|"
        )
        for name, command in commands.items():
            seconds: dict[str, list[float]] = {"old": [], "new": []}
            for number in range(args.reps):
                for which in ("old", "new") if number % 2 else ("new", "old"):
                    seconds[which].append(cpu_seconds(sites[which], command, Path(folder) / which))
            least, median = ({w: f(s) for w, s in seconds.items()} for f in (min, statistics.median))
            paired = statistics.median(b / a for a, b in zip(seconds["old"], seconds["new"], strict=True))
            shown = [f"{least[w]:.2f}, {median[w]:.2f}" for w in ("old", "new")]
            print(
                f"| {name} | {shown[0]} | {shown[1]} | {least['new'] / least['old']:.2f} | {paired:.2f} |", flush=True
            )
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
