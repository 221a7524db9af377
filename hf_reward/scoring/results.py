"""Results of scoring: rewards, rankings and errors."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ScoreResult:
    """Rewards of requests, and the problems of requests without one."""

    rewards: np.ndarray
    """Shape `(R,)`, float32; NaN where there is a problem."""
    problems: dict[int, str] = field(default_factory=dict)
    """Index of a request -> reason why it has no reward."""
    cut: int = 0
    """Number of requests whose prompt was truncated to fit `max_length`."""
    tokens: int = 0
    """Tokens of all requests with a reward, duplicates included."""
    heads: np.ndarray | None = None
    """Rewards of each head if requested, shape `(R, M)`, float32; NaN where there is a problem."""


class ScoringError(ValueError):
    """Some requests have no reward. `rewards` contains those of the others."""

    def __init__(self, message: str, result: ScoreResult) -> None:
        super().__init__(message)
        self.rewards, self.problems = result.rewards, result.problems


@dataclass(frozen=True)
class Ranking:
    """The responses to one prompt, best first."""

    responses: list[Any]
    """The responses in their original order."""
    rewards: np.ndarray
    """Reward of each response in the original order, shape `(N,)`, float32."""
    order: list[int]
    """Indices of the responses, best first; equal rewards keep their order."""

    @property
    def best(self) -> Any:
        """The response with the highest reward."""
        return self.responses[self.order[0]]
