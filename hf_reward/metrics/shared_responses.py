"""Pairs that share responses -> the spread of their mean if other responses were drawn.

Pairs that hold the same response are not independent. An interval that takes whole prompts as clusters allows for that
and speaks of other prompts; the spread here speaks of other responses to the same prompts.

Shapes: P pairs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.spread import Spread


def response_spread(
    values: FloatArray, first: Sequence[Any], second: Sequence[Any], weights: FloatArray | None = None
) -> Spread:
    """Spread of the weighted mean of pairs when responses are resampled: the node bootstrap in closed form.

    With c_p = w_p (v_p - mean), w summing to 1, and S_i the sum of c over the pairs that hold response i, the variance
    is N (N - 1) / (N - 2)^2 * sum_i S_i^2 - sum_p c_p^2: a bootstrap that weights a pair by how often both of its
    responses are drawn counts each pair's own variance once for either response, of which one is taken off. The factor
    makes the first part unbiased where all pairs of N responses are there and each response adds its own effect: S_i is
    then 2 (N - 2) / (N (N - 1)) times the effect's distance from the mean of all. The variance is never below
    sum_p c_p^2, that of independent pairs.

    Args:
        values: One for each pair, shape `(P,)`.
        first: What tells the first response of each pair from others, shape `(P,)`.
        second: The same of the second response.
        weights: Weight of each pair, shape `(P,)`; equal ones if left out.

    Returns:
        The spread, with responses as clusters; its error is NaN from two responses.

    Source:
        Snijders and Borgatti (1999), "Non-parametric standard errors and tests for network statistics", for the node
        bootstrap; Aronow, Samii and Assenova (2015), "Cluster-robust variance estimation for dyadic data".
    """
    values = np.asarray(values, dtype=np.float64)
    given = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    share = given / given.sum()
    mean = float(share @ values)
    names = {name: number for number, name in enumerate(dict.fromkeys([*first, *second]))}
    places = [np.array([names[name] for name in side]) for side in (first, second)]
    parts = share * (values - mean)
    sums, shares = (sum(np.bincount(place, each, len(names)) for place in places) for each in (parts, share / 2))
    own, count = float(np.sum(parts**2)), len(names)
    between = count * (count - 1) / max(1, count - 2) ** 2 * float(np.sum(np.square(sums)))
    rows = float(1 / np.sum(share**2))
    error = float(np.sqrt(max(between - own, own))) if count > 2 else np.nan
    return Spread(mean, error, count, rows, float(1 / np.sum(np.square(shares))))
