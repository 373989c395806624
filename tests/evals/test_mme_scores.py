import pytest
from made import failed, numbers, said, sample, score

from visrl.evals.benchmarks import TASKS
from visrl.evals.scorers.mme import COGNITION, PERCEPTION, says


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes, it is", "yes"),
        ("No.", "no"),
        (" \nYes", "yes"),
        ("Eyes", "yes"),  # the first four characters hold it: the authors' rule
        ("Not sure", "no"),
        ("The answer is yes", "other"),
        ("it is no", "other"),
        ("", "other"),
    ],
)
def test_the_authors_rule(text, answer):
    assert says(text) == answer


def picture(name, first, second, group="OCR"):
    """A picture with the questions (yes, no), answered as given."""
    return [
        (
            sample(f"{group}/{name}/{i}", answer=truth, cluster=f"{group}/{name}", group=group),
            said(f"{group}/{name}/{i}", a),
        )
        for i, (truth, a) in enumerate((("yes", first), ("no", second)))
    ]


def test_points_of_a_subtask_by_hand():
    # both right 200, one right 50, none 0: accuracy 3/6, acc+ 1/3 -> 100 * (.5 + .3333)
    pairs = picture("a", "yes", "no") + picture("b", "yes", "yes") + picture("c", "no", "yes")
    found = numbers(score("mme", pairs))["mme/OCR"]
    assert found.value == pytest.approx(100 * (1 / 2 + 1 / 3))
    assert (found.n, found.n_clusters, found.unit, found.n_expected) == (6, 3, "points", 40)


def test_pairs_are_by_picture_not_by_consecutive_lines():
    one, two = picture("a", "yes", "no"), picture("b", "no", "yes")
    shuffled = [one[0], two[0], two[1], one[1]]
    assert (
        numbers(score("mme", shuffled))["mme/OCR"].value == numbers(score("mme", one + two))["mme/OCR"].value == 100.0
    )


def test_two_subtasks_may_ask_about_one_picture():
    pairs = picture("a", "yes", "no", "count") + picture("a", "no", "yes", "color")
    found = numbers(score("mme", pairs))
    assert (found["mme/count"].value, found["mme/color"].value) == (200.0, 0.0)


def test_neither_is_wrong_and_counted():
    found = numbers(score("mme", picture("a", "perhaps", "no")))["mme/OCR"]
    assert (found.value, found.n_unparsed) == (50.0, 1)


def test_half_a_pair_is_unscored_not_half_right():
    half = picture("b", "yes", "no")[:1]
    broken = [(picture("c", "yes", "no")[0][0], failed("OCR/c/0", "boom")), picture("c", "yes", "no")[1]]
    scores = score("mme", picture("a", "yes", "no") + half + broken)
    found = numbers(scores)["mme/OCR"]
    assert (found.value, found.n, found.n_unscored) == (200.0, 2, 3)
    assert found.unscored_reasons == {"the other question about its picture has no score": 2, "boom": 1}
    assert scores.samples["OCR/b/0"]["correct"].value == 1.0


def test_a_total_over_part_of_its_subtasks_is_no_total():
    found = numbers(score("mme", picture("a", "yes", "no")))["perception"]
    assert (found.value, found.n, found.n_expected) == (None, 2, 2114)
    assert found.notes == ("a total needs all 10 subtasks, not 1",)


def test_totals_add_subtasks_and_are_at_most_2000_and_800():
    pairs = [p for g in (*PERCEPTION, *COGNITION) for name in "ab" for p in picture(name, "Yes", "No", g)]
    found = numbers(score("mme", pairs))
    assert (found["perception"].value, found["cognition"].value) == (2000.0, 800.0)
    assert (found["perception"].n, found["cognition"].n) == (40, 16)
    assert sum(PERCEPTION.values()) + sum(COGNITION.values()) == 2374


def test_the_small_world_s_total_is_of_the_subtasks_it_has():
    pairs = picture("a", "yes", "no", "count") + picture("b", "no", "yes", "color")
    found = numbers(score("world_mme", pairs))
    assert list(found) == ["perception", "mme/count", "mme/color", "accuracy_careful"]
    assert (found["perception"].value, found["perception"].n_expected) == (200.0, TASKS["world_mme"].n)
    assert found["perception"].notes == ("sum of 2 subtasks",)


def test_a_careful_reading_stands_beside_the_rule():
    # the rule reads the first four characters: "not " of "Not sure" is a no, "**ye" neither; a careful reader knows better
    pairs = picture("a", "**Yes**", "Not sure") + picture("b", "<think>no</think>Yes", "<think>No")
    found = numbers(score("world_mme", pairs))
    # truths yes, no: the rule has (other, no) and (yes, other), half right each, no picture all right: 50 + 0
    assert found["mme/OCR"].value == 50.0
    assert found["mme/OCR"].n_unparsed == 2
    careful = found["accuracy_careful"]  # yes is right twice, "Not sure" and the endless thought are neither
    assert (careful.value, careful.n_unparsed) == (50.0, 2)
    assert careful.notes == ("odd: 1 answers are a yes or no that the rule reads otherwise",)


