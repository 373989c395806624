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
            apart = (
                measured.metric == "cognition" or "/takes=" in measured.metric
            )  # OCR is perception; `among` counts no failures
            assert measured.n_unscored == (0 if apart else len(episodes))
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


def test_reasons_at_their_limits():
    found = commonest({f"r{i:02}": 1 for i in range(20)})
    assert len(found) == 20 and "other reasons" not in found
    found = commonest({f"r{i:02}": 2 for i in range(22)} | {"z": 9})
    assert list(found)[:2] == ["z", "r00"] and found["other reasons"] == 6 and len(found) == 21
    assert commonest({"x" * 200 + "a": 1, "x" * 200 + "b": 2}) == {"x" * 200: 3}


def test_a_group_s_counts_are_sums_and_its_value_the_mean():
    names = GROUPS["pope"]
    scored = {n: score(n, [(sample("a", answer="yes"), said("a", "Yes" if n == names[0] else "No"))]) for n in names}
    scored[names[1]] = score(
        names[1], [(sample("b", answer="yes"), failed("b", "boom")), (sample("c", answer="no"), said("c", "No"))]
    )
    found = {m.metric: m for m in score_group("pope", scored)}["accuracy"]
    # 1 of 1, 1 of 1, 0 of 1
    assert found.value == pytest.approx(200 / 3) and (found.n, found.n_unscored) == (3, 1)
    assert (found.n_expected, found.n_missing, found.unscored_reasons) == (9000, 8996, {"boom": 1})
    assert score_group("pope", {n: scored[n] for n in names[:2]}) == []


def test_recorded_numbers_have_ten_decimals_and_no_minus_zero():
    import numpy as np

    from visrl.evals.scorers.measure import Estimand, measured
    from visrl.evals.stats import Part

    found = measured(Estimand("m", (Part(np.array([0.0, 0.0, 1.0]), ["a", "b", "c"]),)), "fraction", 5)
    assert found.value == 0.3333333333 and (found.n, found.n_expected, found.n_missing) == (3, 5, 2)
    assert found.se == 0.3333333333  # deviations -1/3 -1/3 2/3: sqrt(3/2 * (6/9) / 9) = 1/3
    assert found.ci == pytest.approx((1 / 3 - 4.302653 / 3, 1 / 3 + 4.302653 / 3), abs=1e-6)  # t(2)
    assert all(len(repr(end).partition(".")[2]) <= 10 for end in found.ci)
    assert str(measured(Estimand("m", (Part(np.array([-1e-12]), ["a"]),)), "fraction", 1).value) == "0.0"
    assert measured(Estimand("m", (Part(np.array([1.0]), ["a"]),)), "fraction", 0).n_missing == 0  # more than published
    assert measured(Estimand("yes_ratio", ()), "percent", 0).higher_is_better is False and found.higher_is_better


def test_an_odd_sample_is_unscored_and_what_concerns_the_run_is_raised():
    from visrl.errors import UsageError
    from visrl.evals.scorers.measure import attempt

    assert attempt(lambda: 7) == 7
    assert attempt(int, "x").reason.startswith("could not be scored: ValueError: invalid literal")

    def no_key():
        raise UsageError("no key", "")

    with pytest.raises(UsageError):
        attempt(no_key)


def test_a_column_that_begins_late_and_a_score_that_is_replaced():
    from visrl.core.types import Score
    from visrl.evals.scorers.columns import SampleScores

    scores = SampleScores()
    for name in "abc":
        scores.add(sample(name))
    scores.put(2, "m", Score(0.5))
    scores.put(0, "m", Score(None, "boom"))
    assert scores.of_row(0) == {"m": Score(None, "boom")} and scores.of_row(1) == {}
    assert scores.of_row(2) == scores["c"] == {"m": Score(0.5)} and scores.unscored_rows("m") == [0]
    scores.put(0, "m", Score(1.0))
    assert scores.of_row(0) == {"m": Score(1.0)} and not scores.unscored("m")
    scores.add(sample("d"))
    assert scores["d"] == {} and list(scores) == list("abcd") and len(scores) == 4
    scores.first = [2]
    assert list(scores) == list("cabd")
    assert list(scores.part(scores.column("m")[[0, 2]], [0, 2]).clusters) == ["a", "c"]
    scores.drop("m")
    assert scores["c"] == {}


def test_what_a_measure_does_not_say_is_zero():
    from visrl.evals.scorers.measure import Measured

    bare = Measured("m", 1.0, None, None, "percent", 1, 1)
    assert (bare.n_expected, bare.n_missing, bare.n_unscored, bare.n_unparsed) == (0, 0, 0, 0)
    assert bare.higher_is_better and bare.judge is None
