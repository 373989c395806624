"""The lmms-eval task files and what they refer to, without lmms-eval: the same scorers and numbers as visrl-eval's."""

import math
from pathlib import Path

import pytest
import yaml

import visrl.tasks.lmms as lmms
from visrl.core.boxes import Box
from visrl.core.types import Episode, Step, Unparsed
from visrl.evals.benchmarks import GROUPS, TASKS
from visrl.lmms.plugin import task_folder
from visrl.tasks import SOURCES
from visrl.tasks.write_yaml import files


@pytest.fixture(autouse=True)
def data(request, monkeypatch):
    if "shared" in request.fixturenames:
        monkeypatch.setenv(lmms.DATA_VARIABLE, str(request.getfixturevalue("shared")))


def _first(task: str, n: int = 1):
    samples = list(lmms.samples_of(task).values())[:n]
    return [({"task": task, "id": s.id}, s) for s in samples]


def test_files_in_the_tree_are_the_generated_ones():
    """After a change: python -m visrl.tasks.write_yaml"""
    on_disk = {str(f.relative_to(task_folder())): f.read_text() for f in task_folder().glob("*/*.yaml")}
    assert on_disk == files()


class _Loader(yaml.SafeLoader):
    """Reads ``!function`` as the name that stands there."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_every_task_and_group_has_a_file_and_dangerous_defaults_are_off():
    read = [yaml.load(content, _Loader) for content in files().values()]
    tasks = {config["task"]: config for config in read if "group" not in config}
    groups = {config["group"] for config in read if "group" in config}
    assert set(tasks) == {f"visrl_{name}" for name in SOURCES}
    assert groups == {f"visrl_{name}" for name in GROUPS if set(GROUPS[name]) <= set(SOURCES)}
    for config in tasks.values():
        assert config["reasoning_tags"] == "none" and config["generation_kwargs"]["until"] == []
        assert config["generation_kwargs"]["do_sample"] is False


def test_every_name_in_the_files_exists(monkeypatch):
    monkeypatch.setattr(lmms, "samples_of", lambda task: {})
    for content in files().values():
        for word in content.replace(",", " ").replace("}", " ").split():
            if word.startswith("visrl.tasks.lmms."):
                assert getattr(lmms, word.removeprefix("visrl.tasks.lmms.")) is not None
    for wrong in ("documents_nope", "total_refcoco_val__f1", "nonsense"):
        with pytest.raises(AttributeError):
            getattr(lmms, wrong)


def test_documents_are_small_and_complete(shared):
    table = getattr(lmms, "documents_refcoco+_testA")(None)
    assert len(table) == 5726
    assert table[0].keys() == {"task", "id", "question", "picture"}


def test_an_episode_survives_the_wire():
    (sample,) = [object()]
    for episode in (
        Episode("1", "t", Step("p", "[0.1]"), Box(1.25, 2, 3, 4), (1, 2, 3, 4), Step("q", 'yes "so"\n', 5, 6)),
        Episode("1", "t", Step("p", "none"), Unparsed("empty output")),
        Episode("1", "t", error="picture: gone"),
    ):
        assert lmms.deserialize_episode(sample, lmms.serialize_episode(episode)) == episode


def test_rec_scores_are_percent_and_failed_samples_have_none(shared):
    ((doc, sample),) = _first("refcoco_val")
    right = lmms.serialize_episode(Episode(sample.id, sample.task, Step("", ""), sample.box))
    found = lmms.results_refcoco_val(doc, [right])
    assert found == pytest.approx(
        {"acc@0.5": 100, "miou": 100, "acc@0.75": 100, "centre_acc": 100, "unscored": 0, "unparsed": 0}
    )
    unparsed = lmms.serialize_episode(Episode(sample.id, sample.task, Step("", ""), Unparsed("no list")))
    assert lmms.results_refcoco_val(doc, [unparsed])["acc@0.5"] == 0
    assert lmms.results_refcoco_val(doc, [unparsed])["unparsed"] == 100
    failed = lmms.serialize_episode(Episode(sample.id, sample.task, error="picture: gone"))
    assert lmms.results_refcoco_val(doc, [failed]) == {"unscored": 100, "unparsed": 0}


def test_scores_of_all_at_once_are_those_of_each(shared, monkeypatch):
    """A right box, half of it (IoU 1/2, which is not above), none to be read, a failed sample, and no box asked for."""
    monkeypatch.setattr(lmms, "_TOGETHER", {})
    asked = _first("refcoco_val", 5)
    x1, y1, x2, y2 = asked[1][1].box.xyxy
    ends = (
        {"box": asked[0][1].box}, {"box": Box(x1, y1, (x1 + x2) / 2, y2)}, {"box": Unparsed("no list")},
        {"error": "picture: gone"}, {},
    )  # fmt: skip
    made = [(s, Episode(s.id, s.task, Step("", ""), **end)) for (_, s), end in zip(asked, ends, strict=True)]
    texts = [lmms.serialize_episode(episode) for _, episode in made]
    each = [lmms.results_refcoco_val(doc, [text]) for (doc, _), text in zip(asked, texts, strict=True)]
    assert [(r.get("acc@0.5"), r["unscored"], r["unparsed"]) for r in each] == [
        (100, 0, 0), (0, 0, 0), (0, 0, 100), (None, 100, 0), (None, 100, 0),
    ]  # fmt: skip
    lmms.score_together("refcoco_val", [(*pair, text) for pair, text in zip(made, texts, strict=True)])
    monkeypatch.setattr(lmms, "scorer_of", None)  # whoever scores again fails
    assert [lmms.results_refcoco_val(doc, [text]) for (doc, _), text in zip(asked, texts, strict=True)] == each
    with pytest.raises(TypeError):
        lmms.results_refcoco_val(asked[0][0], [texts[1]])  # another answer is not the one that was scored


def test_another_models_text_is_a_box_in_fractions_as_the_prompt_asks(shared):
    """[468.3, .91, 640, 117.03] in 640 x 428 is [.731, .002, 1, .273]."""
    ((doc, _),) = _first("refcoco_val")
    assert "between 0 and 1" in lmms.doc_to_text(doc)
    assert lmms.results_refcoco_val(doc, ["[0.731, 0.002, 1.0, 0.273]"])["miou"] == pytest.approx(100, abs=1)
    assert lmms.results_refcoco_val(doc, ["[468, 1, 640, 117]"])["acc@0.5"] == 0


def test_pope_totals_are_the_scorers(shared):
    """Six questions about the first picture, yes no yes no yes no; always "yes": TP 3, FP 3, FN 0: f1 = 6 / 9."""
    items = []
    for doc, sample in _first("pope_coco_popular", 6):
        found = lmms.results_pope_coco_popular(doc, ["Yes"])
        assert found["accuracy"] == (100 if sample.answers == ("yes",) else 0)
        items.append(found["f1"])
    assert lmms.total_pope_coco_popular__f1(items) == pytest.approx(100 * 6 / 9)
    assert lmms.total_pope_coco_popular__recall(items) == 100


def test_mme_totals_need_all_subtasks_and_say_so_with_nan(shared):
    items = [lmms.results_mme(doc, [sample.answers[0]])["perception"] for doc, sample in _first("mme", 2)]
    assert math.isnan(lmms.total_mme__perception(items))
    everything = _first("mme", TASKS["mme"].n)
    items = [lmms.results_mme(doc, [sample.answers[0]])["perception"] for doc, sample in everything]
    assert lmms.total_mme__perception(items) == pytest.approx(2000)
    assert lmms.total_mme__cognition(items) == pytest.approx(800)


def test_viscot_answers_are_judged_and_boxes_scored(shared):
    ((doc, sample),) = _first("viscot_gqa")
    episode = Episode(sample.id, sample.task, Step("", ""), sample.box, None, Step("", "Window."))
    assert lmms.results_viscot_gqa(doc, [lmms.serialize_episode(episode)]) == {
        "answer": 1.0,
        "box_acc": 1.0,
        "unscored": 0,
        "unparsed": 0,
    }
    assert "box_acc" not in lmms.results_viscot_gqa(doc, ["a door"]), "no box was asked for"


def test_missing_data_are_reported_when_the_task_file_is_read(monkeypatch, tmp_path: Path):
    from visrl.errors import UsageError

    monkeypatch.setenv(lmms.DATA_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="no data folder"):
        lmms.documents_refcoco_val  # noqa: B018 - the look-up is what lmms-eval does
