import csv
import math

import pytest

from visrl.errors import UsageError
from visrl.evals import paper


def published(shared, name):
    with (shared.parent / "paper" / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


LAYOUT = {  # csv, column that names a row, columns that hold cells: csv -> ours
    "rec": ("rec", lambda r: r["method"], lambda c: c if c.startswith("refcoco") else None),
    "general": ("general", lambda r: r["method"], lambda c: c if c in ("mme_perception", "mmbench", "pope") else None),
    "viscot": (
        "viscot",
        lambda r: f"{r['model']} {r['phase']}",
        lambda c: None if c in ("model", "phase", "average", "status", "note") else c,
    ),
    "datagen": (
        "datagen_ablation",
        lambda r: r["setting"],
        lambda c: c.removesuffix("_percent") if c.endswith("_percent") else None,
    ),
}


@pytest.mark.parametrize("name", paper.NAMES)
def test_every_cell_is_the_published_one(shared, name):
    source, row_name, column_of = LAYOUT[name]
    rows, table = published(shared, source), paper.load(name)
    assert [row.name for row in table.rows] == [row_name(row) for row in rows]
    columns = {c: ours for c in rows[0] if (ours := column_of(c))}
    assert [column.name for column in table.columns] == list(columns.values())
    for ours, row in zip(table.rows, rows, strict=True):
        for theirs, column in columns.items():
            cell = ours.cells[column]
            assert cell.value == (float(row[theirs]) if row[theirs] else None), (ours.name, column)
            assert (cell.status == "missing") == (row[theirs] == "")
            assert cell.provenance
            if row.get("status") == "suspect" and row[theirs]:
                assert cell.status == "suspect"


def test_what_the_tables_print_beside_their_numbers_is_kept(shared):
    for ours, row in zip(paper.load("general").rows, published(shared, "general"), strict=True):
        assert ours.details.get("tag", "") == row["tag_in_source"]
        assert ours.details["training_samples"] == row["training_samples"]
        bold = {column.split("_")[0] for column, cell in ours.cells.items() if cell.bold}
        assert bold == {name for name in row["bold_in_source"].split("+") if name}
    pairs = {row["setting"]: row["pairs"] for row in published(shared, "datagen_ablation")}
    assert {row.name: row.details["pairs"] for row in paper.load("datagen").rows} == pairs


def test_ablation_rows_sum_to_a_hundred():
    for row in paper.load("datagen").rows:
        assert abs(math.fsum(cell.value for cell in row.cells.values()) - 100) <= 0.011, row.name


def test_there_is_no_average_and_the_lost_column_is_missing():
    table = paper.load("viscot")
    assert not [column for column in table.columns if "av" in column.name.lower()]
    assert [row.name for row in table.rows if row.cells["cub"].value is not None] == ["MiniCPM-o-2.6-8B base"]


def test_doubtful_cells_say_why():
    table = paper.load("viscot")
    qwen = table.row("Qwen2.5-VL-7B base").cells
    assert qwen["docvqa"].status == "suspect"
    assert "0.876" in qwen["docvqa"].note
    assert qwen["textvqa"].status == "ok"
    for row in table.rows:
        for cell in row.cells.values():
            assert cell.status != "suspect" or cell.note or row.note
    assert "inference" in table.notes[0]


def test_unknown_tables_and_rows():
    with pytest.raises(UsageError, match="no published table"):
        paper.load("ablation")
    with pytest.raises(UsageError) as caught:
        paper.load("rec").row("VisCoT")
    assert "VisCoT-7B" in caught.value.hint


def test_a_damaged_cell_is_refused():
    with pytest.raises(ValueError, match="cannot be 'ok'"):
        paper._cell({"value": None, "status": "ok", "from": "printed"}, {"printed": "p"})
    with pytest.raises(ValueError, match="no column"):
        paper._row({"name": "x", "cells": {"nope": 1.0}}, (), {"printed": "p", "lost": "l"})


def test_numbers_of_other_projects_say_where_they_are_from_and_are_never_comparable():
    table = paper.load("zoom")
    assert all("README.md at " in str(row.details["source"]) and row.protocols == ("its-own",) for row in table.rows)
    # read in Mini-o3's README: 88.2, 77.5 and 73.3; in TreeVGR's: 200 of 405 right is 49.38, mean IoU 43.3
    mine, tree = table.row("Mini-o3 7B (Mini-o3)").cells, table.row("TreeVGR 7B (its own)").cells
    assert [mine[name].value for name in ("vstar", "hrbench_4k", "hrbench_8k")] == [88.2, 77.5, 73.3]
    assert round(100 * 200 / 405, 2) == tree["treebench"].value and tree["treebench_miou"].value == 43.3
    assert mine["treebench"].status == "missing"
