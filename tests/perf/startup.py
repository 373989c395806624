"""How long the command line takes to answer: median wall seconds of 11 runs each, beside a bare interpreter.

python tests/perf/startup.py
"""

import os
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "visrl-eval --help": ["visrl-eval", "--help"],
    "visrl-eval ls tasks": ["visrl-eval", "ls", "tasks"],
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}")
    for name, command in COMMANDS.items():
        seconds(command)  # warm the file cache
        print(f"{name:22} {statistics.median(seconds(command) for _ in range(11)):.2f} s")


if __name__ == "__main__":
    main()
