"""Tiny real models of every family, saved and loaded once per session in float64."""

from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from broken import made, originals  # noqa: F401  fixtures

from visrl.policies.hf.loading import CheckpointArguments, load_checkpoint
from visrl.policies.hf.policy import HFPolicy

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """name -> a saved checkpoint folder, written on first use."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(name: str) -> Path:
        where = root / name
        return where if where.exists() else tiny.save(name, where)

    return folder


@pytest.fixture(scope="session")
def policies(checkpoints):
    """(name, box_format) -> a new policy, empty caches, around a checkpoint loaded from disk once in float64."""
    built = {}

    def policy(name: str, box_format: str = "native") -> HFPolicy:
        if name not in built:
            built[name] = load_checkpoint(str(checkpoints(name)), CheckpointArguments(dtype="float64"))
        return HFPolicy(name, built[name], box_format=box_format)

    return policy
