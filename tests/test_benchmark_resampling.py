"""Intervals resample whole prompts: they agree with the analytic ones, and cover what they should."""

import numpy as np
import pytest

from hf_reward.benchmarks import resampling
from hf_reward.benchmarks.resampling import interval_of_all, mean_credits, percentile_interval, resampled_means
from hf_reward.metrics import clustered_interval


def rows_of(values: np.ndarray) -> list[dict[str, float]]:
    return [{"x": float(value)} for value in values]


def test_means_are_over_the_rows_that_earned_a_credit() -> None:
    rows = [{"x": 1.0, "y": 0.0}, {"x": 0.0}, {"y": 0.5}]
    assert {name: float(value) for name, value in mean_credits(rows).items()} == {"x": 0.5, "y": 0.25}


def test_resamples_are_of_whole_clusters_and_by_hand() -> None:
    # Cluster a has the mean 1 over three rows, b 0 over one: a resample draws aa, ab, ba or bb.
    rows = rows_of(np.array([1.0, 1.0, 1.0, 0.0]))
    found = resampled_means(rows, ["a", "a", "a", "b"], resamples=4000)["x"]
    values, counts = np.unique(found, return_counts=True)
    assert values.tolist() == [0.0, 0.75, 1.0]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_one_row_to_a_cluster_is_the_plain_bootstrap() -> None:
    values = np.random.default_rng(0).random(300)
    found = resampled_means(rows_of(values), [str(place) for place in range(300)], resamples=4000)["x"]
    assert found.std() == pytest.approx(values.std() / np.sqrt(300), rel=0.05)


def test_clusters_widen_the_interval_as_the_analytic_error_says() -> None:
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(80), 5)
    values = (random.random(400) < np.repeat(random.random(80), 5)).astype(float)
    found = percentile_interval(resampled_means(rows_of(values), list(map(str, clusters)))["x"])
    analytic = clustered_interval(values, clusters)
    assert found is not None
    assert found == pytest.approx([analytic.low, analytic.high], abs=0.015)


def test_equal_seeds_draw_equal_clusters_for_other_credits() -> None:
    values = np.random.default_rng(2).random(50)
    clusters = [str(place % 10) for place in range(50)]
    first = resampled_means(rows_of(values), clusters)["x"]
    second = resampled_means(rows_of(values + 1), clusters)["x"]
    np.testing.assert_allclose(second - first, 1, atol=1e-12)


def test_batches_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, clusters = rows_of(np.arange(20.0)), [str(place) for place in range(20)]
    whole = resampled_means(rows, clusters, resamples=150)["x"]
    monkeypatch.setattr(resampling, "_BATCH_CELLS", 20 * 7)
    np.testing.assert_array_equal(resampled_means(rows, clusters, resamples=150)["x"], whole)


def test_a_credit_that_a_resample_did_not_draw_is_nan_there() -> None:
    rows = [{"x": 1.0}, {"y": 1.0}]
    found = resampled_means(rows, ["a", "b"], resamples=1000)
    assert 0.2 < np.isnan(found["x"]).mean() < 0.3
    assert percentile_interval(found["x"]) is None


def test_all_right_has_wilsons_interval_and_one_prompt_none() -> None:
    ones = np.ones(100)
    assert interval_of_all(ones, 1.0, 20) == pytest.approx([0.8389, 1.0], abs=1e-4)
    assert interval_of_all(ones * 0, 0.0, 20) == pytest.approx([0.0, 0.1611], abs=1e-4)
    assert interval_of_all(ones, 1.0, 1) is None
    assert interval_of_all(ones / 2, 0.5, 20) is None


@pytest.mark.slow
def test_the_interval_covers_the_truth_in_95_of_100() -> None:
    covered = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        ability = random.beta(6, 4, size=60)  # of mean 0.6
        values = (random.random((60, 3)) < ability[:, None]).astype(float).ravel()
        clusters = [str(place) for place in np.repeat(np.arange(60), 3)]
        interval = percentile_interval(resampled_means(rows_of(values), clusters, resamples=500, seed=seed)["x"])
        covered += interval is not None and interval[0] <= 0.6 <= interval[1]
    assert covered / 300 >= 0.92
