"""Intervals and p-values: hand-computed values, scipy, statsmodels, and consistency."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from hf_reward.metrics.intervals import (
    Interval,
    clustered_interval,
    cross_validated_interval,
    mean_difference,
    rate_interval,
    rate_p_value,
    t_interval,
    t_p_value,
)
from hf_reward.metrics.spread import Spread, mean_spread


def wilson(right: int, count: int, score: float) -> tuple[float, float]:
    """Scipy's interval at the level with the given normal quantile."""
    found = stats.binomtest(right, count).proportion_ci(1 - 2 * stats.norm.sf(score), method="wilson")
    return found.low, found.high


# --- means of any size -----------------------------------------------------------------------------------------------


def test_one_row_per_cluster_is_students_t_test():
    values = np.random.default_rng(2).normal(0.2, 1, 50)
    spread, expected = mean_spread(values, np.arange(50)), stats.ttest_1samp(values, 0)
    assert t_interval(spread).bounds == pytest.approx(list(expected.confidence_interval()))
    assert t_p_value(spread) == pytest.approx(expected.pvalue)
    assert t_p_value(spread, above=True) == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater").pvalue)


def test_equal_clusters_get_the_sign_test():
    spread = mean_spread(np.full(8, 2.0), np.arange(8))
    assert (t_p_value(spread), t_p_value(spread, above=True)) == (0.5**7, 0.5**8)
    assert (t_p_value(spread, 2.0), t_p_value(spread, 3.0, above=True)) == (1, 1)


# --- rates -----------------------------------------------------------------------------------------------------------


def test_one_row_per_prompt_is_wilsons_interval_with_t():
    credits = np.repeat([1.0, 0.0], [13, 7])
    found = clustered_interval(credits, np.arange(20))
    assert found.bounds == pytest.approx(wilson(13, 20, stats.t.ppf(0.975, 19)))
    assert found.method == "clustered-wilson"


@pytest.mark.parametrize("copies", [2, 7])
def test_copies_of_a_prompts_pairs_add_no_certainty(copies: int):
    """100 prompts, half of them all right: the error is sqrt(0.25 / 99), so c copies count as 99 c / (c - 0.01)."""
    found = clustered_interval(np.repeat([1.0, 0.0] * 50, copies), np.repeat(np.arange(100), copies))
    size, score = 0.25 / (0.25 / 99) * 100 * copies / (100 * copies - 1), stats.t.ppf(0.975, 99)
    reach = score / (1 + score**2 / size) * math.sqrt(0.25 / size + score**2 / 4 / size**2)
    assert found.bounds == pytest.approx([0.5 - reach, 0.5 + reach])
    assert found.high - found.low > np.subtract(*wilson(50, 100, score)[::-1])


@pytest.mark.parametrize("right", [10, 0])
def test_all_right_or_all_wrong_counts_each_prompt_once(right: int):
    found = clustered_interval(np.full(30, right / 10), np.repeat(np.arange(10), 3))
    assert found.bounds == pytest.approx(wilson(right, 10, stats.t.ppf(0.975, 9)), abs=1e-12)


def test_ties_alone_are_half_right_on_nearly_all_prompts():
    """100 prompts of ties: at most 3.79% of prompts differ, t^2 / (100 + t^2), so 0.5 -+ half of that."""
    spread = mean_spread(np.full(100, 0.5), np.arange(100))
    unseen = stats.t.ppf(0.975, 99) ** 2
    unseen /= 100 + unseen
    assert rate_interval(spread).bounds == pytest.approx([0.5 - unseen / 2, 0.5 + unseen / 2])
    for bound in rate_interval(spread).bounds or ():
        assert rate_p_value(spread, bound) == pytest.approx(0.05)


def test_prompts_of_uneven_size_count_for_less_where_all_are_right():
    """29 rows of one prompt and one of another: 1 / (0.9667^2 + 0.0333^2) = 1.069 even prompts."""
    found = clustered_interval(np.ones(30), [0] * 29 + [1])
    score = stats.t.ppf(0.975, 1)
    size = 900 / (29**2 + 1)
    assert found.low == pytest.approx(1 - score**2 / size / (1 + score**2 / size))


def test_rows_scored_by_models_of_the_other_folds_have_one_and_a_half_times_the_error_of_five_folds():
    """1 + 5 / 4 = 2.25 times the variance, so 45 correct of 60 have an effective sample size of 60 / 2.25 rows."""
    credits = np.repeat([1.0, 0.0], [45, 15])
    found = cross_validated_interval(credits, np.arange(60), folds=5)
    rows = 60 / 2.25
    score = stats.t(59).ppf(0.975)
    middle, reach = 0.75 + score**2 / (2 * rows), score * math.sqrt(0.75 * 0.25 / rows + score**2 / (4 * rows**2))
    assert found.bounds == pytest.approx(
        [(middle + sign * reach) / (1 + score**2 / rows) for sign in (-1, 1)], abs=1e-3
    )
    assert cross_validated_interval(np.ones(60), np.arange(60), folds=5).low < 1


