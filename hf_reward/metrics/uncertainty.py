"""Mean, standard deviation and lower bound of the rewards of several heads, in pure numpy.

Shapes: R responses, M heads.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class UncertainRewards:
    """Rewards of responses from each of several heads."""

    heads: np.ndarray
    """Rewards, NaN for responses without one, shape `(R, M)`, float32."""
    beta: float = 1.0
    """Number of standard deviations that `lower_bound` subtracts."""

    @property
    def mean(self) -> np.ndarray:
        """Mean over heads, shape `(R,)`, float32; equals the reward of the saved model up to rounding."""
        return self.heads.mean(1, dtype=np.float64).astype(np.float32)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation over heads with M - 1 degrees of freedom, in reward units, shape `(R,)`, float32."""
        return self.heads.std(1, ddof=1, dtype=np.float64).astype(np.float32)

    @property
    def lower_bound(self) -> np.ndarray:
        """`mean - beta * std`, shape `(R,)`, float32.

        A policy or best-of-n selection that maximises it prefers responses on which the heads agree.

        Source:
            Coste et al. (2024), "Reward model ensembles help mitigate overoptimization", section 3.2, subtract a
            weighted variance over members. This function subtracts the standard deviation, which has the unit of the
            reward.
        """
        return (self.mean - self.beta * self.std).astype(np.float32)


def check_beta(name: str, beta: float) -> None:
    """Check a number of standard deviations.

    Args:
        name: Name of the setting.
        beta: Its value.

    Raises:
        ValueError: If it is below 0 or not finite.
    """
    if not (np.isfinite(beta) and beta >= 0):
        raise ValueError(
            f"`{name}`, the number of standard deviations below the mean, must be finite and 0 or more, but is "
            f"{beta!r}."
        )
