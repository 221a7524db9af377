"""The drift test of one series, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_reward.metrics.drift_test import DriftEvidence, drift_evidence, normal_scores


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A series whose drift test has rejected."""

    step: int
    """Step at which the test rejected."""
    since: int
    """Step of the change that explains the values best."""
    direction: int
    """1 if the values rose, -1 if they fell."""


class SeriesTest:
    """Values and test of a series.

    Args:
        threshold: Evidence of a drift, in nats.
        random: Source of the numbers that order equal values.
    """

    def __init__(self, threshold: float, random: np.random.Generator) -> None:
        self._threshold, self._random = threshold, random
        self._units = np.empty(0)
        self._steps: list[int] = []
        self._sums, self._counts = np.empty(0), np.empty(0, dtype=np.int64)
        self.evidence = DriftEvidence(0.0, 0, 0)
        self.drift: Drift | None = None

    def add(self, units: Sequence[float], step: int, *, is_reference: bool) -> None:
        """Add the values of a step.

        Args:
            units: Values with the same distribution, as long as nothing changes; may be empty.
            step: Number of the step.
            is_reference: Whether the step is in the reference window, which is not tested.
        """
        new = np.array(units, dtype=np.float64)
        earlier, self._units = self._units, np.append(self._units, new)
        if is_reference or not len(new):
            return
        scores = normal_scores(new, earlier, self._random.uniform(size=len(new)))
        self._steps.append(step)
        self._sums, self._counts = np.append(self._sums, scores.sum()), np.append(self._counts, len(scores))
        self.evidence = drift_evidence(self._sums, self._counts)
        if self.evidence.log_value >= self._threshold and self.drift is None:
            since = self._steps[self.evidence.start]
            self.drift = Drift(step=step, since=since, direction=self.evidence.direction)
