"""What a benchmark is: row -> comparison, rewards -> credits, mean credits -> the numbers that its leaderboard shows.

Credits are kept by row, so that an interval can leave out prompts: every number of every benchmark here is a function
of means of credits, and that function takes whole arrays of means, one entry for each cluster that is left out.

Shapes: R rows, K responses in a row, C clusters. A mean is a float64 array of shape `()` or `(C,)`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from hf_reward.data.preference_row import Prompt, Response, prompt_hash
from hf_reward.metrics.arrays import FloatArray

Means = Mapping[str, FloatArray]
"""Name of a credit -> its mean, or its means without each cluster."""
RowCredits = dict[str, float]
"""Name of a credit -> what one row earned."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One data row: a prompt, and responses of which it is known which are better."""

    id: str
    prompt: Prompt
    responses: Sequence[Response]
    """In the benchmark's response order, which `scores.jsonl` keeps."""
    ranks: Sequence[int]
    """0 is best; equal ranks are not compared."""
    subset: str = ""
    cluster: str = ""
    """Rows of one cluster are resampled together: by default the prompt's hash."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else of the row the aggregation needs."""
    problem: str = ""
    """Why it cannot be scored, such as an empty response; empty if it can."""
    place: str = field(default="", compare=False)
    """File and line of the row, from 1, where it has one."""

    def __post_init__(self) -> None:
        if not self.cluster:
            object.__setattr__(self, "cluster", prompt_hash(self.prompt))

    def pairs(self) -> list[tuple[int, int]]:
        """Places of every (better, worse) pair."""
        ranks = self.ranks
        return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


@dataclass(frozen=True)
class LeftOut:
    """A data row that the benchmark does not compare by its own rule, such as a tie."""

    id: str


@dataclass(frozen=True)
class HubSource:
    """Where a benchmark's rows are on the Hub."""

    repo: str
    split: str
    config: str | None = None
    subset: str | None = None
    """Put into the column `subset` of rows that come without their subset's name."""


@dataclass(frozen=True)
class Outcome:
    """The numbers of one run, or of C subsets of its rows at once."""

    overall: FloatArray
    sections: Mapping[str, FloatArray]
    """What the benchmark's own table shows beside the overall number."""
    subsets: Mapping[str, FloatArray] = field(default_factory=dict)
    """Finer parts."""
    measures: Mapping[str, FloatArray] = field(default_factory=dict)
    """Other numbers that are not parts of the overall one."""


class Benchmark:
    """One benchmark. A subclass is a file of this folder."""

    name: ClassVar[str]
    """On the command line."""
    title: ClassVar[str]
    checked: ClassVar[str]
    """Whether the arithmetic was compared with the original code's outputs, or built from its description alone."""
    chance: ClassVar[float | None] = 0.5
    """What rewards at random score overall; None where that depends on the rows."""
    order: ClassVar[str]
    """Order of `rewards` in a line of `scores.jsonl`, and what `id` is."""
    hub: ClassVar[tuple[HubSource, ...]] = ()
    extra: ClassVar[tuple[HubSource, ...]] = ()
    """Sets that the benchmark does not require and that are read only when asked for."""
    local: ClassVar[str]
    """What a local copy looks like, for the error that asks for one."""
    patterns: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.json", "*.parquet", "*.csv")
    """Which files of a folder are read: the first pattern that any file matches."""
    overall_is: ClassVar[str] = "accuracy as the original code counts it"
    """What the overall number is the mean of, for tables: several numbers are called accuracy."""
    columns: ClassVar[tuple[str, ...]]
    """Columns without which no row can be read."""
    counts: ClassVar[Mapping[str, int]] = {}
    """Subset -> rows that the published set has; with 0 the subset is required and its size is not known."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Subsets that may be there and need not."""

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison | LeftOut:
        """See one data row as a comparison.

        Args:
            row: The row; the columns in `columns` are there.
            file: Path of its file below the given folder, without suffix; empty for rows from the Hub.
            place: Its number in that file or split, from 0.

        Returns:
            The comparison, or a row that the benchmark leaves out by its own rule.

        Raises:
            ValueError: If a field is unusable; the message needs no row number.
        """
        raise NotImplementedError

    def expected(self, comparisons: Sequence[Comparison]) -> Mapping[str, int]:
        """Subsets that the whole benchmark has, and their numbers of rows (0: not known).

        Args:
            comparisons: The rows at hand, for benchmarks that come in several sizes.

        Returns:
            Subset -> rows.
        """
        return self.counts

    def missing(self, comparisons: Sequence[Comparison]) -> list[str]:
        """What of the whole benchmark the rows lack, in words; a result over them is then partial.

        Args:
            comparisons: The rows.

        Returns:
            Subsets that are missing, or have another number of rows than the published ones.
        """
        there = Counter(each.subset for each in comparisons)
        found = []
        for name, count in self.expected(comparisons).items():
            if not there[name]:
                found.append(name)
            elif count and there[name] != count:
                found.append(f"{name} ({there[name]} rows, published {count})")
        return found

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """What one row earns.

        Args:
            comparison: The row.
            rewards: Its rewards, shape `(K,)`.
            tie: Credit of two equal rewards where the original code gives none: 0 for the value as the original code
                counts it, 0.5 for half-credit.

        Returns:
            Credits by name.
        """
        raise NotImplementedError

    def credits(self, comparisons: Sequence[Comparison], rewards: Sequence[FloatArray], tie: float) -> list[RowCredits]:
        """What every row earns. Benchmarks that join rows override it.

        Args:
            comparisons: The rows.
            rewards: The rewards of each.
            tie: As in `credit`.

        Returns:
            Credits of each row.
        """
        return [self.credit(*each, tie) for each in zip(comparisons, rewards, strict=True)]

    def is_right(self, comparison: Comparison, rewards: FloatArray) -> bool:
        """Whether a row counts as right in McNemar's test: every better response has the higher reward."""
        return all(rewards[i] > rewards[j] for i, j in comparison.pairs())

    def combine(self, means: Means) -> Outcome:
        """Make the benchmark's numbers of mean credits.

        Args:
            means: Mean of each credit that any row earned; the names of a missing subset are missing.

        Returns:
            The numbers. Parts that are missing altogether are left out, and the overall number is over what is there.
        """
        raise NotImplementedError

    def notes(self, comparisons: Sequence[Comparison]) -> list[str]:
        """What a reader of the numbers has to know beside them."""
        return []


def pair_credit(better: float, worse: float, tie: float) -> float:
    """Credit of one pair: 1 if the better response has the higher reward, `tie` if both are equal, else 0."""
    return 1.0 if better > worse else tie if better == worse else 0.0


def best_of_credit(rewards: FloatArray, best: int = 0) -> float:
    """1 if the best response alone has the highest reward, 1/k if it shares it with k - 1 others, else 0.

    Args:
        rewards: Rewards of the responses, shape `(K,)`.
        best: Place of the best response.

    Returns:
        The chance that a pick at random among the highest rewards is the best response.
    """
    top = rewards == rewards.max()
    return float(top[best]) / float(top.sum())


def average(parts: Iterable[FloatArray]) -> FloatArray:
    """Unweighted mean of several means; NaN of none."""
    found = list(parts)
    return np.mean(np.stack(found), axis=0) if found else np.array(np.nan)


def present(means: Means, names: Iterable[str]) -> dict[str, FloatArray]:
    """The means of those names that are there."""
    return {name: means[name] for name in names if name in means}
