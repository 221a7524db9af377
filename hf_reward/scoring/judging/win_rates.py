"""Win rates of a pairwise judge as log-odds, and the rewards that reproduce them."""

from collections.abc import Sequence

import numpy as np
from scipy import special

from hf_reward.metrics.arrays import FloatArray

SMALLEST_RATE = 0.01
"""Win rates are limited to [0.01, 0.99]: a judge that is certain of a few answers does not outweigh all others."""


def log_odds(probability: float) -> float:
    """Return the log-odds of a win rate, limited to `SMALLEST_RATE`.

    For a Bradley-Terry judge this is the difference of the rewards.

    Args:
        probability: P(the first response is better), the mean of both orders.

    Returns:
        The log-odds, in nats.
    """
    return float(special.logit(np.clip(probability, SMALLEST_RATE, 1 - SMALLEST_RATE)))


def rewards_of_wins(count: int, pairs: Sequence[tuple[int, int]], odds: Sequence[float]) -> FloatArray:
    """Fit rewards to log-odds of win rates by least squares: r[i] - r[j] = odds of i against j.

    With two responses, or one that was compared with each other one, the rewards reproduce every comparison. Responses
    that are not connected by comparisons have unrelated rewards.

    Args:
        count: Number of responses, K.
        pairs: Indices of the compared responses.
        odds: Log-odds of the first of each pair.

    Returns:
        Rewards with a mean of 0, shape `(K,)`, in nats.

    Source:
        Bradley and Terry (1952) with log-odds as observations; the least-squares solution is that of HodgeRank (Jiang,
        Lim, Yao and Ye, 2011, "Statistical ranking and combinatorial Hodge theory").
    """
    design = np.zeros((len(pairs), count))
    for row, (i, j) in enumerate(pairs):
        design[row, i], design[row, j] = 1.0, -1.0
    found = np.linalg.lstsq(design, np.asarray(odds, dtype=np.float64), rcond=None)[0]
    # Rounding must not decide between equal rewards.
    return np.round(found - found.mean(), 9)
