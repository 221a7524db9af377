"""Compute the results of a benchmark and their variation over prompts.

Shapes: R rows, C clusters, N credits of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hf_reward.evaluation.benchmarks.base import Benchmark, Comparison, Outcome, RowCredits
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.intervals import Difference, Interval, rate_interval, t_interval, t_p_value
from hf_reward.metrics.spread import Spread, jackknife


class Number(NamedTuple):
    """Identifier of a number of an outcome."""

    part: str
    """`overall`, `sections`, `subsets` or `measures`."""
    name: str = ""
    """Name in it; empty for `overall`."""


OVERALL = Number("overall")
_TINY = 1e-9


def mean_credits(rows: Sequence[RowCredits]) -> dict[str, FloatArray]:
    """Return the mean of each credit over the rows that have it, shape `()` each."""
    totals: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            totals.setdefault(name, []).append(value)
    return {name: np.array(np.mean(values)) for name, values in totals.items()}


def outcome_of(
    benchmark: Benchmark, comparisons: Sequence[Comparison], rewards: Sequence[FloatArray], tie: float = 0.0
) -> Outcome:
    """Compute the numbers of a benchmark.

    Args:
        benchmark: The benchmark.
        comparisons: The rows.
        rewards: The rewards of each.
        tie: As in `Benchmark.credit`.

    Returns:
        The numbers, with arrays of shape `()`.
    """
    return benchmark.combine(mean_credits(benchmark.credits(comparisons, rewards, tie)))


@dataclass(frozen=True)
class Outcomes:
    """A benchmark's numbers, the numbers without each cluster, and the share of each cluster."""

    point: Outcome
    left_out: Outcome
    """Arrays of shape `(C,)`."""
    shares: Outcome
    """Arrays of shape `(C,)`: each number if all rows of this cluster had full credit and all other rows none."""
    rows: FloatArray
    """Rows in each cluster, shape `(C,)`."""
    beyond: frozenset[str]
    """Credits that are not rates because some values are below 0 or above 1."""

    def spread(self, number: Number) -> Spread:
        """Return the spread of a number."""
        point = float(_of(self.point, number))
        left_out, shares = (
            np.broadcast_to(_of(each, number), self.rows.shape) for each in (self.left_out, self.shares)
        )
        shares = np.nan_to_num(shares)
        if not (shares > 0).any():  # a number that is not a mean, such as a difference
            shares = np.where(np.abs(left_out - point) > _TINY, 1.0, 0.0)
            shares = shares if shares.any() else np.ones_like(self.rows)
        return jackknife(point, left_out, shares, self.rows)

    def interval(self, number: Number) -> Interval:
        """Return the 95% interval of a number: of a rate, or else of a mean."""
        spread = self.spread(number)
        is_rate = 0 <= spread.estimate <= 1 and number.name not in self.beyond | self.point.differences
        return rate_interval(spread) if is_rate else t_interval(spread)


def leave_out(benchmark: Benchmark, rows: Sequence[RowCredits], clusters: Sequence[str]) -> Outcomes:
    """Compute all numbers with all rows and without the rows of each cluster.

    Args:
        benchmark: The benchmark.
        rows: Credits of each row.
        clusters: Cluster of each row.

    Returns:
        The outcomes, from which spreads and intervals follow.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    column = {name: place for place, name in enumerate(names)}
    labels, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts = np.zeros((2, len(labels), len(names)))
    for cluster, row in zip(place, rows, strict=True):
        for name, value in row.items():
            sums[cluster, column[name]] += value
            counts[cluster, column[name]] += 1
    total = counts.sum(axis=0)
    rest = total - counts
    left_out = np.divide(sums.sum(axis=0) - sums, rest, out=np.full_like(sums, np.nan), where=rest > 0)
    shares = counts / total
    earned = ((name, value) for row in rows for name, value in row.items())
    return Outcomes(
        benchmark.combine(mean_credits(rows)),
        benchmark.combine({name: left_out[:, at] for name, at in column.items()}),
        benchmark.combine({name: shares[:, at] for name, at in column.items()}),
        np.bincount(place).astype(np.float64),
        frozenset(name for name, value in earned if not 0 <= value <= 1),
    )


@dataclass(frozen=True)
class Compared:
    """A number of one run minus that of another run on the same rows."""

    spread: Spread
    paired: Difference | None
    """The difference as gains minus losses, if the number is a weighted mean of credits."""

    @property
    def difference(self) -> float:
        """The estimate."""
        return self.spread.estimate

    @property
    def interval(self) -> Interval:
        """95% interval."""
        return t_interval(self.spread) if self.paired is None else self.paired.interval()

    @property
    def p_value(self) -> float | None:
        """P-value of the null hypothesis of no difference; None for a single cluster."""
        return t_p_value(self.spread) if self.paired is None else self.paired.p_value()


def compared(
    benchmark: Benchmark, a: Sequence[RowCredits], b: Sequence[RowCredits], clusters: Sequence[str]
) -> dict[Number, Compared]:
    """Paired differences of all numbers of two runs, A minus B.

    A number that is a weighted mean of credits gets the interval of a difference of rates: its gains are the number
    computed from A's credits in excess of B's, its losses the reverse. Any other number gets a t-interval.

    Args:
        benchmark: The benchmark.
        a: Credits of each row in the first run.
        b: Credits of the same rows in the second.
        clusters: Cluster of each row.

    Returns:
        Number -> difference with its interval and p-value.
    """
    first, second = leave_out(benchmark, a, clusters), leave_out(benchmark, b, clusters)
    gains, losses = (benchmark.combine(mean_credits(_beyond(one, other))) for one, other in ((a, b), (b, a)))
    found = {}
    for number in numbers_of(first.point):
        one, other = first.spread(number), second.spread(number)
        difference = one.estimate - other.estimate
        left_out = _of(first.left_out, number) - _of(second.left_out, number)
        shares = np.nan_to_num(np.broadcast_to(_of(first.shares, number), first.rows.shape))
        shares = shares if (shares > 0).any() else np.ones_like(first.rows)
        spread = jackknife(difference, np.broadcast_to(left_out, first.rows.shape), shares, first.rows)
        gain, loss = float(_of(gains, number)), float(_of(losses, number))
        is_mean = abs(gain - loss - difference) < _TINY and 0 <= gain <= 1 and 0 <= loss <= 1
        found[number] = Compared(spread, Difference(spread, gain, loss) if is_mean else None)
    return found


def numbers_of(outcome: Outcome) -> Iterator[Number]:
    """Yield the identifiers of all numbers of an outcome."""
    yield OVERALL
    for part in ("sections", "subsets", "measures"):
        for name in getattr(outcome, part):
            yield Number(part, name)


def _of(outcome: Outcome, number: Number) -> FloatArray:
    found: FloatArray | Mapping[str, FloatArray] = getattr(outcome, number.part)
    return found[number.name] if isinstance(found, Mapping) else found


def _beyond(one: Sequence[RowCredits], other: Sequence[RowCredits]) -> list[RowCredits]:
    """Return the credits of each row in excess of those in the other run."""
    return [
        {name: max(0.0, value - second.get(name, 0.0)) for name, value in first.items()}
        for first, second in zip(one, other, strict=True)
    ]
