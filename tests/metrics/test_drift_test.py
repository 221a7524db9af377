"""Normal scores and the martingale: hand-computed values, the definition by quadrature, and false alarms."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from hf_reward.metrics.drift_test import DriftEvidence, drift_evidence, normal_scores


def evidence(scores: np.ndarray) -> DriftEvidence:
    """The evidence with one score in each step."""
    return drift_evidence(scores, np.ones(len(scores), dtype=int))


def test_normal_scores_of_ranks():
    earlier = np.array([1.0, 2.0, 2.0, 5.0])
    found = normal_scores(np.array([3.0, 2.0, 9.0]), earlier, np.array([0.5, 0.5, 0.25]))
    # 3 of 4 values are less; 1 of 5 is less and 2 are equal; all 6 are less.
    assert found == pytest.approx(stats.norm.ppf([3.5 / 5, (1 + 0.5 * 3) / 6, 6.25 / 7]))
    assert normal_scores(np.array([1.0]), np.array([]), np.array([0.5])) == pytest.approx([0.0])
    assert np.isfinite(normal_scores(np.array([9.0]), earlier, np.array([1.0]))).all()
    assert normal_scores(np.array([]), earlier, np.array([])).shape == (0,)


@pytest.mark.parametrize("draw", ["exponential", "rare"])
def test_scores_are_independent_standard_normal_for_any_distribution(draw):
    random = np.random.default_rng(0)
    values = random.exponential(size=(2000, 12)) if draw == "exponential" else random.binomial(1, 0.1, (2000, 12))
    scores = np.array([normal_scores(row[6:], row[:6], random.uniform(size=6)) for row in values.astype(float)])
    assert all(stats.kstest(column, "norm").pvalue > 0.001 for column in scores.T)
    correlations = np.corrcoef(scores.T)[np.triu_indices(6, 1)]
    assert np.abs(correlations).max() < 4 / math.sqrt(2000)


def test_evidence_is_the_average_likelihood_ratio_over_changes_and_means():
    scores = np.array([0.3, -1.2, 1.7, 2.4])

    def ratio(start: int) -> float:
        def density(mean: float) -> float:
            return stats.norm.pdf(mean) * np.prod(stats.norm.pdf(scores[start:], mean) / stats.norm.pdf(scores[start:]))

        return integrate.quad(density, -10, 10)[0]

    expected = sum(ratio(j) / ((j + 1) * (j + 2)) for j in range(4)) + 1 / 5
    found = evidence(scores)
    assert found.log_value == pytest.approx(math.log(expected), abs=1e-9)
    assert (found.direction, found.start) == (1, 2)
    assert evidence(-scores).direction == -1


def test_changes_begin_with_a_step():
    scores, counts = np.array([0.3, -1.2, 1.7, 2.4, 0.1]), np.array([2, 3])

    def ratio(part: np.ndarray) -> float:
        return math.exp(part.sum() ** 2 / (2 * (1 + len(part)))) / math.sqrt(1 + len(part))

    expected = ratio(scores) / 2 + ratio(scores[2:]) / 6 + 1 / 3
    found = drift_evidence(np.add.reduceat(scores, [0, 2]), counts)
    assert found.log_value == pytest.approx(math.log(expected))


def test_no_scores_give_no_evidence():
    found = evidence(np.array([]))
    assert (found.log_value, found.direction) == (0.0, 0)


def test_the_expected_martingale_is_one():
    random = np.random.default_rng(1)
    values = [math.exp(evidence(random.normal(size=3)).log_value) for _ in range(10_000)]
    assert np.mean(values) == pytest.approx(1, abs=0.05)


def test_a_late_change_is_found_soon_and_dated():
    random = np.random.default_rng(2)
    scores = np.concatenate([random.normal(size=300), 2 + random.normal(size=15)])
    found = evidence(scores)
    assert found.log_value > math.log(20)
    assert 290 <= found.start <= 305
    assert evidence(scores[:300]).log_value < math.log(20)


def test_false_alarms_of_whole_streams():
    random = np.random.default_rng(3)
    alarms = 0
    for _ in range(200):
        scores = random.normal(size=60)
        alarms += any(evidence(scores[:n]).log_value >= math.log(20) for n in range(1, 61))
    assert alarms / 200 <= 0.05
