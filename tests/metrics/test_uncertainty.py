"""Mean, spread and lower bound over heads; risk-coverage by hand."""

import numpy as np
import pytest
from risk_coverage import agreement, aurc, aurc_spread, risk_at, risk_coverage

from hf_reward.metrics.uncertainty import UncertainRewards, check_beta


def test_mean_spread_and_lower_bound_by_hand():
    found = UncertainRewards(np.array([[1, 2, 3], [0, 0, 6], [5, 5, 5]], dtype=np.float32), beta=0.5)
    np.testing.assert_allclose(found.mean, [2, 2, 5])
    np.testing.assert_allclose(found.std, [1, np.sqrt(12), 0], rtol=1e-6)  # squares 4 + 4 + 16 over 2
    np.testing.assert_allclose(found.lower_bound, [1.5, 2 - np.sqrt(12) / 2, 5], rtol=1e-6)
    assert found.lower_bound.dtype == np.float32


def test_agreement_is_the_mean_gap_over_its_standard_deviation():
    first = np.array([[2.0, 4.0], [1.0, 1.0], [3.0, 3.0], [0.0, 1.0]])
    second = np.array([[1.0, 1.0], [0.0, 0.0], [3.0, 3.0], [1.0, 0.0]])
    # Gaps 1 and 3: mean 2, standard deviation sqrt(2). Then equal gaps, no gaps, and heads that cancel out.
    np.testing.assert_allclose(agreement(first, second), [np.sqrt(2), np.inf, 0, 0])
    np.testing.assert_allclose(agreement(second, first), agreement(first, second))


def test_risk_coverage_by_hand():
    errors, confidence = np.array([1, 0, 1, 0]), np.array([1.0, 4.0, 3.0, 2.0])  # most confident first: 0, 1, 0, 1
    np.testing.assert_allclose(risk_coverage(errors, confidence), [0, 1 / 2, 1 / 3, 2 / 4])
    assert aurc(errors, confidence) == pytest.approx(1 / 3)
    assert risk_at(risk_coverage(errors, confidence), 0.5) == 0.5
    assert risk_at(risk_coverage(errors, confidence), 0.51) == pytest.approx(1 / 3)  # number of pairs, rounded up
    assert risk_at(risk_coverage(np.arange(10) > 6, -np.arange(10.0)), 0.7) == 0  # 0.7 * 10 is 7 up to rounding


def test_equally_confident_pairs_count_as_a_random_order():
    errors = np.array([0, 1, 1, 0.5])
    np.testing.assert_allclose(risk_coverage(errors, np.array([2, 2, 2, 1])), [2 / 3, 2 / 3, 2 / 3, 2.5 / 4])
    assert aurc(errors, np.zeros(4)) == pytest.approx(errors.mean())
    orders = np.random.default_rng(0).permuted(np.tile(errors[:3], (20_000, 1)), axis=1)
    curves = np.cumsum(orders, axis=1) / np.arange(1, 4)
    np.testing.assert_allclose(curves.mean(0), [2 / 3] * 3, atol=0.01)


def test_repeating_every_pair_changes_no_area_in_the_limit_and_a_better_order_lowers_it():
    generator = np.random.default_rng(0)
    errors = generator.random(2000) < 0.3
    good, bad = 1.0 - errors + generator.normal(size=2000), generator.normal(size=2000)
    assert aurc(errors, good) < aurc(errors, bad) - 0.05
    assert aurc(np.repeat(errors, 3), np.repeat(good, 3)) == pytest.approx(aurc(errors, good), abs=2e-3)


def test_values_without_a_risk_are_refused():
    for errors, confidence in (
        (np.array([]), np.array([])),
        (np.zeros(2), np.zeros(3)),
        (np.zeros(2), np.array([1, np.nan])),
    ):
        with pytest.raises(ValueError, match="one number per pair"):
            risk_coverage(errors, confidence)
    for share in (0, 1.1):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            risk_at(np.zeros(3), share)
    for beta in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="`beta`, the number of standard deviations"):
            check_beta("beta", beta)


def test_the_jackknife_of_an_area_leaves_out_clusters():
    """Errors 0, 1, 0 in order of confidence, a cluster each: risks 0, 1/2, 1/3; without one each: 3/4, 0 and 1/4."""
    errors, confidence, clusters = np.array([0.0, 1.0, 0.0]), np.array([3.0, 2.0, 1.0]), np.array([4, 5, 6])
    found = aurc_spread([(errors, confidence)], clusters)
    area = (1 / 2 + 1 / 3) / 3
    assert (found.estimate, found.num_clusters) == (pytest.approx(area), 3)
    left_out = np.array([(1 + 1 / 2) / 2, 0, (0 + 1 / 2) / 2])
    assert found.error == pytest.approx(np.sqrt(2 / 3 * np.sum((left_out - area) ** 2)))
    same = aurc_spread([(errors, confidence), (errors, confidence)], clusters)
    assert (same.estimate, same.error) == (0, 0)
    assert np.isnan(aurc_spread([(errors, confidence)], np.zeros(3)).error)
    with pytest.raises(ValueError, match="one rule for abstaining, or two"):
        aurc_spread([], clusters)
