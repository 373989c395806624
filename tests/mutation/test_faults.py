"""A few seeded faults in the default test run; all of them: `python tests/mutation/run.py` or `tox -e mutation`."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from faults import FAULTS, SMOKE
from run import PACKAGE, ROOT, lay_out, notice, seed, try_fault


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("source") / "source")


def test_the_unchanged_source_is_fine(pristine):
    assert notice("replay gate", pristine) == ""


@pytest.mark.parametrize("what", SMOKE)
def test_a_seeded_fault_is_caught(pristine, what):
    (fault,) = [fault for fault in FAULTS if fault.what == what]
    assert try_fault(fault, pristine).startswith("replay gate")


def test_every_fault_still_applies():
    assert len(FAULTS) >= 25 and len({fault.what for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        top, _, rest = fault.file.partition("/")
        assert top in PACKAGE and (ROOT / top / rest).read_text().count(fault.before) == 1, fault.what
        assert fault.before != fault.after


def test_a_fault_that_no_longer_applies_is_an_error(pristine):
    from dataclasses import replace

    with pytest.raises(SystemExit, match="0 times"):
        seed(replace(FAULTS[0], before="no such text"), pristine)
