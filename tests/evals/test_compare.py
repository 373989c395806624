"""Paired differences, by hand; and the command that prints them."""

import json
import math

import pytest

from visrl.cli.evaluate import main
from visrl.errors import UsageError
from visrl.evals.benchmarks import GROUPS
from visrl.evals.compare import compare, difference, pair_group, pair_task, pool
from visrl.evals.sample_scores import Row, compact, of_baseline, of_run
from visrl.regression.prompt_snapshots import data_folder


def rows(metric, values, clusters=None, groups=None):
    clusters, groups = clusters or [str(i) for i in range(len(values))], groups or [""] * len(values)
    return {str(i): Row(c, g, {metric: v}) for i, (v, c, g) in enumerate(zip(values, clusters, groups, strict=True))}


def one(task, a, b, metric):
    return next(d for d in compare({task: a}, {task: b}) if d.metric == metric)


def test_mean_difference_by_hand():
    # differences 100 * (+1, 0, -1, 0): mean 0; moves d_i / 4 = 25, 0, -25, 0; se^2 = 4/3 * (625 + 625)
    d = one("refcoco_val", rows("acc@0.5", [0, 1, 1, 0]), rows("acc@0.5", [1, 1, 0, 0]), "acc@0.5")
    assert (d.before, d.after, d.delta, d.n, d.fixed, d.broken) == (50.0, 50.0, 0.0, 4, 1, 1)
    assert d.se == pytest.approx(math.sqrt(4 / 3 * 1250))
    assert d.p == pytest.approx(1.0)
    assert [(f.sample_id, f.before, f.after) for f in d.worst] == [("2", 100.0, 0.0)]
    assert d.least_se == 25.0  # one of four pictures


def test_standard_error_is_clustered_by_picture():
    # two pictures, both samples of the first get better: D = (2 * (100 - 50) / 4, 2 * (0 - 50) / 4) = (25, -25)
    a, b = rows("acc@0.5", [0, 0, 0, 0], list("xxyy")), rows("acc@0.5", [1, 1, 0, 0], list("xxyy"))
    d = one("refcoco_val", a, b, "acc@0.5")
    assert (d.delta, d.n_clusters) == (50.0, 2)
    assert d.se == pytest.approx(math.sqrt(2 / 1 * (625 + 625)))  # G / (G - 1) * sum D^2
    assert d.p == pytest.approx(2 * (0.5 - math.atan(50 / 50) / math.pi))  # t with 1 degree of freedom is Cauchy


def test_unscored_and_one_sided_samples_are_counted_not_zero():
    a = rows("acc@0.5", [1, 1, None, 1])
    b = rows("acc@0.5", [1, None, 1, 0, 1])
    d = one("refcoco_val", a, b, "acc@0.5")
    assert (d.n, d.unpaired, d.before, d.after) == (2, 3, 100.0, 50.0)


