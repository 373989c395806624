"""``visrl-eval --tasks lmms:mme``: a run folder that resumes, is shown, compared and looked at as of our own tasks.

lmms-eval's own ``mme`` on a local folder named like its data set: 6 pictures, "Red?" and "Blue?" of each; all are red. One process
of its own runs everything, because importing lmms-eval changes warnings and loggers; the tests read what it saw.
"""

import json
from pathlib import Path

import pytest
from upstream_made import run_apart

_SCRIPT = """
import contextlib, datasets, io, json, shutil, sys
from pathlib import Path
from PIL import Image
from visrl.cli.evaluate import main
from visrl.core.box_formats import FORMATS
from visrl.evaluation import on_ray
from visrl.policies.protocol import FunctionPolicy

def rows(colour="red"):
    for number in range(6):
        for question, answer in (("Red?", "Yes"), ("Blue?", "No")):
            yield {"question_id": f"color/{number}.png", "question": question + " Please answer yes or no.", "answer": answer,
                   "category": "color", "image": Image.new("RGB", (64 + number, 48), colour)}

place = Path("lmms-lab-encoder/MME/test-00000.parquet")
datasets.Dataset.from_list(list(rows())).to_parquet(place)
asked, broken = [], {"5", "7"}

def model(request):
    asked.append(request.key)
    if request.key in broken:
        raise RuntimeError("out of memory")
    if request.step == "box":
        return "[0.1, 0.2, 0.5, 0.6]"
    cropped = sum(len(turn.pictures) for turn in request.turns) > 1
    return "Yes" if cropped or "Red?" in request.turns[-1].text() else "No"

def load(spec, arguments):
    return FunctionPolicy(spec, model, FORMATS["wh_norm_3dp"], needs_pictures=True, default_protocol=arguments.get("protocol", "direct"))

on_ray.load_policy = load

facts = {}
def do(name, *words):
    asked.clear()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    facts[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "asked": list(asked)}

RUN = ["--model", "constant:made", "--tasks", "lmms:mme", "-o", "run", "--batch-size", "4", "-q"]
do("first", *RUN, "--json")
broken.clear()
do("again", *RUN, "--json")
do("third", *RUN, "--json")
do("refused", *RUN, "--limit", "3")
do("beside", *RUN, "--protocol", "visrl_train", "-o", "looked", "--beside", "direct")
do("both", *RUN, "-o", "both", "--tasks", "lmms:mme,world_mme", "--limit", "4", "--json")
do("show", "show", "run")
do("score", "score", "run")
do("page", "view", "run")
do("two", "view", "looked/direct", "looked")
do("export", "export", "run", "--format", "jsonl")
do("unknown", *RUN, "-o", "no", "--tasks", "lmms:mmee")
datasets.Dataset.from_list(list(rows("blue"))).to_parquet(place)
shutil.rmtree("cache")
do("changed", *RUN, "--json")
json.dump(facts, open("facts.json", "w"))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("upstream")
    run_apart(folder, _SCRIPT)
    return folder


@pytest.fixture(scope="module")
def facts(place):
    return json.loads((place / "facts.json").read_text())


def values(printed):
    return {r["metric"]: (r["value"], r["se"], r["n"]) for r in json.loads(printed) if r["task"] == "lmms:mme"}


def test_what_failed_is_asked_again_by_the_same_command_and_nothing_else(facts):
    """Batches of 4: documents 5 and 7 fail, in the second, which is asked whole again, as it was."""
    assert facts["first"]["code"] == 3 and "2 of 12 samples failed" in facts["first"]["err"]
    assert facts["again"]["code"] == 0 and facts["again"]["asked"] == ["4", "5", "6", "7"]
    assert facts["third"]["code"] == 0 and facts["third"]["asked"] == []
    assert facts["third"]["out"] == facts["again"]["out"]


def test_stdout_is_json_alone(facts):
    """All 12 right: 100 points of accuracy and 100 of pairs. Before, 2 of 12 counted as wrong: 10 / 12, and 4 of 6 pairs."""
    total = 100 * 10 / 12 + 100 * 4 / 6
    first = values(facts["first"]["out"])
    assert first["mme_perception_score"] == (pytest.approx(total), None, 12)
    assert first["mme_perception_score/sample"][0] == pytest.approx(10 / 12)
    assert values(facts["again"]["out"]) == {
        "mme_perception_score": (200.0, None, 12),
        "mme_perception_score/sample": (1.0, 0.0, 12),
    }


def test_another_command_in_the_folder_is_refused(facts, place):
    assert facts["refused"]["code"] == 2 and "run holds another run: data, limit differ" in facts["refused"]["err"], (
        facts
    )
    assert facts["unknown"]["code"] == 2 and "lmms-eval has no task 'mmee'" in facts["unknown"]["err"]
    assert not (place / "no").exists()


def test_other_documents_are_another_run(facts):
    """Blue pictures in the same rows: the folder is of red ones."""
    assert facts["changed"]["code"] == 2 and "run holds another run: data differ" in facts["changed"]["err"]


def test_a_second_protocol_is_compared(facts):
    """direct answers all 12. After a crop the model says yes to everything: 6 of 12. 12 documents of 6 pictures."""
    assert facts["beside"]["code"] == 0, facts["beside"]["err"]
    assert "mme_perception_score/sample 1 → 0.5" in facts["beside"]["out"]


def test_runs_of_both_kinds_in_one_command(facts, place):
    results = json.loads(facts["both"]["out"])
    assert {r["task"] for r in results} == {"lmms:mme", "world_mme"}
    assert (place / "both/run.json").is_file() and (place / "both/lmms/run.json").is_file()


def test_it_is_shown_exported_and_looked_at(facts, place):
    assert "lmms:mme mme_perception_score" in facts["show"]["out"] and facts["show"]["code"] == 0
    assert facts["score"]["code"] == 2 and "the same command rescores" in facts["score"]["err"]
    rows = [json.loads(line) for line in facts["export"]["out"].splitlines()]
    assert len(rows) == 12 and rows[1]["answer_text"] == "No" and rows[1]["mme_perception_score/sample"] == 1.0
    assert facts["page"]["code"] == 0, facts["page"]["err"]
    page = (place / "run/report.html").read_text()
    index = json.loads(page.split('id="index">')[1].split("</script>")[0])
    assert index["shared"]["question"][:2] == ["Red?", "Blue?"] and index["shared"]["answers"][:2] == ["Yes", "No"]
    assert index["runs"][0]["right"] == [1] * 12 and len(index["embedded"]) == 12, "the pictures are in it"
    both = json.loads((place / facts["two"]["out"].strip()).read_text().split('id="index">')[1].split("</script>")[0])
    assert both["runs"][1]["right"] == [1, 0] * 6
