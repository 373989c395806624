"""``visrl-eval export``: every format holds the same rows, and what the run holds."""

import csv
import io
import json

import pytest
import runs_made as made

from visrl.cli.evaluate import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four samples: a true box, a corner, no box, and a failure; the answer of the first is a spreadsheet's formula."""
    data = made.drawn(tmp_path_factory.mktemp("data"), n=4)
    truth = made.truth(data)

    def box(i):
        if i == "1003":
            raise RuntimeError("out of memory")
        return {"1000": truth[i][0], "1001": "[0.0, 0.1875, 0.5, 0.5]", "1002": "nowhere"}[i]

    policy = made.scripted("m", box, lambda i: "=1+1" if i == "1000" else truth[i][1])
    return made.run(policy, data, tmp_path_factory.mktemp("run") / "r")


def exported(run, capsys, *more):
    assert main(["export", str(run), *more]) == 0
    return capsys.readouterr().out


def test_a_row_per_sample(run, capsys):
    rows = [json.loads(line) for line in exported(run, capsys, "--format", "jsonl").splitlines()]
    assert [row["sample_id"] for row in rows] == ["1000", "1001", "1002", "1003"]
    # the padded square of 320 x 200 has side 320 and 60 pixels above: y = .1875 * 320 - 60 = 0, .5 * 320 - 60 = 100
    assert [rows[1][f"box_{corner}"] for corner in ("x1", "y1", "x2", "y2")] == [0.0, 0.0, 160.0, 100.0]
    assert (rows[2]["unparsed"], rows[2]["box_x1"], rows[2]["box_text"]) == ("no list of four numbers", None, "nowhere")
    assert [row["answer"] for row in rows] == [0.0, 1.0, 1.0, None]
    assert "out of memory" in rows[3]["error"] and rows[0]["picture"] == rows[1]["picture"] != rows[2]["picture"]


def test_csv_holds_the_same_and_no_formula(run, capsys):
    rows = list(csv.DictReader(io.StringIO(exported(run, capsys))))
    assert rows[0]["answer_text"] == "'=1+1" and rows[1]["box_x2"] == "160.0" and rows[3]["answer"] == ""


def test_parquet_holds_the_same(run, capsys, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    exported(run, capsys, "--format", "parquet", "-o", str(tmp_path / "x.parquet"))
    lines = [json.loads(line) for line in exported(run, capsys, "--format", "jsonl").splitlines()]
    assert parquet.read_table(tmp_path / "x.parquet").to_pylist() == lines


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--format", "parquet"], "name a file: --output"),
        (["--format", "csw"], "csv"),
        (["-o", "/nowhere/x.csv"], "--output"),
    ],
)
def test_wrong_use(run, capsys, more, said):
    assert main(["export", str(run), *more]) == 2
    assert said in capsys.readouterr().err
