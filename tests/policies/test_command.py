"""Every family from the command line, as a user types it."""

import json

import pytest
from tinies import FAMILIES, benchmark_folder

from visrl.cli.evaluate import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return benchmark_folder(tmp_path_factory.mktemp("data") / "d", 5)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_kinds_of_task_on_a_checkpoint_from_disk(name, data, checkpoints, tmp_path, capsys):
    arguments = [
        "--model", f"hf:{checkpoints(name)}", "--tasks", "viscot_gqa,refcoco_val", "--data", str(data), "--limit", "4",
        "--max-tokens", "6", "--batch-size", "3", "--output", str(tmp_path / "run"), "--json", "--quiet",
    ]  # fmt: skip
    assert main(arguments) == 0
    results = json.loads(capsys.readouterr().out)
    assert {r["task"]: r["n"] for r in results} == {"viscot_gqa": 4, "refcoco_val": 4}
    assert all(r["n_unscored"] == 0 and r["model_info"]["weights_sha256"] for r in results)
    assert main(arguments) == 0  # the same command again: nothing to do, the same results
    assert json.loads(capsys.readouterr().out) == results


def test_batch_size_is_the_rows_of_a_pass():
    from visrl.cli.running import batch_size_of
    from visrl.core.box_formats import FORMATS
    from visrl.policies.protocol import FunctionPolicy

    policy = FunctionPolicy("made", lambda _: "", FORMATS["padded_square_3dp"], needs_pictures=True)
    policy.rows = 8
    assert (batch_size_of("auto", policy), policy.rows) == (8, 8)  # the default of a policy that looks at pictures
    assert (batch_size_of("64", policy), policy.rows) == (64, 64)
