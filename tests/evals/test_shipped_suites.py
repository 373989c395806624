"""The suites that ship and the baselines that were accepted for them belong together."""

from pathlib import Path

import pytest

from visrl.evals.baselines import read_baseline
from visrl.evals.gates import check_difference, z_for
from visrl.evals.suite import load_suite
from visrl.regression.paired import cell_difference

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["world", "nightly"])
def test_every_cell_has_an_accepted_number_and_an_unchanged_run_passes(name):
    """An equal run is the quietest there is: a floor that refuses it would refuse every run."""
    for gate in load_suite(name).paired:
        baseline = read_baseline(ROOT / "results" / "baselines.yaml", gate.baseline)
        for cell in gate.cells:
            numbers = [baseline.number(*what) for what in cell.whats]
            assert all(number is not None and number.limit == gate.limit for number in numbers)
            found = cell_difference(cell, baseline.rows, baseline.rows)
            assert check_difference(found, cell.floor, z_for(len(gate.cells))).status == "pass"
