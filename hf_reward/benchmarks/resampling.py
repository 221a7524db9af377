"""Credits of rows -> their means, and the means of many resamples of whole prompts.

Shapes: R rows, C clusters, N names of credits, B resamples.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import stats

from hf_reward.benchmarks.base import FloatArray, RowCredits

_BATCH_CELLS = 4_000_000
"""Weights that are in memory at once: 32 MB."""


def mean_credits(rows: Sequence[RowCredits]) -> dict[str, FloatArray]:
    """Mean of each credit over the rows that earned it, shape `()` each."""
    totals: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            totals.setdefault(name, []).append(value)
    return {name: np.array(np.mean(values)) for name, values in totals.items()}


def resampled_means(
    rows: Sequence[RowCredits], clusters: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> dict[str, FloatArray]:
    """Means over resamples of whole clusters: the cluster bootstrap.

    Equal `clusters`, `resamples` and `seed` resample the same clusters, whatever the credits: that is what makes a
    difference of two models a paired one.

    Args:
        rows: Credits of each row.
        clusters: Cluster of each row.
        resamples: B.
        seed: Of the draws.

    Returns:
        Name -> means, shape `(B,)`; NaN in a resample that drew no row with that credit.

    Source:
        Davison and Hinkley (1997), "Bootstrap methods and their application", section 3.8, resampling whole clusters.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    column = {name: place for place, name in enumerate(names)}
    labels, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(labels), len(names)))
    counts = np.zeros_like(sums)
    for cluster, row in zip(place, rows, strict=True):
        for name, value in row.items():
            sums[cluster, column[name]] += value
            counts[cluster, column[name]] += 1
    means = np.concatenate([_divide(w @ sums, w @ counts) for w in _weights(len(labels), resamples, seed)])
    return {name: means[:, place] for name, place in column.items()}


def _weights(clusters: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """How often each cluster is drawn in each resample, some resamples at a time, shape `(<= B, C)`."""
    random = np.random.default_rng(seed)
    batch = max(1, _BATCH_CELLS // clusters)
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        drawn = random.integers(0, clusters, size=(size, clusters)) + np.arange(size)[:, None] * clusters
        yield np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters).astype(np.float64)


def _divide(sums: FloatArray, counts: FloatArray) -> FloatArray:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def percentile_interval(values: FloatArray) -> list[float] | None:
    """95% interval of a number from its resampled values.

    Args:
        values: The number in each resample, shape `(B,)`; NaN where it could not be computed.

    Returns:
        Low and high, or None where the resamples do not vary, from which no interval can be had.
    """
    known = values[~np.isnan(values)]
    if known.size == 0 or np.ptp(known) < 1e-12:  # sums in another order differ in the last place
        return None
    return [float(bound) for bound in np.quantile(known, [0.025, 0.975])]


def interval_of_all(values: FloatArray, estimate: float, num_clusters: int) -> list[float] | None:
    """95% interval of a number that rests on all clusters.

    Args:
        values: The number in each resample, shape `(B,)`.
        estimate: The number itself.
        num_clusters: How many clusters there are.

    Returns:
        The percentile interval; where every cluster is right or every one wrong, Wilson's with one trial for each; None
        for a single cluster.
    """
    found = percentile_interval(values)
    if found is not None or num_clusters < 2 or estimate not in (0.0, 1.0):
        return found
    bounds = stats.binomtest(int(estimate) * num_clusters, num_clusters).proportion_ci(method="wilson")
    return [float(bounds.low), float(bounds.high)]
