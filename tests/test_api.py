"""``import visrl``: the page about it runs, and what it says of wrong use."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_without_pandas_the_error_says_what_to_install(no, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pandas") as wrong:
        no.to_pandas()
    assert wrong.value.hint == "pip install pandas"
