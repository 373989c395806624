"""How long the README's first command takes: until its first line of progress, in all, and its processor time.

    python tests/perf/first_minute.py [--limit 50]

A process of its own, imports included, into a temporary folder; run it on an idle machine.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            Path(sys.executable).with_name("visrl-eval"),
            "--model",
            "tiny",
            "--tasks",
            "world",
            "--limit",
            str(args.limit),
            "-o",
            folder,
        ]
        began, first = time.monotonic(), None
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if first is None and line.startswith("world_"):
                first = time.monotonic() - began
        code, wall = process.wait(), time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0 and first is not None, f"exit code {code}"
    print(f"first progress {first:.1f} s, in all {wall:.1f} s, CPU {used.ru_utime + used.ru_stime:.1f} s")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