def test_one_prompt_allows_no_interval():
    found = clustered_interval(np.array([1.0, 0.0, 1.0]), np.array([4, 4, 4]))
    assert (math.isnan(found.low), math.isnan(found.high), found.bounds) == (True, True, None)
    assert (found.method, found.num_clusters) == ("none", 1)
    spread = mean_spread(np.ones(3), [1, 1, 1])
    assert (t_p_value(spread), rate_p_value(spread, 0.5), mean_difference(np.ones(3), [1, 1, 1]).p_value()) == (
        None,
        None,
        None,
    )


def test_too_few_prompts_are_flagged():
    assert Interval(0.1, 0.9, 19, "clustered-t").too_few_clusters
    assert not Interval(0.1, 0.9, 20, "clustered-t").too_few_clusters


@pytest.mark.parametrize("rate", [0.1, 0.55, 0.9])
def test_the_interval_of_a_rate_contains_the_rates_that_its_test_does_not_reject(rate: float):
    spread = Spread(rate, 0.04, 30, 300, 30)
    for bound in rate_interval(spread).bounds or ():
        assert rate_p_value(spread, bound) == pytest.approx(0.05)


def test_the_clustered_interval_covers_the_truth_where_a_naive_one_does_not():
    """400 seeds, 40 prompts of 5 pairs whose accuracies vary between prompts around 0.7."""
    covered = naive = 0
    clusters = np.repeat(np.arange(40), 5)
    for seed in range(400):
        rng = np.random.default_rng(seed)
        credits = (rng.random(200) < np.repeat(rng.beta(1.4, 0.6, 40), 5)).astype(float)
        interval = clustered_interval(credits, clusters)
        covered += interval.low <= 0.7 <= interval.high
        independent = clustered_interval(credits, np.arange(200))
        naive += independent.low <= 0.7 <= independent.high
    assert 0.92 <= covered / 400 <= 0.98
    assert naive / 400 < 0.88


# --- differences of rates --------------------------------------------------------------------------------------------


def test_a_difference_without_losses_is_wilsons_interval_of_the_gains():
    """5 gains in 40 rows: the upper bound is Wilson's of 5 / 40; the lower also includes the bound of 0 losses."""
    found = mean_difference(np.repeat([1.0, 0.0], [5, 35]), np.arange(40)).interval()
    score = stats.t.ppf(0.975, 39)
    low, high = wilson(5, 40, score)
    none = wilson(0, 40, score)[1]
    assert found.high == pytest.approx(high)
    assert found.low == pytest.approx(0.125 - math.hypot(0.125 - low, none))


def test_models_that_never_differ_may_differ_on_other_prompts():
    found = mean_difference(np.zeros(24), np.repeat(np.arange(12), 2))
    reach = wilson(0, 12, stats.t.ppf(0.975, 11))[1]
    assert found.interval().bounds == pytest.approx([-reach, reach])
    assert found.p_value() == 1


def test_a_difference_turned_round_is_turned_round():
    values, clusters = np.random.default_rng(3).choice([-1.0, -0.5, 0.0, 1.0], 90), np.repeat(np.arange(30), 3)
    one, other = mean_difference(values, clusters), mean_difference(-values, clusters)
    assert one.interval().bounds == pytest.approx([-each for each in reversed(other.interval().bounds or [])])
    assert one.p_value() == pytest.approx(other.p_value())


@pytest.mark.parametrize("gains", [12, 20, 28])
def test_the_p_value_is_the_level_at_which_the_interval_ends_at_0(gains: int):
    found = mean_difference(np.repeat([1.0, -1.0, 0.0], [gains, 8, 60]), np.arange(gains + 68))
    p_value = found.p_value()
    assert p_value is not None
    assert found.interval(1 - p_value).low == pytest.approx(0, abs=1e-9)
    assert found.p_value(above=True) == pytest.approx(p_value / 2)


def test_with_one_row_per_prompt_the_p_value_is_near_mcnemars():
    values = np.repeat([1.0, -1.0, 0.0], [30, 15, 155])
    exact = mcnemar([[100, 30], [15, 55]], exact=True).pvalue
    assert mean_difference(values, np.arange(200)).p_value() == pytest.approx(exact, abs=0.015)


def test_prompts_with_many_rows_do_not_narrow_the_interval():
    """12 prompts of 100 rows, 7 correct only for A and 5 only for B: A's 200 additional rows are not significant."""
    values = np.repeat([1.0] * 7 + [-1.0] * 5, 100)
    found = mean_difference(values, np.repeat(np.arange(12), 100))
    assert found.p_value() > 0.5
    low, high = found.interval().bounds or (0, 0)
    assert low < -0.3
    assert high > 0.5
    assert stats.binomtest(700, 1200).pvalue < 1e-8