def test_without_samples_totals_have_no_value():
    found = numbers(score("mme", []))
    assert [(name, m.value, m.n, m.n_missing) for name, m in found.items()] == [
        ("perception", None, 0, 2114),
        ("cognition", None, 0, 260),
        ("accuracy_careful", None, 0, 2374),
    ]


def test_lavin_s_published_answers_give_its_published_numbers(shared):
    pairs = []
    for file in sorted((shared / "predictions/mme/LaVIN").glob("*.txt")):
        for line, row in enumerate(file.read_text(encoding="utf-8").splitlines()):
            name, _, truth, answer = row.split("\t")
            id_ = f"{file.stem}/{line}"
            made = sample(id_, answer=truth.lower(), cluster=f"{file.stem}/{name}", group=file.stem)
            pairs.append((made, said(id_, answer)))
    found = numbers(score("mme", pairs))
    assert found["perception"].value == pytest.approx(963.6114, abs=5e-5)
    assert found["cognition"].value == pytest.approx(249.6429, abs=5e-5)
    assert [found[m].n for m in ("perception", "cognition")] == [2114, 260]
    assert [found[m].n_missing for m in found] == [0] * 17
    assert found["cognition"].n_unparsed == 11


def test_the_published_sizes_of_all_subtasks():
    pairs = [p for g in (*PERCEPTION, *COGNITION) for p in picture("a", "Yes", "No", g)]
    found = numbers(score("mme", pairs))
    sizes = {m.removeprefix("mme/"): found[m].n_expected for m in found if m.startswith("mme/")}
    assert sizes == {
        "existence": 60, "count": 60, "position": 60, "color": 60, "posters": 294, "celebrity": 340, "scene": 400,
        "landmark": 400, "artwork": 400, "OCR": 40, "commonsense_reasoning": 140, "numerical_calculation": 40,
        "text_translation": 40, "code_reasoning": 40,
    }  # fmt: skip
    assert {m: found[m].n_expected for m in ("perception", "cognition", "accuracy_careful")} == {
        "perception": 2114, "cognition": 260, "accuracy_careful": 2374,
    }  # fmt: skip


def test_a_subtask_s_error_and_interval_by_hand():
    # pictures 200, 50, 0 of two questions each: mean 250/3; deviations 350/3, -100/3, -250/3
    pairs = picture("a", "yes", "no") + picture("b", "yes", "yes") + picture("c", "no", "yes")
    found = numbers(score("mme", pairs))["mme/OCR"]
    # D = 2 d / 6 = d / 3; se^2 = 3/2 * (350^2 + 100^2 + 250^2) / 81
    assert found.se == pytest.approx((1.5 * (350**2 + 100**2 + 250**2) / 81) ** 0.5)
    assert found.ci == (0.0, 200.0)  # 83.3 ± 4.30 * 60.1 leaves the scale at both ends


def test_the_careful_accuracy_is_on_a_scale_of_a_hundred():
    found = numbers(score("world_mme", picture("a", "yes", "no") + picture("b", "yes", "no")))["accuracy_careful"]
    # all right on two pictures: 100 * 2 / (2 + 3.84146)
    assert (found.value, found.unit, found.n, found.n_unparsed, found.notes) == (100.0, "percent", 4, 0, ())
    assert found.ci == pytest.approx((34.2380, 100.0), abs=1e-4)


def test_a_total_s_interval_stays_on_its_own_scale():
    found = numbers(score("world_mme", picture("a", "yes", "no", "count") + picture("b", "yes", "no", "count")))[
        "perception"
    ]
    assert found.value == 200.0 and found.ci == pytest.approx((68.4760, 200.0), abs=1e-4)  # 200 * .342380
    pairs = [p for g in ("count", "color") for name in "ab" for p in picture(name + g, "yes", "no", g)]
    found = numbers(score("world_mme", pairs))["perception"]
    # 400 points at most, four pictures: 400 * 4 / (4 + 3.84146)
    assert found.value == 400.0 and found.ci == pytest.approx((204.0436, 400.0), abs=1e-3)
    assert found.notes == ("sum of 2 subtasks",)


def test_three_questions_about_a_picture():
    rows = [
        (sample(f"a/{i}", answer="yes", cluster="a", group="OCR"), said(f"a/{i}", a))
        for i, a in enumerate(("yes", "yes", "no"))
    ]
    assert numbers(score("mme", rows))["mme/OCR"].value == pytest.approx(200 / 3)  # 2 of 3, not all
    broken = [*rows[:2], (rows[2][0], failed("a/2", "boom"))]
    assert numbers(score("mme", broken))["mme/OCR"].value is None  # two of three scored are not the picture


def test_answers_that_are_neither_count_only_where_the_picture_is_scored():
    half = [(sample("a/0", answer="yes", cluster="a", group="OCR"), said("a/0", "hm"))]
    found = numbers(score("mme", half))
    assert found["mme/OCR"].n_unparsed == 0 and found["perception"].n_unparsed == 0
    found = numbers(score("mme", picture("a", "hm", "hm") + picture("b", "yes", "hm")))
    assert found["mme/OCR"].n_unparsed == found["perception"].n_unparsed == 3
