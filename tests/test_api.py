"""``import visrl``: the page about it runs, and what it says of wrong use."""

import doctest
import importlib
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from runs_made import drawn

import visrl
from visrl.errors import UsageError

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize(("page", "statements"), [(PAGE, 16), (README, 7)], ids=["python.md", "README.md"])
def test_python_examples_print_what_the_page_shows(page, statements, tmp_path, monkeypatch):
    pytest.importorskip("pandas", reason="to_pandas needs it")
    monkeypatch.chdir(tmp_path)
    text = "\n\n".join(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S))
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    said: list[str] = []
    found = doctest.DocTestRunner().run(test, out=said.append)
    assert found.attempted >= statements and found.failed == 0, "".join(said)


def test_every_name_is_there_and_on_the_page():
    text = PAGE.read_text()
    for name in set(visrl.__all__) - {"__version__", "EvaluatedRun"}:
        assert getattr(visrl, name) is not None and f"visrl.{name}(" in text, name
    assert set(visrl.__all__) <= set(dir(visrl))
    with pytest.raises(AttributeError, match="nosuch"):
        importlib.import_module("visrl").nosuch  # noqa: B018


def test_import_visrl_loads_none_of_it():
    code = "import sys, visrl; print([m for m in sys.modules if m.startswith('visrl.') or m in ('pydantic', 'numpy')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def no(tmp_path):
    """ "no" to the first two questions of world_pope_random: of a picture's yes and no one is right."""
    return visrl.evaluate("constant:no", "world_pope_random", limit=2, output=tmp_path / "no")


def test_a_constant_run(no):
    """One of two is right: 50 %. No question is answered yes, so precision is 0 / 0."""
    assert no.value("world_pope_random", "accuracy") == 50.0
    assert no.value("world_pope_random") == 50.0  # its first
    assert no.value("world_pope_random", "precision") is None
    assert [episode.answer_step.output for episode in no.episodes] == ["no", "no"]
    with pytest.raises(UsageError, match="has no result world_pope_random acuracy") as wrong:
        no.value("world_pope_random", "acuracy")
    assert "accuracy" in wrong.value.hint
    with pytest.raises(UsageError, match="has no result world_pop"):
        no.value("world_pop")


def test_scored_rows_are_those_of_the_model(no, tmp_path):
    """The same outputs as rows, in another order and from a file: the same numbers."""
    rows = [{"id": e.sample_id, "text": e.answer_step.output} for e in reversed(no.episodes)]
    scored = visrl.score(rows, "world_pope_random", limit=2, output=tmp_path / "rows")
    again = visrl.score(no.folder, "world_pope_random", limit=2, output=tmp_path / "again")
    for run in (scored, again):
        assert [(r.metric, r.value) for r in run.records] == [(r.metric, r.value) for r in no.records]
        assert {d.delta for d in visrl.compare(no, run)} <= {0.0, None}


def test_a_row_without_a_document_is_said_and_the_rest_is_there(tmp_path):
    rows = [{"id": "world_pope_random/nosuch", "text": "no"}]
    with pytest.raises(UsageError, match="no prediction in the rows"):
        visrl.score(rows, "world_pope_random", limit=2, output=tmp_path / "r")


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        (lambda: visrl.evaluate("constant:no", "world_pope_randm"), "unknown task", "world_pope_random"),
        (lambda: visrl.evaluate("constant:no", "world_pope_random", focsu="gold"), "no option 'focsu'", "focus"),
        (lambda: visrl.evaluate("constant:no", "world_pope_random", focus="gld"), "gld", "gold"),
        (lambda: visrl.load("nowhere"), "nowhere", ""),
        (lambda: visrl.parse_box("[1, 2, 3, 4]", "json_100", (9, 9)), "unknown box format", "json_1000"),
    ],
)
def test_wrong_use_is_said_with_a_hint(call, message, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as wrong:
        call()
    assert hint in wrong.value.hint and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "choices",
    [
        {"limit": 0}, {"limit": -1}, {"limit": 2.5}, {"limit": "8"}, {"limit": True}, {"limit": 10**13}, {"seed": -1},
        {"seed": 2**32}, {"batch_size": 0}, {"max_tokens": 0}, {"limit": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_numbers_out_of_the_command_line_s_ranges_are_refused(choices, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"{next(iter(choices))} .* is not a whole number from"):
        visrl.evaluate("constant:no", "world_pope_random", **choices)
    assert not list(tmp_path.iterdir())


def test_numpy_s_whole_numbers_are_numbers(tmp_path):
    run = visrl.evaluate("constant:no", "world_pope_random", limit=np.int64(2), seed=np.uint8(3), output=tmp_path / "r")
    assert (run.request["limit"], run.request["seed"]) == (2, 3)


def test_missing_pictures_are_said_before_a_model_is_loaded(tmp_path, monkeypatch):
    data = drawn(tmp_path / "data")
    shutil.rmtree(data / "images")
    monkeypatch.setattr("visrl.policies.registry.load_policy", None)
    with pytest.raises(UsageError, match="no pictures: "):
        visrl.evaluate("tiny", "viscot_vsr", data=data, output=tmp_path / "r")


def test_runs_on_other_documents_are_not_compared_here_either(tmp_path):
    """Two folders whose questions have the same ids and are others: as `visrl-eval compare`, word for word."""
    for name, n in (("a", 12), ("b", 10)):
        visrl.evaluate("constant:red", "viscot_vsr", data=drawn(tmp_path / f"data-{name}", n), output=tmp_path / name)
    with pytest.raises(UsageError, match="ran on different documents of viscot_vsr") as wrong:
        visrl.compare(tmp_path / "a", visrl.load(tmp_path / "b"))
    assert "run both on the same data" in wrong.value.hint


def test_settings_that_differ_give_a_warning_and_equal_ones_none(no, tmp_path):
    other = visrl.evaluate("constant:no", "world_pope_random", limit=2, seed=1, output=tmp_path / "other")
    with pytest.warns(UserWarning, match=r"settings differ: seed \(0 / 1\)") as said:
        visrl.compare(no, other)
    assert len(said) == 1 and said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert visrl.compare(no, no.folder)


def test_rows_with_numpy_s_numbers_are_scored(tmp_path):
    data = drawn(tmp_path / "data", 2)  # red, then green; ids 1000 and 1001
    rows = [{"id": np.int64(1000), "text": "red", "seconds": np.float32(0.5)}, {"id": 1001, "text": np.str_("red")}]
    run = visrl.score(rows, "viscot_vsr", data=data, output=tmp_path / "r", protocol="direct")
    assert run.value("viscot_vsr", "answer") == 0.5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"id": "1", "text": "a"}, {"id": "2", "text": 1j}],
            "row 2: 'text' cannot be written as JSON: it is a complex",
        ),
        ([["1", "a"]], "row 1 is a list, not a mapping"),
        ({"id": "1", "text": "a"}, "predictions are a dict, not rows"),
        (None, "predictions are a NoneType, not rows"),
        ([{"text": "a"}], "the rows: unknown layout of predictions"),
        ([], "the rows is empty"),
    ],
    ids=str,
)
def test_what_is_no_row_is_said(rows, message, tmp_path):
    with pytest.raises(UsageError, match=re.escape(message)) as wrong:
        visrl.score(rows, "world_pope_random", output=tmp_path / "r")
    assert wrong.value.hint


def test_without_pandas_the_error_says_what_to_install(no, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pandas") as wrong:
        no.to_pandas()
    assert wrong.value.hint == "pip install pandas"
