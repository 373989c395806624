"""Real engines: `tox -e vllm` (docs/engines.md). Without vLLM every test here skips, and says so.

An engine takes half a minute to start, so tests share them: one at a time, kept until another is asked for.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "policies"))
sys.path.append(str(Path(__file__).parents[1] / "train"))
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
SMALL = {"dtype": "float32", "max_model_len": "2048", "enforce_eager": "true", "max_num_seqs": "8"}
TABLE: list[str] = []


def pytest_collection_modifyitems(items):
    if importlib.util.find_spec("vllm") is None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="vllm is not installed: `tox -e vllm` runs these"))


def pytest_terminal_summary(terminalreporter):
    if TABLE:
        terminalreporter.section("engines")
        for line in TABLE:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def table():
    """Lines for the end of the run: figures that docs/engines.md quotes."""
    return TABLE


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """family -> its checkpoint's folder."""
    root, made = tmp_path_factory.mktemp("wide"), {}

    def folder(name):
        import wide_models

        if name not in made:
            made[name] = wide_models.save(name, root / name)
        return made[name]

    return folder


@pytest.fixture(scope="session")
def engine():
    """(folder, further arguments) -> a policy on vLLM; the one before is ended where it is another."""
    from visrl.policies.registry import load_policy

    held = {}

    def load(folder, **more):
        key = (str(folder), *sorted(more.items()))
        if key not in held:
            for policy in held.values():
                policy.close()
            held.clear()
            held[key] = load_policy(f"vllm:{folder}", {**SMALL, **more})
        return held[key]

    yield load
    for policy in held.values():
        policy.close()
