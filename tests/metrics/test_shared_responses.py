"""Pairs that share responses: hand-computed standard errors, coverage, and reports."""

import numpy as np
import pytest

from hf_reward.evaluation.benchmarks.own import Pairs
from hf_reward.evaluation.benchmarks.response_interval import shared_responses
from hf_reward.evaluation.data_check import check_data
from hf_reward.evaluation.data_check.report_text import sections
from hf_reward.metrics.intervals import rate_interval
from hf_reward.metrics.shared_responses import response_spread
from hf_reward.metrics.spread import mean_spread


def test_the_spread_by_hand():
    """Pairs ab, ac, bc of 1, 1, 0: mean 2/3, c = 1/9, 1/9, -2/9.

    S_a = 2/9, S_b = S_c = -1/9; the sum of squares is 6/81: 6 * 6/81 - 6/81.
    """
    found = response_spread(np.array([1.0, 1.0, 0.0]), ["a", "a", "b"], ["b", "c", "c"])
    assert found.estimate == pytest.approx(2 / 3)
    assert found.error == pytest.approx(np.sqrt(30 / 81))
    assert (found.num_clusters, found.rows) == (3, pytest.approx(3))
    # Pairs ab, ac, de, df of 1, 1, 0, 0: c = 1/8 twice and -1/8 twice; S^2 = 1/16, 1/64, 1/64 on each side.
    shared = response_spread(np.array([1.0, 1.0, 0.0, 0.0]), [*"aadd"], [*"bcef"])
    assert shared.error == pytest.approx(np.sqrt(30 / 16 * 2 * (1 / 16 + 2 / 64) - 4 / 64))


def test_pairs_without_shared_responses_have_about_the_error_of_independent_pairs():
    values = np.random.default_rng(0).integers(0, 2, 200).astype(float)
    found = response_spread(values, list(range(200)), list(range(200, 400)))
    assert found.error == pytest.approx(mean_spread(values, np.arange(200)).error, rel=0.01)


def test_the_variance_of_all_pairs_of_responses_is_unbiased():
    """Effects of 6 responses with variance 1 add up in their 15 pairs: the variance of the mean is 4 / 6.

    What is taken off, the pairs' own variance, is put back: effects that add up have none.
    """
    random, pairs = np.random.default_rng(0), [(i, j) for i in range(6) for j in range(i)]
    first, second = zip(*pairs, strict=True)
    found = []
    for _ in range(2000):
        effect = random.normal(size=6)
        values = effect[list(first)] + effect[list(second)]
        found.append(response_spread(values, first, second).error ** 2 + np.var(values) / 15)
    assert np.mean(found) == pytest.approx(4 / 6, rel=0.05)


def test_weights_are_those_of_rows():
    found = response_spread(np.array([1.0, 0.0, 0.0]), [1, 2, 2], [3, 4, 5], np.array([1.0, 0.5, 0.5]))
    assert found.estimate == 0.5


@pytest.mark.parametrize("effect", [0.0, 0.7])
def test_the_interval_has_its_nominal_coverage(effect: float):
    """Wins with probability 1/2 in expectation over responses; 400 runs of 200 pairs over 50 responses."""
    random, held = np.random.default_rng(1), 0
    for _ in range(400):
        strength = random.normal(0, effect, 50)
        first = random.integers(0, 50, 200)
        second = (first + random.integers(1, 50, 200)) % 50
        wins = random.normal(0, 1, 200) < strength[first] + strength[second]
        interval = rate_interval(response_spread(wins.astype(float), first.tolist(), second.tolist()))
        held += interval.low <= 0.5 <= interval.high
    assert 0.92 <= held / 400 <= 0.98


def rows():
    """Three responses to one prompt, each preferred to the next: two pairs share the middle one."""
    pairs = (("best", "middle"), ("middle", "worst"))
    return [{"prompt": "p", "chosen": better, "rejected": worse} for better, worse in pairs]


def test_a_benchmark_of_pairs_reports_its_number_of_responses():
    comparisons = [Pairs().read(row, "", place) for place, row in enumerate(rows())]
    rewards = [np.array([1.0, 0.0]), np.array([0.0, 1.0])]
    found = shared_responses(comparisons, rewards)
    assert found is not None
    assert (found["responses"], found["pairs"], found["too_few_responses"]) == (3, 2, True)
    assert found["ci"][0] < 0.5 < found["ci"][1]
    assert shared_responses(comparisons[:1], rewards[:1]) is None


def test_check_data_reports_shared_responses():
    report = check_data([*rows(), {"prompt": "q", "chosen": "middle", "rejected": "other"}])
    assert (report.duplicates.pair_responses, report.duplicates.most_pairs_of_a_response) == (5, 2)
    lines = {line.name: line for section in sections(report) for line in section.lines}
    assert lines["responses of pairs"].value == "5 different"
    assert "3 strict pairs; pairs per response: 1.2 on average, 2 at most" in lines["responses of pairs"].note
