import math

import numpy as np
import pytest

from visrl.evals import stats
from visrl.evals.scorers.pope import RATIOS
from visrl.evals.stats import Part


def names(*counts):
    """("a", "a", "b") for counts 2, 1."""
    return [chr(97 + i) for i, count in enumerate(counts) for _ in range(count)]


def test_with_a_picture_each_it_is_the_ordinary_standard_error():
    values = [1.0, 2.0, 4.0, 5.0]  # mean 3, deviations -2 -1 1 2, s^2 = 10 / 3, se = s / sqrt(4)
    found = stats.mean(values, names(1, 1, 1, 1))
    assert found.value == 3.0
    assert found.se == pytest.approx(math.sqrt(10 / 3) / 2)
    assert found.ci == pytest.approx((3 - 3.182446 * found.se, 3 + 3.182446 * found.se), abs=1e-5)  # t(3) = 3.182446
    assert (found.n, found.n_clusters) == (4, 4)


def test_two_questions_about_one_picture_that_agree_count_once():
    # clusters {1, 1} and {0, 0}: deviations sum to 1 and -1; CR1: sqrt(2 / 1 * (1 + 1)) / 4 = 0.5
    assert stats.mean([1, 1, 0, 0], names(2, 2)).se == pytest.approx(0.5)
    # and are as two independent values: sqrt(1/2) / sqrt(2) = 0.5
    assert stats.mean([1, 0], names(1, 1)).se == pytest.approx(0.5)


def test_duplicating_every_sample_within_its_picture_changes_nothing():
    rng = np.random.default_rng(1)
    values, pictures = rng.random(50), [str(i % 20) for i in range(50)]
    once, twice = stats.mean(values, pictures), stats.mean(np.tile(values, 2), pictures * 2)
    assert (twice.value, twice.se) == pytest.approx((once.value, once.se))


def test_one_picture_has_no_standard_error_and_equal_values_have_zero():
    assert stats.mean([1.0, 0.0], ["a", "a"]) == stats.Estimate(0.5, None, None, 2, 1)
    assert stats.mean([1.0, 1.0], ["a", "b"]) == stats.Estimate(1.0, 0.0, (1.0, 1.0), 2, 2)


def test_nothing_has_no_value():
    assert stats.mean([], []) == stats.Estimate(None, None, None, 0, 0)
    assert stats.mean_of_means([]).value is None
    assert stats.bootstrap([Part(np.zeros((0, 2)), [])], lambda s: s[..., 0]).value is None


def test_nan_is_refused_and_so_are_clusters_that_do_not_match():
    with pytest.raises(ValueError, match="finite"):
        stats.mean([1.0, float("nan")], ["a", "b"])
    with pytest.raises(ValueError, match="2 values but 1 clusters"):
        stats.mean([1.0, 2.0], ["a"])


def test_mean_of_means_weighs_sets_alike_and_adds_their_variances():
    small, large = Part(np.array([0.0, 1.0]), ["a", "b"]), Part(np.array([1.0, 1.0, 1.0, 0.0]), ["c", "d", "e", "f"])
    found = stats.mean_of_means([small, large])
    assert found.value == pytest.approx((0.5 + 0.75) / 2)  # not 4 / 6
    # moves: ±.5/2/2 twice; .25/4/2 three times, -.75/4/2; six clusters, CR1 6/5
    squares = 2 * 0.125**2 + 3 * 0.03125**2 + 0.09375**2
    assert found.se == pytest.approx(math.sqrt(6 / 5 * squares))


def test_sets_that_share_their_pictures_are_not_independent():
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    one = Part(values, list("abcde"))
    apart = Part(values, list("fghij"))
    same = stats.mean_of_means([one, one]).se
    assert same == pytest.approx(stats.mean(values, list("abcde")).se)  # a second copy of the same set adds nothing
    assert stats.mean_of_means([one, apart]).se < same


def test_total_adds_means():
    parts = [Part(np.array([100.0, 200.0]), ["a", "b"]), Part(np.array([0.0, 50.0]), ["c", "d"])]
    assert stats.weighted_means(parts, [1.0, 1.0]).value == 175.0


