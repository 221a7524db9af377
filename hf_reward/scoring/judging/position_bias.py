"""Position bias of a judge: whether the response that is shown first wins too often."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.intervals import clustered_interval, mean_difference


@dataclass(frozen=True, kw_only=True)
class PositionBias:
    """Preference of a judge for a position, over pairs that were judged in both orders."""

    estimate: float
    """Mean P(the response shown first is better) minus 1/2, over both orders; 0 without bias, at most 1/2."""
    low: float | None
    """95% interval, clustered by prompt; None for a single prompt."""
    high: float | None
    flips: float
    """Share of the pairs whose preferred response depends on the order."""
    flips_low: float | None
    flips_high: float | None
    pairs: int
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON values."""
        return asdict(self)


def measure_position_bias(one: FloatArray, other: FloatArray, clusters: Sequence[Any]) -> PositionBias:
    """Measure the position bias.

    With both orders of each pair, the quality of the responses cancels: an unbiased judge has the shares p and 1 - p.

    Args:
        one: P(the response shown first is better) in one order of each pair, shape `(N,)`.
        other: The same in the other order, shape `(N,)`.
        clusters: Prompt of each pair, N.

    Returns:
        The bias, its interval and the rate of decisions that depend on the order.

    Source:
        Wang et al. (2023), "Large language models are not fair evaluators" (arXiv 2305.17926), for judging in both
        orders; the interval is that of a mean difference of rates (`mean_difference`).
    """
    excess = position_excess(one, other)
    flips = order_flips(one, other)
    # An excess is half of a difference of two shares, (one + other - 1) / 2.
    bounds = mean_difference(2 * excess, clusters).interval().bounds
    rate = clustered_interval(flips, clusters)
    low, high = (None, None) if bounds is None else (bounds[0] / 2, bounds[1] / 2)
    flips_low, flips_high = rate.bounds or (None, None)
    return PositionBias(
        estimate=float(excess.mean()),
        low=low,
        high=high,
        flips=float(flips.mean()),
        flips_low=flips_low,
        flips_high=flips_high,
        pairs=len(excess),
        prompts=rate.num_clusters,
    )


def position_excess(one: FloatArray, other: FloatArray) -> FloatArray:
    """Return the mean P(the response shown first is better) of both orders minus 1/2 for each pair, shape `(N,)`."""
    return (np.asarray(one, dtype=np.float64) + np.asarray(other, dtype=np.float64)) / 2 - 0.5


def order_flips(one: FloatArray, other: FloatArray) -> FloatArray:
    """Return 1 for each pair whose preferred response depends on the order, else 0, shape `(N,)`.

    Args:
        one: P(the response shown first is better) in one order of each pair, shape `(N,)`.
        other: The same in the other order, shape `(N,)`.

    Returns:
        Flips. A judgement of exactly 1/2 in one order prefers no response, so it is not a flip.
    """
    sides = np.sign(np.asarray(one) - 0.5) * np.sign(np.asarray(other) - 0.5)
    return (sides > 0).astype(np.float64)
