"""Calibration: hand-computed values, models of known calibration, and data without a fit."""

import numpy as np
import pytest
from scipy import special, stats

from hf_reward.metrics.calibration import (
    calibration_error,
    calibration_error_interval,
    calibration_floor,
    calibration_metrics,
    debiased_calibration_error,
    fit_slope,
    reliability_bins,
    spiegelhalter,
)
from hf_reward.metrics.equal_bins import equal_bins
from hf_reward.metrics.intervals import squares_interval


def simulated(count: int, seed: int, slope: float = 1.0) -> np.ndarray:
    """Gaps of a model whose log-odds are `slope` times its gaps."""
    random = np.random.default_rng(seed)
    size = np.abs(random.normal(0, 1.5, count))
    return np.where(random.random(count) < special.expit(slope * size), size, -size)


# --- slope ---


def test_slope_by_hand() -> None:
    # Three pairs of gap 1, two of them correct: sigmoid(b) = 2/3, so b = ln 2.
    assert fit_slope(np.array([1.0, 1.0, -1.0])).value == pytest.approx(np.log(2), abs=1e-12)
    assert fit_slope(np.array([2.0, 2.0, -2.0])).value == pytest.approx(np.log(2) / 2, abs=1e-12)
    assert fit_slope(np.array([1.0, 1.0, -1.0])).temperature == pytest.approx(1 / np.log(2))


def test_slope_interval_by_hand() -> None:
    # Scores are 1/3, 1/3 and -2/3, the information without a pair 2 * 2/9; (G - 1) / G = 2/3; two degrees of freedom.
    found = fit_slope(np.array([1.0, 1.0, -1.0]))
    error = np.sqrt(2 / 3 * (1 / 9 + 1 / 9 + 4 / 9)) / (4 / 9)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 2) * error)


@pytest.mark.parametrize(
    ("won", "lost", "suggested"),
    [(70, 30, True), (52, 48, False), (40, 60, False), (100, 0, False)],
)
def test_a_temperature_is_suggested_only_where_the_interval_is_above_0(won: int, lost: int, suggested: bool) -> None:
    """Slopes ln(70 / 30) = 0.85 -+ 0.44, 0.08 -+ 0.40, below 0, and infinite."""
    gaps = np.array([1.0] * won + [-1.0] * lost)
    slope = fit_slope(gaps)
    assert slope.suggests_temperature is suggested
    found = calibration_metrics(gaps)["temperature"]
    assert found == slope.temperature if suggested else np.isnan(found)


def test_slope_is_below_0_for_a_model_that_prefers_the_wrong_side() -> None:
    found = fit_slope(np.array([-1.0, -1.0, 1.0]))
    assert found.value == pytest.approx(-np.log(2))
    assert np.isnan(found.temperature)


def test_slope_scales_with_rewards_of_any_size() -> None:
    gaps = simulated(400, 0)
    for factor in (1e-8, 1e8):
        assert fit_slope(gaps * factor).value * factor == pytest.approx(fit_slope(gaps).value, rel=1e-9)


def test_slope_of_pairs_that_are_all_right_is_infinite() -> None:
    found = fit_slope(np.array([1.0, 2.0, 0.0]))
    assert (found.value, found.temperature) == (np.inf, 0.0)
    assert np.isnan(found.low)
    assert fit_slope(np.array([-1.0, 0.0])).value == -np.inf


def test_slope_interval_is_wider_where_prompts_repeat() -> None:
    gaps = np.repeat(simulated(60, 3), 5)
    alone, clustered = fit_slope(gaps), fit_slope(gaps, np.repeat(np.arange(60), 5))
    assert clustered.value == alone.value
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert np.isnan(fit_slope(gaps, np.zeros(300, int)).low)


def test_one_newton_step_approximates_the_full_jackknife() -> None:
    gaps, places = np.concatenate([simulated(150, 5), -simulated(50, 6)]), np.repeat(np.arange(40), 5)
    found = fit_slope(gaps, places)
    left_out = np.array([fit_slope(gaps[places != each]).value for each in range(40)])
    error = np.sqrt(39 / 40 * np.sum((left_out - found.value) ** 2))
    assert (found.high - found.value) / stats.t.ppf(0.975, 39) == pytest.approx(error, rel=0.02)


@pytest.mark.slow
def test_slope_interval_covers_the_truth() -> None:
    found = [fit_slope(simulated(200, seed, slope=0.5)) for seed in range(400)]
    covered = np.mean([each.low <= 0.5 <= each.high for each in found])
    assert 0.92 <= covered <= 0.98


# --- errors ---


