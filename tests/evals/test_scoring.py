import pytest
from made import GOLD, failed, looked, said, sample, score

from visrl.core.records import TaskResult
from visrl.evals.benchmarks import GROUPS, TASKS
from visrl.evals.scorers.measure import commonest
from visrl.evals.scorers.scoring import SCORERS, score_group, score_task, to_result

RUN = {
    "protocol": "visrl_train/v1",
    "focus": "predicted",
    "crop": "tight",
    "model": "m",
    "seed": 7,
    "notes": ["a note"],
}


def test_every_benchmark_has_a_scorer():
    assert set(SCORERS) == {spec.benchmark for spec in TASKS.values()}


@pytest.mark.parametrize("task", TASKS)
def test_no_task_falls_over_nothing_or_failures(task):
    extra = {"options": {"A": "x"}}
    bad = sample("a", answer="yes", box=GOLD, group="OCR", **extra)
    for samples, episodes in (([], {}), ([bad], {}), ([bad], {"a": failed("a", "boom")})):
        scores = score_task(TASKS[task], samples, episodes, None)
        assert scores.metrics or not samples  # the small world's MME has the subtasks its samples have
        for measured in scores.metrics:
            assert (measured.value, measured.se, measured.ci) == (None, None, None)
            assert measured.n_unscored == (len(episodes) if measured.metric != "cognition" else 0)  # OCR is perception
            result = to_result(measured, task, RUN)
            assert TaskResult.model_validate_json(result.model_dump_json()) == result


def test_samples_that_were_not_run_are_missing_not_unscored():
    pairs = [(sample("a", box=GOLD, kind="rec"), looked("a", GOLD))]
    for measured in score("refcoco_val", pairs, extra=[sample("b", box=GOLD, kind="rec")]).metrics:
        assert (measured.n, measured.n_unscored, measured.n_missing) == (1, 0, 10833)


def test_a_record_says_what_the_measure_and_the_run_say():
    pairs = [
        (sample("a", answer="yes", cluster="p"), said("a", "Yes")),
        (sample("b", answer="no", cluster="q"), said("b", "Yes")),
    ]
    measured = next(m for m in score("pope_coco_popular", pairs).metrics if m.metric == "accuracy")
    result = to_result(measured, "pope_coco_popular", RUN)
    assert (result.task, result.task_version, result.metric, result.value) == (
        "pope_coco_popular",
        "1",
        "accuracy",
        50.0,
    )
    assert (result.unit, result.n, result.n_expected, result.n_missing, result.seed) == ("percent", 2, 3000, 2998, 7)
    assert result.notes == ["a note"]
    assert result.ci[0] < result.value < result.ci[1]
    assert not result.small_world
    assert result.judge is None


def test_groups_without_an_average_have_no_row():
    scored = {n: score(n, [(sample("a", box=GOLD, kind="rec"), looked("a", GOLD))]) for n in GROUPS["rec"]}
    assert score_group("rec", scored) == []
    assert score_group("refcoco", scored) == []
    answers = {n: score(n, [(sample("a", answer="yes"), said("a", "Yes"))]) for n in GROUPS["pope_all"]}
    assert score_group("pope_all", answers) == []
    assert score_group("pope_aokvqa", answers)[0].value == 100.0
    with pytest.raises(KeyError):
        score_group("no such group", {})


def test_scoring_twice_is_the_same_to_the_last_digit():
    rows = [("yes", "Yes"), ("no", "Yes"), ("yes", "No"), ("no", "No")] * 25
    pairs = [(sample(str(i), answer=t, cluster=str(i // 2)), said(str(i), a)) for i, (t, a) in enumerate(rows)]
    assert score("pope_coco_popular", pairs).metrics == score("pope_coco_popular", pairs).metrics


def test_reasons_are_few_short_and_all_counted():
    reasons = commonest({f"line {i}\n{'x' * 1000}": 1 for i in range(100)} | {"server": 50})
    assert next(iter(reasons.items())) == ("server", 50)
    assert len(reasons) == 21
    assert sum(reasons.values()) == 150
    assert max(map(len, reasons)) <= 200
    assert not any("\n" in reason for reason in reasons)
