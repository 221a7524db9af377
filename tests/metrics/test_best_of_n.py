"""Best-of-n: hand-computed values, and the mean over all enumerated subsets."""

from itertools import combinations

import numpy as np
import pytest

from hf_reward.metrics.best_of_n import best_of_n_curve, kl_of_best_of_n


def counted(rewards: np.ndarray, gold: np.ndarray, n: int) -> float:
    """Mean gold score of the best response of every subset; ties at the top are averaged."""
    worth = []
    for subset in combinations(range(len(rewards)), n):
        places = np.array(subset)
        top = places[rewards[places] == rewards[places].max()]
        worth.append(gold[top].mean())
    return float(np.mean(worth))


def test_three_responses_by_hand() -> None:
    # by reward: 0.2, 1.0, 0.5. V_2: pairs (0.2, 1.0) -> 1.0, (0.2, 0.5) -> 0.5, (1.0, 0.5) -> 0.5
    found = best_of_n_curve(np.array([1.0, 2.0, 3.0]), np.array([0.2, 1.0, 0.5]))
    assert found == pytest.approx([1.7 / 3, 2 / 3, 0.5])


@pytest.mark.parametrize("seed", range(5))
def test_every_subset_counted(seed: int) -> None:
    random = np.random.default_rng(seed)
    rewards, gold = random.normal(size=8), random.random(8)
    expected = [counted(rewards, gold, n) for n in range(1, 9)]
    np.testing.assert_allclose(best_of_n_curve(rewards, gold), expected, atol=1e-12)


def test_ties_share_the_mean_worth_of_all_that_are_equal() -> None:
    rewards, gold = np.array([0.0, 1.0, 1.0]), np.array([1.0, 1.0, 0.0])
    # The two tied best responses score 0.5 on average: V_3 = 0.5; V_2 = 0.5; V_1 is the mean.
    np.testing.assert_allclose(best_of_n_curve(rewards, gold), [2 / 3, 0.5, 0.5])


def test_ends_are_the_mean_and_the_top() -> None:
    random = np.random.default_rng(0)
    rewards, gold = random.normal(size=(4, 100)), random.random((4, 100))
    found = best_of_n_curve(rewards, gold)
    np.testing.assert_allclose(found[:, 0], gold.mean(axis=1))
    np.testing.assert_allclose(found[:, -1], gold[np.arange(4), rewards.argmax(axis=1)])


def test_many_responses_neither_overflow_nor_lose_precision() -> None:
    rewards = np.arange(3000.0)
    found = best_of_n_curve(rewards, np.ones(3000))
    np.testing.assert_allclose(found, 1, atol=1e-9)


def test_kl() -> None:
    assert kl_of_best_of_n(np.array([1, 2, 4])).tolist() == pytest.approx([0, np.log(2) - 0.5, np.log(4) - 0.75])


@pytest.mark.parametrize(
    ("rewards", "gold", "message"),
    [
        ([1.0], [1.0, 2.0], "must both have shape"),
        ([], [], "must both have shape"),
        ([np.nan], [1.0], "`rewards` must be finite"),
        ([1.0], [np.inf], "`gold` must be finite"),
    ],
)
def test_unusable(rewards: list[float], gold: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        best_of_n_curve(np.array(rewards), np.array(gold))
