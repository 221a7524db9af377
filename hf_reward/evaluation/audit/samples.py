"""A mean over clusters -> its interval and its test, by whether it is a rate, a difference of rates or an effect.

Shapes: B resamples.
"""

from dataclasses import dataclass, replace

import numpy as np

from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.intervals import Difference, Spread, rate_interval, rate_p_value, t_interval, t_p_value


@dataclass(frozen=True)
class Sample:
    """A mean over clusters, and how far it varies."""

    spread: Spread
    draws: FloatArray
    """Means of the resamples, NaN for those without a case, shape `(B,)`; of effects, the only ones with a unit."""
    n: int
    kind: str = "effect"
    """`rate` (0 to 1), `difference` of rates (-1 to 1), or `effect` of any size: which interval it has."""
    gains: float = 0.0
    """Mean of the values above 0, for a difference."""
    test: Spread | None = None
    """What its p-value is made from, if not `spread`: the effect without its unit."""

    @property
    def mean(self) -> float:
        """The estimate."""
        return self.spread.estimate

    @property
    def error(self) -> float:
        """Its standard error."""
        return self.spread.error

    @property
    def clusters(self) -> int:
        """How many there are."""
        return self.spread.num_clusters

    @property
    def varies(self) -> bool:
        """Whether the values differ between clusters at all."""
        return self.spread.varies

    @property
    def difference(self) -> Difference:
        """The estimate as gains minus losses."""
        return Difference(self.spread, self.gains, self.gains - self.mean)


def with_units(sample: Sample, shares: FloatArray) -> Sample:
    """An effect in units, with the error that the units themselves add (or take off).

    The error is multiplied by the ratio of the standard deviations of (draw - share) and of the draws, which is 1 for
    an effect of 0. Effects that are equal in all clusters vary with their units only.

    Args:
        sample: Of effects that were divided by the unit.
        shares: Estimate times the unit of each resample over the unit, shape `(B,)`: what the estimate would be if the
            unit were another.

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
    """Interval of a mean, by its kind.

    Args:
        sample: The values.
        level: Such as 0.95.

    Returns:
        Low and high; None from one cluster.
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
    """P(a mean this far from `null` or further) if it were `null`: the test that belongs to `interval`.

    Args:
        sample: The values.
        null: The mean under the null hypothesis: 0 but for rates.
        above: Test against larger means only.

    Returns:
        The p-value; None from one cluster.
    """
    if sample.kind == "rate":
        return rate_p_value(sample.spread, null, above=above)
    if sample.kind == "difference":
        return sample.difference.p_value(above=above)
    return t_p_value(sample.test or sample.spread, null, above=above)
