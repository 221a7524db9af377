"""Clustered standard errors: hand-computed values, statsmodels, and the jackknife of any function."""

import math

import numpy as np
import pytest
import statsmodels.api as sm

from hf_reward.metrics.spread import jackknife, mean_spread


def test_the_error_of_a_mean_is_the_jackknifes():
    """Mean 3.5; without a (1, 3) 5, without b (5) 3, without c (5) 3: 2 / 3 * (1.5^2 + 0.5^2 + 0.5^2)."""
    found = mean_spread(np.array([1.0, 3.0, 5.0, 5.0]), ["a", "a", "b", "c"])
    assert (found.estimate, found.num_clusters) == (3.5, 3)
    assert found.error == pytest.approx(math.sqrt(2 / 3 * 2.75))
    assert found.rows == pytest.approx(4)
    assert found.even_clusters == pytest.approx(1 / (0.5**2 + 2 * 0.25**2))


def test_the_closed_form_is_the_jackknife_of_any_function():
    random = np.random.default_rng(0)
    values, clusters = random.normal(size=60), random.integers(0, 9, 60)
    left_out = np.array([values[clusters != each].mean() for each in range(9)])
    sizes = np.bincount(clusters).astype(float)
    assert mean_spread(values, clusters).error == pytest.approx(
        jackknife(values.mean(), left_out, sizes / 60, sizes).error
    )


def test_with_clusters_of_one_size_it_is_the_usual_cluster_robust_error():
    values, clusters = np.random.default_rng(1).normal(size=120), np.repeat(np.arange(30), 4)
    model = sm.OLS(values, np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    assert mean_spread(values, clusters).error == pytest.approx(model.bse[0] * math.sqrt(30 / 29))


def test_clusters_without_weight_do_not_count():
    found = jackknife(0.5, np.array([0.4, 0.6, 0.9]), np.array([1.0, 1.0, 0.0]), np.array([2.0, 2.0, 50.0]))
    assert (found.num_clusters, found.rows, found.even_clusters) == (2, 4, 2)
    assert found.error == pytest.approx(math.sqrt(0.5 * 0.02))
