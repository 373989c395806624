import gzip
import json
import subprocess
import sys

import pytest

from visrl.errors import UsageError
from visrl.evals import benchmarks
from visrl.evals.benchmarks import GROUPS, TASKS, TaskSpec, resolve

PUBLISHED = [spec for spec in TASKS.values() if not spec.small_world]


def test_sizes_add_up_to_the_published_totals():
    def total(name):
        return sum(spec.n for spec in resolve([name]))

    assert total("rec") == 57_457
    assert total("viscot") == 8_281
    assert total("viscot,viscot_visual7w,viscot_emotic") == 9_937
    assert total("pope") == 9_000
    assert total("mme") == 2_374
    assert len(GROUPS["rec"]) == 8
    assert len(GROUPS["viscot"]) == 11


def test_every_paper_column_is_a_published_one():
    from visrl.evals import paper

    for spec in PUBLISHED:
        if spec.paper:
            table, column = spec.paper
            (found,) = [c for c in paper.load(table).columns if c.name == column]
            assert (found.task, found.metric, found.unit) == (spec.name, spec.primary, spec.unit)


def test_groups_expand_in_order_and_each_task_once():
    assert [s.name for s in resolve(["refcoco_testA", "refcoco, refcocog_val"])] == [
        "refcoco_testA",
        "refcoco_val",
        "refcoco_testB",
        "refcocog_val",
    ]
    assert [s.name for s in resolve("pope_gqa")] == [f"pope_gqa_{s}" for s in ("random", "popular", "adversarial")]


def test_the_poster_s_column_name_is_understood():
    assert resolve(["viscot_textcaps"])[0].name == "viscot_textcap"


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(UsageError) as caught:
        resolve(["refcoco_vall"])
    assert "refcoco_vall" in caught.value.message
    assert "refcoco_val" in caught.value.hint
    with pytest.raises(UsageError, match="no task"):
        resolve([" , "])


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr(benchmarks, "TASKS", TASKS.copy())
    monkeypatch.setattr(benchmarks, "GROUPS", dict(GROUPS))
    benchmarks.register(TaskSpec("new_a", "rec", 1), TaskSpec("new_b", "rec", 2), group="new")
    assert [spec.n for spec in benchmarks.resolve(["new"])] == [1, 2]
    for taken in ("mme", "pope"):
        with pytest.raises(ValueError, match="taken"):
            benchmarks.register(TaskSpec(taken, "rec", 1))


def test_listing_tasks_imports_nothing_heavy():
    code = (
        "import visrl.evals.benchmarks, sys; print({'numpy', 'scipy', 'pydantic', 'torch', 'yaml'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def source(spec):
    """The published file of a task."""
    first, *rest = spec.name.split("_")
    if spec.benchmark == "rec":
        return f"rec/REC_{first}_{'umd' if first == 'refcocog' else 'unc'}_{rest[0]}.jsonl.gz"
    if spec.benchmark == "viscot":
        return f"viscot_benchmark/det_{rest[0]}.jsonl.gz"
    return f"pope/{rest[0]}_pope_{'_'.join(rest[1:]).replace('original', 'original2910')}.json.gz"


@pytest.mark.parametrize(
    "spec",
    [s for s in PUBLISHED if s.benchmark in ("rec", "viscot", "pope") and s.name != "refcoco_m"],
    ids=lambda s: s.name,
)
def test_sizes_and_pictures_are_those_of_the_files(shared, spec):
    with gzip.open(shared / source(spec), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == spec.n
    assert len({row.get("img_path", row.get("image")) for row in rows}) == spec.n_pictures


def test_pictures_add_up_to_those_counted_in_the_published_files():
    """docs/method.md b2 and c; RefCOCO and RefCOCO+ share their pictures, POPE asks six questions about each."""

    def pictures(name):
        return [spec.n_pictures for spec in resolve([name])]

    assert pictures("refcoco") == pictures("refcoco+") == [1500, 750, 750] and pictures("refcocog") == [1300, 2600]
    assert [spec.n for spec in resolve("refcoco,refcoco+,refcocog")] == [
        10834,
        5657,
        5095,
        10758,
        5726,
        4889,
        4896,
        9602,
    ]
    assert pictures("viscot") == [617, 755, 496, 492, 322, 216, 1255, 938, 889, 327, 485]
    assert pictures("viscot_visual7w,viscot_emotic") == [900, 588]
    assert pictures("pope_all") == [500] * 9 and [spec.n for spec in resolve("pope_all")] == [3000] * 9
    assert (TASKS["pope_coco_random_original"].n, TASKS["pope_coco_random_original"].n_pictures) == (2910, 500)
    assert (TASKS["mme"].n_pictures, TASKS["mmbench"].n, TASKS["mmbench"].n_pictures) == (1187, 4329, None)


def test_the_small_world_s_sizes():
    assert [spec.n for spec in resolve("world")] == [*[250] * 5, 1000, *[200] * 3, 300]
    assert [s.name.replace("textured_", "") for s in resolve("world_textured")] == [s.name for s in resolve("world")]
    assert [spec.n for spec in resolve("world_heldout")] == [1000, 400, 400, 400]
    assert all(
        spec.small_world and spec.paper is None and spec.n_pictures is None
        for spec in resolve("world,world_heldout,world_textured")
    )
    assert not any(spec.small_world for spec in PUBLISHED)


def test_which_tasks_need_a_judge_and_stand_in_the_paper():
    assert {s.name for s in TASKS.values() if s.judge_needed} == {s.name for s in PUBLISHED if s.benchmark == "viscot"}
    assert TASKS["viscot_cub"].paper == ("viscot", "cub") and TASKS["viscot_emotic"].paper is None
    assert TASKS["refcoco_val"].paper == ("rec", "refcoco_val") and TASKS["mme"].paper == ("general", "mme_perception")
    assert [s.name for s in TASKS.values() if s.aliases] == ["viscot_textcap"]
    assert TASKS["refcoco_val"].box_is_the_answer and not TASKS["mme"].box_is_the_answer


def test_groups_with_a_mean():
    assert {group for group in GROUPS if benchmarks.has_mean(group)} == {
        "viscot", "pope", "pope_aokvqa", "pope_gqa", "world_viscot", "world_pope",
        "world_textured_viscot", "world_textured_pope",
    }  # fmt: skip
