"""What scoring gives: rewards, rankings, and why some responses have no reward."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ScoreResult:
    """Rewards of some requests, and what was wrong with those that have none."""

    rewards: np.ndarray
    """NaN where there is a problem, shape `(R,)`, float32."""
    problems: dict[int, str] = field(default_factory=dict)
    """Place of a request -> why it has no reward."""
    cut: int = 0
    """Requests whose prompt was cut to fit `max_length`."""
    tokens: int = 0
    """Tokens of all sequences that have a reward, each as often as it was asked for."""
    heads: np.ndarray | None = None
    """Rewards by each head where that was asked for, NaN where there is a problem, shape `(R, M)`, float32."""


class ScoringError(ValueError):
    """Some requests have no reward. What could be scored is in `rewards`, so nothing is lost."""

    def __init__(self, message: str, result: ScoreResult) -> None:
        super().__init__(message)
        self.rewards, self.problems = result.rewards, result.problems


@dataclass(frozen=True)
class Ranking:
    """The responses to one prompt, best first."""

    responses: list[Any]
    """As they were given."""
    rewards: np.ndarray
    """Reward of each response, in the order in which they were given, shape `(N,)`, float32."""
    order: list[int]
    """Places of the responses, best first; equal rewards keep their order."""

    @property
    def best(self) -> Any:
        """The response with the highest reward."""
        return self.responses[self.order[0]]
