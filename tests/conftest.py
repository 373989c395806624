"""Fixtures for all tests. Real data stays outside the repository: VISRL_SHARED, else ../shared, else the test skips."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from visrl.core.plugins import forget, included

# No test may reach a hub, and torch shares two cores with everything else.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `python -c` puts the current folder first: from the checkout its visrl/, without evals/ and tasks/, would shadow the wheel
os.environ["PYTHONSAFEPATH"] = "1"


FAST = (
    "test_architecture.py", "test_boxes.py", "test_parsing.py", "test_focus.py", "test_rollout.py", "test_runs.py",
    "test_tables.py", "test_phase_tables.py", "test_several_looks.py", "test_tool_calls.py", "test_protocol_files.py",
    "evals/test_benchmarks.py", "evals/test_gate_rules.py", "evals/test_judge.py", "evals/test_mmbench_scores.py", "evals/test_mme_scores.py",
    "evals/test_paper.py", "evals/test_pope_scores.py", "evals/test_rec_scores.py", "evals/test_scoring.py",
    "evals/test_stats.py", "evals/test_viscot_scores.py",
    "policies/test_families.py", "policies/test_layout.py", "report/test_report_parts.py", "report/test_report_training.py",
    "train/test_critics.py", "train/test_diversity.py", "train/test_selection.py", "train/test_train_files.py",
    "train/test_train_losses.py", "world/test_documents.py", "world/test_language.py",
)  # fmt: skip
"""The fast tier (``pytest -m fast``): what runs no model for long, no browser and no command in a process of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.relative_to(Path(__file__).parent).as_posix() in FAST:
            item.add_marker("fast")


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("VISRL_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: set VISRL_SHARED to the folder that holds data/ (looked for {folder})")
    return folder


@pytest.fixture(autouse=True)
def nothing_included() -> Iterator[None]:
    """A file that one test includes is no other test's."""
    yield
    if included():
        forget()
