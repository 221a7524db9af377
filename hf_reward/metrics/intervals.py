"""Clustered 95% intervals and p-values: the source of every interval that the package reports.

Each method uses the jackknife over clusters (`spread`) and the t distribution with one degree of freedom fewer than
there are clusters. Rates and differences of rates are bounded, so their intervals are Wilson intervals at the effective
sample size. `recipes/studies/coverage.py` measures the coverage of each interval.

Shapes: M values, C clusters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, special

from hf_reward.metrics.arrays import FloatArray, IntArray
from hf_reward.metrics.spread import TINY, Spread, mean_spread

FEW_CLUSTERS = 20
"""Fewer prompts than this are too few to trust an interval (Cameron, Gelbach and Miller, 2008)."""
_LARGEST_SCORE = 1e3


@dataclass(frozen=True)
class Interval:
    """A 95% interval with its number of prompts."""

    low: float
    high: float
    num_clusters: int
    method: str
    """`clustered-wilson` for rates, `clustered-newcombe` for differences of rates, `clustered-t` for other numbers, or
    `none` if there are too few prompts for an interval (the bounds are then NaN)."""

    @property
    def too_few_clusters(self) -> bool:
        """Whether there are fewer than 20 prompts."""
        return self.num_clusters < FEW_CLUSTERS

    @property
    def bounds(self) -> list[float] | None:
        """Lower and upper bound, None if there is no interval."""
        return None if np.isnan(self.low) else [self.low, self.high]


# --- a mean of any size ----------------------------------------------------------------------------------------------


def t_interval(spread: Spread, level: float = 0.95) -> Interval:
    """Return the interval estimate -/+ t * standard error, for unbounded numbers.

    Args:
        spread: The estimate with its standard error.
        level: Confidence level.

    Returns:
        The interval.
    """
    if np.isnan(spread.error):
        return _none(spread)
    reach = spread.score(level) * spread.error
    return Interval(spread.estimate - reach, spread.estimate + reach, spread.num_clusters, "clustered-t")


def t_p_value(spread: Spread, null: float = 0.0, *, above: bool = False) -> float | None:
    """Return the p-value of the t test that the true value is `null`.

    Args:
        spread: The estimate with its standard error.
        null: Value under the null hypothesis.
        above: One-sided test against larger values.

    Returns:
        The p-value, from the sign test if all clusters are equal; None with one cluster.
    """
    if np.isnan(spread.error):
        return None
    distance = spread.estimate - null
    if spread.varies:
        return _tail(distance / spread.error, spread.num_clusters, above)
    if abs(distance) < TINY or (above and distance < 0):
        return 1.0
    return 0.5 ** (spread.num_clusters - (0 if above else 1))


# --- a rate ----------------------------------------------------------------------------------------------------------


def rate_interval(spread: Spread, level: float = 0.95) -> Interval:
    """Return Wilson's interval of a rate, at the effective sample size and with a t quantile.

    If all clusters have the same rate r, each counts as one row. A share of up to u of all clusters may then have a
    different rate, where u is Wilson's upper bound of 0, so the interval is [r (1 - u), r + (1 - r) u]. For r = 0 and
    r = 1 this is Wilson's interval.

    Args:
        spread: A rate in [0, 1] with its standard error.
        level: Confidence level.

    Returns:
        The interval, within [0, 1].

    Source:
        Wilson (1927); Franco, Little, Louis and Slud (2019), "Comparative study of confidence intervals for proportions
        in complex sample surveys", section 2.
    """
    if np.isnan(spread.error):
        return _none(spread)
    rate = float(np.clip(spread.estimate, 0, 1))
    size = spread.independent_rows(rate * (1 - rate))
    if spread.varies:
        low, high = _wilson(rate, size, spread.score(level))
    else:
        unseen = _wilson(0.0, size, spread.score(level))[1]
        low, high = rate * (1 - unseen), rate + (1 - rate) * unseen
    return Interval(min(low, rate), max(high, rate), spread.num_clusters, "clustered-wilson")


def rate_p_value(spread: Spread, null: float, *, above: bool = False) -> float | None:
    """Return the p-value of the test that the true rate is `null`, which `rate_interval` inverts.

    Args:
        spread: A rate in [0, 1] with its standard error.
        null: Rate under the null hypothesis, in (0, 1).
        above: One-sided test against larger rates.

    Returns:
        The p-value; None with one cluster.
    """
    if np.isnan(spread.error):
        return None
    rate = float(np.clip(spread.estimate, 0, 1))
    size = spread.independent_rows(rate * (1 - rate))
    if spread.varies:
        score = (rate - null) / np.sqrt(null * (1 - null) / size)
    else:
        distance = rate - null
        score = np.sign(distance) * np.sqrt(size * abs(distance) / (null if distance > 0 else 1 - null))
    return _tail(float(score), spread.num_clusters, above)


def clustered_interval(credits: FloatArray, clusters: IntArray | Sequence[Any], level: float = 0.95) -> Interval:
    """Return the interval of a mean of credits, clustered by prompt.

    Args:
        credits: Credit of each pair in [0, 1], shape `(M,)`.
        clusters: Prompt of each pair, shape `(M,)`.
        level: Confidence level.

    Returns:
        The interval of `rate_interval`.
    """
    return rate_interval(mean_spread(credits, clusters), level)


def cross_validated_interval(credits: FloatArray, clusters: IntArray | Sequence[Any], folds: int) -> Interval:
    """Return the 95% interval of a cross-validated rate, where each row is predicted by a model of the other folds.

    The models share most of their training rows, so their errors are correlated. This increases the variance by the
    factor `1 + K / (K - 1)`.

    Args:
        credits: Credit of each row in [0, 1], shape `(M,)`.
        clusters: Prompt of each row, shape `(M,)`.
        folds: Number of folds, K.

    Returns:
        The interval of `rate_interval` with the larger variance.

    Source:
        Nadeau and Bengio (2003), "Inference for the generalization error", the corrected resampled variance
        `(1 / J + n_test / n_train) s^2`, with `n_test / n_train = 1 / (K - 1)` as Bouckaert and Frank (2004) apply it
        to cross-validation.
    """
    spread = mean_spread(credits, clusters)
    return rate_interval(replace(spread, error=spread.error * np.sqrt(1 + folds / (folds - 1))))


def _wilson(rate: float, size: float, score: float) -> tuple[float, float]:
    middle = rate + score**2 / (2 * size)
    reach = score * np.sqrt(rate * (1 - rate) / size + score**2 / (4 * size**2))
    scale = 1 + score**2 / size
    return max(0.0, float(middle - reach) / scale), min(1.0, float(middle + reach) / scale)


# --- a difference of two rates of the same rows ----------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Mean paired difference of two rates on the same rows."""

    spread: Spread
    gains: float
    """Mean of the positive parts of the differences, in [0, 1]."""
    losses: float
    """Mean of the negative parts, in [0, 1]; the estimate is gains minus losses."""

    @property
    def size(self) -> float:
        """Effective sample size: the number of independent rows with the same standard error."""
        change = self.spread.estimate
        return self.spread.independent_rows(self.gains + self.losses - change**2)

    def interval(self, level: float = 0.95) -> Interval:
        """Return Newcombe's interval of the difference of two shares of the same rows.

        The shares of gains and losses have Wilson intervals, at the effective sample size and with a t quantile. The
        interval combines the squared distances to their bounds with the correlation of the shares,
        -sqrt(odds1 odds2), because gains and losses exclude each other. It has a positive width even if no row differs.

        Args:
            level: Confidence level.

        Returns:
            The interval, within [-1, 1].

        Source:
            Newcombe (1998), "Interval estimation for the difference between independent proportions", method 10; Zou
            and Donner (2008), equation 6 (MOVER), for correlated estimates.
        """
        if np.isnan(self.spread.error):
            return _none(self.spread)
        low, high = self._bounds(self.spread.score(level))
        return Interval(low, high, self.spread.num_clusters, "clustered-newcombe")

    def p_value(self, *, above: bool = False) -> float | None:
        """Return the p-value of the test that the difference is 0: 1 minus the lowest level whose interval contains 0.

        Args:
            above: One-sided test against differences above 0.

        Returns:
            The p-value; None with one cluster.
        """
        if np.isnan(self.spread.error):
            return None
        sign = float(np.sign(self.spread.estimate))
        side = 0 if sign > 0 else 1

        def bound_near_zero(score: float) -> float:
            return sign * self._bounds(score)[side]

        score = 0.0
        if sign and bound_near_zero(_LARGEST_SCORE) > 0:
            score = _LARGEST_SCORE
        elif sign and bound_near_zero(TINY) > 0:
            score = float(optimize.brentq(bound_near_zero, TINY, _LARGEST_SCORE))  # pyright: ignore[reportArgumentType]
        return _tail(sign * score, self.spread.num_clusters, above)

    def _bounds(self, score: float) -> tuple[float, float]:
        gains, losses = (float(np.clip(each, 0, 1)) for each in (self.gains, self.losses))
        size, change = self.size, self.spread.estimate
        (low_gain, high_gain), (low_loss, high_loss) = (_wilson(each, size, score) for each in (gains, losses))
        shares = (1 - gains) * (1 - losses)
        tie = float(np.sqrt(gains * losses / shares)) if shares > 0 else 0.0  # minus the correlation
        below, above = (gains - low_gain, high_loss - losses), (high_gain - gains, losses - low_loss)
        low, high = (
            float(np.sqrt(max(0.0, one**2 + other**2 + 2 * tie * one * other))) for one, other in (below, above)
        )
        return max(-1.0, change - low), min(1.0, change + high)


