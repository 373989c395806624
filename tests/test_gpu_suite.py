"""The suite for GPUs (tests/gpu) runs: here on the CPU, small, so that what it calls cannot change unseen. Its figures say nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_training_steps_of_all_contenders_agree(tmp_path):
    """Every contender has the loss and the gradient of TRL's trainer, on the same pairs and on the same group of chains."""
    command = [
        sys.executable,
        TESTS / "gpu" / "run.py",
        "--device",
        "cpu",
        "--small",
        "--parts",
        "dpo,grpo",
        "--out",
        tmp_path,
    ]
    given = os.environ.get(
        "PYTHONPATH"
    )  # an empty entry would be the folder it is run from, whose visrl/ is not the installed package
    path = os.pathsep.join([str(TESTS), str(TESTS / "perf"), *([given] if given else [])])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for part, rows in (("dpo", 5), ("grpo", 4)):
        found = json.loads((tmp_path / f"{part}.json").read_text())["rows"]
        assert len(found) == rows and not [row for row in found if "failed" in row], found
        theirs, *ours = (row for row in found if "gradient norm" in row)
        assert (theirs["step"], len(ours)) == ("TRL", 3)
        for row in ours:
            assert abs(row["loss"] - theirs["loss"]) < 0.02 * abs(theirs["loss"]) + 1e-5  # bfloat16
            assert abs(row["gradient norm"] / theirs["gradient norm"] - 1) < 0.02, row