def test_calibration_errors_by_hand() -> None:
    # Four pairs of confidence 0.8, two of them correct, in one bin.
    gap = special.logit(0.8)
    gaps = np.array([gap, gap, -gap, -gap])
    assert calibration_error(gaps, 1) == pytest.approx(0.3)
    # (0.5 - 0.8)^2 - 0.25 / 3 = 0.09 - 0.0833
    assert debiased_calibration_error(gaps, 1) == pytest.approx(np.sqrt(0.09 - 0.25 / 3))
    # calibrated on average: 4 of 5 at 0.8, so the square is minus 0.16 / 4
    assert debiased_calibration_error(np.array([gap] * 4 + [-gap]), 1) == pytest.approx(-np.sqrt(0.04))


def test_bins_have_equal_numbers_of_pairs_and_a_tie_counts_half() -> None:
    bins = reliability_bins(np.array([0.0, 0.0, 3.0, -2.0]), 2)
    assert [each.count for each in bins] == [2, 2]
    assert (bins[0].confidence, bins[0].accuracy) == (0.5, 0.5)
    assert bins[1].accuracy == 0.5
    assert bins[1].confidence == pytest.approx((special.expit(3) + special.expit(2)) / 2)
    assert bins[1].low < 0.5 < bins[1].high
    assert len(reliability_bins(simulated(2000, 0))) == 15
    assert len(reliability_bins(simulated(200, 0))) == 4


def test_a_calibrated_model_has_the_floor_as_naive_error_and_zero_debiased_error() -> None:
    # evaluation notes: 0.096, 0.055 and 0.030 at 200, 600 and 2000 pairs with 15 bins
    for count, expected in ((200, 0.096), (600, 0.055), (2000, 0.030)):
        found = [calibration_error(simulated(count, seed), 15) for seed in range(100)]
        assert np.mean(found) == pytest.approx(expected, abs=0.012)
        assert calibration_floor(simulated(count, 0), 15) == pytest.approx(np.mean(found), abs=0.006)
    debiased = [debiased_calibration_error(simulated(600, seed)) for seed in range(200)]
    assert abs(np.mean(debiased)) < 0.01


def test_an_overconfident_model_is_detected() -> None:
    found = calibration_metrics(simulated(2000, 1, slope=0.5))
    assert found["slope"] == pytest.approx(0.5, abs=0.1)
    assert found["temperature"] == pytest.approx(1 / found["slope"])
    assert found["slope_ci_high"] < 1
    assert found["ece_debiased"] > 0.05
    assert found["ece_naive"] > found["ece_floor"]
    assert found["spiegelhalter_z"] > 3
    assert found["spiegelhalter_p"] < 0.001
    assert (found["num_pairs"], found["num_bins"]) == (2000, 15)


def test_copies_of_a_pair_change_no_error_and_no_interval() -> None:
    """One bin: eight copies of a row are one cluster, so error, floor and interval do not change."""
    gaps, places = simulated(60, 3), np.repeat(np.arange(60), 8)
    copies = np.repeat(gaps, 8)
    assert debiased_calibration_error(copies, 1, places) == pytest.approx(debiased_calibration_error(gaps, 1))
    one, eight = calibration_error_interval(gaps, 1), calibration_error_interval(copies, 1, places)
    assert (eight.low, eight.high) == pytest.approx((one.low, one.high), rel=1e-3)
    floor = calibration_floor(copies, 1) * np.sqrt(8)
    assert calibration_floor(copies, 1, places) == pytest.approx(floor * np.sqrt(479 / 480 * 60 / 59), rel=1e-3)
    assert calibration_floor(gaps, 1, np.arange(60)) == calibration_floor(gaps, 1)


def test_the_interval_of_the_error_in_one_bin_is_by_hand() -> None:
    """One bin of 100 pairs, error 0.1 and its standard error 0.05: F(1, 99, noncentrality d) of (0.1 / 0.05)^2."""
    parts = np.repeat([0.05, -0.05], 50)[:, None] / np.sqrt(100) * np.sqrt(99 / 100)
    found = squares_interval(np.array([0.1]), parts)
    for bound, level in ((found.low, 0.975), (found.high, 0.025)):
        assert stats.ncf.cdf(4, 1, 1e6, bound / 0.05**2) == pytest.approx(level, abs=1e-3) or bound == 0
    assert found.low < 0.01 < found.high


def test_the_interval_contains_its_estimate_and_needs_20_prompts() -> None:
    for seed in range(30):
        gaps = simulated(200, seed, slope=(1.0, 0.4)[seed % 2])
        found = calibration_error_interval(gaps)
        assert found.low <= debiased_calibration_error(gaps) <= found.high
    assert calibration_error_interval(simulated(19, 0)).method == "none"
    assert np.isnan(debiased_calibration_error(simulated(30, 0), 1, np.zeros(30, int)))