def test_an_empty_set_leaves_no_average():
    assert stats.mean_of_means([Part(np.array([1.0]), ["a"]), Part(np.array([]), [])]).value is None


def test_paired_difference_is_surer_than_two_apart():
    rng = np.random.default_rng(0)
    base = rng.random(200)
    better = base + 0.05
    pictures = [str(i) for i in range(200)]
    found = stats.paired_difference(base, better, pictures)
    assert found.value == pytest.approx(0.05)
    assert found.se == pytest.approx(0.0, abs=1e-12)


def test_bootstrap_of_a_mean_agrees_with_the_formula_and_repeats_itself():
    rng = np.random.default_rng(3)
    pictures = [str(i // 3) for i in range(600)]
    values = np.repeat(rng.random(200), 3) + 0.1 * rng.random(600)

    def mean(sums):
        return sums[..., 0] / sums[..., 1]

    part = Part(np.stack([values, np.ones(600)], axis=1), pictures)
    found, again = stats.bootstrap([part], mean), stats.bootstrap([part], mean)
    exact = stats.mean(values, pictures)
    assert found == again
    assert found.value == pytest.approx(exact.value)
    assert found.se == pytest.approx(exact.se, rel=0.06)  # 2,000 replicates: the se of an se is 1.6 %
    assert found.ci == pytest.approx(exact.ci, abs=0.3 * exact.se)
    assert stats.bootstrap([part], mean, seed=1).se != found.se


def test_bootstrap_of_an_undefined_ratio_has_no_value():
    part = Part(np.zeros((4, 2)), list("abcd"))

    def ratio(sums):
        return np.divide(sums[..., 0], sums[..., 1], out=np.full_like(sums[..., 0], np.nan), where=sums[..., 1] > 0)

    assert stats.bootstrap([part], ratio).value is None


def test_memory_of_a_bootstrap_is_bounded_and_chunks_do_not_change_it(monkeypatch):
    part = Part(np.arange(40.0).reshape(20, 2), [str(i) for i in range(20)])

    def first(sums):
        return sums[..., 0] / (1 + sums[..., 1])

    whole = stats.bootstrap([part], first)
    monkeypatch.setattr(stats, "_CHUNK", 200)  # 10 replicates at a time
    assert stats.bootstrap([part], first).value == whole.value
    assert stats.bootstrap([part], first).se == pytest.approx(whole.se)


def test_scaled():
    assert stats.Estimate(0.5, 0.1, (0.3, 0.7), 4, 2).scaled(100) == stats.Estimate(50, 10, (30, 70), 4, 2)
    assert stats.Estimate(None, None, None, 0, 0).scaled(100).value is None


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # pictures with an effect of their own, 5 questions each: 95 % must cover 0, ignoring the pictures covers far less
    rng = np.random.default_rng(11)
    pictures = [str(i // 5) for i in range(200)]
    each = [str(i) for i in range(200)]
    covered, naive = 0, 0
    for _ in range(400):
        values = np.repeat(rng.normal(size=40), 5) + 0.5 * rng.normal(size=200)
        for clusters in (pictures, each):
            low, high = stats.mean(values, clusters).ci
            if clusters is pictures:
                covered += low <= 0 <= high
            else:
                naive += low <= 0 <= high
    assert 0.92 <= covered / 400 <= 0.98
    assert naive / 400 < 0.75


def test_five_of_five_is_not_surely_all():
    # Wilson with n = 5, z = 1.95996: 5 / (5 + 3.84146) = .565518; all right has no upper end below 1
    found = stats.mean([100.0] * 5, list("abcde"), 100.0)
    assert (found.value, found.se) == (100.0, 0.0)
    assert found.ci == pytest.approx((56.5518, 100.0), abs=1e-4)
    assert stats.mean([0.0] * 5, list("abcde"), 100.0).ci == pytest.approx((0.0, 100.0 - 56.5518), abs=1e-4)


def test_samples_of_one_picture_count_once_where_all_are_equal():
    # ten samples on two pictures: 2 / (2 + 3.84146) = .342380
    assert stats.mean([1.0] * 10, list("ab") * 5, 1.0).ci == pytest.approx((0.342380, 1.0), abs=1e-6)


def test_few_at_an_end_is_wilson_s_with_all_samples_where_they_are_independent():
    # 4 of 5: (p + z2/2n ± z sqrt(p q / n + z2/4n2)) / (1 + z2/n) = (1.184146 ± .501862) / 1.768292... = .3755, .9638
    assert stats.mean([1.0, 1, 1, 1, 0], list("abcde"), 1.0).ci == pytest.approx((0.375535, 0.963776), abs=1e-6)


def test_far_from_the_ends_the_interval_is_the_t_interval():
    values = [0.0, 1.0] * 200
    names = [str(i) for i in range(400)]
    assert stats.mean(values, names, 1.0).ci == stats.mean(values, names).ci


def test_points_stay_on_their_scale():
    # 200, 200, 150: mean 183.3, se 16.7, t(2) = 4.30: 111.6 .. 255.0, and no picture has more than 200
    found = stats.mean([200.0, 200.0, 150.0], list("abc"), 200.0)
    assert found.ci == pytest.approx((550 / 3 - 4.302653 * 50 / 3, 200.0), abs=1e-4)


def test_a_ratio_of_one_is_as_sure_as_the_pictures_it_is_defined_in():
    # precision of 3 pictures that said yes among 50: 3 / (3 + 3.84146)
    counts = np.array([[1.0, 0.0, 0.0]] * 3 + [[0.0, 0.0, 1.0]] * 47)
    part = stats.Part(counts, [str(i) for i in range(50)])
    assert stats.bootstrap([part], RATIOS["precision"]).ci == pytest.approx((3 / 6.841459, 1.0), abs=1e-6)


def test_few_clusters_of_several_samples_widen_wilson_s_interval():
    # 2 samples each: 1 1, 1 1, 1 1, 0 0. p = 6/8; D = 2 * .25 / 8 = 1/16 three times and -3/16; se^2 = 4/3 * 12/256 = 1/16.
    # n_eff = p q n / ((n - 1) se^2) = (3/16 * 8) / (7/16) = 24/7; times (t(7) / t(3))^2 = (2.364624 / 3.182446)^2: 1.892866.
    # centre (1.892866 * .75 + 1.920729) / (1.892866 + 3.841459) = .582523, half 1.959964 / 5.734325 * sqrt(.354912 + .960365)
    found = stats.mean([1.0, 1, 1, 1, 1, 1, 0, 0], list("aabbccdd"), 1.0)
    assert found.se == pytest.approx(0.25)
    assert found.ci == pytest.approx((0.582523 - 0.391989, 0.582523 + 0.391989), abs=2e-6)


@pytest.mark.parametrize(("right", "n", "wilson"), [(9, 40, True), (11, 40, False), (31, 40, True), (29, 40, False)])
def test_from_ten_at_either_end_on_the_interval_is_student_s(right, n, wilson):
    found = stats.mean([1.0] * right + [0.0] * (n - right), [str(i) for i in range(n)], 1.0)
    half = 2.022691 * found.se  # t(39)
    students = pytest.approx((right / n - half, right / n + half), abs=1e-6)
    assert (found.ci == students) is not wilson
    assert found.ci == (pytest.approx(stats.wilson(right / n, n)) if wilson else students)


def test_wilson_by_hand_and_at_the_ends():
    # n 10, p .4: centre (4 + 1.920729) / 13.841459 = .427753, half 1.959964 / 13.841459 * sqrt(2.4 + .960365) = .259573
    assert stats.wilson(0.4, 10) == pytest.approx((0.427753 - 0.259573, 0.427753 + 0.259573), abs=2e-6)
    # z^2 / (n + z^2) = .277533 at the end that is not the proportion itself
    assert stats.wilson(0.0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert stats.wilson(1.0, 10) == (pytest.approx(0.722467, abs=1e-6), 1.0)
    assert stats.wilson(1.0 + 1e-9, 10) == stats.wilson(1.0, 10) and stats.wilson(-1e-9, 10) == stats.wilson(0.0, 10)


def test_points_do_not_fall_below_zero():
    # 0, 0, 50: mean 16.7, se 16.7, t(2) = 4.30: -55.0 .. 88.4
    assert stats.mean([0.0, 0.0, 50.0], list("abc"), 200.0).ci == pytest.approx(
        (0.0, 50 / 3 + 4.302653 * 50 / 3), abs=1e-4
    )


def test_a_ratio_of_few_is_wilson_s_with_the_samples_its_error_is_worth():
    # 30 pictures of which 5 are wrong: 5 < 10 at an end, and n_eff is what the bootstrap's error says, at most the pictures
    part = Part(np.array([[1.0, 1.0]] * 25 + [[0.0, 1.0]] * 5), [str(i) for i in range(30)])
    found = stats.bootstrap([part], lambda sums: sums[..., 0] / sums[..., 1])
    assert found.value == pytest.approx(25 / 30)
    assert found.se == pytest.approx(math.sqrt(25 / 30 * 5 / 30 / 30), rel=0.06)
    n = min(30.0, 25 / 30 * 5 / 30 / found.se**2)
    assert 26 < n <= 30 and found.ci == pytest.approx(stats.wilson(25 / 30, n))


def test_a_ratio_of_many_has_the_percentiles_of_its_draws():
    part = Part(np.array([[1.0, 1.0], [0.0, 1.0]] * 50), [str(i) for i in range(100)])
    found = stats.bootstrap([part], lambda sums: sums[..., 0] / sums[..., 1])
    # binomial, n 100: at most 39 in 1.8 % of draws, at most 40 in 2.8 %, so the 2.5th percentile is .40, the 97.5th .60
    assert found.ci == pytest.approx((0.40, 0.60), abs=1e-9)


def test_a_ratio_of_one_picture_has_no_standard_error():
    part = Part(np.array([[1.0, 1.0], [0.0, 1.0]]), ["a", "a"])
    assert stats.bootstrap([part], lambda sums: sums[..., 0] / sums[..., 1]) == stats.Estimate(0.5, None, None, 2, 1)


@pytest.mark.parametrize("chunk", [1, 21, 2_000_000])
def test_each_of_2000_replicates_draws_as_many_clusters_as_there_are(monkeypatch, chunk):
    monkeypatch.setattr(stats, "_CHUNK", chunk)
    drawn = np.concatenate(list(stats._draws(7, np.random.default_rng(0))))
    assert drawn.shape == (2000, 7) and (drawn.sum(axis=1) == 7).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.1)  # sd of a mean: sqrt(6/7 / 2000) = .02


def test_rounding_takes_wilson_s_ends_to_the_scale_and_not_beyond():
    # the formula alone gives 1 + 2e-16 and -3e-20 here
    assert stats.wilson(0.9999999999978132, 17)[1] == 1.0
    assert stats.wilson(1.6453840251302653e-13, 10_000)[0] == 0.0


@pytest.mark.parametrize(("draws", "has_error"), [(1, False), (2, True)])
def test_two_draws_have_a_spread_and_one_has_none(monkeypatch, draws, has_error):
    monkeypatch.setattr(stats, "BOOTSTRAPS", draws)
    part = Part(np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]), list("abc"))
    found = stats.bootstrap([part], lambda sums: sums[..., 0] / sums[..., 1])
    assert found.value == pytest.approx(2 / 3) and (found.se is not None) is (found.ci is not None) is has_error


def test_one_of_two():
    # se^2 = 2 * 2 * .25^2 = .25; n_eff = .25 * 2 / (1 * .25) = 2: .5 ± 1.959964 / 5.841459 * sqrt(.5 + .960365)
    assert stats.mean([0.0, 1.0], ["a", "b"], 1.0).ci == pytest.approx((0.5 - 0.405469, 0.5 + 0.405469), abs=2e-6)
