"""Values in clusters -> an estimate, and how far it varies if other clusters are drawn.

Rows of one prompt are not independent, so the spread is that of the jackknife, which leaves out one cluster (prompt) at
a time.

Shapes: M values, C clusters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from hf_reward.metrics.arrays import FloatArray, IntArray

TINY = 1e-12
"""Differences below it are rounding."""


@dataclass(frozen=True)
class Spread:
    """An estimate, and how far it varies if other clusters are drawn."""

    estimate: float
    error: float
    """Jackknife standard error; NaN from one cluster."""
    num_clusters: int
    rows: float
    """Rows that the estimate rests on; where they differ in weight, the equal ones that would weigh as much."""
    even_clusters: float
    """Clusters of equal weight that would weigh as much (Kish): at most `num_clusters`."""

    @property
    def varies(self) -> bool:
        """Whether clusters differ at all."""
        return self.error > TINY * max(1.0, abs(self.estimate))

    def independent_rows(self, variance: float) -> float:
        """Number of independent rows of this variance whose mean would have the same error: rows / design effect."""
        if not self.varies or variance <= 0:
            return self.even_clusters
        return variance / self.error**2 * self.rows / max(1.0, self.rows - 1)

    def score(self, level: float) -> float:
        """Two-sided quantile of the t distribution."""
        return float(special.stdtrit(self.num_clusters - 1, (1 + level) / 2))


def jackknife(estimate: float, left_out: FloatArray, weights: FloatArray, rows: FloatArray) -> Spread:
    """Spread of any function of clusters from its values without one of them each.

    The error is sqrt((C - 1) / C * sum_c (theta_(c) - theta)^2) over the clusters that have a weight.

    Args:
        estimate: The number itself, theta.
        left_out: The number without each cluster, theta_(c), shape `(C,)`.
        weights: Share of each cluster in the number, shape `(C,)`; those with 0 do not count.
        rows: Rows in each cluster, shape `(C,)`.

    Returns:
        The spread; its error is NaN where fewer than two clusters count or the number needs one of them.

    Source:
        Efron and Stein (1981); Cameron and Miller (2015), "A practitioner's guide to cluster-robust inference",
        section VI.B (CR3). Kish (1965), "Survey sampling", section 11.2, for the numbers of equal weight.
    """
    counts = weights > 0
    count = int(counts.sum())
    if count == 0:
        return Spread(estimate, np.nan, 0, 0.0, 0.0)
    weights = weights[counts] / weights[counts].sum()
    error = np.nan
    if count > 1:
        error = float(np.sqrt((count - 1) / count * np.sum((left_out[counts] - estimate) ** 2)))
    size = float(1 / np.sum(weights**2 / rows[counts]))
    return Spread(estimate, error, count, size, float(1 / np.sum(weights**2)))


def mean_spread(values: FloatArray, clusters: IntArray | Sequence[Any]) -> Spread:
    """Spread of the mean of `values`: the jackknife in closed form.

    Args:
        values: One for each row, shape `(M,)`.
        clusters: Cluster of each, shape `(M,)`.

    Returns:
        The spread. With clusters of one size it is the standard error of the mean of cluster means.
    """
    values = np.asarray(values, dtype=np.float64)
    place = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sizes = np.bincount(place).astype(np.float64)
    mean, total = float(values.mean()), float(len(values))
    sums = np.bincount(place, weights=values - mean)
    with np.errstate(invalid="ignore", divide="ignore"):  # from one cluster nothing is left
        left_out = mean - sums / (total - sizes)
    return jackknife(mean, left_out, sizes / total, sizes)


def design_effect(values: FloatArray, clusters: IntArray | Sequence[Any]) -> float:
    """How many times larger the variance of the mean is than it would be with independent rows, 1 at the least.

    Args:
        values: One for each row, shape `(M,)`.
        clusters: Cluster of each, shape `(M,)`.

    Returns:
        The ratio of the clustered to the usual estimate of the variance; 1 where each row is a cluster or values are
        equal, NaN where all are one cluster.

    Source:
        Kish (1965), "Survey sampling", section 8.2.
    """
    spread = mean_spread(values, clusters)
    if np.isnan(spread.error):
        return float("nan")
    usual = float(np.var(values)) / max(1, len(values) - 1)
    return max(1.0, spread.error**2 / usual) if usual > TINY**2 else 1.0
