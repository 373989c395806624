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
