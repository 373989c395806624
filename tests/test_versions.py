"""The bounds of pyproject.toml are what tox tries: its lower end is ``oldest``."""

import configparser
import re
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="part of Python 3.11")

ROOT = Path(__file__).parent.parent
TRIED = ("torch", "torchvision", "transformers", "trl", "accelerate", "peft", "datasets")


def test_the_lower_bounds_are_the_releases_of_tox_s_oldest():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lowest = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in needed if ">=" in line)
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    pinned = dict(line.split("==") for line in tox["testenv:oldest"]["deps"].split())
    assert pinned == {name: lowest[name] for name in TRIED}


def test_the_engine_s_bounds_leave_something_of_ours():
    """vllm 0.33 asks for transformers >=5.16.1, <5.21: below our upper bound and not below our lower one."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras["optional-dependencies"]["vllm"] == ["vllm>=0.33"]
    (ours,) = [line for line in extras["dependencies"] if line.startswith("transformers")]
    assert ours == "transformers>=5.16.1,<5.25"