def mean_difference(values: FloatArray, clusters: IntArray | Sequence[Any]) -> Difference:
    """Return the mean of paired differences of credits.

    Args:
        values: Differences in [-1, 1], shape `(M,)`.
        clusters: Cluster of each value, shape `(M,)`.

    Returns:
        The difference, with methods for its interval and p-value.
    """
    values = np.asarray(values, dtype=np.float64)
    gains, losses = float(np.maximum(values, 0).mean()), float(np.maximum(-values, 0).mean())
    return Difference(mean_spread(values, clusters), gains, losses)


# --- a sum of squares ------------------------------------------------------------------------------------------------


def squares_interval(means: FloatArray, parts: FloatArray, level: float = 0.95) -> Interval:
    """Return the interval of the sum of squares of the true values of correlated means.

    The observed sum is a quadratic form of correlated normal means, approximately `scale` times a noncentral
    chi-square. For a true sum t, scale and degrees of freedom match the mean, tr(V) + t, and the variance,
    2 tr(V^2) + 4 t v. V is the covariance of the means and v is its value in their observed direction. The bounds are
    the values of t at which the observed sum is a quantile. V is estimated from clusters, so F replaces chi-square.

    Args:
        means: Observed values, shape `(B,)`.
        parts: Deviation of each cluster's contribution to each mean, shape `(C, B)`; the sum over clusters is 0.
        level: Confidence level.

    Returns:
        The interval; its lower bound is 0 if means of 0 are not excluded.

    Source:
        Satterthwaite (1946) for matching two moments; Steiger and Fouladi (1997), "Noncentrality interval estimation",
        for bounds by inverting the distribution.
    """
    count = len(parts)
    if count < 2:
        return Interval(np.nan, np.nan, count, "none")
    covariance = parts.T @ parts * count / (count - 1)
    trace, square = float(np.trace(covariance)), float(np.sum(covariance**2))
    found = float(means @ means)
    if trace <= TINY**2:  # only rounding error
        return Interval(found, found, count, "noncentral-f")
    along = float(means @ covariance @ means) / found if found > 0 else square / trace
    variances = np.sum(parts**2, axis=1)
    noise = float(np.sum((variances - variances.mean()) ** 2))
    others = max(count - 1.0, 2 * variances.sum() ** 2 / noise - 1) if noise > 0 else 1e6

    def cumulative(true: float) -> float:
        scale = (square + 2 * true * along) / (trace + 2 * true)
        freedom = trace / scale
        if true <= 0:
            return float(special.fdtr(freedom, others, found / trace))
        return float(special.ncfdtr(freedom, others, true / scale, found / trace))

    low, high = (_solve_decreasing(cumulative, (1 + side * level) / 2, found) for side in (1, -1))
    return Interval(low, high, count, "noncentral-f")


def _solve_decreasing(function: Callable[[float], float], target: float, start: float) -> float:
    """Solve function(x) = target for x >= 0 and a decreasing function; 0 if function(0) is already below."""
    if function(0.0) <= target:
        return 0.0
    high = max(TINY, start)
    while function(high) > target:
        high *= 2
    return float(optimize.brentq(lambda value: function(value) - target, 0.0, high, xtol=1e-9 * high))  # pyright: ignore[reportArgumentType]


def _tail(score: float, num_clusters: int, above: bool) -> float:
    tail = float(special.stdtr(num_clusters - 1, -(score if above else abs(score))))
    return tail if above else min(1.0, 2 * tail)


def _none(spread: Spread) -> Interval:
    return Interval(np.nan, np.nan, spread.num_clusters, "none")
