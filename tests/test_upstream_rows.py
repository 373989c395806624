"""lmms-eval's results as rows: a metric each, its standard error beside it, and what has none."""

from visrl.lmms.upstream import rows

FOUND = {
    "results": {
        "mme": {"alias": "mme", "mme_perception,none": 1500.5, "mme_perception_stderr,none": "N/A"},
        "vsr": {"alias": "vsr", "exact,none": 0.25, "exact_stderr,none": 0.25, "exact_stderr_clt,none": 0.2, "words,none": "x"},
    },
    "n-samples": {"mme": {"original": 9, "effective": 4}, "vsr": {"original": 4, "effective": 4}},
    "failures": {"vsr": {"3": "no picture"}},
}  # fmt: skip


def test_a_row_per_metric_with_its_standard_error():
    shared = {"filter": "none", "n": 4}
    assert rows(FOUND) == [
        {"task": "lmms:mme", "metric": "mme_perception", "value": 1500.5, "se": None, "n_failed": 0, **shared},
        {"task": "lmms:vsr", "metric": "exact", "value": 0.25, "se": 0.25, "n_failed": 1, **shared},
    ]
