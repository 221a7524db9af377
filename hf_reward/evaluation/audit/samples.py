"""Interval and test of a mean over clusters: a rate, a difference of rates or an effect.

Shapes: B resamples.
"""

from dataclasses import dataclass, replace

import numpy as np

from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.intervals import Difference, Spread, rate_interval, rate_p_value, t_interval, t_p_value


@dataclass(frozen=True)
class Sample:
    """A mean over clusters with its error."""

    spread: Spread
    draws: FloatArray
    """Means of the resamples, NaN for those without a case, shape `(B,)`; only for effects, which have a unit."""
    n: int
    kind: str = "effect"
    """`rate` (0 to 1), `difference` of rates (-1 to 1) or `effect` (any size); determines the interval."""
    gains: float = 0.0
    """Mean of the values above 0, for a difference."""
    test: Spread | None = None
    """The effect without its unit, from which the p-value is computed; None for `spread`."""

    @property
    def mean(self) -> float:
        """The estimate."""
        return self.spread.estimate

    @property
    def error(self) -> float:
        """The standard error."""
        return self.spread.error

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return self.spread.num_clusters

    @property
    def varies(self) -> bool:
        """Whether the values differ between clusters."""
        return self.spread.varies

    @property
    def difference(self) -> Difference:
        """The estimate as gains minus losses."""
        return Difference(self.spread, self.gains, self.gains - self.mean)


def with_units(sample: Sample, shares: FloatArray) -> Sample:
    """Return an effect in units, with the error of the unit included.

    The error is multiplied by the ratio of the standard deviations of (draw - share) and of the draws, which is 1 for
    an effect of 0. Effects that are equal in all clusters vary only with their unit.

    Args:
        sample: Effects divided by the unit.
        shares: Estimate times the unit of each resample over the unit, shape `(B,)`: the estimate with the unit of that
            resample.

    Returns:
        The sample with its error.

    Source:
        The first-order (delta) variance of a ratio: Cochran (1977), "Sampling techniques", section 6.3.
    """
    usable = np.isfinite(sample.draws) & np.isfinite(shares)
    alone, joint = (float(np.std(each[usable])) for each in (sample.draws, sample.draws - shares))
    count = sample.clusters
    error = joint * float(np.sqrt(count / max(1, count - 1)))
    if sample.varies and alone > 0:
        error = sample.error * joint / alone
    return replace(sample, spread=replace(sample.spread, error=error if count > 1 else np.nan))


def interval(sample: Sample, level: float) -> tuple[float | None, float | None]:
    """Return the interval of a mean by its kind.

    Args:
        sample: The values.
        level: Coverage, such as 0.95.

    Returns:
        Low and high; None for a single cluster.
    """
    if sample.kind == "rate":
        found = rate_interval(sample.spread, level)
    elif sample.kind == "difference":
        found = sample.difference.interval(level)
    else:
        found = t_interval(sample.spread, level)
    low, high = found.bounds or (None, None)
    return low, high


def p_value(sample: Sample, null: float, *, above: bool) -> float | None:
    """Return P(a mean at least this far from `null`) under `null`: the test that matches `interval`.

    Args:
        sample: The values.
        null: The mean under the null hypothesis, 0 except for rates.
        above: Whether to test only against larger means.

    Returns:
        The p-value; None for a single cluster.
    """
    if sample.kind == "rate":
        return rate_p_value(sample.spread, null, above=above)
    if sample.kind == "difference":
        return sample.difference.p_value(above=above)
    return t_p_value(sample.test or sample.spread, null, above=above)
