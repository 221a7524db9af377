"""Standard error of a mean over pairs that share responses, under resampling of the responses.

Pairs with a response in common are not independent. Clustering by prompt accounts for this and generalises to new
prompts. The standard error of this module generalises to new responses to the same prompts.

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
    """Compute the spread of the weighted mean of pairs when responses are resampled: the closed-form node bootstrap.

    With c_p = w_p (v_p - mean), weights w that sum to 1, and S_i the sum of c over the pairs with response i, the
    variance is N (N - 1) / (N - 2)^2 * sum_i S_i^2 - sum_p c_p^2. The bootstrap weights a pair by how often both of its
    responses are drawn. It counts each pair's own variance once per response, so one of the two is subtracted. The
    factor makes the first term unbiased if all pairs of N responses are present and response effects are additive: S_i
    is then 2 (N - 2) / (N (N - 1)) times the effect's distance from the mean. The variance is at least sum_p c_p^2, the
    variance of independent pairs.

    Args:
        values: One value per pair, shape `(P,)`.
        first: Identifier of the first response of each pair, shape `(P,)`.
        second: Identifier of the second response of each pair, shape `(P,)`.
        weights: Weight of each pair, shape `(P,)`; equal by default.

    Returns:
        The spread, with responses as clusters; its error is NaN with two responses.

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
