"""lmms-eval in a process of its own, because importing it changes warnings and loggers."""

import os
import subprocess
import sys


def run_apart(folder, script):
    """Run a Python script in a folder that has a place for lmms-eval's ``mme``: a folder named like its data set."""
    (folder / "lmms-lab-encoder" / "MME").mkdir(parents=True)
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=settings, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