def test_pope_f1_of_both_runs():
    def pope(answers):  # (right, yes)
        return {
            str(i): Row(str(i // 2), "", {"accuracy": float(r), "yes_ratio": float(y)})
            for i, (r, y) in enumerate(answers)
        }

    a = pope([(1, 1), (1, 0), (0, 1), (0, 0)])  # TP 1, FP 1, FN 1: F1 2/4
    b = pope([(1, 1), (1, 0), (1, 0), (0, 0)])  # TP 1, FP 0, FN 1: F1 2/3
    d = one("pope_coco_random", a, b, "f1")
    assert (d.before, d.after) == (pytest.approx(50.0), pytest.approx(200 / 3))
    assert d.delta == pytest.approx(200 / 3 - 50) and d.se > 0 and d.n == 4


def test_mme_total_adds_subtasks_and_is_absent_without_all_of_them():
    from visrl.evals.scorers.mme import COGNITION

    def mme(points):
        return {
            f"{s}/{i}": Row(f"{s}/{i // 2}", s, {"correct": 1.0, f"mme/{s}": points.get(s, 200.0)})
            for s in COGNITION
            for i in range(4)
        }

    a, b = mme({}), mme({"code_reasoning": 150.0})
    found = {d.metric: d for d in compare({"mme": a}, {"mme": b})}
    assert (found["cognition"].before, found["cognition"].after, found["cognition"].delta) == (800.0, 750.0, -50.0)
    assert found["mme/code_reasoning"].delta == -50.0 and "correct" not in found and "perception" not in found


def test_circular_counts_a_question_once():
    # question p has two rotations, q four; p is broken: -1 of 2 questions, not -2 of 6 rows
    groups = list("ppqqqq")
    a = rows("circular", [1] * 6, groups, groups)
    b = rows("circular", [0, 0, 1, 1, 1, 1], groups, groups)
    d = one("mmbench", a, b, "circular")
    assert (d.before, d.after, d.n, d.broken) == (100.0, 50.0, 2, 1)


def test_group_average_weighs_sets_alike():
    sets = [f"pope_coco_{s}" for s in ("random", "popular", "adversarial")]
    a = {name: rows("accuracy", [1] * n) for name, n in zip(sets, (2, 4, 8), strict=True)}
    b = {**a, sets[0]: rows("accuracy", [0, 1])}
    d = next(d for d in compare(a, b) if (d.task, d.metric) == ("pope", "accuracy"))
    assert d.delta == pytest.approx(-50 / 3)  # not -1 of 14
    assert not [d for d in compare({k: a[k] for k in sets[:2]}, b) if d.task == "pope"]  # a set is missing: no mean


def test_pool_counts_every_sample_alike_in_percent():
    a = {"refcoco_val": rows("acc@0.5", [1, 1, 1]), "viscot_cub": rows("answer", [1.0], ["9"])}
    b = {**a, "viscot_cub": rows("answer", [0.5], ["9"])}
    whats = [p for task in a for p in pair_task(task, a[task], b[task])]
    d = difference(pool(whats))
    assert (d.before, d.after, d.n, d.n_clusters) == (100.0, 87.5, 4, 4)  # (300 + 50) / 4
    same_picture = {**a, "viscot_cub": rows("answer", [1.0], ["0"])}  # RefCOCO's first picture
    whats = [p for task in a for p in pair_task(task, same_picture[task], same_picture[task])]
    assert difference(pool(whats)).n_clusters == 3


def test_pool_refuses_ratios_and_points():
    values = {"accuracy": 1.0, "yes_ratio": 1.0}
    a = {"1": Row("p", "", values), "2": Row("q", "", values)}
    f1 = next(p for p in pair_task("pope_coco_random", a, a) if p.metric == "f1")
    with pytest.raises(ValueError, match="f1"):
        pool([f1])


def test_identical_runs_have_no_difference_and_p_1():
    a = rows("acc@0.5", [0, 1, 1])
    d = one("refcoco_val", a, a, "acc@0.5")
    assert (d.delta, d.se, d.p, d.fixed, d.broken, d.worst) == (0.0, 0.0, 1.0, 0, 0, ())
    shifted = one("refcoco_val", rows("acc@0.5", [0, 0]), rows("acc@0.5", [1, 1]), "acc@0.5")
    assert shifted.se == 0.0 and shifted.p is None  # all changed alike: no p can be given


def test_the_worst_are_at_most_five_and_the_largest_drops_come_first():
    # answers fall by .7 .1 .3 .2 .6 .5, one stays and one rises
    before = [0.7, 0.1, 0.3, 0.2, 0.6, 0.5, 0.4, 0.0]
    d = one("viscot_cub", rows("answer", before), rows("answer", [0, 0, 0, 0, 0, 0, 0.4, 1]), "answer")
    assert [f.sample_id for f in d.worst] == ["0", "4", "5", "2", "3"]
    assert (d.fixed, d.broken, d.n) == (1, 6, 8)
    assert d.delta == pytest.approx((1.0 - 2.4) / 8) and d.unit == "fraction"


def test_what_got_better_is_never_among_the_worst():
    d = one("viscot_cub", rows("answer", [0.5, 0.0]), rows("answer", [0.0, 0.5]), "answer")
    assert [(f.task, f.sample_id, f.before, f.after) for f in d.worst] == [("viscot_cub", "0", 0.5, 0.0)]


def test_an_unknown_task_is_counted_in_fractions():
    d = one("my_task", rows("answer", [0, 1]), rows("answer", [1, 1]), "answer")
    assert (d.unit, d.before, d.after, d.delta) == ("fraction", 0.5, 1.0, 0.5)


def test_what_one_picture_could_change():
    # percent 100 / 4 pictures; fraction 1 / 2; points 200 / 2
    assert one("refcoco_val", rows("miou", [0, 0, 0, 0]), rows("miou", [0, 0, 0, 0]), "miou").least_se == 25.0
    two = rows("answer", [0, 0, 0, 0], list("xxyy"))
    assert one("viscot_cub", two, two, "answer").least_se == 0.5
    points = {"a": Row("p", "OCR", {"mme/OCR": 50.0}), "b": Row("q", "OCR", {"mme/OCR": 200.0})}
    assert one("mme", points, points, "mme/OCR").least_se == 100.0
    # POPE's mean of three sets of 2, 4 and 8 pictures: 100 / 3 * sqrt(1/4 + 1/16 + 1/64); F1 likewise
    values = {"accuracy": 1.0, "yes_ratio": 1.0}
    sets = {
        f"pope_coco_{name}": {str(i): Row(f"{name}{i}", "", values) for i in range(n)}
        for name, n in (("random", 2), ("popular", 4), ("adversarial", 8))
    }
    found = {d.metric: d for d in compare(sets, sets) if d.task == "pope"}
    for metric in ("accuracy", "f1"):
        assert found[metric].least_se == pytest.approx(100 / 3 * math.sqrt(1 / 4 + 1 / 16 + 1 / 64))


def test_a_group_s_f1_is_the_mean_of_its_sets():
    def pope(*answers):  # (right, yes)
        return {str(i): Row(str(i), "", {"accuracy": r, "yes_ratio": y}) for i, (r, y) in enumerate(answers)}

    right, half = pope((1.0, 1.0), (1.0, 0.0)), pope((1.0, 1.0), (0.0, 1.0))  # F1 1; TP 1, FP 1: 2 / 3
    missed = pope((1.0, 1.0), (0.0, 0.0))  # TP 1, FN 1: 2 / 3; recall 1/2, precision 1
    a = {"pope_coco_random": right, "pope_coco_popular": half, "pope_coco_adversarial": missed}
    found = {d.metric: d for d in compare(a, {**a, "pope_coco_popular": right}) if d.task == "pope"}
    assert found["f1"].before == pytest.approx(100 * (1 + 2 / 3 + 2 / 3) / 3)
    assert found["f1"].delta == pytest.approx(100 / 9)
    assert (found["recall"].before, found["recall"].delta) == (pytest.approx(250 / 3), 0.0)
    assert found["precision"].before == pytest.approx(250 / 3) and found["precision"].after == pytest.approx(100)


def test_groups_whose_mean_nobody_reports_have_none():
    sets = {name: rows("acc@0.5", [1, 0]) for name in GROUPS["refcoco"]}
    assert {d.task for d in compare(sets, sets)} == set(sets)
    # RefCOCO's three splits have no mean; a group of one task would be that task again
    assert pair_group("refcoco", {name: pair_task(name, a, a) for name, a in sets.items()}) == []
    assert pair_group("pope", {}) == []


def test_a_metric_that_one_set_lacks_is_not_averaged():
    a = {name: rows("accuracy", [1.0, 0.0]) for name in GROUPS["pope"]}
    a["pope_coco_random"] = {
        i: Row(r.cluster, "", {**r.values, "extra": 1.0}) for i, r in a["pope_coco_random"].items()
    }
    assert [d.metric for d in compare(a, a) if d.task == "pope"] == ["accuracy"]


def test_pope_without_yes_ratio_has_no_f1():
    a = rows("accuracy", [1.0, 0.0])
    assert [p.metric for p in pair_task("pope_coco_random", a, a)] == ["accuracy"]


def test_unscored_answers_are_in_no_f1():
    values = [
        {"accuracy": 1.0, "yes_ratio": 1.0},
        {"accuracy": 0.0, "yes_ratio": 1.0},
        {"accuracy": None, "yes_ratio": None},
    ]
    a = {str(i): Row(str(i), "", v) for i, v in enumerate(values)}
    d = one("pope_coco_random", a, a, "f1")
    assert (d.n, d.unpaired, d.before) == (2, 1, pytest.approx(200 / 3))


def test_pooled_flips_are_in_percent_and_unscored_samples_are_counted():
    a = {"refcoco_val": rows("acc@0.5", [1, None]), "viscot_cub": rows("answer", [0.75], ["9"])}
    b = {"refcoco_val": rows("acc@0.5", [1, 1]), "viscot_cub": rows("answer", [0.25], ["9"])}
    d = difference(pool([p for task in a for p in pair_task(task, a[task], b[task])]))
    assert [(f.before, f.after) for f in d.worst] == [(75.0, 25.0)]
    assert (d.task, d.metric, d.unit, d.unpaired) == ("pooled", "refcoco_val acc@0.5 + viscot_cub answer", "percent", 1)
    assert d.least_se == 50.0  # two pictures


def test_averages_and_points_are_not_pooled():
    points = {"a": Row("p", "OCR", {"mme/OCR": 50.0}), "b": Row("q", "OCR", {"mme/OCR": 200.0})}
    with pytest.raises(ValueError, match="not mme mme/OCR"):
        pool([p for p in pair_task("mme", points, points) if p.metric == "mme/OCR"])
    sets = {name: pair_task(name, rows("accuracy", [1]), rows("accuracy", [1])) for name in GROUPS["pope"]}
    (average,) = pair_group("pope", sets)
    with pytest.raises(ValueError, match="not averages"):
        pool([average])


def test_the_small_world_s_total_needs_only_the_subtasks_it_has():
    points = {"a": Row("p", "OCR", {"mme/OCR": 50.0}), "b": Row("q", "OCR", {"mme/OCR": 150.0})}
    assert [p.metric for p in pair_task("world_mme", points, points)] == ["perception", "mme/OCR"]
    assert [p.metric for p in pair_task("mme", points, points)] == ["mme/OCR"]
    d = one("world_mme", points, {**points, "a": Row("p", "OCR", {"mme/OCR": 200.0})}, "perception")
    assert (d.before, d.after, d.delta, d.n) == (100.0, 175.0, 75.0, 2)  # a sum of one subtask's mean


def test_a_folder_without_scores_says_where_they_are_or_how_to_make_them(tmp_path):
    with pytest.raises(UsageError, match=r"has no scores\.jsonl") as error:
        of_run(tmp_path)
    assert error.value.hint == f"visrl-eval score {tmp_path}"
    (tmp_path / "score").mkdir()
    with pytest.raises(UsageError) as error:
        of_run(tmp_path)
    assert error.value.hint == f"name {tmp_path / 'score'}"


def test_no_common_sample_is_no_pair():
    assert pair_task("refcoco_val", rows("acc@0.5", [1]), {"other": Row("x", "", {"acc@0.5": 1.0})}) == []


def test_compact_file_is_exact_and_the_same_every_time(tmp_path):
    scores = {
        "mme": {"a": Row("p", "count", {"mme/count": 200 / 3, "correct": 1.0}), "b": Row("q", "OCR", {"mme/OCR": None})}
    }
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(compact(scores))
    assert of_baseline(path) == scores  # None stays unscored, a metric a sample has not stays absent
    assert compact(of_baseline(path)) == path.read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task": "t", "sample_id": "1", "cluster": "c", "scores": {"m": NaN}}', "NaN is not a finite number"),
        ('{"task": "t", "sample_id": "1", "scores": {"m": 1}}', "older visrl"),
        ('{"task": "t", "cluster": "c", "scores": {}}', "no 'sample_id'"),
        ("[1]", "not a JSON object"),
        ('{"task":', "damaged"),
    ],
)
def test_damaged_scores_name_the_line(tmp_path, line, message):
    good = '{"task": "t", "sample_id": "0", "cluster": "c", "scores": {"m": 1}}'
    (tmp_path / "scores.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UsageError, match=r"scores\.jsonl:2") as error:
        of_run(tmp_path)
    assert message in str(error.value)


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    """The shipped outputs, and the same with every third box of RefCOCO lost."""
    monkeypatch.chdir(tmp_path)
    exact = data_folder() / "exact"
    lines = [json.loads(line) for line in (exact / "outputs.jsonl").read_text().splitlines()]
    for i, row in enumerate(row for row in lines if row["task"] == "refcoco_val"):
        if i % 3 == 0 and "box_step" in row:
            row["box_step"]["output"] = "lost"
    (tmp_path / "worse.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in lines if row["task"] == "refcoco_val")
    )
    for name, file in (("a", exact / "outputs.jsonl"), ("b", tmp_path / "worse.jsonl")):
        args = ["--model", f"replay:{file}", "--tasks", "refcoco_val", "--data", str(exact), "-q", "-o", name]
        assert main([*args, "--fail-on-error", "1000"]) == 0
    return tmp_path


def test_compare_command(two_runs, capsys):
    capsys.readouterr()
    assert main(["compare", "a", "b", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    d = next(d for d in found["differences"] if d["metric"] == "acc@0.5")
    assert d["delta"] < 0 and d["fixed"] == 0 and d["broken"] > 0
    assert d["delta"] == pytest.approx(-100 * d["broken"] / d["n"])
    assert main(["compare", "a", "b", "--format", "md"]) == 0
    out = capsys.readouterr().out
    assert f"{d['before']:.1f} → {d['after']:.1f} ({d['delta']:+.1f} ± {d['se']:.1f})" in out
    assert d["worst"][0]["sample_id"].replace("_", "\\_") in out
    assert main(["compare", "a", "b", "a"]) == 0  # each is held against the first
    assert capsys.readouterr().out.count("change") == 2


def test_compare_says_what_else_differs(two_runs, capsys):
    exact = data_folder() / "exact"
    args = ["--model", f"replay:{exact}/outputs.jsonl", "--tasks", "refcoco_val", "--data", str(exact), "-q"]
    main([*args, "-o", "c", "--fail-on-error", "1000", "--model-args", "box_format=wh_norm_3dp"])
    capsys.readouterr()
    assert main(["compare", "a", "c"]) == 0
    assert "warning: settings differ: box_format (" in " ".join(capsys.readouterr().out.split())


def test_compare_refuses_runs_that_share_nothing(two_runs, capsys):
    exact = data_folder() / "exact"
    main(["--model", "constant:no", "--tasks", "viscot_cub", "--data", str(exact), "-q", "-o", "d"])
    assert main(["compare", "a", "d"]) == 2
    assert "have no scored sample in common" in capsys.readouterr().err
    assert main(["compare", "a", "nowhere"]) == 2
