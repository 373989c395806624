"""The notebooks of docs/notebooks run from a clean kernel; the training one with few steps."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="no notebooks: pip install visrl[notebooks]")
nbclient = pytest.importorskip("nbclient", reason="no notebooks: pip install visrl[notebooks]")
pytest.importorskip("ipykernel", reason="no notebooks: pip install visrl[notebooks]")
pytest.importorskip("pandas", reason="no notebooks: pip install visrl[notebooks]")

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
SHORT = {"STEPS": 2, "QUESTIONS": 15}
"""In place of the notebooks' own values: what matters here is that every cell runs."""


def executed(name, folder):
    """The notebook after a run in ``folder``, and all that its cells printed."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        for parameter, value in SHORT.items() if cell.cell_type == "code" else ():
            cell.source = re.sub(rf"^{parameter} = \d+$", f"{parameter} = {value}", cell.source, flags=re.M)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )


def test_score_predictions(tmp_path):
    """Six of ten answers and seven of ten boxes are right; read as pixels of a picture of 448 no box is, on a grid of 1000 seven are."""
    printed = executed("score-predictions", tmp_path)
    assert "answer: 60.0 ±" in printed and "box_acc: 70.0 ±" in printed
    assert "as pixels: 0.0 % of boxes right" in printed
    assert re.search(r"best reading: \w*1000\w*, 70.0 %", printed)


def test_train_the_small_world(tmp_path):
    printed = executed("train-the-small-world", tmp_path)
    assert re.search(r"answer: \d+\.\d → \d+\.\d %", printed) and "box_acc: 0.0 →" in printed


def test_notebooks_are_small_and_have_no_errors():
    for file in FOLDER.glob("*.ipynb"):
        assert file.stat().st_size < 200_000, file
        notebook = nbformat.read(file, as_version=4)
        assert not [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
