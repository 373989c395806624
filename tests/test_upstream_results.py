"""lmms-eval's results as records and lines of scores, each number by hand."""

import math

from visrl.lmms.results import document_values, metrics, score_rows, task_results, verdict

FOUND = {
    "results": {
        "mme": {"alias": "mme", "total,none": 50.0, "total_stderr,none": "N/A"},
        "vsr": {"alias": "vsr", "exact,none": 0.25, "exact_stderr,none": 0.25, "exact_stderr_clt,none": 0.2, "words,none": "x",
                "exact,strict": 0.0, "exact_stderr,strict": 0.0},
        "all": {"alias": "all", "exact,none": 0.4, " ": " "},
    },
    "higher_is_better": {"mme": {"total": True}, "vsr": {"exact": True}},
    "versions": {"mme": "0.0", "vsr": 1},
    "group_subtasks": {"all": ["mme", "vsr"]},
    "n-samples": {"mme": {"original": 9, "effective": 4}, "vsr": {"original": 4, "effective": 4}},
    "failures": {"vsr": {"3": "no picture"}},
}  # fmt: skip
ROWS = [
    {
        "doc_id": number,
        "doc": {},
        "target": "A",
        "resps": [["A"]],
        "exact": float(number == 0),
        "total": {"score": number % 2},
    }
    for number in range(4)
]
PICTURES = {"0": "a", "1": "a", "2": "b", "3": "b"}
CONTEXT = {
    "protocol": "direct/v1", "focus": "predicted", "crop": "tight", "model": "m", "versions": {"visrl": "0"}, "notes": [],
}  # fmt: skip


def of(task, means):
    made = metrics(task, FOUND, document_values(ROWS), means, PICTURES)
    return {r.metric: r for r in task_results(task, FOUND, made, CONTEXT)}, made


def test_a_mean_has_a_standard_error_by_picture():
    """Values 1 0 | 0 0, mean 1/4. Picture a moves it by (1 - 2/4) / 4 = 1/8, b by (0 - 2/4) / 4 = -1/8: se^2 = 2/1 (1/64 + 1/64)."""
    found, made = of("vsr", {"exact"})
    exact = found["exact"]
    assert (exact.task, exact.value, exact.unit, exact.n, exact.n_clusters) == ("lmms:vsr", 0.25, "raw", 4, 2)
    assert math.isclose(exact.se, 0.25)
    assert exact.notes == ["1 samples failed and count as wrong"]
    assert list(found) == ["exact", "exact,strict"], "text is no number, and another filter is another metric"
    assert (found["exact,strict"].value, found["exact,strict"].se, found["exact,strict"].ci) == (0.0, 0.0, None)
    assert verdict(made) == "exact"
    lines = list(score_rows("vsr", ROWS, made, PICTURES))
    assert [line["scores"] for line in lines] == [{"exact": 1.0}, {"exact": 0.0}, {"exact": 0.0}, {"exact": 0.0}]
    assert lines[2] == {"task": "lmms:vsr", "sample_id": "2", "cluster": "b", "group": "", "scores": {"exact": 0.0}}


def test_a_total_stands_beside_the_mean_of_its_documents_values():
    """Values 0 1 0 1: 1/2, though the total is 50 = 100 / 2 by chance. Both pictures have mean 1/2: standard error 0."""
    found, made = of("mme", ())
    assert list(found) == ["total", "total/sample"]
    assert (found["total"].value, found["total"].se, found["total"].n_missing) == (50.0, None, 5)
    assert (found["total/sample"].value, found["total/sample"].se) == (0.5, 0.0)
    assert verdict(made) == "total/sample"
    assert next(score_rows("mme", ROWS, made, PICTURES))["scores"] == {"total/sample": 0.0}


def test_a_group_counts_its_tasks_samples():
    found, _ = of("all", ())
    assert (found["exact"].value, found["exact"].n, found["exact"].n_expected) == (0.4, 8, 13)
    assert found["exact"].notes == ["1 samples failed and count as wrong"]


def test_of_several_filters_the_first_counts():
    rows = [{"doc_id": 0, "exact": 1.0}, {"doc_id": 1, "exact": 0.0}, {"doc_id": 0, "exact": 0.0}]
    assert document_values(rows) == {"exact": {"0": 1.0, "1": 0.0}}
