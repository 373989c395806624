"""The page of 10,834 samples (RefCOCO val): how long it takes, beside scoring the same run again, in what memory, and how fast it opens.

    python tests/perf/report_page.py ../shared/data

Each build is a process of its own; CPU time and peak memory are the kernel's for that process, imports included. Opening is
measured in chromium, if there is one: from navigation to the first card, three times.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = ["visrl-eval"]  # not `python -c`: from the checkout that would find visrl/ without evals/


def run(*args):
    """(wall seconds, CPU seconds, peak MB) of a command."""
    began = time.monotonic()
    child = subprocess.Popen([*COMMAND, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, args
    return time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000


def opening(page):
    """Median seconds until the first card is there; None without chromium or playwright."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        times = []
        for _ in range(3):
            tab = browser.new_page()
            began = time.monotonic()
            tab.goto(page.as_uri(), timeout=180_000)
            tab.wait_for_selector(".card")
            times.append(time.monotonic() - began)
            tab.close()
        browser.close()
    return statistics.median(times)


def main(data):
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as place:
        for limit in (1000, 10834):
            folder, page = Path(place) / str(limit), Path(place) / f"{limit}.html"
            args = ("--tasks", "refcoco_val", "--data", data, "--limit", limit, "--quiet", "-o", folder)
            run("--model", "constant:[0.2, 0.3, 0.6, 0.7]", *args)
            score = run("score", folder)
            view = run("view", folder, "-o", page)
            opened = opening(page)
            shown = "" if opened is None else f", opens in {opened:.2f} s"
            print(
                f"{limit:,} samples: page {view[0]:.1f} s wall, {view[1]:.1f} s CPU, {view[2]:.0f} MB peak,"
                f" {page.stat().st_size / 1e6:.1f} MB file{shown}; scoring again {score[0]:.1f} s wall, {score[1]:.1f} s CPU;"
                f" ratio of CPU {view[1] / score[1]:.2f}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
