"""Interface of a benchmark: reads rows, scores their rewards, and computes the numbers of the leaderboard.

Credits are scores of a row, such as 1 for a correct ranking. Every number of a benchmark is a function of mean credits.
Credits are kept by row, because the jackknife for the intervals leaves out one prompt at a time. The function accepts
arrays of means, with one entry for each cluster that is left out.

Shapes: R rows, K responses in a row, C clusters. A mean is a float64 array of shape `()` or `(C,)`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from hf_reward.data.preference_row import Prompt, Response, prompt_hash
from hf_reward.metrics.arrays import FloatArray
from hf_reward.metrics.counts import counted

Means = Mapping[str, FloatArray]
"""Name of a credit -> its mean, or its means without each cluster."""
RowCredits = dict[str, float]
"""Name of a credit -> credit of one row."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One data row: a prompt and its ranked responses."""

    id: str
    prompt: Prompt
    responses: Sequence[Response]
    """In the benchmark's response order, as in `scores.jsonl`."""
    ranks: Sequence[int]
    """0 is best; equal ranks are not compared."""
    subset: str = ""
    cluster: str = ""
    """Rows of one cluster are left out together; by default the prompt's hash."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further fields that the aggregation needs."""
    problem: str = ""
    """Why the row cannot be scored, such as an empty response; empty for others."""
    place: str = field(default="", compare=False)
    """File and line of the row, from 1, where it has one."""

    def __post_init__(self) -> None:
        if not self.cluster:
            object.__setattr__(self, "cluster", prompt_hash(self.prompt))

    def pairs(self) -> list[tuple[int, int]]:
        """Return the indices of every (better, worse) pair."""
        ranks = self.ranks
        return [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]


@dataclass(frozen=True)
class LeftOut:
    """A data row that the benchmark's own rule excludes, such as a tie."""

    id: str


@dataclass(frozen=True)
class HubSource:
    """A dataset of a benchmark on the Hub."""

    repo: str
    split: str
    config: str | None = None
    subset: str | None = None
    """Value of the column `subset` for rows without one."""


@dataclass(frozen=True)
class Outcome:
    """The numbers of one run, or of C subsets of its rows at once."""

    overall: FloatArray
    sections: Mapping[str, FloatArray]
    """Other numbers in the benchmark's own table."""
    subsets: Mapping[str, FloatArray] = field(default_factory=dict)
    """Finer parts."""
    measures: Mapping[str, FloatArray] = field(default_factory=dict)
    """Numbers that are not part of the overall one."""
    differences: frozenset[str] = frozenset()
    """Names of measures that are differences, so their intervals are not those of rates."""


