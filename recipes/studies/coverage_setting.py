"""Shared parts of the simulations of `coverage.py`: prompts, their rows, and counts over runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import special

CLUSTERS = (6, 12, 20, 50, 100)
KINDS = ("1 row", "8 independent rows", "8 rows of varying ability", "8 copies")
ONE_ROW = KINDS[:1]
NO_COPIES = KINDS[:3]
_WITHIN = 0.3
"""Share of the variance within a prompt that is common to its rows, for rows of varying ability."""


@dataclass
class Tally:
    """Counts over the runs of one number in one setting."""

    held: list[bool] = field(default_factory=list)
    """Whether the interval covers the truth."""
    alarms: list[bool] = field(default_factory=list)
    """Whether a true null hypothesis is rejected, by a verdict or by p <= .05."""
    withheld: int = 0
    """Number of runs without an interval or with too few prompts."""
    around: list[tuple[float, float, float]] = field(default_factory=list)
    """Bounds and estimates whose truth is the mean of the estimates."""
    ratios: list[tuple[float, float]] = field(default_factory=list)
    """Numbers whose means should be equal."""

    def add(self, bounds: Sequence[float | None] | None, truth: float) -> None:
        """Count an interval."""
        low, high = bounds if bounds is not None else (None, None)
        if low is None or high is None or np.isnan(low):
            self.withheld += 1
            return
        self.held.append(bool(low <= truth + 1e-12 and truth - 1e-12 <= high))

    def settle(self) -> None:
        """Count the intervals whose truth is the mean over all runs."""
        found, self.around = self.around, []
        truth = float(np.mean([estimate for _, _, estimate in found])) if found else 0.0
        for low, high, _ in found:
            self.add((low, high), truth)


@dataclass(frozen=True)
class Setting:
    """Number of prompts, and dependence of the rows of a prompt."""

    clusters: int
    kind: str

    @property
    def size(self) -> int:
        """Rows per prompt."""
        return 1 if self.kind == "1 row" else 8

    @property
    def labels(self) -> np.ndarray:
        """Prompt of each row."""
        return np.repeat(np.arange(self.clusters), self.size)

    @property
    def names(self) -> list[str]:
        """Prompt of each row as text."""
        return list(map(str, self.labels))

    def uniform(self, random: np.random.Generator) -> np.ndarray:
        """Return numbers in (0, 1), one per row, with the dependence of the kind."""
        return special.ndtr(self.normal(random))

    def normal(self, random: np.random.Generator) -> np.ndarray:
        """Return standard normal numbers with the dependence of the kind."""
        count = self.clusters
        if self.kind == "8 copies":
            return np.repeat(random.normal(size=count), 8)
        own = random.normal(size=count * self.size)
        if self.kind == "8 rows of varying ability":
            own = np.sqrt(_WITHIN) * np.repeat(random.normal(size=count), 8) + np.sqrt(1 - _WITHIN) * own
        return own


@dataclass(frozen=True)
class Number:
    """The simulation of a number that the package reports."""

    simulate: Callable[[Setting, np.random.Generator, Tally], None]
    kinds: tuple[str, ...] = KINDS


def gaps_of(setting: Setting, random: np.random.Generator, slope: float) -> np.ndarray:
    """Return reward differences whose log-odds are `slope` times the difference."""
    size = 1.5 * np.abs(setting.normal(random))
    return np.where(setting.uniform(random) < special.expit(slope * size), size, -size)


def differences(setting: Setting, random: np.random.Generator, change: float, differ: float) -> np.ndarray:
    """Return paired differences 1, -1 or 0 with mean `change` and a share `differ` of non-zero values."""
    place = setting.uniform(random)
    return (place < (differ + change) / 2) * 1.0 - (place > 1 - (differ - change) / 2) * 1.0