# --- Spiegelhalter ---


def test_spiegelhalter_clusters_pairs_by_prompt() -> None:
    gaps, places = simulated(50, 1), np.arange(50)
    score, p_value = spiegelhalter(gaps)
    assert spiegelhalter(gaps, places) == (score, p_value)
    copied, tail = spiegelhalter(np.repeat(gaps, 8), np.repeat(places, 8))
    assert copied == pytest.approx(score * np.sqrt(49 / 50 * 400 / 399), rel=1e-3)
    assert tail == pytest.approx(2 * stats.t.sf(abs(copied), 49))
    assert np.isnan(spiegelhalter(gaps, np.zeros(50, int))[1])


def test_pairs_of_a_prompt_widen_the_bars_of_a_reliability_diagram() -> None:
    gaps, places = np.repeat(simulated(60, 2), 5), np.repeat(np.arange(60), 5)
    (alone,), (together,) = reliability_bins(gaps, 1), reliability_bins(gaps, 1, places)
    assert together.accuracy == alone.accuracy
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_spiegelhalter_by_hand() -> None:
    # p = 0.8 for both pairs, one won: sum (y - p)(1 - 2p) = 0.2 * -0.6 + -0.8 * -0.6 = 0.36; variance 2 * 0.36 * 0.16
    gap = special.logit(0.8)
    score, p_value = spiegelhalter(np.array([gap, -gap]))
    assert score == pytest.approx(0.36 / np.sqrt(2 * 0.36 * 0.16))
    assert p_value == pytest.approx(2 * stats.norm.sf(score))


@pytest.mark.slow
def test_spiegelhalter_keeps_its_level() -> None:
    p_values = [spiegelhalter(simulated(300, seed))[1] for seed in range(600)]
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08


def test_spiegelhalter_of_ties_only_is_undefined() -> None:
    assert np.isnan(spiegelhalter(np.zeros(5))).all()


# --- unusable gaps ---


@pytest.mark.parametrize(
    ("gaps", "message"),
    [([], "M > 0"), ([[1.0]], r"has shape \(1, 1\)"), ([np.nan, 1.0], "1 of 2 are NaN or infinite")],
)
def test_unusable_gaps(gaps: list, message: str) -> None:
    for function in (fit_slope, calibration_error, debiased_calibration_error, spiegelhalter, reliability_bins):
        with pytest.raises(ValueError, match=message):
            function(np.array(gaps))


def test_gaps_without_a_slope_are_refused() -> None:
    with pytest.raises(ValueError, match="needs at least one nonzero reward difference"):
        fit_slope(np.zeros(3))
    with pytest.raises(ValueError, match=r"`num_bins` must be between 1 and the number of pairs \(3\)"):
        calibration_error(np.ones(3), 4)
    with pytest.raises(ValueError, match=r"at least two pairs.*Lower `num_bins`"):
        debiased_calibration_error(np.arange(1.0, 4.0), 3)  # equal gaps would share a bin


# --- order of rows ---


def test_the_order_of_rows_changes_nothing_where_confidences_are_tied() -> None:
    """Gaps of five sizes, 40 of each, in three bins: the edges fall among equal confidences."""
    random = np.random.default_rng(0)
    gaps = np.repeat([0.2, 0.5, 1.0, 1.5, 2.0], 40) * np.where(random.random(200) < 0.7, 1, -1)
    clusters = np.arange(200) // 4
    expected = calibration_metrics(gaps, clusters, num_bins=3)
    assert expected["ece_naive"] != calibration_error(np.abs(gaps) * np.sign(gaps[::-1]), 3)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(200)
        assert calibration_metrics(gaps[order], clusters[order], num_bins=3) == pytest.approx(expected, abs=1e-12)
        bins, others = (reliability_bins(gaps[each], 3, clusters[each]) for each in (order, slice(None)))
        assert [(each.count, each.accuracy) for each in bins] == [(each.count, each.accuracy) for each in others]


def test_equal_values_share_a_bin_and_others_are_distributed_evenly() -> None:
    distinct = np.random.default_rng(1).permutation(11) / 7
    assert [sorted(distinct[each] * 7) for each in equal_bins(distinct, 3)] == [
        pytest.approx(part) for part in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10])
    ]
    tied = np.array([3.0, 1.0, 3.0, 3.0, 2.0, 3.0, 3.0, 9.0])  # bins of 3, 3 and 2: the 3s are at positions 2 to 6
    assert [tied[each].tolist() for each in equal_bins(tied, 3)] == [[1, 2], [3, 3, 3, 3, 3, 9]]
    assert len(equal_bins(np.ones(10), 5)) == 1