class Benchmark:
    """Base class of a benchmark. Each subclass has its own module in this folder."""

    name: ClassVar[str]
    """Name on the command line."""
    title: ClassVar[str]
    checked: ClassVar[str]
    """Whether the arithmetic was compared with outputs of the original code or implemented from a description only."""
    not_verified: ClassVar[str] = ""
    """Parts that were not compared with the authors' data, code or scores; empty if all were."""
    chance: ClassVar[float | None] = 0.5
    """Overall number of random rewards; None if it depends on the rows."""
    order: ClassVar[str]
    """Order of `rewards` in a line of `scores.jsonl`, and the definition of `id`."""
    hub: ClassVar[tuple[HubSource, ...]] = ()
    extra: ClassVar[tuple[HubSource, ...]] = ()
    """Optional sets that are read only on request."""
    local: ClassVar[str]
    """Description of a local copy, for error messages."""
    patterns: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.json", "*.parquet", "*.csv")
    """File patterns for a folder; the first pattern with a match is used."""
    overall_is: ClassVar[str] = "accuracy as the original code counts it"
    """Definition of the overall number, for tables; several numbers are called accuracy."""
    columns: ClassVar[tuple[str, ...]]
    """Required columns."""
    image: ClassVar[str] = ""
    """Column with the image of a row, which `read` receives as an `ImageSource`; empty for benchmarks of text."""
    counts: ClassVar[Mapping[str, int]] = {}
    """Subset -> rows of the published set; 0 for a required subset of unknown size."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Optional subsets."""

    def gather(self, rows: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield the rows that `read` receives. Benchmarks whose files have a line per response override it.

        Args:
            rows: The rows of a file or split.

        Yields:
            tuple[int, Any]: Number of the row from 0, or of the first of several rows, and the row.
        """
        yield from enumerate(rows)

    def read(self, row: Mapping[str, Any], file: str, place: int) -> Comparison | LeftOut:
        """Convert a data row to a comparison.

        Args:
            row: The row, with all columns of `columns`.
            file: Path of its file below the given folder, without suffix; empty for rows from the Hub.
            place: Row number in that file or split, from 0.

        Returns:
            The comparison, or a `LeftOut` for a row that the benchmark's own rule excludes.

        Raises:
            ValueError: If a field is unusable. The caller adds the row number.
        """
        raise NotImplementedError

    def expected(self, comparisons: Sequence[Comparison]) -> Mapping[str, int]:
        """Return the subsets of the complete benchmark and their numbers of rows (0: unknown).

        Args:
            comparisons: The available rows, for benchmarks in several sizes.

        Returns:
            Subset -> rows.
        """
        return self.counts

    def missing(self, comparisons: Sequence[Comparison]) -> list[str]:
        """Return the missing parts of the benchmark in words; a result without them is partial.

        Args:
            comparisons: The rows.

        Returns:
            Subsets that are missing or whose number of rows differs from the published one.
        """
        there = Counter(each.subset for each in comparisons)
        found = []
        for name, count in self.expected(comparisons).items():
            if not there[name]:
                found.append(name)
            elif count and there[name] != count:
                found.append(f"{name} ({counted(there[name], 'row')}, published {count})")
        return found

    def credit(self, comparison: Comparison, rewards: FloatArray, tie: float) -> RowCredits:
        """Return the credits of one row.

        Args:
            comparison: The row.
            rewards: Its rewards, shape `(K,)`.
            tie: Credit of two equal rewards where the original code gives none: 0 for the original arithmetic, 0.5 for
                half-credit.

        Returns:
            Credits by name.
        """
        raise NotImplementedError

    def credits(self, comparisons: Sequence[Comparison], rewards: Sequence[FloatArray], tie: float) -> list[RowCredits]:
        """Return the credits of every row. Benchmarks that combine rows override it.

        Args:
            comparisons: The rows.
            rewards: The rewards of each.
            tie: As in `credit`.

        Returns:
            Credits of each row.
        """
        return [self.credit(*each, tie) for each in zip(comparisons, rewards, strict=True)]

    def is_right(self, comparison: Comparison, rewards: FloatArray) -> bool:
        """Return whether a row is right in McNemar's test: every better response has the higher reward."""
        return all(rewards[i] > rewards[j] for i, j in comparison.pairs())

    def combine(self, means: Means) -> Outcome:
        """Compute the benchmark's numbers from mean credits.

        Args:
            means: Mean of each credit; credits of a missing subset are absent.

        Returns:
            The numbers. Missing parts are left out, and the overall number covers the available parts.
        """
        raise NotImplementedError

    def notes(self, comparisons: Sequence[Comparison]) -> list[str]:
        """Return notes for readers of the numbers."""
        return []


def pair_credit(better: float, worse: float, tie: float) -> float:
    """Return the credit of a pair: 1 if the better response has the higher reward, `tie` for equal rewards, else 0."""
    return 1.0 if better > worse else tie if better == worse else 0.0


def best_of_credit(rewards: FloatArray, best: int = 0) -> float:
    """Return 1 if only the best response has the highest reward, 1/k if it shares it with k - 1 others, else 0.

    Args:
        rewards: Rewards of the responses, shape `(K,)`.
        best: Index of the best response.

    Returns:
        The probability that a random choice among the highest rewards is the best response.
    """
    top = rewards == rewards.max()
    return float(top[best]) / float(top.sum())


def average(parts: Iterable[FloatArray]) -> FloatArray:
    """Return the unweighted mean of several means, NaN for none."""
    found = list(parts)
    return np.mean(np.stack(found), axis=0) if found else np.array(np.nan)


def present(means: Means, names: Iterable[str]) -> dict[str, FloatArray]:
    """Return the available means of some names."""
    return {name: means[name] for name in names if name in means}
