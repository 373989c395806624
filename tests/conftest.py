"""Fixtures for all tests. Real data stays outside the repository: VISRL_SHARED, else ../shared, else the test skips."""

import os
from pathlib import Path

import pytest

# No test may reach a hub, and torch shares two cores with everything else.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `python -c` puts the current folder first: from the checkout its visrl/, without evals/ and tasks/, would shadow the wheel
os.environ["PYTHONSAFEPATH"] = "1"


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("VISRL_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: set VISRL_SHARED to the folder that holds data/ (looked for {folder})")
    return folder
