"""Estimates with clustered standard errors.

Rows of one prompt are not independent, so the standard error comes from the jackknife, which leaves out one cluster
(prompt) at a time.

Shapes: M values, C clusters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from hf_reward.metrics.arrays import FloatArray, IntArray

TINY = 1e-12
"""Differences below this value are rounding errors."""


@dataclass(frozen=True)
class Spread:
    """An estimate with its clustered standard error."""

    estimate: float
    error: float
    """Jackknife standard error; NaN for one cluster."""
    num_clusters: int
    rows: float
    """Number of rows; with unequal weights, the equivalent number of rows of equal weight."""
    even_clusters: float
    """Equivalent number of clusters of equal weight (Kish), at most `num_clusters`."""

    @property
    def varies(self) -> bool:
        """Whether the clusters differ."""
        return self.error > TINY * max(1.0, abs(self.estimate))

    def independent_rows(self, variance: float) -> float:
        """Effective sample size for rows of this variance: number of rows / design effect."""
        if not self.varies or variance <= 0:
            return self.even_clusters
        return variance / self.error**2 * self.rows / max(1.0, self.rows - 1)

    def score(self, level: float) -> float:
        """Two-sided quantile of the t distribution with one degree of freedom fewer than clusters."""
        return float(special.stdtrit(self.num_clusters - 1, (1 + level) / 2))


def jackknife(estimate: float, left_out: FloatArray, weights: FloatArray, rows: FloatArray) -> Spread:
    """Compute the jackknife standard error of any statistic of clusters.

    The error is sqrt((C - 1) / C * sum_c (theta_(c) - theta)^2) over the clusters of nonzero weight.

    Args:
        estimate: The statistic, theta.
        left_out: The statistic without each cluster, theta_(c), shape `(C,)`.
        weights: Share of each cluster in the statistic, shape `(C,)`; clusters of weight 0 are ignored.
        rows: Rows in each cluster, shape `(C,)`.

    Returns:
        The spread; its error is NaN with fewer than two clusters, or if the statistic is undefined without one.

    Source:
        Efron and Stein (1981); Cameron and Miller (2015), "A practitioner's guide to cluster-robust inference",
        section VI.B (CR3). Kish (1965), "Survey sampling", section 11.2, for the equivalent numbers of equal weight.
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
    """Compute the spread of the mean of `values`: the closed-form jackknife.

    Args:
        values: One value per row, shape `(M,)`.
        clusters: Cluster of each row, shape `(M,)`.

    Returns:
        The spread. With clusters of equal size, its error is the standard error of the mean of cluster means.
    """
    values = np.asarray(values, dtype=np.float64)
    place = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sizes = np.bincount(place).astype(np.float64)
    mean, total = float(values.mean()), float(len(values))
    sums = np.bincount(place, weights=values - mean)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 if there is only one cluster
        left_out = mean - sums / (total - sizes)
    return jackknife(mean, left_out, sizes / total, sizes)


def design_effect(values: FloatArray, clusters: IntArray | Sequence[Any]) -> float:
    """Compute the ratio of the clustered variance of the mean to the variance with independent rows, at least 1.

    Args:
        values: One value per row, shape `(M,)`.
        clusters: Cluster of each row, shape `(M,)`.

    Returns:
        The ratio; 1 if every row is its own cluster or all values are equal, NaN with one cluster.

    Source:
        Kish (1965), "Survey sampling", section 8.2.
    """
    spread = mean_spread(values, clusters)
    if np.isnan(spread.error):
        return float("nan")
    usual = float(np.var(values)) / max(1, len(values) - 1)
    return max(1.0, spread.error**2 / usual) if usual > TINY**2 else 1.0
